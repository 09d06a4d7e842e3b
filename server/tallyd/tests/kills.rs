//! A kill at every write: what was acknowledged is there, what was destroyed is not, the same
//! requests again lead to the end, and no two published folds tell on anybody.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::{Asked, Disk, NOW, log_of};
use lethe_proto::tally::{Confided, TallyRefusal, TallyReply, TallyRequest};
use lethe_tally::cells::{Fold, Left, lint};
use lethe_tallyd::Service;
use rayon::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// So many people from this one on, with so many events each.
    Come(u8, u8, usize),
    Work,
    Leave(u8, u8),
    TakeDown(u32),
    Rotate,
    Vouch(u8),
}

const SCRIPT: [Op; 14] = [
    Op::Come(0, 20, 5),
    Op::Work,
    Op::Come(0, 20, 8),
    Op::Work,
    Op::Leave(0, 3),
    Op::Work,
    Op::Vouch(0),
    Op::Rotate,
    Op::Leave(3, 1),
    Op::TakeDown(4),
    Op::Work,
    Op::Come(30, 12, 6),
    Op::Leave(4, 12),
    Op::Work,
];

struct Run {
    disk: Disk,
    service: Option<Service>,
    now: u64,
    people: BTreeSet<u8>,
    gone: BTreeSet<u8>,
    published: Vec<Fold>,
    failures: u32,
}

/// What fails.
#[derive(Clone, Copy)]
struct Fault {
    /// After so many writes.
    after: u32,
    /// The one that fails is there all the same.
    written: bool,
}

impl Run {
    fn new() -> Self {
        let mut disk = Disk::new();
        disk.lists.publish_s = 0;
        Self {
            service: Some(disk.open(NOW)),
            disk,
            now: NOW,
            people: BTreeSet::new(),
            gone: BTreeSet::new(),
            published: vec![],
            failures: 0,
        }
    }

    fn service(&self) -> &Service {
        self.service.as_ref().unwrap()
    }

    /// Until it succeeds.
    fn execute(&mut self, op: Op) {
        self.now += 200;
        let cells = self.service().tally().status(self.now).unwrap().cells;
        while !self.attempt(op) {
            self.failures += 1;
            assert!(self.failures < 3, "{op:?}");
            self.service = None;
            // Opening writes, too: it may be killed as well.
            self.service = self.disk.try_open(self.now).ok();
            if self.service.is_none() {
                self.service = Some(self.disk.open(self.now));
            }
        }
        match op {
            Op::Come(first, count, _) => self.people.extend(first..first + count),
            Op::Leave(first, count) => {
                self.people.retain(|w| !(first..first + count).contains(w));
                self.gone.extend(first..first + count);
            }
            _ => {}
        }
        self.check(op, cells);
    }

    /// Whether it is done.
    fn attempt(&mut self, op: Op) -> bool {
        let now = self.now;
        let service = self.service();
        let reply = match op {
            Op::Come(first, count, events) => {
                let all = first..first + count;
                let sent = all.map(|who| service.sealed(who, events, now));
                let sent: Vec<_> = sent.collect();
                let answers = service.bring(&sent.iter().collect::<Vec<_>>(), now);
                let said = sent.iter().zip(&answers).map(|s| common::read(s.0, s.1));
                let said: Vec<Confided> = said.collect();
                assert!(said.iter().all(|s| *s == said[0]), "all of a write or none");
                return match &said[0] {
                    Confided::Taken => true,
                    Confided::Busy => false,
                    other => panic!("{other:?}"),
                };
            }
            Op::Work => service.answer(TallyRequest::Work, now),
            Op::Leave(first, count) => {
                service.leave(&(first..first + count).collect::<Vec<_>>(), now)
            }
            Op::TakeDown(item) => service.answer(TallyRequest::TakeDown { items: vec![item] }, now),
            Op::Rotate => return service.rotate(now).is_ok(),
            Op::Vouch(who) => return service.vouch(&[who], now).is_ok(),
        };
        match reply {
            TallyReply::Refused { code, .. } => {
                assert_eq!(code, TallyRefusal::Internal, "{op:?}");
                false
            }
            _ => true,
        }
    }

    fn check(&mut self, op: Op, cells: usize) {
        let service = self.service.as_ref().unwrap();
        let tally = service.tally();
        let status = tally.status(self.now).unwrap();
        assert_eq!(status.people, self.people.len(), "{op:?}");
        let state = service.state();
        match op {
            Op::Work => {
                let refolded = tally.refold(self.now).unwrap().unwrap();
                assert_ne!(refolded.memory, Some(false));
                assert_ne!(refolded.folder, Some(false));
                assert_eq!(refolded.stated, Some(true));
                let number = state.served.unwrap().number;
                let fold = tally.fold(self.now).unwrap();
                let before = self.published.last().map_or(0, |f| f.number);
                assert!(number >= before, "numbers only grow");
                // Who leaves while they wait changes no snapshot.
                if number > before {
                    self.published.push(Fold { number, ..fold });
                }
                assert!(service.tables().is_some());
            }
            Op::Leave(first, count) => {
                let who: Vec<u8> = (first..first + count).collect();
                let vouched = service.vouch(&who, self.now);
                // A statement is written, too: it may be what is killed.
                if let Ok(vouched) = vouched {
                    assert!(vouched.handles.iter().all(|h| h.since.is_none()));
                }
                // In this script all cells have been published when somebody leaves.
                assert!(state.served.is_none() || status.cells == cells, "{op:?}");
            }
            Op::TakeDown(_) => assert_eq!(state.served, None),
            _ => {}
        }
    }

    fn finish(mut self) -> u32 {
        self.service = None;
        let gone: Vec<u8> = self.gone.iter().copied().collect();
        assert_eq!(self.disk.keys_of(&gone), 0, "keys of those who left");
        let here: Vec<u8> = self.people.iter().copied().collect();
        assert_eq!(self.disk.keys_of(&here), here.len());
        let settings = self.disk.lists.options().cells;
        assert_eq!(lint(&self.published, &Left::new(), &settings), Ok(()));
        let log = log_of(&self.disk);
        for fold in &self.published {
            let first = format!("lethe tally snapshot 1\nnumber {}\n", fold.number);
            assert_eq!(log.iter().filter(|e| e.starts_with(&first)).count(), 1);
        }
        self.failures
    }
}

/// How many writes there were, and failures.
fn run(fault: Option<Fault>) -> (u32, u32) {
    let mut run = Run::new();
    let before = run.disk.writes();
    if let Some(fault) = fault {
        run.disk.fail_after(fault.after, fault.written);
    }
    SCRIPT.into_iter().for_each(|op| run.execute(op));
    run.disk.mend();
    let writes = run.disk.writes() - before;
    (writes, run.finish())
}

#[test]
fn a_kill_at_any_write_loses_nothing_and_brings_nobody_back() {
    let (writes, _) = run(None);
    assert!(writes > 40, "{writes} writes");
    // The number of writes depends on who is drawn: some of these faults never come.
    let faults =
        (0..writes).flat_map(|after| [false, true].map(|written| Fault { after, written }));
    let faults: Vec<Fault> = faults.collect();
    let failures: Vec<u32> = faults.into_par_iter().map(|f| run(Some(f)).1).collect();
    let failed = failures.iter().filter(|k| **k > 0).count();
    assert!(
        failed * 10 > failures.len() * 7,
        "{failed} of {}",
        failures.len()
    );
}
