//! One data set and one seed: what is trained on, what is deleted, and what is measured of every
//! method.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use lethe_benches::cpu_seconds;
use lethe_benches::lab::eprint_line;
use lethe_learn::apa::ApaParams;
use lethe_learn::metrics::{auc, uauc};
use lethe_learn::seed::Seed;
use lethe_recsys::samples::{Part, Samples, TaskSample};
use lethe_unlearn::figures::{jsd, l2, membership_auc, membership_score};
use lethe_unlearn::{Exactness, ModelId, SampleId, Strategy, World};
use serde_json::{Value, json};

use crate::composed::{Rates, Scored};
use crate::methods::all;
use crate::world::{Real, Recipe, Task};

/// Fewer deleted samples than this tell nothing by an attack.
const ATTACKED: usize = 5;

/// Candidates that are ranked at once when that is timed.
const CANDIDATES: usize = 20;

/// How many samples of each part.
pub(crate) struct Sizes {
    pub(crate) train: usize,
    pub(crate) test: usize,
    pub(crate) validation: usize,
    /// Most deleted samples, and never-seen ones, of the attack.
    pub(crate) attacked: usize,
    /// Predictions that are timed.
    pub(crate) timed: usize,
    /// Of APA's weights.
    pub(crate) apa: ApaParams,
}

/// What is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Deletion {
    /// All samples of 1 % of the users.
    OnePercent,
    /// All samples of 5 % of the users.
    FivePercent,
    /// One interaction.
    Interaction,
}

impl Deletion {
    fn name(self) -> &'static str {
        match self {
            Self::OnePercent => "1% of users",
            Self::FivePercent => "5% of users",
            Self::Interaction => "one interaction",
        }
    }
}

pub(crate) struct Experiment {
    pub(crate) world: Real,
    pub(crate) train: Vec<SampleId>,
    pub(crate) validation: Vec<SampleId>,
    pub(crate) test: Vec<SampleId>,
    /// Never trained on by anybody, for the attack.
    never: Vec<SampleId>,
    gone: BTreeMap<Deletion, Vec<SampleId>>,
    attacked: usize,
    timed: usize,
    /// Candidates of one person, who has one history: prompts that share a prefix.
    ranked: Vec<Vec<SampleId>>,
    pub(crate) apa: ApaParams,
    pub(crate) seed: Seed,
}

/// One deletion.
struct Case<'a> {
    dataset: &'a str,
    seed: u64,
    deletion: Deletion,
    gone: Vec<SampleId>,
    remaining: Vec<SampleId>,
    attacked: Vec<SampleId>,
    references: &'a References,
}

/// What others are compared with: everything trained again.
struct Retrained {
    auc: f64,
    auc_composed: f64,
    on_gone: Vec<[f32; 2]>,
    samples: u64,
}

/// Models that never saw certain samples: for each, the positions that it was trained on.
type References = Vec<(ModelId, BTreeSet<SampleId>)>;

impl Experiment {
    /// `drawn` chooses the samples; all else follows from `seed`.
    pub(crate) fn new(
        model: &Path,
        task: Task,
        sizes: &Sizes,
        recipe: Recipe,
        seed: &Seed,
        drawn: &Seed,
        home: &Path,
    ) -> anyhow::Result<Self> {
        let samples = Samples::build(&task.data, task.split);
        let train = samples.choose(Part::Train, sizes.train, &drawn.derive("train", &[]));
        let deleted = deletions(&train, seed);
        let leaving: BTreeSet<u32> = deleted.values().flatten().map(|i| train[*i].user).collect();
        let trained: BTreeSet<u32> = train.iter().map(|s| s.event).collect();
        // Who leaves is in no validation and no test sample, and in none of those that were never
        // seen.
        let stays = |s: &&TaskSample| !leaving.contains(&s.user) && !trained.contains(&s.event);
        let others = Samples {
            all: samples.all.iter().filter(stays).cloned().collect(),
        };
        let few = |part, n, label: &str| others.choose(part, n, &drawn.derive(label, &[]));
        let (test, validation) = (
            few(Part::Test, sizes.test, "test"),
            few(Part::Validation, sizes.validation, "validation"),
        );
        // Of the same time as the deleted: an attack that tells times apart would tell nothing
        // about memory.
        let parts = [
            train,
            validation,
            test,
            few(Part::Train, sizes.attacked, "never"),
        ];
        let mut rows = vec![];
        let [train, validation, test, never] = parts.map(|p| {
            let ids: Vec<SampleId> = (rows.len()..rows.len() + p.len()).collect();
            rows.extend(p);
            ids
        });
        let prepared = rows.len();
        let mut ranked = vec![];
        for s in rows[test[0]..]
            .iter()
            .take(sizes.timed.div_ceil(2))
            .cloned()
            .collect::<Vec<TaskSample>>()
        {
            let item = |i: usize| {
                (seed.rank("candidate", &i.to_le_bytes()) % task.data.items.len() as u64) as u32
            };
            ranked.push((rows.len()..rows.len() + CANDIDATES).collect());
            rows.extend((0..CANDIDATES).map(|i| TaskSample {
                item: item(i),
                ..s.clone()
            }));
        }
        let mut world = Real::load(model, task, rows, recipe, seed, home)?;
        world.prepare(prepared)?;
        Ok(Self {
            world,
            train,
            validation,
            test,
            never,
            gone: deleted,
            attacked: sizes.attacked,
            timed: sizes.timed,
            ranked,
            apa: sizes.apa,
            seed: *seed,
        })
    }

    fn remaining(&self, gone: &[SampleId]) -> Vec<SampleId> {
        self.train
            .iter()
            .copied()
            .filter(|s| !gone.contains(s))
            .collect()
    }

    pub(crate) fn auc(&self, logits: &[[f32; 2]]) -> (f64, f64) {
        let scores: Vec<f32> = logits.iter().map(|l| l[1] - l[0]).collect();
        let labels: Vec<bool> = self.test.iter().map(|s| self.world.label(*s)).collect();
        let users: Vec<u32> = self.test.iter().map(|s| self.world.user(*s)).collect();
        (
            auc(&scores, &labels).unwrap_or(f64::NAN),
            uauc(&users, &scores, &labels).unwrap_or(f64::NAN),
        )
    }

    /// Every method and deletion; each row of the table is given to `ready`.
    pub(crate) fn run(
        &mut self,
        dataset: &str,
        seed: u64,
        shards: usize,
        epochs: f64,
        which: &[Deletion],
        ready: &mut dyn FnMut(Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let references = self.references(shards, epochs)?;
        for deletion in which {
            let gone = self.gone[deletion].clone();
            let remaining = self.remaining(&gone);
            let attacked: Vec<SampleId> = gone.iter().copied().take(self.attacked).collect();
            let case = Case {
                dataset,
                seed,
                deletion: *deletion,
                gone,
                remaining,
                attacked,
                references: &references,
            };
            let mut retrained: Option<Retrained> = None;
            let started = cpu_seconds();
            let rates = self.rates(*deletion);
            let seconds = cpu_seconds() - started;
            for mut m in all(shards, epochs, self.apa, &self.seed) {
                eprint_line(&format!(
                    "{dataset}, seed {seed}, {}: {}",
                    deletion.name(),
                    m.name()
                ));
                ready(self.row(&case, &rates, m.as_mut(), &mut retrained)?)?;
            }
            if let Some(reference) = &retrained {
                ready(self.rates_row(&case, &rates, seconds, reference))?;
            }
        }
        Ok(())
    }

    /// Trains and forgets with one method, and measures. The first method is what the others are
    /// compared with.
    fn row(
        &mut self,
        case: &Case<'_>,
        rates: &Rates,
        m: &mut dyn Strategy,
        retrained: &mut Option<Retrained>,
    ) -> anyhow::Result<Value> {
        let trained = m.fit(&mut self.world, &self.train, &self.validation)?;
        let before = m.predict(&mut self.world, &self.test)?;
        let submodels = self.submodels(m)?;
        let cost = m.forget(
            &mut self.world,
            &case.remaining,
            &case.gone,
            &self.validation,
        )?;
        let after = m.predict(&mut self.world, &self.test)?;
        let ((auc_before, _), (auc_after, uauc_after)) = (self.auc(&before), self.auc(&after));
        let on_gone = m.predict(&mut self.world, &case.attacked)?;
        let validated = m.predict(&mut self.world, &self.validation)?;
        let auc_composed = self.composed(rates, Some(&validated), Some(&after));
        let reference = retrained.get_or_insert_with(|| Retrained {
            auc: auc_after,
            auc_composed,
            on_gone: on_gone.clone(),
            samples: cost.samples,
        });
        let singles: Vec<Vec<SampleId>> = self
            .test
            .iter()
            .take(self.timed)
            .map(|s| vec![*s])
            .collect();
        let users: BTreeSet<u32> = case.gone.iter().map(|s| self.world.user(*s)).collect();
        let saved = (cost.samples > 0).then(|| reference.samples as f64 / cost.samples as f64);
        let (p50, p95) = self.timed(m, &singles)?;
        let (ranked_p50, ranked_p95) = self.timed(m, &self.ranked.clone())?;
        Ok(json!({
            "dataset": case.dataset, "method": m.name(), "deletion": case.deletion.name(),
            "seed": case.seed,
            "auc_before": auc_before, "auc_after": auc_after, "uauc_after": uauc_after,
            "gap_to_retrain": auc_after - reference.auc, "submodel_auc": submodels,
            "auc_composed": auc_composed, "gap_composed": auc_composed - reference.auc_composed,
            "seconds": cost.seconds, "samples_retrained": cost.samples,
            "retrain_saved": saved,
            "exact": m.exactness() == Exactness::Exact, "exactness": m.exactness(),
            "jsd_to_retrain": jsd(&on_gone, &reference.on_gone),
            "l2_to_retrain": l2(&on_gone, &reference.on_gone),
            "mia_auc": self.attack(m, &case.attacked, &on_gone, case.references)?,
            "passes": m.passes(), "query_ms_p50": p50, "query_ms_p95": p95,
            "ranked_ms_p50": ranked_p50, "ranked_ms_p95": ranked_p95,
            "train_seconds": trained.seconds, "train_samples": trained.samples,
            "users_deleted": users.len(), "samples_deleted": case.gone.len(),
            "samples": self.train.len(), "test": self.test.len(),
            "people": self.world.people(),
        }))
    }

    /// The rates without a language model, before and after the deletion.
    fn rates_row(
        &self,
        case: &Case<'_>,
        rates: &Rates,
        seconds: f64,
        reference: &Retrained,
    ) -> Value {
        let after = self.composed(rates, None, None);
        let before = self.composed(&self.world.rates(|_, _| false), None, None);
        json!({
            "dataset": case.dataset, "method": "rates, no language model",
            "deletion": case.deletion.name(), "seed": case.seed,
            "auc_before": before, "auc_after": after, "gap_to_retrain": after - reference.auc,
            "auc_composed": after, "gap_composed": after - reference.auc_composed,
            "submodel_auc": after, "seconds": seconds, "samples_retrained": 0, "exact": true,
            "exactness": Exactness::Exact, "passes": 0, "samples_deleted": case.gone.len(),
            "samples": self.train.len(), "test": self.test.len(),
            "people": self.world.people(),
        })
    }

    /// Rates after a deletion: the deleted are in none of them.
    fn rates(&self, deletion: Deletion) -> Rates {
        let gone: Vec<&TaskSample> = self.gone[&deletion]
            .iter()
            .map(|s| self.world.row(*s))
            .collect();
        match deletion {
            Deletion::Interaction => self
                .world
                .rates(|at, _| gone.first().is_some_and(|s| s.event == at)),
            _ => self
                .world
                .rates(|_, e| gone.iter().any(|s| s.user == e.user)),
        }
    }

    /// Test AUC of a model's log-odds together with rates.
    fn composed(
        &self,
        rates: &Rates,
        validation: Option<&[[f32; 2]]>,
        test: Option<&[[f32; 2]]>,
    ) -> f64 {
        let of = |ids: &[SampleId], logits| Scored {
            samples: ids.iter().map(|s| self.world.row(*s)).collect(),
            logits,
        };
        let test = of(&self.test, test);
        let scores = rates.compose(&of(&self.validation, validation), &test);
        let labels: Vec<bool> = test.samples.iter().map(|s| s.label).collect();
        auc(&scores, &labels).unwrap_or(f64::NAN)
    }

    /// Mean AUC of the models that a method predicts with; its own where it has none.
    fn submodels(&mut self, m: &mut dyn Strategy) -> anyhow::Result<f64> {
        let models = m.models();
        if models.is_empty() {
            let own = m.predict(&mut self.world, &self.test)?;
            return Ok(self.auc(&own).0);
        }
        let mut sum = 0.0;
        for id in &models {
            let logits = self.world.logits(id, &self.test)?;
            sum += self.auc(&logits).0;
        }
        Ok(sum / models.len() as f64)
    }

    /// The shards of all methods, as reference models for the attack.
    fn references(&mut self, shards: usize, epochs: f64) -> anyhow::Result<References> {
        let mut out: References = vec![];
        for mut m in all(shards, epochs, self.apa, &self.seed) {
            let mut seen: BTreeMap<usize, BTreeSet<SampleId>> = BTreeMap::new();
            if m.exactness() == Exactness::Approximate || !m.adapters_alone() {
                continue;
            }
            m.fit(&mut self.world, &self.train, &self.validation)?;
            for (s, k) in m.placement() {
                seen.entry(k).or_default().insert(s);
            }
            let models = m.models();
            if models.len() > 1 {
                let of =
                    |(k, id): (usize, ModelId)| (id, seen.get(&k).cloned().unwrap_or_default());
                out.extend(models.into_iter().enumerate().map(of));
            }
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        out.dedup_by(|a, b| a.0 == b.0);
        Ok(out)
    }

    /// AUC of telling deleted samples from never-seen ones, after the deletion.
    fn attack(
        &mut self,
        m: &mut dyn Strategy,
        gone: &[SampleId],
        on_gone: &[[f32; 2]],
        references: &References,
    ) -> anyhow::Result<Option<f64>> {
        if gone.len() < ATTACKED || !m.adapters_alone() {
            return Ok(None);
        }
        let on_never = m.predict(&mut self.world, &self.never)?;
        let all: Vec<SampleId> = gone.iter().chain(&self.never).copied().collect();
        let mut theirs: Vec<Vec<[f32; 2]>> = vec![vec![]; all.len()];
        for (id, seen) in references {
            let mut logits = self.world.logits(id, gone)?;
            logits.extend(self.world.logits(id, &self.never)?);
            for ((s, l), out) in all.iter().zip(logits).zip(&mut theirs) {
                if !seen.contains(s) {
                    out.push(l);
                }
            }
        }
        let predictions = on_gone.iter().chain(&on_never);
        let scores: Vec<f32> = all
            .iter()
            .zip(predictions)
            .zip(&theirs)
            .map(|((s, l), refs)| membership_score(l, self.world.label(*s), refs))
            .collect();
        Ok(membership_auc(&scores[..gone.len()], &scores[gone.len()..]))
    }

    /// Median and 95th percentile of one prediction by the whole pass, in milliseconds, when those
    /// of each list are asked together.
    fn timed(
        &mut self,
        m: &mut dyn Strategy,
        lists: &[Vec<SampleId>],
    ) -> anyhow::Result<(Option<f64>, Option<f64>)> {
        self.world.timed = true;
        let mut times = vec![];
        for list in lists {
            let started = Instant::now();
            m.predict(&mut self.world, list)?;
            times.push(started.elapsed().as_secs_f64() * 1000.0 / list.len() as f64);
        }
        self.world.timed = false;
        times.sort_by(f64::total_cmp);
        let at = |q: f64| {
            times
                .get(((times.len() as f64 * q) as usize).min(times.len().saturating_sub(1)))
                .copied()
        };
        Ok((at(0.5), at(0.95)))
    }
}

fn deletions(train: &[TaskSample], seed: &Seed) -> BTreeMap<Deletion, Vec<SampleId>> {
    let mut users: Vec<u32> = train.iter().map(|s| s.user).collect();
    users.sort_unstable();
    users.dedup();
    users.sort_by_key(|u| seed.rank("deleted", &u.to_le_bytes()));
    let of = |share: f64| {
        let n = ((users.len() as f64 * share).round() as usize).max(1);
        let leave: BTreeSet<u32> = users.iter().take(n).copied().collect();
        (0..train.len())
            .filter(|i| leave.contains(&train[*i].user))
            .collect()
    };
    let one =
        (0..train.len()).min_by_key(|i| seed.rank("interaction", &train[*i].event.to_le_bytes()));
    // The event itself first, then the samples whose history it is in.
    let told = |one: usize| {
        let in_history = move |s: &TaskSample| {
            let o = &train[one];
            s.user == o.user
                && s.event > o.event
                && s.history.iter().any(|(item, _)| *item == o.item)
        };
        std::iter::once(one).chain((0..train.len()).filter(move |i| in_history(&train[*i])))
    };
    BTreeMap::from([
        (Deletion::OnePercent, of(0.01)),
        (Deletion::FivePercent, of(0.05)),
        (
            Deletion::Interaction,
            one.into_iter().flat_map(told).collect(),
        ),
    ])
}
