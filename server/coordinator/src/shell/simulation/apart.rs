//! A tally of its own, in virtual time: its machine fails by itself, devices seal what they
//! contribute, and the coordinator must not believe all that it is told.

use std::collections::{BTreeMap, BTreeSet};

use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::lists::ServedTables;
use lethe_proto::tally::{
    ANSWER, CONTRIBUTION, Confided, SealedContribution, SealingTerms, bound_to, padded,
};
use lethe_receipt::note::VerifierKey;
use lethe_receipt::sealing::SealingStatement;
use lethe_receipt::snapshot::SnapshotStatement;
use lethe_seal::envelope::{AnswerKey, PublicKey, Sealed, seal_to};
use tokio::sync::oneshot::{Receiver, channel};

use super::super::Shell;
use super::brought::{CONTENTS, contributed};
use super::disk::Fault;
use super::far::{Far, Troubles};
use super::world::{BEGIN, Event, QUIET, Simulation};
use crate::CoordinatorError;
use crate::lists::{Arriving, ByHand, Lists};

/// A day, in milliseconds.
const DAY: u64 = 86_400_000;

/// What goes wrong with the tally.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nothing gets to it, or it can be reached again.
    Cut(bool),
    /// Its process dies, and is started again after so many milliseconds.
    Crash(u64),
    Start,
    /// A database of its fails.
    Fails(Fault),
    Damage(&'static str, bool),
    Backup,
    Restore,
    /// Envelopes that were lost arrive.
    Late,
    /// Nothing goes wrong any more.
    Calm,
}

/// An envelope, and what opens its answer.
struct Envelope {
    sealed: SealedContribution,
    answer: AnswerKey,
    /// Virtual time at which its ticket was drawn.
    drawn: u64,
    /// The tally opened it with its ticket.
    spent: bool,
    /// The device makes another one next time.
    retired: bool,
}

/// What a device has on its way.
#[derive(Default)]
struct Sealing {
    terms: Option<(SealingTerms, u64)>,
    envelope: Option<Envelope>,
    /// What its person is known by.
    handle: Option<[u8; 16]>,
}

enum Relay {
    Withdrawal(SubjectId),
    Ticket(usize, Receiver<SealingTerms>),
    Envelope(usize, Receiver<Vec<u8>>),
}

/// A tally of its own, and who contributes to it.
pub(super) struct Apart {
    pub(super) far: Far,
    devices: BTreeMap<usize, Sealing>,
    queue: Vec<(Relay, ByHand)>,
    /// Key that verifies what it signs.
    key: VerifierKey,
    /// When somebody last left the tally for certain, by virtual time: a ticket of before brings
    /// nobody back.
    pub(super) left: BTreeMap<SubjectId, u64>,
    /// Deletions that were ever executed.
    executed: BTreeSet<u64>,
    /// The snapshot whose tables were looked at last.
    looked: Option<u64>,
    /// A start is on its way.
    starts: bool,
}

impl Apart {
    pub(super) fn new(far: Far) -> Self {
        let key = far.machine().key().expect("it runs");
        Self {
            far,
            devices: BTreeMap::new(),
            queue: vec![],
            key: VerifierKey::parse(&key).unwrap(),
            left: BTreeMap::new(),
            executed: BTreeSet::new(),
            looked: None,
            starts: false,
        }
    }

    /// Text of the key that it signs with: another one in each run.
    pub(super) fn key(&self) -> String {
        self.key.text()
    }
}

impl Simulation {
    /// Draws what will go wrong with the tally and the line to it.
    pub(super) fn begin_apart(&mut self) {
        let Some(apart) = &self.apart else { return };
        let dice = &mut self.listed.dice;
        let mut some = |most: f32| match dice.below(2) {
            0 => 0.0,
            _ => most * dice.unit(),
        };
        let troubles = Troubles {
            loss: some(0.2),
            death: some(0.03),
            lies: some(0.1),
            late: some(0.4),
        };
        {
            let mut machine = apart.far.machine();
            machine.troubles = troubles;
            machine.calm = false;
        }
        self.at(QUIET, Event::Apart(Trouble::Calm));
        for _ in 0..self.listed.dice.below(3) {
            self.away();
        }
        for _ in 0..self.listed.dice.below(3) {
            let when = self.sometime_apart();
            let down = 50 + self.listed.dice.below(6000) as u64;
            self.at(when, Event::Apart(Trouble::Crash(down)));
        }
        for _ in 0..self.listed.dice.below(4) {
            self.tally_fails();
        }
        if self.listed.dice.below(4) == 0 {
            let when = self.sometime_apart();
            let later = 1000 + self.listed.dice.below(20_000) as u64;
            let until = (when + later).min(QUIET - 500);
            self.at(when, Event::Apart(Trouble::Backup));
            self.at(until, Event::Apart(Trouble::Restore));
            if self.listed.dice.below(2) == 0 {
                self.at(when, Event::Backup);
                self.at(until, Event::Restore);
            }
        }
        if self.listed.dice.below(6) == 0 {
            let when = self.sometime_apart();
            let all = [
                "db",
                "db-copy",
                "tally/db",
                "tally/db-copy",
                "tally/shards/0",
            ];
            let what = all[self.listed.dice.below(all.len())];
            let gone = self.listed.dice.below(2) == 0;
            self.at(when, Event::Apart(Trouble::Damage(what, gone)));
        }
    }

    fn sometime_apart(&mut self) -> u64 {
        let most = match self.listed.dice.below(2) {
            0 => 20_000,
            _ => QUIET as usize - 1500,
        };
        500 + self.listed.dice.below(most) as u64
    }

    /// The tally cannot be reached for a while; sometimes for days, of which most are quiet.
    fn away(&mut self) {
        let when = self.sometime_apart();
        let until = when + 500 + self.listed.dice.below(15_000) as u64;
        let until = until.min(QUIET - 200);
        self.at(when, Event::Apart(Trouble::Cut(true)));
        self.at(until, Event::Apart(Trouble::Cut(false)));
        // Somebody asks for a deletion all the same.
        let requests = self.requests();
        let soon = when + self.listed.dice.below(1000) as u64;
        self.at(soon.min(QUIET), Event::Forget(requests));
        if self.listed.dice.below(2) == 0 {
            let days = 1 + self.listed.dice.below(6) as u64;
            let between = when + self.listed.dice.below((until - when) as usize) as u64;
            self.at(between, Event::Leap(days * DAY));
        }
    }

    fn tally_fails(&mut self) {
        let when = self.sometime_apart();
        let fault = Fault {
            after: self.listed.dice.below(10) as u32,
            written: self.listed.dice.below(2) == 0,
            dead: self.listed.dice.below(3) == 0,
        };
        self.at(when, Event::Apart(Trouble::Fails(fault)));
        if fault.dead {
            let later = self.listed.dice.below(3000) as u64;
            let down = 50 + self.listed.dice.below(2000) as u64;
            let when = (when + later).min(QUIET);
            self.at(when, Event::Apart(Trouble::Crash(down)));
        }
    }

    pub(super) fn trouble(&mut self, trouble: Trouble) {
        let Some(apart) = &mut self.apart else { return };
        let far = apart.far.clone();
        let mut machine = far.machine();
        match trouble {
            Trouble::Cut(cut) => machine.cut = cut && !machine.calm,
            Trouble::Crash(down) => {
                machine.die();
                drop(machine);
                self.tally_starts_in(down);
            }
            Trouble::Start => {
                apart.starts = false;
                drop(machine);
                self.start_tally();
            }
            Trouble::Fails(fault) => machine.disk.fail(fault),
            Trouble::Damage(what, gone) => {
                machine.die();
                let lost = machine.data().join(what);
                machine.disk.damage(&lost, gone);
                machine.count.one("damaged tallies");
            }
            Trouble::Backup => {
                machine.backup = machine
                    .is_up()
                    .then(|| machine.disk.back_up(&machine.data()));
                self.listed.tally_backed_up();
            }
            Trouble::Restore => {
                let Some(backup) = machine.backup.take() else {
                    return;
                };
                machine.die();
                machine.disk.restore(&machine.data(), backup);
                machine.count.one("restored tallies");
                self.listed.tally_restored();
            }
            Trouble::Late => machine.arrive_late(),
            Trouble::Calm => {
                machine.calm = true;
                machine.cut = false;
                machine.die();
            }
        }
    }

    fn tally_starts_in(&mut self, ms: u64) {
        if let Some(apart) = &mut self.apart {
            apart.starts = true;
            self.at(self.now + ms, Event::Apart(Trouble::Start));
        }
    }

    fn start_tally(&mut self) {
        let Some(apart) = &self.apart else { return };
        let far = apart.far.clone();
        let mut machine = far.machine();
        if machine.is_up() {
            return;
        }
        machine.disk.revive();
        let fails = !self.is_quiet() && self.listed.dice.below(3) == 0;
        if fails {
            machine.disk.fail(Fault {
                after: self.listed.dice.below(6) as u32,
                written: self.listed.dice.below(2) == 0,
                dead: true,
            });
        }
        let opened = machine.start();
        if fails {
            machine.disk.revive();
        }
        let up = machine.is_up();
        drop(machine);
        match opened {
            Ok(()) => self.note(format!("{} the tally runs: {up}", self.now)),
            Err(e) => {
                assert!(fails, "{}: the tally does not start: {e}", self.story());
                self.count.one("failed starts of tallies");
                self.tally_starts_in(300);
            }
        }
    }

    /// After every event: a tally that died is started again, and what is on its way arrives.
    pub(super) fn after_event_apart(&mut self) {
        let Some(apart) = &self.apart else { return };
        let machine = apart.far.machine();
        let down = !machine.is_up() && !apart.starts;
        let late = !machine.late.is_empty();
        drop(machine);
        if down {
            let down = 50
                + self
                    .listed
                    .dice
                    .below(if self.is_quiet() { 100 } else { 4000 });
            self.tally_starts_in(down as u64);
        }
        if late
            && !self
                .queue
                .values()
                .any(|e| matches!(e, Event::Apart(Trouble::Late)))
        {
            let later = 1 + self.listed.dice.below(4000) as u64;
            self.at(self.now + later, Event::Apart(Trouble::Late));
        }
    }

    /// Nothing of the tally's has to come any more.
    pub(super) fn is_settled_apart(&self) -> bool {
        let Some(apart) = &self.apart else {
            return true;
        };
        let pending = |e: &Event| matches!(e, Event::Apart(_) | Event::Leap(_));
        let machine = apart.far.machine();
        machine.is_up() && machine.calm && !self.queue.values().any(pending)
    }

    /// Whether the coordinator can know what the tally has: it was told of everybody who left.
    pub(super) fn tally_is_told(&self, lists: &Lists) -> bool {
        match &self.apart {
            None => true,
            Some(apart) => lists.has_told() && apart.far.machine().is_reached(),
        }
    }

    /// The coordinator died: what was on its way to it is lost.
    pub(super) fn lose_relayed(&mut self) {
        if let Some(apart) = &mut self.apart {
            apart.queue.clear();
        }
    }

    fn put_relayed(&mut self, relay: Relay, coming: ByHand) {
        let Some(apart) = &mut self.apart else { return };
        let first = apart.queue.is_empty();
        apart.queue.push((relay, coming));
        if first {
            let together = self.listed.dice.below(60) as u64;
            self.at(self.now + together, Event::Stored);
        }
    }

    pub(super) fn relay_withdrawal(&mut self, subject: SubjectId) {
        let coming = Arriving::withdrawal(subject.clone());
        self.put_relayed(Relay::Withdrawal(subject), coming);
    }

    /// A device goes on with what it contributes: it asks for a ticket, seals, brings it, and
    /// sometimes brings it again.
    pub(super) fn contribute_apart(&mut self, n: usize) {
        let device = &self.devices[n];
        let certificate = device.certificate;
        let subject = device.subject.clone();
        let earlier = self.devices[..n].iter().filter(|d| d.subject == subject);
        let source = earlier.count();
        let Some(apart) = &mut self.apart else { return };
        let own = apart.devices.entry(n).or_default();
        if let Some((terms, drawn)) = own.terms.take() {
            let content = self.listed.dice.below(CONTENTS);
            own.envelope = Some(seal(&terms, &apart.key, source, content, drawn));
        }
        let Some(envelope) = own.envelope.as_ref().filter(|e| !e.retired) else {
            let (give, given) = channel();
            let coming = Arriving::ticket(certificate, give);
            return self.put_relayed(Relay::Ticket(n, given), coming);
        };
        let sealed = envelope.sealed.clone();
        let twice = self.listed.dice.below(4) == 0;
        for _ in 0..1 + u8::from(twice) {
            let (give, given) = channel();
            let coming = Arriving::sealed(certificate, sealed.clone(), give);
            self.put_relayed(Relay::Envelope(n, given), coming);
        }
        self.count.add("envelopes twice", u64::from(twice));
    }

    /// What has come together is taken together.
    pub(super) fn take_relayed(&mut self, shell: &Shell, lists: &Lists) {
        let Some(apart) = &mut self.apart else { return };
        let far = apart.far.clone();
        let mut arriving = vec![];
        let mut waiting = vec![];
        for (relay, (one, answer)) in std::mem::take(&mut apart.queue) {
            arriving.push(one);
            waiting.push((relay, answer));
        }
        far.machine().in_doubt = false;
        lists.take_in(shell, arriving);
        let in_doubt = far.machine().in_doubt;
        for (relay, mut answer) in waiting {
            let answer = answer.try_recv().expect("everybody is answered");
            let said = answer
                .as_ref()
                .map_or_else(ToString::to_string, |()| "ok".into());
            match relay {
                Relay::Withdrawal(subject) => {
                    self.note(format!("{} {subject} leaves the lists: {said}", self.now));
                    self.withdrawn(subject, answer.is_ok());
                }
                Relay::Ticket(n, given) => {
                    self.note(format!("{} ticket for {n}: {said}", self.now));
                    self.ticket(n, given, &answer);
                }
                Relay::Envelope(n, given) => {
                    let told = self.opened_answer(n, given);
                    self.note(format!("{} envelope of {n}: {said}, {told:?}", self.now));
                    self.answered_sealed(shell, n, &answer, told, in_doubt);
                }
            }
        }
    }

    fn ticket(
        &mut self,
        n: usize,
        mut given: Receiver<SealingTerms>,
        answer: &Result<(), CoordinatorError>,
    ) {
        let now = self.now;
        let terms = given.try_recv().ok();
        assert_eq!(
            terms.is_some(),
            answer.is_ok(),
            "{}: a ticket",
            self.story()
        );
        let Some(apart) = &mut self.apart else { return };
        let Some(terms) = terms else { return };
        let own = apart.devices.entry(n).or_default();
        let before = own.handle.replace(terms.handle);
        let same = before.is_none_or(|b| b == terms.handle);
        own.terms = Some((terms, now));
        self.count.one("tickets");
        assert!(same, "{}: {n} has another handle", self.story());
    }

    fn opened_answer(&mut self, n: usize, mut given: Receiver<Vec<u8>>) -> Option<Confided> {
        let sealed = given.try_recv().ok()?;
        let apart = self.apart.as_mut()?;
        let own = apart.devices.get(&n)?;
        let opened = own.envelope.as_ref()?.answer.open(&sealed);
        let opened = opened.unwrap_or_else(|| panic!("{}: another answer", self.story()));
        Some(Confided::from_bytes(&opened).unwrap())
    }

    fn answered_sealed(
        &mut self,
        shell: &Shell,
        n: usize,
        answer: &Result<(), CoordinatorError>,
        told: Option<Confided>,
        in_doubt: bool,
    ) {
        assert_eq!(answer.is_ok(), told.is_some(), "{}: {n}", self.story());
        let subject = self.devices[n].subject.clone();
        let leapt = self.leapt;
        let left = self.apart.as_ref().and_then(|a| a.left.get(&subject));
        let left = left.copied().unwrap_or(0);
        let apart = self.apart.as_mut().unwrap();
        let own = apart.devices.entry(n).or_default();
        let envelope = own.envelope.as_mut().unwrap();
        // It is brought again, or a new one is made.
        envelope.retired |= self.listed.dice.below(3) > 0;
        // A membership begins when it was allowed.
        let second = (BEGIN + envelope.drawn + leapt) / 1000;
        let Some(told) = told else {
            if in_doubt {
                self.count.one("failed contributions");
                self.listed.came(&shell.state(), &subject, second, false);
            }
            return;
        };
        let again = envelope.spent;
        let drawn = envelope.drawn;
        envelope.spent |= told != Confided::Stale;
        assert!(
            !again || told == Confided::Stale,
            "{}: an envelope of {n} is taken twice",
            self.story()
        );
        match told {
            Confided::Taken | Confided::Smaller => {
                assert!(
                    drawn >= left,
                    "{}: a ticket of {drawn} brings {subject} back, who left at {left}",
                    self.story()
                );
                let answer = Ok(());
                self.contributed(&shell.state().clone(), &subject, second, answer);
            }
            Confided::Busy => {
                self.count.one("failed contributions");
                self.listed.came(&shell.state(), &subject, second, false);
            }
            Confided::Stale => self.count.one("stale envelopes"),
            other => panic!("{}: {n} is told {other:?}", self.story()),
        }
    }

    /// What the coordinator serves has the bytes that a note of the tally names.
    pub(super) fn look_at_tables(&mut self, shell: &Shell, lists: &Lists) {
        let Some(apart) = &self.apart else { return };
        let newest = lists.newest().map(|s| s.number);
        let key = apart.key.clone();
        let looked = apart.looked;
        if newest == looked {
            return;
        }
        let items = Digest::default();
        let served = lists.snapshot(shell, 0, &items);
        let Some(number) = served.state.served else {
            return;
        };
        let ServedTables::Whole { note, bytes } = served.tables else {
            panic!("{}: lists {number} have no tables", self.story());
        };
        let statement = SnapshotStatement::open(&note, &key);
        let statement = statement.unwrap_or_else(|e| panic!("{}: {e}", self.story()));
        let right = statement.number == number
            && statement.snapshot == lethe_parts::snapshot::digest(&bytes);
        assert!(right, "{}: other tables are served: {number}", self.story());
        self.apart.as_mut().unwrap().looked = newest;
        self.count.one("tables checked");
    }

    /// Whether a deletion was executed before, by a coordinator whose folder was older then.
    pub(super) fn is_again(&mut self, id: u64) -> bool {
        let apart = self.apart.as_mut();
        apart.is_some_and(|apart| !apart.executed.insert(id))
    }

    /// Somebody has left the tally, or does before anything of it is believed.
    pub(super) fn noted_left(&mut self, subject: &SubjectId) {
        let now = self.now;
        if let Some(apart) = &mut self.apart {
            apart.left.insert(subject.clone(), now);
        }
    }

    /// Whether the tally is out of reach.
    pub(super) fn is_away(&self) -> bool {
        let machine = self.apart.as_ref().map(|a| a.far.machine());
        machine.is_some_and(|m| m.cut || !m.is_up())
    }

    /// Whether what the coordinator serves is what the tally serves: then it is known who is in it.
    pub(super) fn tally_serves(&self, number: u64) -> bool {
        let Some(apart) = &self.apart else {
            return true;
        };
        let served = apart.far.machine().state().and_then(|s| s.served);
        served.is_some_and(|s| s.number == number)
    }
}

fn seal(
    terms: &SealingTerms,
    key: &VerifierKey,
    source: usize,
    content: usize,
    drawn: u64,
) -> Envelope {
    let statement = SealingStatement::open(&terms.note, key).expect("the tally has signed it");
    let body = padded(&contributed(source, content)).unwrap();
    let bound = bound_to(&terms.handle, &terms.ticket);
    let to = PublicKey(statement.key);
    let Sealed { envelope, answer } = seal_to(&to, CONTRIBUTION, &bound, &body, ANSWER).unwrap();
    Envelope {
        sealed: SealedContribution {
            ticket: terms.ticket,
            envelope,
        },
        answer,
        drawn,
        spent: false,
        retired: false,
    }
}
