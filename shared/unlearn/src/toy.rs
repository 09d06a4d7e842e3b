//! A world of logistic regressions on a few hundred samples, where every promise can be checked.

use std::collections::BTreeMap;

use lethe_learn::apa::ApaParams;
use lethe_learn::seed::Seed;

use crate::analytic::{Analytic, WithHead};
use crate::combine::Combine;
use crate::partition::Partition;
use crate::sharded::Sharded;
use crate::whole::{E2urec, Retrain};
use crate::world::{
    Cost, Distillation, Exactness, Mixing, ModelId, SampleId, Strategy, Training, UnlearnError,
    Untuned, World,
};

const USERS: u32 = 40;
const ITEMS: u32 = 24;
const DIM: usize = 4;

struct Toy {
    rows: Vec<(u32, u32, bool)>,
    catalogue: Vec<Vec<f32>>,
    models: BTreeMap<ModelId, Vec<f32>>,
}

impl Toy {
    fn new(n: usize) -> Self {
        let mut rng = Seed::from_u64(4).rng();
        let rows = (0..n)
            .map(|_| {
                let (u, i) = (
                    rng.below(USERS as usize) as u32,
                    rng.below(ITEMS as usize) as u32,
                );
                (u, i, (u % 3 == i % 3) != (rng.unit() < 0.15))
            })
            .collect();
        let genre = |i: u32| {
            (0..3)
                .map(|g| f32::from(u8::from(i % 3 == g)) + 0.01 * (i as f32))
                .collect()
        };
        Self {
            rows,
            catalogue: (0..ITEMS).map(genre).collect(),
            models: BTreeMap::new(),
        }
    }

    fn x(&self, s: SampleId) -> [f32; DIM] {
        let (u, i, _) = self.rows[s];
        let same = f32::from(u8::from(u % 3 == i % 3));
        [
            same,
            1.0 - same,
            (u as f32 / 40.0) - 0.5,
            (i as f32 / 24.0) - 0.5,
        ]
    }

    fn descend(
        &mut self,
        id: String,
        start: Vec<f32>,
        targets: &[(SampleId, f32, f32)],
        passes: usize,
    ) -> ModelId {
        let mut theta = start;
        for _ in 0..passes {
            for (s, y, weight) in targets {
                let x = self.x(*s);
                let z: f32 = theta.iter().zip(&x).map(|(t, v)| t * v).sum();
                let slope = weight * (1.0 / (1.0 + (-z).exp()) - y);
                theta
                    .iter_mut()
                    .zip(&x)
                    .for_each(|(t, v)| *t -= 0.2 * slope * v);
            }
        }
        let id = ModelId(id);
        self.models.insert(id.clone(), theta);
        id
    }

    fn start(&self, model: Option<&ModelId>) -> Vec<f32> {
        model.map_or(vec![0.0; DIM], |m| self.models[m].clone())
    }
}

impl World for Toy {
    fn train(&mut self, run: &Training) -> Result<(ModelId, Cost), UnlearnError> {
        let mut samples = run.samples.clone();
        samples.sort_unstable();
        let id = format!(
            "{:?}/{samples:?}/{}",
            run.start.as_ref().map(|m| &m.0),
            run.epochs
        );
        let targets: Vec<_> = samples
            .iter()
            .map(|s| (*s, f32::from(u8::from(self.rows[*s].2)), 1.0))
            .collect();
        let start = self.start(run.start.as_ref());
        let cost = Cost {
            samples: (samples.len() as f64 * run.epochs) as u64,
            seconds: 0.0,
        };
        Ok((
            self.descend(id, start, &targets, run.epochs.ceil() as usize),
            cost,
        ))
    }

    fn distil(&mut self, run: &Distillation) -> Result<(ModelId, Cost), UnlearnError> {
        let start = self.start(Some(&run.student));
        let targets: Vec<_> = run.targets.iter().map(|(s, y)| (*s, *y, 1.0)).collect();
        let id = self.descend(
            format!("distilled {}", run.student),
            start,
            &targets,
            run.epochs.ceil() as usize,
        );
        Ok((
            id,
            Cost {
                samples: run.targets.len() as u64,
                seconds: 0.0,
            },
        ))
    }

    fn logits(
        &mut self,
        model: &ModelId,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError> {
        let theta = &self.models[model];
        Ok(samples
            .iter()
            .map(|s| [0.0, theta.iter().zip(self.x(*s)).map(|(t, v)| t * v).sum()])
            .collect())
    }

    fn mixed(
        &mut self,
        models: &[ModelId],
        omega: &[Vec<f32>],
        _: Mixing,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError> {
        let each: Vec<Vec<[f32; 2]>> = models
            .iter()
            .map(|m| self.logits(m, samples))
            .collect::<Result<_, UnlearnError>>()?;
        let one = |i: usize| {
            [
                0.0,
                omega[i].iter().zip(&each).map(|(w, l)| w * l[i][1]).sum(),
            ]
        };
        Ok((0..samples.len()).map(one).collect())
    }

    fn hidden(&mut self, samples: &[SampleId]) -> Result<Vec<Vec<f32>>, UnlearnError> {
        Ok(samples.iter().map(|s| self.x(*s).to_vec()).collect())
    }

    fn untuned(&mut self, samples: &[SampleId]) -> Result<(Vec<Untuned>, Cost), UnlearnError> {
        let of = |s: &SampleId| Untuned {
            hidden: self.x(*s).to_vec(),
            log_odds: 0.1 * self.x(*s)[0],
        };
        Ok((
            samples.iter().map(of).collect(),
            Cost {
                samples: samples.len() as u64,
                seconds: 0.0,
            },
        ))
    }

    fn seconds(&self) -> f64 {
        0.0
    }

    fn identity(&self, sample: SampleId) -> u64 {
        sample as u64
    }

    fn user(&self, sample: SampleId) -> u32 {
        self.rows[sample].0
    }

    fn item(&self, sample: SampleId) -> u32 {
        self.rows[sample].1
    }

    fn label(&self, sample: SampleId) -> bool {
        self.rows[sample].2
    }

    fn liked(&self, _: SampleId) -> Vec<u32> {
        vec![]
    }

    fn user_vector(&self, user: u32) -> Vec<f32> {
        (0..3)
            .map(|g| f32::from(u8::from(user % 3 == g)) + 0.01 * user as f32)
            .collect()
    }

    fn item_vector(&self, item: u32) -> Vec<f32> {
        self.catalogue[item as usize].clone()
    }

    fn catalogue(&self) -> &[Vec<f32>] {
        &self.catalogue
    }
}

const APA: Combine = Combine::Apa(
    Mixing::Nd,
    ApaParams {
        tau: 100.0,
        neighbours: 10,
        gain: 1.0,
    },
);

fn sharded(partition: Partition, combine: Combine, slices: usize) -> Sharded {
    Sharded::new(
        partition.name(),
        partition,
        combine,
        4,
        slices,
        4.0,
        &Seed::from_u64(9),
    )
}

fn with_head() -> WithHead<Sharded> {
    WithHead::new(sharded(Partition::Ours, APA, 4), Analytic::new(100.0))
}

fn all() -> Vec<Box<dyn Strategy>> {
    let mean = Combine::Mean;
    vec![
        Box::new(Retrain::new(4.0)),
        Box::new(sharded(Partition::Random, mean, 1)),
        Box::new(sharded(Partition::ByUser, mean, 4)),
        Box::new(sharded(Partition::Bekm, Combine::Learned, 1)),
        Box::new(sharded(Partition::Ubp, Combine::Attention, 1)),
        Box::new(sharded(Partition::Ibp, Combine::Attention, 1)),
        Box::new(sharded(Partition::Inbp, Combine::Attention, 1)),
        Box::new(sharded(Partition::Apa, APA, 1)),
        Box::new(sharded(Partition::Ours, APA, 4)),
        Box::new(sharded(Partition::Ours, APA, 4).slice_by_slice()),
        Box::new(Analytic::new(100.0)),
        Box::new(with_head()),
        Box::new(E2urec::new(4.0, 1.0)),
    ]
}

fn auc_of(s: &mut dyn Strategy, w: &mut Toy, test: &[SampleId]) -> f64 {
    let logits = s.predict(w, test).expect("trained");
    let scores: Vec<f32> = logits.iter().map(|l| l[1] - l[0]).collect();
    let labels: Vec<bool> = test.iter().map(|t| w.label(*t)).collect();
    lethe_learn::metrics::auc(&scores, &labels).expect("both labels")
}

#[test]
fn every_method_learns_forgets_and_still_predicts() {
    let mut w = Toy::new(500);
    let (train, validation, test): (Vec<_>, Vec<_>, Vec<_>) = (
        (0..300).collect(),
        (300..400).collect(),
        (400..500).collect(),
    );
    let gone: Vec<SampleId> = train.iter().copied().filter(|s| w.user(*s) == 7).collect();
    let remaining: Vec<SampleId> = train.iter().copied().filter(|s| w.user(*s) != 7).collect();
    let everything = remaining.len() as u64 * 4;
    for mut s in all() {
        let name = s.name();
        assert!(s.predict(&mut w, &test).is_err(), "{name} is not trained");
        s.fit(&mut w, &train, &validation).expect("trains");
        let before = auc_of(s.as_mut(), &mut w, &test);
        let cost = s
            .forget(&mut w, &remaining, &gone, &validation)
            .expect("forgets");
        let after = auc_of(s.as_mut(), &mut w, &test);
        assert!(before > 0.75 && after > 0.75, "{name}: {before} {after}");
        match name.as_str() {
            "Retrain" => assert_eq!(cost.samples, everything),
            "Analytic head" => assert_eq!(cost.samples, gone.len() as u64),
            "ours, with analytic head" => {
                assert!(cost.samples > gone.len() as u64 && cost.samples < everything / 2)
            }
            "by-user" | "ours" => assert!(
                cost.samples < everything / 2,
                "{name}: {} samples",
                cost.samples
            ),
            _ => assert!(cost.samples > 0, "{name}"),
        }
        // What it predicts with was never trained on the person.
        for m in s
            .models()
            .iter()
            .filter(|_| s.exactness() != Exactness::Approximate)
        {
            let trained: Vec<SampleId> =
                m.0.split(|c: char| !c.is_ascii_digit())
                    .filter_map(|n| n.parse().ok())
                    .collect();
            assert!(
                gone.iter().all(|g| !trained.contains(g) || *g < 5),
                "{name}: {m}"
            );
        }
    }
}

#[test]
fn what_promises_exactness_gives_what_training_without_the_data_gives() {
    let mut w = Toy::new(400);
    let (train, validation): (Vec<SampleId>, Vec<SampleId>) =
        ((0..300).collect(), (300..400).collect());
    for user in [3, 12, 25] {
        let keep = |w: &Toy, s: &SampleId| w.user(*s) != user;
        let remaining: Vec<SampleId> = train.iter().copied().filter(|s| keep(&w, s)).collect();
        let gone: Vec<SampleId> = train.iter().copied().filter(|s| !keep(&w, s)).collect();
        let makers: [fn() -> Box<dyn Strategy>; 6] = [
            || Box::new(sharded(Partition::Random, Combine::Mean, 1)),
            || Box::new(sharded(Partition::ByUser, Combine::Mean, 4)),
            || Box::new(sharded(Partition::Ours, APA, 4)),
            || Box::new(sharded(Partition::Ours, APA, 4).slice_by_slice()),
            || Box::new(Analytic::new(100.0)),
            || Box::new(with_head()),
        ];
        for make in makers {
            let (mut forgot, mut never) = (make(), make());
            forgot.fit(&mut w, &train, &validation).expect("trains");
            forgot
                .forget(&mut w, &remaining, &gone, &validation)
                .expect("forgets");
            never.fit(&mut w, &remaining, &validation).expect("trains");
            assert_eq!(forgot.exactness(), Exactness::Exact);
            assert_eq!(
                forgot.models(),
                never.models(),
                "{} without user {user}",
                forgot.name()
            );
            assert_eq!(forgot.placement(), never.placement());
            let (forgot, never) = (
                forgot.predict(&mut w, &validation),
                never.predict(&mut w, &validation),
            );
            assert_eq!(forgot.expect("predicts"), never.expect("predicts"));
        }
    }
}

#[test]
fn a_head_forgets_once_and_everybody() {
    let mut w = Toy::new(400);
    let (train, validation): (Vec<SampleId>, Vec<SampleId>) =
        ((0..300).collect(), (300..400).collect());
    let mut head = Analytic::new(100.0);
    head.fit(&mut w, &train, &validation).expect("trains");
    let (gone, remaining) = train.split_at(40);
    head.forget(&mut w, remaining, gone, &validation)
        .expect("forgets");
    let sums = head.sums().expect("fitted").clone();
    assert!(
        head.forget(&mut w, remaining, gone, &validation).is_err(),
        "they are gone already"
    );
    assert_eq!(
        head.sums(),
        Some(&sums),
        "a refused deletion changes nothing"
    );
    head.forget(&mut w, &[], remaining, &validation)
        .expect("forgets");
    let untuned = w.untuned(&validation).expect("scores").0;
    for (l, u) in head
        .predict(&mut w, &validation)
        .expect("predicts")
        .iter()
        .zip(untuned)
    {
        assert_eq!(*l, [0.0, u.log_odds], "nobody is left");
    }
}

#[test]
fn slice_by_slice_a_deletion_costs_what_comes_from_its_slice_on() {
    let mut w = Toy::new(400);
    let (train, validation): (Vec<SampleId>, Vec<SampleId>) =
        ((0..300).collect(), (300..400).collect());
    let mut costs = vec![];
    for user in 0..40 {
        let (gone, remaining): (Vec<SampleId>, Vec<SampleId>) =
            train.iter().partition(|s| w.user(**s) == user);
        let mut s = sharded(Partition::ByUser, Combine::Mean, 4).slice_by_slice();
        let all = s.fit(&mut w, &train, &validation).expect("trains").samples;
        assert_eq!(
            all,
            4 * train.len() as u64,
            "every sample once a pass, whatever its slice"
        );
        costs.push(
            s.forget(&mut w, &remaining, &gone, &validation)
                .expect("forgets")
                .samples as f64
                / all as f64,
        );
    }
    let (least, mean) = (
        costs.iter().copied().fold(1.0, f64::min),
        costs.iter().sum::<f64>() / costs.len() as f64,
    );
    // A quarter is the shard; of its four slices 1 to 4 are trained again, 2.5 on average.
    assert!(
        least < 0.1 && (0.1..0.22).contains(&mean),
        "least {least}, mean {mean}"
    );
}

#[test]
fn published_partitions_move_others_when_somebody_leaves_and_ours_do_not() {
    let mut w = Toy::new(400);
    let seed = Seed::from_u64(9);
    let train: Vec<SampleId> = (0..300).collect();
    let mut moved: BTreeMap<&str, usize> = BTreeMap::new();
    for p in [
        Partition::Random,
        Partition::ByUser,
        Partition::Ours,
        Partition::Bekm,
        Partition::Apa,
        Partition::Ubp,
        Partition::Inbp,
    ] {
        let before = p.place(&mut w, &train, 4, &seed, None).expect("places");
        for user in 0..10 {
            let remaining: Vec<SampleId> = train
                .iter()
                .copied()
                .filter(|s| w.user(*s) != user)
                .collect();
            let after = p
                .place(&mut w, &remaining, 4, &seed, Some(&before))
                .expect("places");
            let others = remaining
                .iter()
                .zip(&after.shards)
                .filter(|(s, k)| before.shards[**s] != **k)
                .count();
            *moved.entry(p.name()).or_default() += others;
        }
        let sizes = (0..4).map(|k| before.shards.iter().filter(|s| **s == k).count());
        assert!(sizes.max().expect("four") < 300, "{}: all in one", p.name());
    }
    for independent in ["random", "by-user", "ours"] {
        assert_eq!(moved[independent], 0, "{independent}");
    }
    assert!(moved["semantic"] > 0 && moved["bekm"] > 0, "{moved:?}");
}

#[test]
fn learned_combinations_prefer_the_shard_that_knows() {
    let mut w = Toy::new(400);
    let validation: Vec<SampleId> = (300..400).collect();
    let good = w
        .train(&Training {
            start: None,
            samples: (0..300).collect(),
            epochs: 4.0,
        })
        .expect("trains")
        .0;
    let none = w
        .train(&Training {
            start: None,
            samples: vec![],
            epochs: 1.0,
        })
        .expect("trains")
        .0;
    for combine in [Combine::Learned, Combine::Attention, APA] {
        let models = [none.clone(), good.clone()];
        let fitted = combine.fit(&mut w, &models, &validation).expect("fits");
        let mixed = fitted
            .predict(&mut w, &models, &validation)
            .expect("predicts");
        let alone = w.logits(&good, &validation).expect("predicts");
        let margin = |l: &[[f32; 2]]| l.iter().map(|l| (l[1] - l[0]).abs()).sum::<f32>();
        assert!(margin(&mixed) > 0.6 * margin(&alone), "{}", combine.name());
    }
}
