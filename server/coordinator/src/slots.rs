//! Things that are taken out of their place while somebody works on them, and may be replaced
//! meanwhile.

use std::collections::HashMap;
use std::hash::Hash;

/// A place; empty while its content is taken.
#[derive(Debug)]
struct Slot<T> {
    number: u64,
    content: Option<T>,
}

/// What was taken, and the place that it may return to.
#[derive(Debug)]
pub(crate) struct Taken<T> {
    number: u64,
    pub(crate) content: T,
}

/// Places by key.
#[derive(Debug)]
pub(crate) struct Slots<K, T> {
    opened: u64,
    slots: HashMap<K, Slot<T>>,
}

impl<K, T> Default for Slots<K, T> {
    fn default() -> Self {
        Self {
            opened: 0,
            slots: HashMap::new(),
        }
    }
}

impl<K: Hash + Eq + Clone, T> Slots<K, T> {
    /// Puts something new in a place, whatever was there.
    pub(crate) fn open(&mut self, key: K, content: T) {
        self.opened += 1;
        self.slots.insert(
            key,
            Slot {
                number: self.opened,
                content: Some(content),
            },
        );
    }

    /// Takes the content out; `None` when there is none or somebody has it.
    pub(crate) fn take(&mut self, key: &K) -> Option<Taken<T>> {
        let slot = self.slots.get_mut(key)?;
        Some(Taken {
            number: slot.number,
            content: slot.content.take()?,
        })
    }

    /// Puts it back; false when its place was closed or opened anew meanwhile (the content is
    /// dropped).
    pub(crate) fn put_back(&mut self, key: &K, taken: Taken<T>) -> bool {
        match self.slots.get_mut(key).filter(|s| s.number == taken.number) {
            Some(slot) => {
                slot.content = Some(taken.content);
                true
            }
            None => false,
        }
    }

    /// Whether somebody has the content of a place.
    pub(crate) fn is_taken(&self, key: &K) -> bool {
        self.slots.get(key).is_some_and(|s| s.content.is_none())
    }

    /// Contents that nobody has.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut T)> {
        self.slots
            .iter_mut()
            .filter_map(|(k, s)| Some((k, s.content.as_mut()?)))
    }

    /// Closes a place.
    pub(crate) fn close(&mut self, key: &K) {
        self.slots.remove(key);
    }

    /// Closes the places that `keep` refuses; content that is taken is passed as `None`.
    pub(crate) fn retain(&mut self, keep: impl Fn(&K, Option<&T>) -> bool) {
        self.slots.retain(|k, s| keep(k, s.content.as_ref()));
    }

    /// All places.
    pub(crate) fn keys(&self) -> Vec<K> {
        self.slots.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_replaced_or_closed_meanwhile_does_not_come_back() {
        let mut s = Slots::default();
        s.open("a", 1);
        let old = s.take(&"a").expect("there");
        assert!(s.take(&"a").is_none() && s.is_taken(&"a"), "taken");
        s.open("a", 2);
        assert!(!s.put_back(&"a", old));
        let fresh = s.take(&"a").expect("the fresh one");
        assert_eq!(fresh.content, 2);
        s.close(&"a");
        assert!(!s.put_back(&"a", fresh) && s.keys().is_empty());
        s.open("b", 3);
        let b = s.take(&"b").expect("there");
        s.retain(|_, content| content.is_none());
        assert!(s.put_back(&"b", b));
    }
}
