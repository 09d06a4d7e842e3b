//! A kill at every write: what was acknowledged is there, what was destroyed is not, and the same
//! commands again lead to the end.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::{DAY, Disk, NOW, events, handle, offer, options};
use lethe_tally::cells::{Fold, Left, lint};
use lethe_tally::{Finished, Handle, Served, Statement, Tally, TallyError};
use rayon::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// So many people from this one on, with so many events each.
    Come(u8, u8, u32),
    Open,
    Publish,
    Leave(u8, u8),
    TakeDown(u32),
}

/// People come, grow, leave while they count and while they wait; items go; others come.
const SCRIPT: [Op; 17] = [
    Op::Come(0, 24, 5),
    Op::Open,
    Op::Publish,
    Op::Come(0, 24, 8),
    Op::Open,
    Op::Publish,
    Op::Leave(0, 3),
    Op::Publish,
    Op::Leave(3, 1),
    Op::TakeDown(4),
    Op::Publish,
    Op::Come(30, 16, 6),
    Op::Open,
    Op::Publish,
    Op::Leave(4, 20),
    Op::Open,
    Op::Publish,
];

struct Run {
    disk: Disk,
    tally: Option<Tally>,
    now: u64,
    people: BTreeSet<Handle>,
    gone: BTreeSet<Handle>,
    published: Vec<Fold>,
    /// A failure is a kill; otherwise the process goes on.
    killed: bool,
    failures: u32,
}

/// What fails.
#[derive(Clone, Copy)]
struct Fault {
    /// After so many writes.
    after: u32,
    /// The one that fails is there all the same.
    written: bool,
    killed: bool,
}

impl Run {
    fn new() -> Self {
        let disk = Disk::default();
        Self {
            tally: Some(disk.open()),
            disk,
            now: NOW,
            people: BTreeSet::new(),
            gone: BTreeSet::new(),
            published: vec![],
            killed: true,
            failures: 0,
        }
    }

    fn tally(&self) -> &Tally {
        self.tally.as_ref().unwrap()
    }

    /// Until it succeeds.
    fn execute(&mut self, op: Op) {
        self.now += 200;
        let cells = self.tally().status(self.now).unwrap().cells;
        while self.attempt(op).is_err() {
            self.failures += 1;
            assert!(self.failures < 3, "{op:?}");
            if !self.killed {
                continue;
            }
            self.tally = None;
            // Opening writes, too: it may be killed as well.
            self.tally = self.disk.try_open(options()).ok();
            if self.tally.is_none() {
                self.tally = Some(self.disk.open());
            }
        }
        match op {
            Op::Come(first, count, _) => self.people.extend(handles(first, count)),
            Op::Leave(first, count) => {
                let leavers = handles(first, count);
                self.people.retain(|h| !leavers.contains(h));
                self.gone.extend(leavers);
            }
            _ => {}
        }
        self.check(op, cells);
    }

    fn attempt(&mut self, op: Op) -> Result<(), TallyError> {
        let tally = self.tally.as_ref().unwrap();
        match op {
            Op::Come(first, count, n) => {
                let all: Vec<_> = (first..first + count).map(|who| events(who, n)).collect();
                let pairs = handles(first, count).into_iter().zip(&all);
                let offers: Vec<_> = pairs.map(|p| offer(p.0, p.1)).collect();
                for answer in tally.contribute_all(&offers, self.now)? {
                    answer.unwrap();
                }
            }
            Op::Open => drop(tally.open_cells(self.now)?),
            Op::Publish => {
                let fold = tally.fold(self.now)?;
                // An answer that was lost: it is published already.
                let known = tally.published()?.len() > self.published.len();
                if known {
                    self.published.push(Fold {
                        number: fold.number - 1,
                        ..fold
                    });
                    return Ok(());
                }
                let finished = tally.publish(DAY, self.now)?;
                assert!(matches!(finished, Finished::Published(_)));
                self.published.push(fold);
            }
            Op::Leave(first, count) => tally.leave(&handles(first, count), self.now)?,
            Op::TakeDown(item) => tally.take_down(&[item], self.now)?,
        }
        Ok(())
    }

    fn check(&mut self, op: Op, cells: usize) {
        let tally = self.tally();
        let status = tally.status(self.now).unwrap();
        assert_eq!(status.people, self.people.len(), "{op:?}");
        let refolded = tally.refold(self.now).unwrap().unwrap();
        assert_eq!(refolded.people as usize, status.counting);
        assert_ne!(refolded.memory, Some(false), "{op:?}");
        assert_ne!(refolded.folder, Some(false), "{op:?}");
        match (op, tally.served()) {
            (Op::Publish, Served::Snapshot(s)) => {
                let statement = Statement::open(&s.note, tally.verifier()).unwrap();
                assert_eq!(refolded.stated, Some(true));
                assert_eq!(statement.people as usize, status.counting);
                lethe_parts::snapshot::decode(&s.bytes).unwrap();
            }
            (Op::Publish, other) => panic!("{other:?}"),
            // In this script all cells have been published when somebody leaves.
            (Op::Leave(..), served) if status.cells < cells => {
                assert!(matches!(served, Served::Out { .. }), "{op:?}");
            }
            (Op::TakeDown(_), served) => assert!(matches!(served, Served::Out { .. })),
            _ => {}
        }
    }

    fn finish(mut self) -> u32 {
        self.tally = None;
        let gone: Vec<Handle> = self.gone.iter().copied().collect();
        assert_eq!(self.disk.keys_of(&gone), 0, "keys of those who left");
        let here: Vec<Handle> = self.people.iter().copied().collect();
        assert_eq!(self.disk.keys_of(&here), here.len());
        let settings = options().cells;
        assert_eq!(lint(&self.published, &Left::new(), &settings), Ok(()));
        self.failures
    }
}

fn handles(first: u8, count: u8) -> Vec<Handle> {
    (first..first + count).map(handle).collect()
}

/// How many writes there were, and failures.
fn run(fault: Option<Fault>) -> (u32, u32) {
    let mut run = Run::new();
    if let Some(fault) = fault {
        run.killed = fault.killed;
        run.disk.fail_after(fault.after, fault.written);
    }
    let before = run.disk.writes();
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
    let faults = (0..writes).flat_map(|after| {
        [false, true].map(|written| Fault {
            after,
            written,
            killed: true,
        })
    });
    // Now and then the process survives.
    let survived = (0..writes).step_by(3).map(|after| Fault {
        after,
        written: after % 2 == 0,
        killed: false,
    });
    let faults: Vec<Fault> = faults.chain(survived).collect();
    let failures: Vec<u32> = faults.into_par_iter().map(|f| run(Some(f)).1).collect();
    let failed = failures.iter().filter(|k| **k > 0).count();
    assert!(failed * 10 > failures.len() * 8, "{failed}");
}
