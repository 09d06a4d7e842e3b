//! Rounds that are added up while other things happen, and what is due.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use lethe_ledger::{Command, Duty, RunKey, ShardKey, due};

use super::super::Shell;
use super::super::jobs::Job;
use super::world::{Event, Simulation};
use crate::CoordinatorError;
use crate::durable::NewValue;
use crate::fatal;
use crate::rounds::internal;

type Sum = Result<(Command, Vec<NewValue>), CoordinatorError>;

/// A job that has begun and not ended.
pub(super) struct Held {
    job: Job,
    /// None: it is computed when it ends.
    sum: Option<Sum>,
    /// It never ends by itself.
    hangs: bool,
}

/// All of them.
#[derive(Default)]
pub(super) struct Running {
    pub(super) all: BTreeMap<u64, Held>,
    /// Results that are offered once more, though nobody asked.
    again: BTreeMap<u64, (Command, Vec<NewValue>)>,
    /// Jobs that a deletion has ended.
    ended: u64,
}

/// Ends the jobs of these shards: whoever destroys keys waits for them.
fn end(shell: &Shell, jobs: &Mutex<Running>, shards: &[ShardKey]) {
    let mut going = vec![];
    {
        let mut running = jobs.lock().unwrap();
        let of = |h: &Held| shards.contains(&h.job.run().shard_key());
        let ids: Vec<u64> = running
            .all
            .iter()
            .filter(|(_, h)| of(h))
            .map(|(i, _)| *i)
            .collect();
        running.ended += ids.len() as u64;
        going.extend(ids.iter().filter_map(|id| running.all.remove(id)));
    }
    for held in going {
        assert!(
            held.job.is_cancelled(),
            "a job is waited for, and was not told to end"
        );
        let sum = held.sum.unwrap_or_else(|| shell.add_up(&held.job));
        shell.job_ended(&held.job, sum);
    }
}

impl Simulation {
    /// Whoever waits for jobs ends them.
    pub(super) fn let_jobs_end(&self, shell: &Arc<Shell>) {
        let jobs = self.jobs.clone();
        let of: Weak<Shell> = Arc::downgrade(shell);
        let ender = move |shards: &[ShardKey]| {
            if let Some(shell) = of.upgrade() {
                end(&shell, &jobs, shards);
            }
        };
        *fatal::lock(&shell.jobs.ender) = Some(Arc::new(ender));
    }

    /// Does what is due; now and then the first step of a deletion only.
    pub(super) fn duties(&mut self) {
        let Some(shell) = self.shell.clone() else {
            return;
        };
        let waits = due(&shell.state(), shell.clock.now()).contains(&Duty::BeginExecution);
        if waits && self.chance(2) {
            let begun = shell.begin_execution();
            self.note(format!(
                "{} begins an execution: {}",
                self.now,
                begun.is_ok()
            ));
            // None: it was read again after a failed write. Then whoever destroys keys tells them.
            if begun.is_ok_and(|happened| happened) {
                self.count.one("slow executions");
                self.all_cancelled(&shell);
            }
            return;
        }
        shell.meter.look(&shell.state(), shell.clock.now());
        let before = shell.failures();
        let failed = shell.do_duties();
        if shell.failures() > before {
            self.count.one("failed duties");
            self.note(format!("{} duties failed: {failed:?}", self.now));
        }
        let ended = std::mem::take(&mut self.jobs.lock().unwrap().ended);
        self.count.add("ended jobs", ended);
    }

    /// The jobs of shards that are being rolled back were told to end.
    fn all_cancelled(&self, shell: &Shell) {
        let state = shell.state();
        let Some(executing) = &state.core().executing else {
            return;
        };
        let rolled = |run: RunKey| executing.rolled.iter().any(|(k, _)| *k == run.shard_key());
        for held in self.jobs.lock().unwrap().all.values() {
            let told = !rolled(held.job.run()) || held.job.is_cancelled();
            assert!(told, "{}: {:?} goes on", self.story(), held.job.run());
        }
    }

    /// Begins to add up the rounds that are due.
    pub(super) fn begin_jobs(&mut self) {
        let Some(shell) = self.shell.clone() else {
            return;
        };
        while let Some(job) = shell.jobs.take() {
            if self.adding == 0 {
                let sum = self.sum(&shell, &job);
                shell.job_ended(&job, sum);
                continue;
            }
            self.events += 1;
            let id = self.events;
            let now = self.dice.below(2) == 0;
            let hangs = self.chance(12);
            let sum = now.then(|| self.sum(&shell, &job));
            let held = Held { job, sum, hangs };
            self.jobs.lock().unwrap().all.insert(id, held);
            let longest = if self.is_quiet() { 300 } else { self.adding };
            let when = self.now + 1 + self.dice.below(longest as usize) as u64;
            self.queue.insert((when, id), Event::JobEnds(id));
        }
    }

    fn sum(&mut self, shell: &Shell, job: &Job) -> Sum {
        if self.chance(25) {
            self.count.one("failed jobs");
            return Err(internal(&"simulated"));
        }
        let sum = shell.add_up(job);
        if let Ok((Command::RoundAggregated { left_out, .. }, _)) = &sum {
            self.count.add("left out", left_out.len() as u64);
        }
        if let Ok((Command::RoundShort { .. }, _)) = &sum {
            self.count.one("short rounds");
        }
        if let Ok((command, values)) = &sum
            && self.chance(10)
        {
            self.events += 1;
            let id = self.events;
            let copy = (command.clone(), values.clone());
            self.jobs.lock().unwrap().again.insert(id, copy);
            let when = self.now + 1 + self.dice.below(8000) as u64;
            self.queue.insert((when, id), Event::Again(id));
        }
        sum
    }

    pub(super) fn job_ends(&mut self, id: u64) {
        let held = {
            let mut running = self.jobs.lock().unwrap();
            match running.all.get(&id) {
                Some(held) if held.hangs => None,
                _ => running.all.remove(&id),
            }
        };
        let Some(shell) = self.shell.clone() else {
            return;
        };
        let Some(held) = held else {
            return;
        };
        self.count.one("slow jobs");
        let run = held.job.run();
        let waits = {
            let state = shell.state();
            let open = state.open_round(run.generation).filter(|o| o.run == run);
            open.is_some_and(|o| o.sealed.is_some())
        };
        self.count.add("late jobs", u64::from(!waits));
        let sum = match held.sum {
            Some(sum) => sum,
            None => self.sum(&shell, &held.job),
        };
        shell.job_ended(&held.job, sum);
    }

    /// A result that was offered comes again.
    pub(super) fn offer_again(&mut self, id: u64) {
        let again = self.jobs.lock().unwrap().again.remove(&id);
        let Some(shell) = self.shell.clone() else {
            return;
        };
        let Some((command, values)) = again else {
            return;
        };
        let run = match &command {
            Command::RoundAggregated { run, .. } | Command::RoundShort { run, .. } => *run,
            other => panic!("no result: {other:?}"),
        };
        let there = {
            let state = shell.state();
            let stage = state.stage(&run.stage_key());
            stage.is_some_and(|s| s.rounds.contains_key(&run.round))
        };
        let written = shell.execute(command, values);
        if there && let Ok(events) = written {
            assert!(events.is_empty(), "{}: {run:?} closes twice", self.story());
            self.count.one("repeated results");
        }
    }
}
