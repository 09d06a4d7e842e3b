//! What keeps the sums of the lists, as the ledger sees it: who is in them, what is served.

use std::collections::BTreeSet;

use lethe_ledger::*;
use lethe_proto::ids::SubjectId;
use lethe_receipt::served::{SERVED_VERSION, SnapshotNamed, public_entry};
use lethe_receipt::statement::Kind;

use super::{Ev, World, digest};

/// Who contributes, and the snapshot that is served. It lies outside the data folder and is as
/// durable.
#[derive(Default)]
pub(crate) struct Lists {
    /// With the time of each contribution.
    people: BTreeSet<SubjectId>,
    /// In the newest snapshot.
    shown: BTreeSet<SubjectId>,
    newest: u64,
    served: bool,
}

impl World {
    /// Half of all worlds have lists.
    pub(super) fn has_lists(&self) -> bool {
        self.seed.is_multiple_of(2)
    }

    /// A device contributes, if the ledger lets it.
    pub(super) fn contribute(&mut self, device: usize) {
        if !self.has_lists() {
            return;
        }
        let certificate = self.devices[device].certificate;
        let Ok(subject) = self.state.may_contribute(&certificate) else {
            return;
        };
        assert!(
            !self.forgotten.contains(&subject),
            "{}: a deleted person contributes",
            self.tell()
        );
        self.lists.people.insert(subject);
    }

    /// The keeper publishes, if nothing waits for its execution.
    pub(super) fn publish_lists(&mut self) {
        if !self.has_lists() || self.state.holds_serving() {
            return;
        }
        self.lists.newest += 1;
        self.lists.served = true;
        self.lists.shown = self.lists.people.clone();
        let snapshot = self.snapshot();
        self.log_snapshot(&snapshot);
        let delay = self.dice.below(400) as u64;
        self.at(
            self.now + delay,
            Ev::Job(Command::ListsPublished { snapshot }, vec![]),
        );
    }

    /// Before a device is given it. The write may fail: then it is given to nobody until a start.
    fn log_snapshot(&mut self, snapshot: &SnapshotRef) {
        let statement = SnapshotNamed {
            version: SERVED_VERSION,
            number: snapshot.number,
            sha256: snapshot.digest.hex(),
            key: "key".into(),
        };
        let bytes = statement.bytes();
        let (index, head) = self.enter(public_entry(Kind::Snapshot, &bytes));
        let part = LoggedPart {
            number: snapshot.number,
            statement: String::from_utf8(bytes).unwrap(),
            index,
        };
        let command = Command::SnapshotLogged {
            part: part.clone(),
            head,
        };
        if self.run(command, vec![]).is_ok() {
            let logged = self.state.logged().snapshot.as_ref();
            assert_eq!(logged, Some(&part), "{}", self.tell());
        }
    }

    fn snapshot(&self) -> SnapshotRef {
        let number = self.lists.newest;
        SnapshotRef {
            number,
            digest: digest(&["snapshot", &number.to_string()]),
            bytes: 1000,
            people: self.lists.shown.len() as u64,
        }
    }

    fn concerned(&self, deletion: &Deletion) -> Vec<SubjectId> {
        let people = self.lists.people.iter().cloned();
        match deletion.request.subject() {
            Some(s) => people.filter(|p| p == s).collect(),
            None => vec![],
        }
    }

    /// What is there of the deletions that are to be executed.
    pub(super) fn lists_left(&self) -> Option<Vec<(u64, ListsLeft)>> {
        if !self.has_lists() {
            return None;
        }
        let mut out = vec![];
        for (id, d) in self.state.to_execute() {
            let who = self.concerned(d);
            let takedown = d.request.subject().is_none();
            let in_it = takedown || who.iter().any(|s| self.lists.shown.contains(s));
            let recalled = self.lists.served && in_it;
            let left = ListsLeft {
                held: takedown || !who.is_empty(),
                recalled: recalled.then(|| self.snapshot()),
                devices: 5,
                held_until: 9,
            };
            out.push((id, left));
        }
        Some(out)
    }

    /// Before keys are destroyed: the people of these deletions leave, and what shows them is not
    /// served any more.
    pub(super) fn leave_lists(&mut self) {
        let mut gone = BTreeSet::new();
        let mut recalled = false;
        for (_, d) in self.state.to_execute() {
            gone.extend(self.concerned(d));
            recalled |= d.request.subject().is_none();
        }
        recalled |= gone.iter().any(|s| self.lists.shown.contains(s));
        self.lists.people.retain(|s| !gone.contains(s));
        self.lists.served &= !recalled;
    }

    /// What is exact shows nobody who was deleted; what is done is whole.
    pub(crate) fn lists_are_exact(&self) {
        // What gathers is not carried out yet.
        if !self.has_lists() || !self.state.to_execute().is_empty() {
            return;
        }
        if self.lists.served {
            let shown = self.lists.shown.intersection(&self.forgotten).next();
            assert_eq!(shown, None, "{}: a deleted person is listed", self.tell());
        }
        for (id, d) in self.state.deletions() {
            let whole = self.state.lists_of(*id).is_none_or(ListsRecord::is_whole);
            let done = d.phase == lethe_proto::admin::DeletionPhase::Done;
            assert!(
                whole || !done,
                "{}: deletion {id} is done and lists are out",
                self.tell()
            );
        }
    }

    /// What a start says again: the snapshot that is served, if one is.
    pub(super) fn say_lists(&mut self) {
        if self.lists.served {
            let snapshot = self.snapshot();
            self.log_snapshot(&snapshot);
            let _ = self.run(Command::ListsPublished { snapshot }, vec![]);
        }
    }
}
