//! Hidden states that wait for a pass: so many bytes of all people together, and a part of them of
//! one person.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lethe_proto::ids::SubjectId;

/// One person has at most this part of it, unless they have nothing in it yet.
const PART: usize = 8;

#[derive(Debug, Default)]
struct Held {
    all: usize,
    of: HashMap<SubjectId, usize>,
}

/// What waits, and the bound on it.
#[derive(Debug)]
pub(crate) struct Waiting {
    held: Arc<Mutex<Held>>,
    most: usize,
}

/// Bytes that wait; dropping it takes them out.
#[derive(Debug)]
pub(crate) struct Waits {
    held: Arc<Mutex<Held>>,
    who: SubjectId,
    bytes: usize,
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    // Counts only: they are as good after a panic.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    /// At most `most` bytes together.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            held: Arc::default(),
            most,
        }
    }

    /// Room for `bytes` of somebody; none: there is no more, or they have their part.
    pub(crate) fn hold(&self, who: &SubjectId, bytes: usize) -> Option<Waits> {
        let mut held = lock(&self.held);
        let own = held.of.get(who).copied().unwrap_or(0);
        let too_much = own > 0 && own.saturating_add(bytes) > self.most / PART;
        if too_much || held.all.saturating_add(bytes) > self.most {
            return None;
        }
        held.all += bytes;
        held.of.insert(who.clone(), own + bytes);
        Some(Waits {
            held: self.held.clone(),
            who: who.clone(),
            bytes,
        })
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        held.all -= self.bytes;
        let left = held.of.get_mut(&self.who).map(|own| {
            *own -= self.bytes;
            *own
        });
        if left == Some(0) {
            held.of.remove(&self.who);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_person_leaves_room_for_others_and_all_together_have_a_bound() {
        let waiting = Waiting::new(80);
        let [one, other, third] = ["a", "b", "c"].map(|id| SubjectId::new(id).expect("an id"));
        let first = waiting.hold(&one, 6).expect("there is room");
        assert!(waiting.hold(&one, 5).is_none(), "11 of 10");
        let second = waiting.hold(&one, 4).expect("10 of 10");
        let large = waiting.hold(&other, 60).expect("the first of somebody");
        assert!(waiting.hold(&other, 1).is_none(), "more than a part");
        assert!(waiting.hold(&third, 11).is_none(), "81 of 80");
        drop(large);
        assert!(waiting.hold(&third, 11).is_some(), "there is room again");
        drop(first);
        drop(second);
        assert!(lock(&waiting.held).of.is_empty(), "nobody is remembered");
        assert_eq!(lock(&waiting.held).all, 0);
    }
}
