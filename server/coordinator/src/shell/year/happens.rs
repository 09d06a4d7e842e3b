//! What happens to people: they come, leave, withdraw, are restricted, and come back; and the
//! catalogue changes.

use std::collections::BTreeMap;

use anyhow::Context;
use lethe_learn::seed::Stream;
use lethe_ledger::Command;
use lethe_proto::catalogue::{CatalogueChange, CatalogueEntry};
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::Digest;

use super::super::{NewVersion, fresh};
use super::person::{Standing, name};
use super::{Year, operator};

/// Days before something happens to somebody who has just come, or come back.
const SETTLES: u64 = 14;
/// Days after which consent is withdrawn for what was recorded.
const BEFORE: u64 = 28;
/// Items of a version of the catalogue that are new, and those that have another title.
const NEW: usize = 3;
const RETITLED: usize = 10;

/// What happens to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Everything is deleted.
    Leaves,
    /// Consent is withdrawn for the last weeks.
    Withdraws,
    /// The data is kept and not used.
    IsRestricted,
    /// What they contributed to lists is destroyed.
    LeavesLists,
    /// Two films are erased.
    Erases,
    /// The restriction is lifted.
    IsLifted,
    /// They contribute to lists again.
    Contributes,
}

/// Who will have what happen to them, by day and hour.
#[derive(Default)]
pub(super) struct Returns(BTreeMap<(u64, u64), Vec<(usize, Fate)>>);

impl Returns {
    fn add(&mut self, day: u64, hour: u64, n: usize, fate: Fate) {
        self.0.entry((day, hour)).or_default().push((n, fate));
    }
}

impl Year {
    /// To whom something happens in the next week.
    pub(super) fn draw_week(&mut self) {
        let week = (self.day / super::WEEK).to_le_bytes();
        let mut rng = self.seed.derive("week", &[&week]).rng();
        for n in 0..self.people.len() {
            let happens = rng.unit() < self.plan.share;
            let day = self.day + rng.below(super::WEEK as usize) as u64;
            let hour = rng.below(24) as u64;
            let what = rng.below(5);
            let person = &self.people[n];
            if !happens || !person.is_there() || day < person.settled || person.restricted {
                continue;
            }
            let fate = match what {
                0 => Fate::Leaves,
                1 => Fate::Withdraws,
                2 => Fate::IsRestricted,
                3 if person.lists => Fate::LeavesLists,
                _ => Fate::Erases,
            };
            self.returns.add(day, hour, n, fate);
        }
    }

    /// What is to happen in this hour.
    pub(super) fn happen(&mut self, hour: u64) -> anyhow::Result<()> {
        for n in 0..self.people.len() {
            if self.people[n].standing == Standing::Comes(self.day) && self.people[n].hour == hour {
                self.comes(n)?;
            }
        }
        for (n, fate) in self.returns.0.remove(&(self.day, hour)).unwrap_or_default() {
            self.happens(n, fate)
                .with_context(|| format!("{fate:?} of person {n}"))?;
        }
        Ok(())
    }

    fn comes(&mut self, n: usize) -> anyhow::Result<()> {
        self.enrol(n)?;
        self.brings(n);
        let person = &mut self.people[n];
        person.standing = Standing::There;
        person.settled = self.day + SETTLES;
        if person.certificates > 1 || person.turn > 0 {
            self.count.returned += 1;
        }
        Ok(())
    }

    fn happens(&mut self, n: usize, fate: Fate) -> anyhow::Result<()> {
        let subject = self.people[n].subject.clone();
        let day = self.day.to_le_bytes();
        let drawn = self.seed.derive("fate", &[&(n as u64).to_le_bytes(), &day]);
        let mut rng = drawn.rng();
        self.people[n].settled = self.day + SETTLES;
        match fate {
            Fate::Leaves => {
                self.forget("leave", DeletionRequest::Erase { subject })?;
                self.follows(n, &mut rng)
            }
            Fate::Withdraws => {
                let from = self.second() as i64 - (BEFORE * 86_400) as i64;
                self.forget(
                    "withdraw consent",
                    DeletionRequest::Withdraw { subject, from },
                )
            }
            Fate::IsRestricted => {
                self.forget("are restricted", DeletionRequest::Restrict { subject })?;
                self.people[n].restricted = true;
                self.later(n, &mut rng, Fate::IsLifted);
                Ok(())
            }
            Fate::LeavesLists => {
                self.leave_lists(n)?;
                *self.count.asked.entry("leave lists").or_default() += 1;
                self.people[n].lists = false;
                self.later(n, &mut rng, Fate::Contributes);
                Ok(())
            }
            Fate::Erases => {
                let history = &self.people[n].history;
                let mut items: Vec<String> = (0..2)
                    .filter_map(|_| history.get(rng.below(history.len().max(1))))
                    .map(|e| e.item.clone())
                    .collect();
                items.sort();
                items.dedup();
                if items.is_empty() {
                    return Ok(());
                }
                self.forget(
                    "erase films",
                    DeletionRequest::EraseItems { subject, items },
                )
            }
            Fate::IsLifted => {
                let command = self.proposes(Proposal::LiftRestriction(subject), true)?;
                self.ask("are lifted", command)?;
                self.people[n].restricted = false;
                self.count.returned += 1;
                Ok(())
            }
            Fate::Contributes => {
                self.people[n].lists = true;
                self.people[n].changed = true;
                self.count.returned += 1;
                Ok(())
            }
        }
    }

    fn later(&mut self, n: usize, rng: &mut Stream, fate: Fate) {
        let day = self.day + 14 + rng.below(28) as u64;
        // Nothing else happens to them until then.
        self.people[n].settled = day + SETTLES;
        self.returns.add(day, rng.below(24) as u64, n, fate);
    }

    /// They come back with nothing, or somebody else comes.
    fn follows(&mut self, n: usize, rng: &mut Stream) -> anyhow::Result<()> {
        let day = self.day + 7 + rng.below(21) as u64;
        let back = rng.below(2) == 0;
        let person = &mut self.people[n];
        if !back {
            person.turn += 1;
            person.subject = name(n, person.turn)?;
        }
        person.standing = Standing::Comes(day);
        person.lists = true;
        person.history.clear();
        person.joined = None;
        person.holds = 0;
        person.seen = None;
        person.erased = 0;
        Ok(())
    }

    fn proposes(&self, what: Proposal, confirmed: bool) -> anyhow::Result<Command> {
        Ok(Command::Propose {
            what,
            confirmed,
            note: None,
            by: operator(),
            secret: Digest::default(),
            plans: vec![],
            fresh: fresh()?,
        })
    }

    fn forget(&mut self, what: &'static str, request: DeletionRequest) -> anyhow::Result<()> {
        let forget = Proposal::Forget {
            requests: vec![request],
            asked: 0,
            reference: String::new(),
        };
        let command = self.proposes(forget, false)?;
        self.ask(what, command)
    }

    /// The catalogue has another version: some items are new, some have another title.
    pub(super) fn apply_version(&mut self) -> anyhow::Result<()> {
        let versions = self.shell.catalogue.versions();
        let version = versions.newest() + 1;
        let known = versions.entries().len();
        let mut rng = self.seed.derive("version", &[&version.to_le_bytes()]).rng();
        let mut places: Vec<usize> = (0..RETITLED.min(known)).map(|_| rng.below(known)).collect();
        places.sort_unstable();
        places.dedup();
        let mut changes = vec![];
        for place in places {
            let mut entry = versions.entries()[place].clone();
            entry.title = Some(format!("Title {place} of version {version}"));
            changes.push(CatalogueChange {
                version,
                place: place as u32,
                entry,
            });
        }
        for at in 0..NEW {
            let entry = CatalogueEntry {
                id: format!("new-{version}-{at}"),
                title: Some(format!("New {at} of version {version}")),
                ..CatalogueEntry::default()
            };
            changes.push(CatalogueChange {
                version,
                place: (known + at) as u32,
                entry,
            });
        }
        let mut next = (*versions).clone();
        next.apply(changes.clone())?;
        let asked = NewVersion {
            before: versions.digest(),
            changes,
            ends: next.digest(),
        };
        self.shell.apply_catalogue(operator(), asked)?;
        Ok(())
    }
}
