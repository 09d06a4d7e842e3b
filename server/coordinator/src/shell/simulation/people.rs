//! Restrictions that are lifted. What happens here is drawn from dice of its own: the seeds of
//! everything else stay what they are.

use lethe_learn::seed::Seed;
use lethe_ledger::{Command, State};
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::Refusal;

use super::super::fresh;
use super::begin::operator;
use super::world::{Event, QUIET, Simulation};

/// Everything that has restricted this person is lifted.
pub(super) fn is_readmitted(state: &State, subject: &SubjectId) -> bool {
    let all = state.deletions().iter();
    let own = all.filter(|(_, d)| match &d.request {
        DeletionRequest::Restrict { subject: whose } => whose == subject,
        _ => false,
    });
    let mut own = own.map(|(id, _)| state.lifted_at(*id).is_some()).peekable();
    own.peek().is_some() && own.all(|lifted| lifted)
}

impl Simulation {
    pub(super) fn draw_lifts(&mut self, seed: u64) {
        let mut dice = Seed::from_u64(seed).derive("lifts", &[]).rng();
        for _ in 0..dice.below(4) {
            let when = 2000 + dice.below(QUIET as usize - 3000) as u64;
            self.at(when, Event::Lift);
        }
    }

    /// An operator lifts the first restriction that there is.
    pub(super) fn lift(&mut self) {
        let Some(shell) = self.shell.clone() else {
            return self.at(self.now + 500, Event::Lift);
        };
        let open = shell.state().restriction_list(0).into_iter();
        let subject = open
            .filter(|r| r.lifted.is_none())
            .map(|r| r.subject)
            .next();
        let again = (self.now + 5000).min(QUIET - 1);
        let Some(subject) = subject else {
            if again > self.now {
                self.at(again, Event::Lift);
            }
            return;
        };
        let command = Command::Propose {
            what: Proposal::LiftRestriction(subject.clone()),
            confirmed: true,
            note: None,
            by: operator(0),
            secret: Digest::default(),
            plans: vec![],
            fresh: fresh().unwrap(),
        };
        let result = shell.execute(command, vec![]);
        self.note(match &result {
            Ok(_) => format!("{} lifts the restriction of {subject}", self.now),
            Err(e) => format!("{} lifts the restriction of {subject}: {e}", self.now),
        });
        match result {
            Ok(_) if self.approvals > 1 => self.at(self.now + 2000, Event::Approve),
            Ok(_) => self.count.one("lifted"),
            Err(e) if !e.is_request() || matches!(e.code(), Refusal::Busy | Refusal::Internal) => {
                if again > self.now {
                    self.at(again, Event::Lift);
                }
            }
            Err(_) => {}
        }
    }
}
