//! `lethe bench attacks`: what a minority of people can do to everybody's adapter, against each
//! aggregation rule. Updates are checked, bounded and added up by the coordinator's own code.
//!
//! Every row is written when it is ready, and rows that `--json FILE` holds already are not
//! computed again: an interrupted run goes on. Rows with the most attackers come first.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use lethe_benches::lab::{Lab, QV, Setting, eprint_line};
use lethe_benches::rows::Rows;
use lethe_learn::seed::Seed;
use lethe_model::kernels::panels::Compute;
use lethe_model::lora::Adapter;
use lethe_model::split::SplitSpec;
use lethe_proto::ids::ShardId;
use lethe_proto::payload::WireFormat;
use lethe_recipe::Recipe;
use lethe_recsys::data::{DataSpec, load};
use lethe_recsys::prompt::Template;
use serde_json::{Value, json};

mod attack;
mod facts;
mod federation;
mod lies;
mod table;
mod world;

use attack::{Attack, Rule};
use federation::{Against, Federation, Worth, agreement};
use lies::Shards;
use world::{Looked, Sizes, World};

#[derive(Parser)]
#[command(
    name = "bench-attacks",
    about = "What a minority can do to everybody's adapter, against each aggregation rule"
)]
struct Args {
    /// Seeds: of the people, the attackers, the cohorts and the start.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    seeds: Vec<u64>,
    /// Attackers, in per cent of the people.
    #[arg(long, value_delimiter = ',', default_values_t = [20, 5, 1])]
    per_cent: Vec<u32>,
    /// Only rules whose name holds one of these.
    #[arg(long, value_delimiter = ';')]
    rules: Vec<String>,
    /// People.
    #[arg(long, default_value_t = 100)]
    people: usize,
    /// Rounds.
    #[arg(long, default_value_t = 16)]
    rounds: usize,
    /// People of a round.
    #[arg(long, default_value_t = 20)]
    cohort: usize,
    /// Rate of the coordinator's Adam.
    #[arg(long, default_value_t = 1e-2)]
    server_lr: f32,
    /// Made-up people that the base model learns from first, as in `lethe bench unlearn`. 0: none.
    #[arg(long, default_value_t = 64)]
    made_up: usize,
    /// Products with frozen weights in f32; bf16 otherwise.
    #[arg(long)]
    f32: bool,
    /// A run of a minute: few people, a fifth of them attackers, and facts that must hold.
    #[arg(long)]
    quick: bool,
    /// Folder of frozen layers' states; below the cache folder when absent.
    #[arg(long)]
    home: Option<PathBuf>,
    /// Write the rows as JSON; rows that it holds are kept.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the rows as CSV.
    #[arg(long)]
    csv: Option<PathBuf>,
}

/// What rows of one file share.
const KEY: [&str; 5] = ["rule", "attack", "per_cent", "seed", "setting"];

/// One seed's people, and those that are looked at.
struct Seeded {
    seed: u64,
    world: World,
    /// For the choice, and for the table.
    looked: [Looked; 2],
    /// What honest people train, by rule.
    honest: HashMap<&'static str, Vec<f32>>,
}

fn main() -> anyhow::Result<()> {
    let mut args = Args::parse();
    if args.quick {
        args.seeds = vec![1];
        args.per_cent = vec![20];
        args.people = 20;
        args.rounds = 3;
        args.cohort = 10;
        // As the other quick runs: the base model is taught once.
        args.made_up = 16;
        args.f32 = true;
    }
    let sizes = args.sizes();
    let mut rows = Rows::open(args.json.clone(), args.csv.clone())?;
    let files = lethe_assets::fetch(&lethe_assets::default_home()?, &mut |_| {})?;
    let home = match &args.home {
        Some(h) => h.clone(),
        None => lethe_assets::default_home()?.join("unlearn"),
    };
    let spec = DataSpec::of_folder(&files.movielens)?;
    let data = load(&files.movielens, &spec, false).context("loading the data")?;
    let mut samples = vec![];
    let mut worlds = vec![];
    for seed in &args.seeds {
        let drawn = World::draw(&data, &sizes, Seed::from_u64(*seed), &mut samples)?;
        worlds.push((*seed, drawn));
    }
    let compute = if args.f32 {
        Compute::F32
    } else {
        Compute::Bf16
    };
    let setting = Setting {
        split: SplitSpec { k_in: 4, k_out: 1 },
        last_layers: 1,
        wire: WireFormat::F32,
        compute,
        people: args.made_up,
        targets: QV,
    };
    let states = home.join("states");
    let template = Template::movie();
    let mut lab = Lab::load(&files.model, data, template, samples, setting, &states)?;
    if !args.quick {
        lab.prepare(usize::MAX)?;
    }
    let mut seeded = vec![];
    for (seed, world) in worlds {
        let started = Instant::now();
        let looked = world.look(&lab, &sizes)?;
        let took = started.elapsed().as_secs_f64();
        eprint_line(&format!("seed {seed}: lists in {took:.0} s"));
        seeded.push(Seeded {
            seed,
            world,
            looked,
            honest: HashMap::new(),
        });
    }
    for one in &seeded {
        untrained(&args, &lab, one, &mut rows)?;
    }
    for per_cent in args.per_cent.clone() {
        for one in &mut seeded {
            updates(&args, &mut lab, one, per_cent, &mut rows)?;
            losses(&args, &mut lab, one, per_cent, &mut rows)?;
        }
    }
    writeln!(std::io::stdout(), "{}", table::render(rows.all()))?;
    if args.quick {
        facts::check(rows.all())?;
        eprint_line("all facts hold");
    }
    Ok(())
}

/// What the adapter that everybody starts from is worth.
fn untrained(args: &Args, lab: &Lab, seeded: &Seeded, rows: &mut Rows) -> anyhow::Result<()> {
    let key = args.key("before training", Attack::Nobody.name(), 0, seeded.seed);
    if args.quick || rows.find(&KEY, &key).is_some() {
        return Ok(());
    }
    let started = Instant::now();
    let recipe = args.recipe(seeded.seed)?;
    let adapter = recipe.initial(&lab.shape(recipe.lora.rank));
    let mut worth = vec![];
    for looked in &seeded.looked {
        worth.push(Worth::of(looked, |asked| lab.odds(&adapter, asked))?);
    }
    push(rows, &key, &worth, None, started.elapsed().as_secs_f64())
}

/// Attacks on updates: the honest run of each rule and every attack.
fn updates(
    args: &Args,
    lab: &mut Lab,
    seeded: &mut Seeded,
    per_cent: u32,
    rows: &mut Rows,
) -> anyhow::Result<()> {
    let base = args.recipe(seeded.seed)?;
    let people: Vec<usize> = (0..seeded.world.people.len()).collect();
    let mut federation = Federation::new(lab, &seeded.world, args.rounds);
    for rule in Rule::ALL {
        if !args.wants(rule.name) {
            continue;
        }
        federation.forget();
        let recipe = rule.recipe(&base);
        let nobody = Against {
            attack: Attack::Nobody,
            share: 0.0,
        };
        let known = if args.quick { 2 } else { Attack::ALL.len() };
        let attacks = Attack::ALL[..known]
            .iter()
            .map(|attack| (*attack, per_cent));
        for (attack, per_cent) in std::iter::once((Attack::Nobody, 0)).chain(attacks) {
            let key = args.key(rule.name, attack.name(), per_cent, seeded.seed);
            if rows.find(&KEY, &key).is_some() {
                continue;
            }
            let started = Instant::now();
            let against = Against {
                attack,
                share: f64::from(per_cent) / 100.0,
            };
            // The honest run is needed to say how far an attack has turned it.
            let own = match seeded.honest.get(rule.name) {
                Some(known) => known.clone(),
                None => federation.train(&recipe, ShardId(0), &people, nobody)?.0,
            };
            seeded.honest.insert(rule.name, own.clone());
            let (theta, start) = federation.train(&recipe, ShardId(0), &people, against)?;
            let adapter = Adapter::from_data(&federation.lab.shape(recipe.lora.rank), theta)?;
            let lab = &*federation.lab;
            let mut worth = vec![];
            for looked in &seeded.looked {
                worth.push(Worth::of(looked, |asked| lab.odds(&adapter, asked))?);
            }
            let agrees = agreement(&start, &own, &adapter.data);
            let took = started.elapsed().as_secs_f64();
            push(rows, &key, &worth, Some(agrees), took)?;
        }
    }
    Ok(())
}

/// Lies about validation losses, alone and with a promotion inside the shard that they praise.
fn losses(
    args: &Args,
    lab: &mut Lab,
    seeded: &Seeded,
    per_cent: u32,
    rows: &mut Rows,
) -> anyhow::Result<()> {
    let name = "two shards";
    if args.quick || !args.wants(name) {
        return Ok(());
    }
    let recipe = Rule::DEFAULT.recipe(&args.recipe(seeded.seed)?);
    let share = f64::from(per_cent) / 100.0;
    let of = |attack: Attack, share: f64| Against { attack, share };
    let nobody = of(Attack::Nobody, 0.0);
    let liars = of(Attack::Promotion, share);
    let mut federation = Federation::new(lab, &seeded.world, args.rounds);
    for (attack, per_cent, promotes, lies) in [
        ("nobody", 0, nobody, nobody),
        ("false losses", per_cent, nobody, liars),
        ("promotion in one shard", per_cent, liars, nobody),
        ("promotion and false losses", per_cent, liars, liars),
    ] {
        let key = args.key(name, attack, per_cent, seeded.seed);
        if rows.find(&KEY, &key).is_some() {
            continue;
        }
        let started = Instant::now();
        let shards = Shards::train(&mut federation, &recipe, promotes)?;
        let lab = &*federation.lab;
        let mut worth = vec![];
        for looked in &seeded.looked {
            let odds = |asked: &_| shards.odds(lab, &seeded.world, lies, asked);
            worth.push(Worth::of(looked, odds)?);
        }
        push(rows, &key, &worth, None, started.elapsed().as_secs_f64())?;
    }
    Ok(())
}

fn push(
    rows: &mut Rows,
    key: &[Value],
    worth: &[Worth],
    agrees: Option<f64>,
    seconds: f64,
) -> anyhow::Result<()> {
    let [validation, test] = worth else {
        anyhow::bail!("people for the choice and for the table are looked at");
    };
    let mut row = json!({
        "auc": test.auc, "hr": test.hr, "exposure": test.exposure, "triggered": test.triggered,
        "validation_auc": validation.auc, "validation_hr": validation.hr,
        "validation_exposure": validation.exposure,
        "validation_triggered": validation.triggered, "agreement": agrees,
    });
    for (k, v) in KEY.iter().zip(key) {
        row[*k] = v.clone();
    }
    eprint_line(&format!(
        "{} {} % against {}, seed {}: AUC {:.3}, HR {:.2}, exposure {:.2} / {:.2}, agreement \
         {:.2}, {seconds:.0} s",
        key[1],
        key[2],
        key[0],
        key[3],
        test.auc,
        test.hr,
        test.exposure,
        test.triggered,
        agrees.unwrap_or(f64::NAN)
    ));
    rows.push(row)
}

impl Args {
    fn sizes(&self) -> Sizes {
        let scale = |n: usize| (n * self.people / 100).max(1);
        Sizes {
            people: self.people,
            train: 4,
            held: 6,
            validation: scale(32),
            test: scale(48),
            validation_lists: scale(12),
            test_lists: scale(20),
            candidates: if self.quick { 15 } else { 30 },
        }
    }

    fn wants(&self, rule: &str) -> bool {
        self.rules.is_empty() || self.rules.iter().any(|r| rule.contains(r.as_str()))
    }

    /// All that decides a row besides rule, attack, share and seed.
    fn setting(&self) -> String {
        let arithmetic = if self.f32 { "f32" } else { "bf16" };
        format!(
            "{} people, {} rounds of {}, rate {}, {} made up, {arithmetic}",
            self.people, self.rounds, self.cohort, self.server_lr, self.made_up
        )
    }

    fn key(&self, rule: &str, attack: &str, per_cent: u32, seed: u64) -> [Value; 5] {
        [
            rule.into(),
            attack.into(),
            per_cent.into(),
            seed.into(),
            self.setting().into(),
        ]
    }

    fn recipe(&self, seed: u64) -> anyhow::Result<Recipe> {
        let quorum = 2 * (self.cohort / 5) + 3;
        let text = format!(
            "shards = 1\nanchors = 1\nslices = 1\nrounds = {}\ncohort = {}\nquorum = {quorum}\n\
             server_lr = {}\nseed = {seed}\n[local]\nsamples = 4\nbatch = 4\nlr = 1.0\n[split]\n\
             k_in = 4\nk_out = 1\n[lora]\nrank = 8\nalpha = 16.0\ntargets = [\"q\", \"v\"]\n\
             last_layers = 1\n",
            self.rounds, self.cohort, self.server_lr
        );
        Ok(Recipe::from_toml(&text)?)
    }
}
