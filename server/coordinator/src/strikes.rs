//! Clients that keep places for training without going on: less is held for them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use lethe_proto::ids::SubjectId;

/// Longest time between a forward and its backward while others wait for a place; half of it for
/// each time that this client's was taken away, down to a second. A slow phone needs several
/// seconds between the two.
const TAPE_GRACE: Duration = Duration::from_secs(15);

/// After so long nothing is held against a client any more.
const FORGIVEN: Duration = Duration::from_secs(600);

/// Whose places were taken away because no backward came, how often, and when last.
#[derive(Debug, Default)]
pub(crate) struct Strikes(HashMap<SubjectId, (u32, Instant)>);

impl Strikes {
    pub(crate) fn of(&self, subject: &SubjectId) -> u32 {
        let recent = self
            .0
            .get(subject)
            .filter(|(_, at)| at.elapsed() < FORGIVEN);
        recent.map_or(0, |(n, _)| *n)
    }

    pub(crate) fn add(&mut self, subject: &SubjectId) {
        let n = self.of(subject) + 1;
        self.0.insert(subject.clone(), (n, Instant::now()));
    }

    /// A backward came in time.
    pub(crate) fn less(&mut self, subject: &SubjectId) {
        let n = self.of(subject).saturating_sub(1);
        if n == 0 {
            self.0.remove(subject);
        } else {
            self.0.insert(subject.clone(), (n, Instant::now()));
        }
    }

    pub(crate) fn forgive(&mut self) {
        self.0.retain(|_, (_, at)| at.elapsed() < FORGIVEN);
    }

    /// How long a client may keep a place while others wait.
    pub(crate) fn grace(&self, subject: &SubjectId) -> Duration {
        let halved = TAPE_GRACE / 2u32.pow(self.of(subject).min(8));
        halved.max(Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_places_without_going_on_keeps_them_shorter() {
        let subject = SubjectId::new("a").expect("an id");
        let mut strikes = Strikes::default();
        assert_eq!(strikes.grace(&subject), TAPE_GRACE);
        strikes.add(&subject);
        assert_eq!(strikes.grace(&subject), TAPE_GRACE / 2);
        (0..20).for_each(|_| strikes.add(&subject));
        assert_eq!(strikes.grace(&subject), Duration::from_secs(1));
        (0..21).for_each(|_| strikes.less(&subject));
        assert_eq!((strikes.of(&subject), strikes.0.len()), (0, 0));
    }
}
