//! What operators ask for.

use lethe_ledger::{Command, EpochNo, OwnPlans, ShardKey};
use lethe_proto::catalogue::{CatalogueChange, CatalogueEntry, Versions};
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, ShardId};
use lethe_proto::message::Refusal;

use super::super::{NewVersion, Shell, fresh};
use super::begin::{digest, operator};
use super::device::{Act, Device};
use super::world::{Event, QUIET, Simulation};
use crate::evidence::failing;

/// Plans of each request by itself, as `Coordinator::own_plans` makes them.
fn own_plans(shell: &Shell, requests: &[DeletionRequest]) -> Vec<OwnPlans> {
    let state = shell.state();
    let living = state.living();
    let inventories: Vec<_> = living
        .filter_map(|(no, _)| Some((no, state.inventory(no)?)))
        .collect();
    let of = |r: &DeletionRequest| {
        let plans = inventories.iter().filter_map(|(no, inventory)| {
            let plan = lethe_plan::plan(inventory, std::slice::from_ref(r));
            Some((*no, plan.ok()?))
        });
        plans.collect()
    };
    requests.iter().map(of).collect()
}

/// Deletions that came with this reference.
fn with_reference(shell: &Shell, reference: &str) -> usize {
    let state = shell.state();
    let all = state.deletions().values();
    all.filter(|d| d.reference == reference).count()
}

impl Simulation {
    /// Writes that have failed so far.
    fn failures(&self) -> u64 {
        self.disk.failed() + failing::with(|f| f.failed)
    }

    pub(super) fn forget(&mut self, requests: Vec<DeletionRequest>) {
        let Some(shell) = self.shell.clone() else {
            return self.at(self.now + 500, Event::Forget(requests));
        };
        self.events += 1;
        let reference = format!("request {}", self.events);
        let plans = match self.dice.below(2) {
            0 => vec![],
            _ => own_plans(&shell, &requests),
        };
        let n = requests.len();
        let command = Command::Propose {
            what: Proposal::Forget {
                requests: requests.clone(),
                asked: 0,
                reference: reference.clone(),
            },
            confirmed: false,
            note: None,
            by: operator(0),
            secret: Digest::default(),
            plans,
            fresh: fresh().unwrap(),
        };
        self.seen.asked.insert(reference.clone(), n);
        let before = self.failures();
        let full = failing::with(|f| f.full.is_some()) && shell.space_held();
        let result = shell.execute(command, vec![]);
        self.note(match &result {
            Ok(_) => format!("{} forget: accepted", self.now),
            Err(e) => format!("{} forget: {e}", self.now),
        });
        match result {
            Ok(events) => {
                self.count.add("deletions", n as u64);
                self.count.add("batches", u64::from(n > 1));
                let again = self.failures() > before;
                self.count.add("repeated commands", u64::from(again));
                self.count.add("full disks", u64::from(full && again));
                assert!(!events.is_empty(), "{}: nothing happened", self.story());
                let there = with_reference(&shell, &reference);
                if shell.state().proposals().is_empty() {
                    assert_eq!(there, n, "{}: {reference}", self.story());
                } else {
                    assert!(there == n || there == 0, "{}: {reference}", self.story());
                }
                if self.approvals > 1 {
                    self.at(self.now + 1500, Event::Approve);
                }
                self.do_at_once();
            }
            Err(e) if !e.is_request() || matches!(e.code(), Refusal::Busy | Refusal::Internal) => {
                self.at(self.now + 500, Event::Forget(requests));
            }
            Err(_) => {}
        }
    }

    /// What an operator asked for is done when they are told so.
    fn do_at_once(&mut self) {
        if self.dice.below(2) == 0 {
            self.duties();
        }
    }

    pub(super) fn approve(&mut self) {
        let Some(shell) = self.shell.clone() else {
            return self.at(self.now + 1000, Event::Approve);
        };
        let proposals: Vec<(u64, Proposal)> = {
            let state = shell.state();
            let all = state.proposals().iter();
            all.map(|(id, p)| (*id, p.what.clone())).collect()
        };
        for (id, what) in proposals {
            let (requests, reference) = match what {
                Proposal::Forget {
                    requests,
                    reference,
                    ..
                } => (requests, Some(reference)),
                Proposal::LiftRestriction(_) => (vec![], None),
                Proposal::Revoke(subject) => {
                    // They come back some time after they were refused, as far as is known.
                    let device = self.devices.iter().position(|d| d.subject == subject);
                    if let Some(n) = device {
                        self.at(self.now + 3000, Event::Return(n));
                    }
                    (vec![], None)
                }
                _ => continue,
            };
            let command = Command::Approve {
                id,
                by: operator(1),
                secret: Digest::default(),
                plans: own_plans(&shell, &requests),
                fresh: fresh().unwrap(),
            };
            let before = self.failures();
            let result = shell.execute(command, vec![]);
            self.note(match &result {
                Ok(_) => format!("{} approves {id}", self.now),
                Err(e) => format!("{} approves {id}: {e}", self.now),
            });
            if result.is_ok() {
                self.count.one("approvals");
                let again = self.failures() > before;
                self.count.add("repeated commands", u64::from(again));
                if let Some(reference) = reference {
                    let there = with_reference(&shell, &reference);
                    assert_eq!(there, requests.len(), "{}: {reference}", self.story());
                }
            }
        }
        self.do_at_once();
        let waits = !shell.state().proposals().is_empty();
        if waits && self.now < QUIET + 10_000 {
            self.at(self.now + 1000, Event::Approve);
        }
    }

    /// A device that has a certificate gets the next. The coordinator that an older folder makes
    /// does not know it: that is not part of this.
    pub(super) fn renew(&mut self, n: usize) {
        let Some(shell) = self.shell.clone().filter(|_| self.backup.is_none()) else {
            return;
        };
        let current = self.devices[n].certificate;
        let certificate = self.certificate(n);
        let command = Command::Renew {
            current,
            certificate,
            expires: u64::MAX,
        };
        if shell.execute(command, vec![]).is_ok() {
            self.devices[n].certificate = certificate;
        }
    }

    /// One that nobody has yet.
    fn certificate(&mut self, n: usize) -> Digest {
        self.events += 1;
        digest(&["certificate", &n.to_string(), &self.events.to_string()])
    }

    pub(super) fn revoke(&mut self, n: usize) {
        let Some(shell) = self.shell.clone().filter(|_| self.backup.is_none()) else {
            return;
        };
        let subject = self.devices[n].subject.clone();
        let command = Command::Propose {
            what: Proposal::Revoke(subject.clone()),
            confirmed: true,
            note: None,
            by: operator(0),
            secret: Digest::default(),
            plans: vec![],
            fresh: fresh().unwrap(),
        };
        // A write that failed may be there.
        self.seen.revoked.insert(subject);
        let done = shell.execute(command, vec![]).is_ok();
        self.note(format!("{} revokes {n}: {done}", self.now));
        self.count.add("revoked", u64::from(done));
        self.at(self.now + 3000, Event::Return(n));
    }

    pub(super) fn take_note(&mut self) {
        let Some(shell) = self.shell.clone() else {
            return;
        };
        let command = Command::Note {
            by: operator(0),
            line: "simulated".into(),
            fresh: fresh().unwrap(),
        };
        let done = shell.execute(command, vec![]).is_ok();
        self.note(format!("{} note: {done}", self.now));
        self.apply_version();
    }

    /// All devices of a person whom the coordinator does not know, or whose certificates were
    /// withdrawn, are enrolled again.
    pub(super) fn come_back(&mut self, n: usize) {
        let Some(shell) = self.shell.clone().filter(|_| self.backup.is_none()) else {
            return self.at(self.now + 1000, Event::Return(n));
        };
        let subject = self.devices[n].subject.clone();
        let away = |certificate: &Digest| matches!(shell.state().who(certificate), Ok(None));
        let of = |d: &Device| d.subject == subject && away(&d.certificate);
        let all = self.devices.iter().enumerate().filter(|(_, d)| of(d));
        let all: Vec<usize> = all.map(|(i, _)| i).collect();
        // A backup from before they were refused was put back: their apps find that they are known.
        for i in 0..self.devices.len() {
            let d = &self.devices[i];
            if d.subject == subject && !away(&d.certificate) && d.is_stopped() {
                let certificate = d.certificate;
                self.devices[i].enrolled(certificate);
                self.act(i, Act::Wait(100));
            }
        }
        for i in all {
            let certificate = self.certificate(i);
            let secret = digest(&["secret", &certificate.hex()]);
            let invite = Command::Invite {
                subject: subject.clone(),
                secret,
            };
            let enrol = Command::Enrol {
                secret,
                certificate,
                expires: u64::MAX,
                device_of: Some(subject.clone()),
            };
            self.seen.returned.insert(subject.clone());
            let invited = shell.execute(invite, vec![]);
            let enrolled = invited.and_then(|_| shell.execute(enrol, vec![]));
            self.note(format!("{} {i} comes back: {}", self.now, enrolled.is_ok()));
            if enrolled.is_err() {
                return self.at(self.now + 1000, Event::Return(n));
            }
            self.count.one("returned");
            self.devices[i].enrolled(certificate);
            self.act(i, Act::Wait(100));
        }
    }

    pub(super) fn replay(&mut self) {
        let Some(shell) = self.shell.clone() else {
            return;
        };
        let shard = ShardId(self.dice.below(2) as u16);
        let known = shell.state().shard_of_wire(shard);
        let shard = known.unwrap_or(ShardKey {
            epoch: EpochNo::FIRST,
            shard,
        });
        let command = Command::Replay {
            shard,
            by: operator(0),
            fresh: fresh().unwrap(),
        };
        let begun = shell.execute(command, vec![]).is_ok();
        self.note(format!("{} replay of {shard:?}: {begun}", self.now));
        self.count.add("replays", u64::from(begun));
        if !begun && self.now + 3000 < QUIET {
            self.at(self.now + 3000, Event::Replay);
        }
    }
}

/// Another version of the catalogue: a title, a name, or an item more.
fn other_version(versions: &Versions, kind: usize) -> Vec<CatalogueChange> {
    let version = versions.newest() + 1;
    let places = versions.entries().len() as u32;
    let place = version % places;
    let mut entry = versions.entries()[place as usize].clone();
    let new = CatalogueEntry {
        id: format!("new-{version}"),
        title: Some("New".into()),
        ..CatalogueEntry::default()
    };
    match kind {
        0 => entry.title = Some(format!("Title {version}")),
        1 => {
            let former = std::mem::replace(&mut entry.id, format!("name-{version}"));
            entry.was.push(former);
            entry.title.get_or_insert("Back".into());
        }
        2 if version > 2 => entry.title = None,
        _ => {
            return vec![CatalogueChange {
                version,
                place: places,
                entry: new,
            }];
        }
    }
    if entry == versions.entries()[place as usize] {
        entry.title = Some(format!("Title {version}"));
    }
    vec![CatalogueChange {
        version,
        place,
        entry,
    }]
}

impl Simulation {
    /// The catalogue has another version, if nothing fails.
    pub(super) fn apply_version(&mut self) {
        let Some(shell) = self.shell.clone().filter(|_| self.backup.is_none()) else {
            return;
        };
        let versions = shell.catalogue.versions();
        // Not drawn: what else happens stays as it is.
        let kind = (self.now as usize + versions.newest() as usize) % 4;
        let changes = other_version(&versions, kind);
        let mut next = (*versions).clone();
        next.apply(changes.clone()).unwrap();
        let asked = NewVersion {
            before: versions.digest(),
            changes,
            ends: next.digest(),
        };
        let done = shell.apply_catalogue(operator(0), asked);
        self.note(format!("{} catalogue: {done:?}", self.now));
        let newest = shell.catalogue.newest();
        let recorded = shell.state().newest_catalogue().map(|(no, _)| no);
        assert!(recorded.unwrap_or(newest) >= newest, "{}", self.story());
        if done.is_ok() {
            self.count.one("versions of the catalogue");
            assert_eq!(Some(newest), recorded, "{}", self.story());
            let state = shell.state();
            let logged = state
                .newest_catalogue()
                .map(|(_, r)| (r.digest, r.index.is_some()));
            assert_eq!(logged, Some((next.digest(), true)), "{}", self.story());
            assert_eq!(state.rules().items, shell.catalogue.names());
        }
    }
}
