//! What happens to lists: people contribute and leave, and snapshots are made, in between
//! everything else.

use std::collections::BTreeSet;

use lethe_ledger::State;
use lethe_parts::history::Interaction;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_tally::Offer;

use super::super::Shell;
use super::begin::first_certificate;
use super::brought::{Asked, CONTENTS, Coming, forget, send};
use super::listed::Kind;
use super::world::{BEGIN, Event, QUIET, Simulation};
use crate::CoordinatorError;
use crate::lists::Lists;

/// What has come and is not taken yet.
pub(super) struct Queued {
    subject: SubjectId,
    asked: Asked,
    coming: Coming,
}

/// The tally could not write: it may have it or not.
fn is_doubtful(why: &CoordinatorError) -> bool {
    why.to_string().contains("the tally cannot store")
}

impl Simulation {
    /// How contributions, snapshots and people who leave begin.
    pub(super) fn begin_lists(&mut self) {
        if !self.listed.is_on() {
            return;
        }
        let all: BTreeSet<Digest> = self.devices.iter().map(|d| d.certificate).collect();
        forget(|asked| match asked {
            Asked::Contribution { certificate, .. } => !all.contains(certificate),
            Asked::Withdrawal(_) => false,
        });
        self.at(500, Event::Contribute);
        self.at(700, Event::Lists);
        for _ in 0..self.listed.dice.below(3) {
            let when = 2000 + self.listed.dice.below(QUIET as usize - 3000) as u64;
            let n = self.listed.dice.below(self.devices.len());
            self.at(when, Event::Uncontribute(n));
        }
    }

    pub(super) fn happen_to_lists(&mut self, event: Event) {
        match event {
            Event::Contribute => self.contribute(),
            Event::Stored => self.take_contributions(),
            Event::Uncontribute(n) => self.withdraw(n),
            Event::Lists => self.look_after_lists(),
            other => panic!("this is not about lists: {other:?}"),
        }
    }

    /// Some devices contribute at the same time.
    fn contribute(&mut self) {
        if self.now < QUIET {
            let next = 200 + self.listed.dice.below(4000) as u64;
            self.at(self.now + next, Event::Contribute);
        }
        let Some(shell) = self.shell.clone() else {
            return;
        };
        for _ in 0..1 + self.listed.dice.below(4) {
            let n = self.listed.dice.below(self.devices.len());
            let content = self.listed.dice.below(CONTENTS);
            let subject = self.devices[n].subject.clone();
            let earlier = self.devices[..n].iter().filter(|d| d.subject == subject);
            let source = earlier.count();
            let certificate = self.devices[n].certificate;
            let asked = Asked::Contribution {
                certificate,
                source,
                content,
            };
            let usual = certificate == first_certificate(&subject, source as u8);
            self.queue_for_lists(subject, asked, usual);
        }
        if let Some(lists) = &shell.lists {
            self.crowd_contributes(&shell, lists);
        }
    }

    fn crowd_contributes(&mut self, shell: &Shell, lists: &Lists) {
        let second = (BEGIN + self.now) / 1000;
        let all = self.listed.crowd.clone();
        let content = self.listed.dice.below(8) as u32;
        let event = |at: u32| Interaction {
            item: (content + at) % 8,
            day: (second / 86_400) as i32 - 4 + at as i32,
            seen: true,
            half_stars: None,
            liked: true,
            hidden: false,
        };
        let events: Vec<Interaction> = (0..4).map(event).collect();
        let offer = |subject: &SubjectId| Offer {
            handle: lists.handle(subject),
            source: [9; 16],
            whole: true,
            events: &events,
        };
        let offers: Vec<Offer<'_>> = all.iter().map(offer).collect();
        let tally = lists.tally();
        let done = tally.is_some_and(|t| t.contribute_all(&offers, second).is_ok());
        for subject in &all {
            self.listed.came(&shell.state(), subject, second, done);
        }
    }

    /// What has come together is taken together.
    fn take_contributions(&mut self) {
        let Some(shell) = self.shell.clone() else {
            return;
        };
        let Some(lists) = &shell.lists else {
            return;
        };
        let second = (BEGIN + self.now) / 1000;
        let mut arriving = vec![];
        let mut waiting = vec![];
        for queued in std::mem::take(&mut self.listed.queue) {
            arriving.push(queued.coming.arriving);
            waiting.push((queued.subject, queued.asked, queued.coming.answer));
        }
        lists.take_in(&shell, arriving);
        let state = shell.state();
        for (subject, asked, mut answer) in waiting {
            let answer = answer.heard().expect("everybody is answered");
            let said = answer
                .as_ref()
                .map_or_else(ToString::to_string, |()| "ok".into());
            match asked {
                Asked::Withdrawal(_) => {
                    self.note(format!("{} {subject} leaves the lists: {said}", self.now));
                    self.withdrawn(subject, answer.is_ok());
                }
                Asked::Contribution { .. } => {
                    self.note(format!("{} {subject} contributes: {said}", self.now));
                    self.contributed(&state, &subject, second, answer);
                }
            }
        }
    }

    fn contributed(
        &mut self,
        state: &State,
        subject: &SubjectId,
        second: u64,
        answer: Result<(), CoordinatorError>,
    ) {
        match answer {
            Ok(()) => {
                let of = |r: &DeletionRequest| r.subject() == Some(subject);
                let planned = state.to_execute().iter().any(|(_, d)| of(&d.request));
                let restricted = state.profile(subject).is_none_or(|p| p.restricted);
                assert!(
                    !planned && !restricted,
                    "{}: {subject} may not contribute",
                    self.story()
                );
                self.count.one("contributions");
                self.listed.came(state, subject, second, true);
            }
            Err(e) if is_doubtful(&e) => {
                self.count.one("failed contributions");
                self.listed.came(state, subject, second, false);
            }
            Err(_) => self.count.one("refused contributions"),
        }
    }

    /// A person takes part in lists no longer.
    fn withdraw(&mut self, n: usize) {
        if self.shell.is_none() {
            return self.at(self.now + 700, Event::Uncontribute(n));
        }
        let subject = self.devices[n].subject.clone();
        let asked = Asked::Withdrawal(subject.clone());
        self.queue_for_lists(subject, asked, true);
    }

    fn withdrawn(&mut self, subject: SubjectId, done: bool) {
        self.listed.left(&subject, done);
        if done {
            self.count.one("left the lists");
            return;
        }
        let n = self.devices.iter().position(|d| d.subject == subject);
        self.at(self.now + 300, Event::Uncontribute(n.unwrap()));
    }

    fn queue_for_lists(&mut self, subject: SubjectId, asked: Asked, usual: bool) {
        if self.listed.queue.is_empty() {
            let together = self.listed.dice.below(60) as u64;
            self.at(self.now + together, Event::Stored);
        }
        let coming = send(&asked, usual);
        self.listed.queue.push(Queued {
            subject,
            asked,
            coming,
        });
    }

    /// What the thread that makes snapshots does.
    fn look_after_lists(&mut self) {
        let most = if self.is_quiet() { 900 } else { 2500 };
        let next = 20 + self.listed.dice.below(most) as u64;
        self.at(self.now + next, Event::Lists);
        let Some(shell) = self.shell.clone() else {
            return;
        };
        let Some(lists) = &shell.lists else {
            return;
        };
        let holds = shell.state().holds_serving();
        let before = lists.newest().map(|s| s.number);
        let done = lists.do_what_is_due(&shell);
        let after = lists.newest().map(|s| s.number);
        assert!(
            !holds || before == after,
            "{}: lists {after:?} are published while nothing may be served",
            self.story()
        );
        match done {
            Ok(true) => assert!(after > before, "{}: {before:?}, {after:?}", self.story()),
            Ok(false) => {}
            Err(e) => {
                self.count.one("failed lists");
                self.note(format!("{} lists: {e}", self.now));
            }
        }
        self.count.add("lists wait", u64::from(holds));
    }

    /// Whether people are deleted together.
    pub(super) fn gathers(dice: &mut lethe_learn::seed::Stream, kind: Kind) -> u64 {
        match kind != Kind::Without && dice.below(3) == 0 {
            true => 1 + dice.below(6) as u64,
            false => 0,
        }
    }
}
