//! Epochs that follow one another.

use lethe_ledger::*;
use lethe_proto::ids::Digest;

use super::{Ev, QUIET, World, digest, initial};

impl World {
    pub(super) fn found(&mut self, asked: Option<AskedBy>) -> Result<Vec<Event>, Refused> {
        let found = Command::FoundEpoch {
            terms: self.terms.clone(),
            recipe: "{}".into(),
            recipe_digest: digest(&["recipe"]),
            model: digest(&["model"]),
            initial: Digest::of_values(&initial()),
            catalogue: CatalogueVersion(1),
            base: None,
            asked,
        };
        self.run(found, vec![])
    }

    pub(super) fn asked(&mut self) -> AskedBy {
        AskedBy {
            by: self.operator(0),
            fresh: self.fresh(),
        }
    }

    /// An operator asks for the next epoch, until one is served that it can follow.
    pub(super) fn next_epoch(&mut self) {
        if self.up {
            let asked = Some(self.asked());
            let started = self.found(asked);
            self.count.two_epochs += u64::from(started.is_ok());
            if started.is_ok() {
                return;
            }
        }
        if self.now < QUIET {
            self.at(self.now + 2000, Ev::Epoch);
        }
    }
}
