//! Who may stay when there are too many: bounds on connections, by who they belong to.
//!
//! A newcomer is let in. When its group (an address, a certificate) is full, or all groups together
//! are, the oldest idle connection of those goes; if none is idle, the oldest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What counts as one address: a whole IPv4 address, the network part (64 bits) of an IPv6 one,
/// since whoever has one IPv6 address has the others of its network too.
pub fn network_of(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[derive(Debug)]
struct Member<K, T> {
    group: K,
    content: T,
    busy: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct State<K, T> {
    /// By the order of their coming.
    members: BTreeMap<u64, Member<K, T>>,
    /// Who is in which group: thousands of groups of one are usual.
    groups: BTreeMap<K, BTreeSet<u64>>,
    last: u64,
}

impl<K: Ord + Copy, T> State<K, T> {
    fn in_group(&self, group: K) -> usize {
        self.groups.get(&group).map_or(0, BTreeSet::len)
    }

    fn remove(&mut self, number: u64) -> Option<T> {
        let member = self.members.remove(&number)?;
        if let Some(group) = self.groups.get_mut(&member.group) {
            group.remove(&number);
            if group.is_empty() {
                self.groups.remove(&member.group);
            }
        }
        Some(member.content)
    }

    /// The oldest idle one of these, else the oldest.
    fn oldest(&self, mut numbers: impl Iterator<Item = u64> + Clone) -> Option<u64> {
        let idle = |n: &u64| {
            let member = self.members.get(n);
            member.is_some_and(|m| m.busy.load(Ordering::Relaxed) == 0)
        };
        let first = numbers.clone().next();
        numbers.find(idle).or(first)
    }
}

/// Members by group, at most so many in each and in all.
#[derive(Debug)]
pub struct Crowd<K, T> {
    state: Mutex<State<K, T>>,
    per_group: usize,
    in_all: usize,
}

/// A place in a crowd; it is given back when dropped.
#[derive(Debug)]
pub struct Place<K: Ord + Copy, T> {
    crowd: Arc<Crowd<K, T>>,
    number: u64,
    busy: Arc<AtomicUsize>,
}

/// While it lives, the member is not idle.
#[derive(Debug)]
pub struct Busy(Arc<AtomicUsize>);

impl<K: Ord + Copy, T> Crowd<K, T> {
    /// Nobody yet; at most so many in a group and in all.
    pub fn new(per_group: usize, in_all: usize) -> Self {
        let state = State {
            members: BTreeMap::new(),
            groups: BTreeMap::new(),
            last: 0,
        };
        Self {
            state: Mutex::new(state),
            per_group,
            in_all,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K, T>> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a newcomer in; returns who has to go for it.
    pub fn enter(self: &Arc<Self>, group: K, content: T) -> (Place<K, T>, Option<T>) {
        let mut state = self.lock();
        let oldest = if state.in_group(group) >= self.per_group {
            let group = state.groups.get(&group).into_iter().flatten().copied();
            state.oldest(group)
        } else if state.members.len() >= self.in_all {
            state.oldest(state.members.keys().copied())
        } else {
            None
        };
        let gone = oldest.and_then(|n| state.remove(n));
        state.last += 1;
        let number = state.last;
        let busy = Arc::new(AtomicUsize::new(0));
        let member = Member {
            group,
            content,
            busy: busy.clone(),
        };
        state.members.insert(number, member);
        state.groups.entry(group).or_default().insert(number);
        let place = Place {
            crowd: self.clone(),
            number,
            busy,
        };
        (place, gone)
    }

    /// Lets a newcomer in only if there is room.
    pub fn enter_if_room(self: &Arc<Self>, group: K, content: T) -> Option<Place<K, T>> {
        let state = self.lock();
        if state.in_group(group) >= self.per_group || state.members.len() >= self.in_all {
            return None;
        }
        drop(state);
        Some(self.enter(group, content).0)
    }

    /// Takes everybody of a group out.
    pub fn remove_group(&self, group: K) -> Vec<T> {
        let mut state = self.lock();
        let numbers = state.groups.get(&group).cloned().unwrap_or_default();
        numbers.iter().filter_map(|n| state.remove(*n)).collect()
    }

    /// Takes everybody out.
    pub fn remove_all(&self) -> Vec<T> {
        let mut state = self.lock();
        state.groups.clear();
        let members = std::mem::take(&mut state.members);
        members.into_values().map(|m| m.content).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().members.len()
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether somebody of this group is there.
    pub fn has(&self, group: K) -> bool {
        self.lock().in_group(group) > 0
    }
}

impl<K: Ord + Copy, T> Place<K, T> {
    /// Gives the place back now.
    pub fn leave(&self) {
        self.crowd.lock().remove(self.number);
    }

    /// The member works on something.
    pub fn busy(&self) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.busy.clone())
    }
}

impl<K: Ord + Copy, T> Drop for Place<K, T> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_idle_connection_of_a_full_group_goes_first() {
        let crowd = Arc::new(Crowd::new(3, 5));
        let (first, _) = crowd.enter("a", 1);
        let (_second, _) = crowd.enter("a", 2);
        let (_third, gone) = crowd.enter("a", 3);
        assert_eq!(gone, None);
        let work = first.busy();
        let (_fourth, gone) = crowd.enter("a", 4);
        assert_eq!(gone, Some(2), "the first is at work");
        drop(work);
        let (_fifth, gone) = crowd.enter("a", 5);
        assert_eq!(gone, Some(1));
        assert_eq!(crowd.len(), 3, "one group never takes more than its share");
        let (_other, gone) = crowd.enter("b", 6);
        assert_eq!((gone, crowd.len()), (None, 4));
        let (_other, _) = crowd.enter("c", 7);
        let (_more, gone) = crowd.enter("d", 8);
        assert_eq!((gone, crowd.len()), (Some(3), 5), "all groups together");
        assert!(crowd.enter_if_room("e", 9).is_none());
        drop(first);
        assert_eq!(crowd.len(), 5, "its place was taken already");
        assert_eq!(crowd.remove_group("a"), [4, 5]);
        assert!(!crowd.has("a") && crowd.has("b"));
    }

    #[test]
    fn addresses_of_one_network_are_one() {
        let net = |text: &str| network_of(text.parse().expect("an address"));
        assert_eq!(net("2001:db8::1"), net("2001:db8::2:3:4:5"));
        assert_ne!(net("2001:db8::1"), net("2001:db8:0:1::1"));
        assert_eq!(net("::ffff:192.0.2.1"), net("192.0.2.1"));
        assert_ne!(net("192.0.2.1"), net("192.0.2.2"));
    }
}
