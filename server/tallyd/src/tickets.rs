//! Tickets: each makes one envelope of one handle good, once, for some minutes. They are in memory
//! only: a restart ends them all.

use std::collections::HashMap;

use lethe_seal::SealError;
use lethe_tally::Handle;

/// Tickets that a handle may have at a time; the oldest makes way.
pub(crate) const EACH: usize = 4;
/// Seconds for which a ticket is good.
pub(crate) const LIFE_S: u64 = 600;

struct Ticket {
    secret: [u8; 32],
    /// When it was drawn, in seconds since 1970.
    drawn: u64,
}

impl Ticket {
    fn is_good(&self, now: u64) -> bool {
        // A clock that was set back makes it no younger.
        now.abs_diff(self.drawn) < LIFE_S
    }
}

/// All tickets that are good.
pub(crate) struct Tickets {
    of: HashMap<Handle, Vec<Ticket>>,
    /// Handles that may have tickets at a time.
    most: usize,
    /// When old ones were removed last.
    swept: u64,
}

impl Tickets {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            of: HashMap::new(),
            most,
            swept: 0,
        }
    }

    /// Draws one for each of these. None: as many handles have tickets as may.
    ///
    /// # Errors
    /// [`SealError`]: no randomness.
    pub(crate) fn draw(
        &mut self,
        handles: &[Handle],
        now: u64,
    ) -> Result<Option<Vec<[u8; 32]>>, SealError> {
        self.sweep(now);
        let mut new: Vec<&Handle> = handles
            .iter()
            .filter(|h| !self.of.contains_key(*h))
            .collect();
        new.sort_unstable();
        new.dedup();
        if self.of.len() + new.len() > self.most {
            return Ok(None);
        }
        let mut out = vec![];
        for handle in handles {
            let secret = lethe_seal::random()?;
            let own = self.of.entry(*handle).or_default();
            if own.len() >= EACH {
                own.remove(0);
            }
            own.push(Ticket { secret, drawn: now });
            out.push(secret);
        }
        Ok(Some(out))
    }

    /// Removes old ones, at most once in a second: somebody asks for tickets as fast as they can.
    fn sweep(&mut self, now: u64) {
        if self.swept == now {
            return;
        }
        self.swept = now;
        self.of.retain(|_, own| {
            own.retain(|t| t.is_good(now));
            !own.is_empty()
        });
    }

    /// Uses a ticket up. Returns when it was drawn; none: it is no ticket of this handle, or not
    /// any more.
    pub(crate) fn spend(&mut self, handle: &Handle, secret: &[u8; 32], now: u64) -> Option<u64> {
        let own = self.of.get_mut(handle)?;
        let at = own.iter().position(|t| t.secret == *secret)?;
        let ticket = own.remove(at);
        if own.is_empty() {
            self.of.remove(handle);
        }
        ticket.is_good(now).then_some(ticket.drawn)
    }

    /// This handle has no ticket any more.
    pub(crate) fn drop_all(&mut self, handle: &Handle) {
        self.of.remove(handle);
    }

    /// This handle has no ticket any more that was drawn then or earlier.
    pub(crate) fn drop_until(&mut self, handle: &Handle, before: u64) {
        if let Some(own) = self.of.get_mut(handle) {
            own.retain(|t| t.drawn > before);
            if own.is_empty() {
                self.of.remove(handle);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(tickets: &mut Tickets, who: u8, now: u64) -> [u8; 32] {
        let drawn = tickets.draw(&[Handle([who; 16])], now).expect("random");
        drawn.expect("there is room")[0]
    }

    #[test]
    fn a_ticket_is_good_once_for_its_handle_for_some_minutes() {
        let mut all = Tickets::new(2);
        let (a, b) = (Handle([1; 16]), Handle([2; 16]));
        let one = draw(&mut all, 1, 1_000);
        assert!(all.spend(&b, &one, 1_000).is_none());
        assert!(all.spend(&a, &one, 1_599).is_some());
        assert!(all.spend(&a, &one, 1_599).is_none(), "it is used");
        let old = draw(&mut all, 1, 1_000);
        assert!(all.spend(&a, &old, 1_600).is_none());
        let back = draw(&mut all, 1, 1_000);
        assert!(
            all.spend(&a, &back, 399).is_none(),
            "the clock was set back"
        );
    }

    #[test]
    fn handles_and_their_tickets_are_bounded() {
        let mut all = Tickets::new(2);
        let first = draw(&mut all, 1, 1_000);
        let rest: Vec<[u8; 32]> = (0..EACH).map(|_| draw(&mut all, 1, 1_000)).collect();
        let a = Handle([1; 16]);
        assert!(all.spend(&a, &first, 1_000).is_none(), "it made way");
        assert!(rest.iter().all(|t| all.spend(&a, t, 1_000).is_some()));
        let two = [Handle([1; 16]), Handle([2; 16])];
        let twice = [two[0], two[0], two[1]];
        assert!(all.draw(&twice, 1_000).expect("random").is_some());
        let third = [Handle([3; 16])];
        assert_eq!(all.draw(&third, 1_001).expect("random"), None);
        assert!(
            all.draw(&third, 1_600).expect("random").is_some(),
            "others are old"
        );
    }

    #[test]
    fn who_leaves_has_no_ticket() {
        let mut all = Tickets::new(2);
        let a = Handle([1; 16]);
        let one = draw(&mut all, 1, 1_000);
        all.drop_all(&a);
        assert!(all.spend(&a, &one, 1_000).is_none());
        let old = draw(&mut all, 1, 1_000);
        let new = draw(&mut all, 1, 1_001);
        all.drop_until(&a, 1_000);
        assert!(all.spend(&a, &old, 1_001).is_none());
        assert!(all.spend(&a, &new, 1_001).is_some());
    }
}
