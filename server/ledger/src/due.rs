//! What the clock, or what has happened, makes due. Each duty is a job of its own: one that fails
//! keeps no other waiting.

use lethe_proto::round::Outcome;
use lethe_receipt::statement::{Kind, canonical, entry};

use crate::command::LogFor;
use crate::ids::{Contributor, EpochNo, Now, Owner, RunKey, ShardKey};
use crate::state::State;

/// A job that is due. Most are one command; the others say what the shell does first.
#[derive(Clone, Debug, PartialEq)]
pub enum Duty {
    /// `Command::OpenRound`.
    OpenRound(RunKey),
    /// `Command::SealRound`.
    SealRound(RunKey),
    /// `Command::Deadline`: too few answered in time.
    Deadline(RunKey),
    /// `Command::AggregationFailed`: the result of the job has not come.
    Unseal(RunKey),
    /// Add these up, if no job does so already; then `Command::RoundAggregated`.
    Aggregate {
        /// The round.
        run: RunKey,
        /// What counts.
        counted: Vec<Contributor>,
    },
    /// `Command::NoteInvitations`.
    NoteInvitations,
    /// `Command::GiveUpWaiting`.
    GiveUpWaiting,
    /// `Command::BeginExecution`.
    BeginExecution,
    /// Destroy these keys, then `Command::KeysDestroyed`. May be repeated.
    DestroyKeys(Vec<Owner>),
    /// Destroy these keys, then `Command::SpentDestroyed`.
    DestroySpent(Vec<Owner>),
    /// Hash `State::members_of_tree`, then `Command::MembersHashed`.
    HashMembers(ShardKey),
    /// Enter this into the log unless it is there, then `Command::Logged`.
    Log {
        /// What it is about.
        about: LogFor,
        /// The entry.
        entry: Vec<u8>,
    },
    /// `Command::Publish`.
    Publish(EpochNo),
    /// `Command::Retire`.
    Retire(EpochNo),
    /// `Command::BeginEpoch`.
    BeginEpoch(EpochNo),
    /// `Command::DropEpoch`: nobody has joined it in time.
    DropEpoch(EpochNo),
    /// `Command::Finish`.
    Finish(u64),
    /// Make the receipt of `State::receipt_parts`, then `Command::ReceiptIssued`.
    IssueReceipt(u64),
    /// Enter `State::release_statement` into the log unless it is there, then
    /// `Command::ReleaseLogged`. Until then nothing is served.
    LogRelease(u64),
}

/// Everything that is due now.
pub fn due(state: &State, now: Now) -> Vec<Duty> {
    let mut out = vec![];
    if !state.core.spent.is_empty() {
        out.push(Duty::DestroySpent(
            state.core.spent.iter().cloned().collect(),
        ));
    }
    if state.core.executing.is_some() {
        out.push(Duty::DestroyKeys(state.keys_to_destroy()));
    } else {
        let waits = state.window_is_over(now) || !state.core.lost.is_empty();
        if waits || !state.index.moving.is_empty() {
            out.push(Duty::BeginExecution);
        }
        if !state.late_people(now).is_empty() {
            out.push(Duty::GiveUpWaiting);
        }
        let may = state.epochs.keys().filter(|no| state.may_publish(**no));
        out.extend(may.map(|no| Duty::Publish(*no)));
        let over = state.epochs.keys().filter(|no| state.may_retire(**no));
        out.extend(over.map(|no| Duty::Retire(*no)));
        if let Some(no) = state.rolling() {
            if state.may_begin(no, now) {
                out.push(Duty::BeginEpoch(no));
            } else if state.may_drop(no, now) {
                out.push(Duty::DropEpoch(no));
            }
        }
    }
    out.extend(state.release_to_log().map(Duty::LogRelease));
    if state.has_invitations_to_note(now) {
        out.push(Duty::NoteInvitations);
    }
    log_duties(state, &mut out);
    round_duties(state, now, &mut out);
    for id in &state.index.waiting {
        let Some(d) = state.deletions.get(id) else {
            continue;
        };
        if d.statement.is_some() {
            if d.statement_index.is_some() {
                out.push(Duty::IssueReceipt(*id));
            }
        } else if state.erasing(d, now) == 0
            && (d.phase == lethe_proto::admin::DeletionPhase::WaitingForDevice
                || (state.all_retrained(d) && state.all_logged() && state.lists_are_whole(*id)))
        {
            out.push(Duty::Finish(*id));
        }
    }
    out
}

fn log_duties(state: &State, out: &mut Vec<Duty>) {
    for (key, epoch, shard) in state.shards() {
        if let Some(intended) = &shard.intended {
            let entry = entry(
                Kind::Training,
                &intended.salt,
                &canonical(&intended.training),
            );
            out.push(Duty::Log {
                about: LogFor::Training(key),
                entry,
            });
            continue;
        }
        let versions = state
            .volatile
            .versions
            .get(&key)
            .copied()
            .unwrap_or_default();
        // While something is executed, what is trained on is not settled.
        let alive = epoch.partition.is_some() && !state.ended(key.epoch);
        let settled = alive && !state.unexecuted();
        if settled && versions.members != versions.logged {
            out.push(Duty::HashMembers(key));
        }
    }
    for id in &state.index.waiting {
        let Some(d) = state.deletions.get(id) else {
            continue;
        };
        if d.task.is_some() && d.order_index.is_none() {
            out.push(Duty::Log {
                about: LogFor::Order(*id),
                entry: d.order(*id).entry(&d.salt),
            });
        }
        if let Some(statement) = d.statement.as_ref().filter(|_| d.statement_index.is_none()) {
            out.push(Duty::Log {
                about: LogFor::Statement(*id),
                entry: entry(Kind::Deletion, &d.salt, &canonical(statement)),
            });
        }
    }
    for no in &state.index.unlogged {
        let Some(a) = state.actions.get(no) else {
            continue;
        };
        out.push(Duty::Log {
            about: LogFor::Action(*no),
            entry: entry(Kind::Action, &a.salt, &canonical(&a.action)),
        });
    }
    let unlogged = state.catalogues().filter(|(_, r)| r.index.is_none());
    out.extend(unlogged.map(|(version, record)| Duty::Log {
        about: LogFor::Catalogue(version),
        entry: record.manifest(version).entry(),
    }));
}

fn round_duties(state: &State, now: Now, out: &mut Vec<Duty>) {
    for generation in state.index.runs.keys() {
        let Some(view) = state.run_view(*generation) else {
            continue;
        };
        let run = view.run.key(view.at);
        let Some(open) = state.volatile.open.get(generation) else {
            if state.may_open(&run, now) {
                out.push(Duty::OpenRound(run));
            }
            continue;
        };
        if let Some(sealed) = &open.sealed {
            if now.uptime_ms > sealed.since + state.rules.job_wait_ms {
                out.push(Duty::Unseal(open.run));
            } else {
                out.push(Duty::Aggregate {
                    run: open.run,
                    counted: sealed.counted.clone(),
                });
            }
            continue;
        }
        match state.outcome(&open.run, now) {
            Some(Outcome::Aggregate(_)) => out.push(Duty::SealRound(open.run)),
            Some(Outcome::Starved { .. }) => out.push(Duty::Deadline(open.run)),
            None => {}
        }
    }
}
