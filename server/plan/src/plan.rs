//! Plans and how they are made.

use std::collections::BTreeSet;
use std::fmt;

use lethe_proto::deletion::DeletionRequest as Request;
use lethe_proto::ids::{ShardId, SubjectId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::forecast::{Cost, Forecast, stages_cost};
use crate::inventory::{Inventory, Member};

/// One step of a plan; each may be repeated without harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Refuse the subject's connections and withdraw what invites it.
    Withdraw {
        /// Who.
        subject: SubjectId,
    },
    /// Destroy the subject's keys, and with them what is stored of the subject.
    DestroyKeys {
        /// Who.
        subject: SubjectId,
    },
    /// Destroy the keys of everybody, and seal anew what stays.
    RenewKeys {
        /// How many subjects.
        subjects: u32,
    },
    /// Keep the subject's data, but use it no more.
    SetAside {
        /// Who.
        subject: SubjectId,
    },
    /// Destroy what the shard learned from `from_stage` on and serve the checkpoint before it.
    RollBack {
        /// The shard.
        shard: ShardId,
        /// First stage that saw the data, 1-based.
        from_stage: u16,
    },
    /// Drop the subject's rows of the error table, and the measurements of rolled-back adapters.
    Reweigh,
    /// Publish a release.
    Release,
    /// Withdraw all earlier releases: devices that hold one must update before anything else.
    Recall,
    /// Have the devices of this many subjects erase; training of their shards waits for them.
    EraseOnDevices {
        /// How many.
        subjects: u32,
    },
    /// Retrain stages `from_stage..=to_stage` on what remains.
    Retrain {
        /// The shard.
        shard: ShardId,
        /// First stage.
        from_stage: u16,
        /// Last stage.
        to_stage: u16,
        /// Subjects that remain for it.
        cohort: u32,
    },
    /// Enter statements into the log and issue receipts.
    Receipts {
        /// How many: one per request.
        count: u32,
    },
}

/// An immutable plan for one request or many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What was asked.
    pub requests: Vec<Request>,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// Shards that are not touched.
    pub untouched: Vec<ShardId>,
    /// What it will cost.
    pub forecast: Forecast,
}

/// Why there is no plan.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// Nobody of that name.
    #[error("subject {0} is not known: it was never invited, or was deleted already")]
    UnknownSubject(SubjectId),
    /// The same subject twice.
    #[error(
        "subject {0} is in this batch more than once: put everything about a person into one \
         request"
    )]
    Twice(SubjectId),
    /// A request without content.
    #[error("a request names no {0}")]
    Empty(&'static str),
}

/// Plans a batch: every shard and slice is replayed once, whatever the number of requests.
pub fn plan(inventory: &Inventory, requests: &[Request]) -> Result<Plan, PlanError> {
    check(inventory, requests)?;
    let concerned = |m: &Member| requests.iter().any(|r| r.concerns(&m.subject));
    // Who leaves training for good; devices that erase come back with what remains.
    let leaves = |m: &Member| {
        requests.iter().any(|r| {
            r.subject() == Some(&m.subject)
                && matches!(r, Request::Erase { .. } | Request::Restrict { .. })
        })
    };
    let affected: Vec<(ShardId, u16, u16)> = inventory
        .shards
        .iter()
        .filter_map(|s| Some((s.id, s.first_stage(concerned)?, s.trained_stage)))
        .collect();
    let mut steps = vec![];
    for r in requests {
        match r {
            Request::Erase { subject } => {
                steps.push(Step::Withdraw {
                    subject: subject.clone(),
                });
                steps.push(Step::DestroyKeys {
                    subject: subject.clone(),
                });
            }
            Request::Restrict { subject } => steps.push(Step::SetAside {
                subject: subject.clone(),
            }),
            Request::EraseItems { subject, .. } | Request::Withdraw { subject, .. } => {
                steps.push(Step::DestroyKeys {
                    subject: subject.clone(),
                });
            }
            Request::Takedown { .. } => {}
        }
    }
    if requests.iter().any(|r| r.subject().is_none()) {
        // A count: the plan of a takedown is kept, and must not name everybody for ever.
        let all = inventory
            .shards
            .iter()
            .map(|s| s.members.len())
            .sum::<usize>();
        steps.push(Step::RenewKeys {
            subjects: all as u32,
        });
    }
    steps.extend(
        affected
            .iter()
            .map(|(shard, from_stage, _)| Step::RollBack {
                shard: *shard,
                from_stage: *from_stage,
            }),
    );
    steps.push(Step::Reweigh);
    if !affected.is_empty() {
        steps.extend([Step::Release, Step::Recall]);
    }
    let erasing = |m: &&Member| {
        requests
            .iter()
            .any(|r| r.asks_devices() && r.concerns(&m.subject))
    };
    let devices = inventory
        .shards
        .iter()
        .flat_map(|s| &s.members)
        .filter(erasing)
        .count() as u32;
    if devices > 0 {
        steps.push(Step::EraseOnDevices { subjects: devices });
    }
    let of = |id: ShardId| inventory.shards.iter().find(move |s| s.id == id);
    for (shard, from_stage, to_stage) in &affected {
        let stays = |m: &&Member| !leaves(m) && !m.idle && m.slice < *to_stage;
        let cohort = of(*shard).map_or(0, |s| s.members.iter().filter(stays).count()) as u32;
        steps.push(Step::Retrain {
            shard: *shard,
            from_stage: *from_stage,
            to_stage: *to_stage,
            cohort,
        });
    }
    if !affected.is_empty() {
        steps.push(Step::Release);
    }
    steps.push(Step::Receipts {
        count: requests.len() as u32,
    });
    let untouched = inventory
        .shards
        .iter()
        .map(|s| s.id)
        .filter(|id| affected.iter().all(|(a, _, _)| a != id))
        .collect();
    let forecast = forecast(inventory, &affected, |m| !leaves(m));
    Ok(Plan {
        requests: requests.to_vec(),
        steps,
        untouched,
        forecast,
    })
}

fn check(inventory: &Inventory, requests: &[Request]) -> Result<(), PlanError> {
    if requests.is_empty() {
        return Err(PlanError::Empty("request"));
    }
    let mut seen = BTreeSet::new();
    for r in requests {
        if matches!(r, Request::EraseItems { .. } | Request::Takedown { .. })
            && r.items().is_empty()
        {
            return Err(PlanError::Empty("item"));
        }
        let Some(s) = r.subject() else { continue };
        if !inventory.knows(s) {
            return Err(PlanError::UnknownSubject(s.clone()));
        }
        if !seen.insert(s) {
            return Err(PlanError::Twice(s.clone()));
        }
    }
    Ok(())
}

fn forecast(
    inventory: &Inventory,
    affected: &[(ShardId, u16, u16)],
    stays: impl Fn(&Member) -> bool + Copy,
) -> Forecast {
    let (mut cost, mut everything, mut degraded) = (Cost::default(), Cost::default(), vec![]);
    for shard in &inventory.shards {
        everything.add(&stages_cost(inventory, shard, 1..=inventory.stages, stays));
        let Some((_, from, to)) = affected.iter().find(|(id, _, _)| *id == shard.id) else {
            continue;
        };
        cost.add(&stages_cost(inventory, shard, *from..=*to, stays));
        let loss = |stage: u16| {
            let losses = &shard.losses;
            losses.get(usize::from(stage).checked_sub(1)?).copied()?
        };
        let now = shard.losses.last().copied().flatten();
        degraded.push((shard.id, loss(from - 1), now));
    }
    Forecast {
        shards: affected.to_vec(),
        cost: cost.at(&inventory.rates),
        everything: everything.at(&inventory.rates),
        degraded,
    }
}

impl Plan {
    /// For a person of whom nothing is held any more: nothing is left to do but the receipt.
    pub fn nothing_held(inventory: &Inventory, request: &Request) -> Self {
        Self {
            requests: vec![request.clone()],
            steps: vec![Step::Reweigh, Step::Receipts { count: 1 }],
            untouched: inventory.shards.iter().map(|s| s.id).collect(),
            forecast: forecast(inventory, &[], |_| true),
        }
    }

    /// `(shard, first retrained stage)` of every shard that is rolled back.
    pub fn affected(&self) -> Vec<(ShardId, u16)> {
        let roll = |s: &Step| match s {
            Step::RollBack { shard, from_stage } => Some((*shard, *from_stage)),
            _ => None,
        };
        self.steps.iter().filter_map(roll).collect()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Withdraw { subject } => {
                write!(f, "refuse the devices of subject {subject}")
            }
            Self::DestroyKeys { subject } => {
                write!(f, "destroy the encryption keys of subject {subject}")
            }
            Self::RenewKeys { subjects } => {
                write!(
                    f,
                    "destroy the encryption keys of all {subjects} subjects, seal what stays \
                     under new ones"
                )
            }
            Self::SetAside { subject } => write!(f, "set subject {subject} aside"),
            Self::RollBack { shard, from_stage } => {
                write!(
                    f,
                    "{shard}: destroy stages {from_stage} and later, serve checkpoint {}",
                    from_stage - 1
                )
            }
            Self::Reweigh => write!(
                f,
                "drop what was measured on the data and on what was destroyed"
            ),
            Self::Release => write!(f, "publish a release"),
            Self::Recall => write!(f, "recall earlier releases"),
            Self::EraseOnDevices { subjects } => {
                write!(
                    f,
                    "have {subjects} device(s) erase; their shards wait for them"
                )
            }
            Self::Retrain {
                shard,
                from_stage,
                to_stage,
                cohort,
            } => {
                write!(
                    f,
                    "{shard}: retrain stages {from_stage} to {to_stage} with the {cohort} \
                     subjects that remain"
                )
            }
            Self::Receipts { count } => write!(
                f,
                "enter {count} statement(s) into the log, issue the receipt(s)"
            ),
        }
    }
}

/// Steps of one kind in a row beyond this many are shown as a count.
const SHOWN: usize = 3;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for r in self.requests.iter().take(SHOWN) {
            writeln!(f, "{r}")?;
        }
        if self.requests.len() > SHOWN {
            writeln!(f, "and {} more requests", self.requests.len() - SHOWN)?;
        }
        let personal = |s: &Step| {
            matches!(
                s,
                Step::Withdraw { .. } | Step::DestroyKeys { .. } | Step::SetAside { .. }
            )
        };
        let hidden = self
            .steps
            .iter()
            .filter(|s| personal(s))
            .count()
            .saturating_sub(2 * SHOWN);
        let shown = self.steps.iter().filter(|s| personal(s)).take(2 * SHOWN);
        let mut number = 0;
        for step in shown {
            number += 1;
            writeln!(f, "  {number}. {step}")?;
        }
        if hidden > 0 {
            writeln!(f, "  ... and {hidden} more of these")?;
        }
        for step in self.steps.iter().filter(|s| !personal(s)) {
            number += 1;
            writeln!(f, "  {number}. {step}")?;
        }
        let ids: Vec<String> = self.untouched.iter().map(|s| s.0.to_string()).collect();
        writeln!(
            f,
            "untouched shards: {}",
            if ids.is_empty() {
                "none".into()
            } else {
                ids.join(", ")
            }
        )?;
        let (c, all) = (&self.forecast.cost, &self.forecast.everything);
        write!(
            f,
            "cost: {} rounds with {} samples; retraining everything: {} rounds with {}",
            c.rounds, c.samples, all.rounds, all.samples
        )?;
        if c.rounds > 0 && c.seconds > 0.0 {
            let megabytes = c.bytes as f64 / 1e6;
            write!(
                f,
                "\nexpected, at the rates measured so far: {:.1} s, {:.1} minutes of work on \
                 devices, {megabytes:.1} MB",
                c.seconds, c.client_minutes
            )?;
        }
        for (shard, kept, now) in &self.forecast.degraded {
            let loss = |l: &f32| format!("training loss {l:.3}");
            write!(
                f,
                "\nmeanwhile: {shard} serves an earlier checkpoint ({}; now {})",
                kept.as_ref().map_or("not trained yet".to_owned(), loss),
                now.as_ref().map_or("not trained yet".to_owned(), loss)
            )?;
        }
        Ok(())
    }
}
