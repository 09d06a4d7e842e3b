//! `lethe bench federated`: PPLR's balance beside other ways to federate LoRA, on the same users,
//! samples and model.
//!
//! Every row is written when it is ready, and rows that `--json FILE` holds already are not
//! computed again: an interrupted run goes on.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;
use lethe_benches::lab::{Lab, QV, Setting, eprint_line};
use lethe_benches::rows::Rows;
use lethe_learn::seed::Seed;
use lethe_model::kernels::panels::Compute;
use lethe_model::split::SplitSpec;
use lethe_proto::ids::Digest;
use lethe_proto::payload::WireFormat;
use lethe_recsys::data::{DataSpec, Dataset, load};
use lethe_recsys::prompt::Template;
use serde_json::Value;

mod experiment;
mod factors;
mod fleet;
mod methods;
mod population;
mod table;
mod training;

use experiment::Experiment;
use methods::{Rule, all};
use population::{Kind, Population, Sizes};
use training::{Local, Recipe, ServerAdam};

#[derive(Parser)]
#[command(
    name = "bench-federated",
    about = "Ways to federate LoRA, side by side"
)]
struct Args {
    /// What clients are.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["silos", "users"])]
    clients: Vec<Kind>,
    /// Seeds.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3])]
    seeds: Vec<u64>,
    /// Only methods whose name holds one of these; the centralised one is always there.
    #[arg(long, value_delimiter = ';')]
    only: Vec<String>,
    /// Users.
    #[arg(long, default_value_t = 48)]
    users: usize,
    /// Training samples of each.
    #[arg(long, default_value_t = 20)]
    train: usize,
    /// Validation samples of each.
    #[arg(long, default_value_t = 6)]
    validation: usize,
    /// Test samples of each.
    #[arg(long, default_value_t = 12)]
    test: usize,
    /// Rounds with silos, all of which take part in each.
    #[arg(long, default_value_t = 4)]
    silo_rounds: usize,
    /// Rounds with one user per client.
    #[arg(long, default_value_t = 48)]
    user_rounds: usize,
    /// Clients per round then.
    #[arg(long, default_value_t = 8)]
    cohort: usize,
    /// Samples that a user's device trains on in a round, in steps of two.
    #[arg(long, default_value_t = 8)]
    user_samples: usize,
    /// Passes over the samples where there are no rounds.
    #[arg(long, default_value_t = 2)]
    central_epochs: usize,
    /// Rate of AdamW on clients.
    #[arg(long, default_value_t = 1e-3)]
    lr: f32,
    /// Rate of the coordinator's Adam, with one user per client.
    #[arg(long, default_value_t = 1e-3)]
    server_lr: f32,
    /// Adapted layers, counted from the last. With one, all that is trained is on the device, and
    /// no gradient crosses the split.
    #[arg(long, default_value_t = 1)]
    last_layers: usize,
    /// Made-up people that the base model learns from first, as in `lethe bench unlearn`. 0: none.
    #[arg(long, default_value_t = 64)]
    people: usize,
    /// Products with frozen weights in bf16, as in `lethe bench unlearn`.
    #[arg(long)]
    bf16: bool,
    /// A run of some minutes: few users, every method; no figure to quote.
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
const KEY: [&str; 5] = ["clients", "seed", "method", "setting", "arithmetic"];

fn main() -> anyhow::Result<()> {
    let mut args = Args::parse();
    if args.quick {
        (
            args.users,
            args.train,
            args.validation,
            args.test,
            args.seeds,
        ) = (6, 4, 2, 4, vec![1]);
        (
            args.silo_rounds,
            args.user_rounds,
            args.cohort,
            args.central_epochs,
        ) = (2, 2, 3, 1);
        // As few made-up people as the other quick run, and a trained layer on either side of the
        // split.
        (args.people, args.last_layers) = (16, 2);
    }
    let mut rows = Rows::open(args.json.clone(), args.csv.clone())?;
    let files = lethe_assets::fetch(&lethe_assets::default_home()?, &mut |_| {})?;
    let home = match &args.home {
        Some(h) => h.clone(),
        None => lethe_assets::default_home()?.join("unlearn"),
    };
    let data = load(
        &files.movielens,
        &DataSpec::of_folder(&files.movielens)?,
        false,
    )
    .context("loading the data")?;
    for seed in &args.seeds {
        let silos = if args.quick { 3 } else { 5 };
        let (users, train, validation, test) = (args.users, args.train, args.validation, args.test);
        let sizes = Sizes {
            users,
            train,
            validation,
            test,
            silos,
        };
        let population = Population::draw(&data, &sizes, &Seed::from_u64(*seed))?;
        let mut labs = Labs {
            model: &files.model,
            data: &data,
            population: &population,
            args: &args,
            home: &home,
            open: HashMap::new(),
        };
        let mut first = HashMap::new();
        for kind in &args.clients {
            one(*kind, *seed, &mut labs, &mut first, &mut rows)?;
        }
    }
    writeln!(std::io::stdout(), "{}", table::render(rows.all()))?;
    Ok(())
}

/// All methods with one kind of clients and one seed.
fn one(
    kind: Kind,
    seed: u64,
    labs: &mut Labs<'_>,
    first: &mut HashMap<Digest, Local>,
    rows: &mut Rows,
) -> anyhow::Result<()> {
    let (args, population) = (labs.args, labs.population);
    let clients = population.clients(kind);
    let recipe = args.recipe(kind, clients.len());
    eprint_line(&format!(
        "{}, seed {seed}: {} clients",
        kind.name(),
        clients.len()
    ));
    let mut experiment = Experiment {
        clients: &clients,
        recipe: &recipe,
        seed: Seed::from_u64(seed),
        first,
    };
    let mut target = None;
    for method in all(kind) {
        let wanted =
            args.only.is_empty() || args.only.iter().any(|o| method.name.contains(o.as_str()));
        if !wanted && method.rule != Rule::Central {
            continue;
        }
        let arithmetic = if args.bf16 { "bf16" } else { "f32" };
        let key = [
            Value::from(kind.name()),
            Value::from(seed),
            Value::from(method.name.clone()),
            Value::from(args.setting(kind)),
            Value::from(arithmetic),
        ];
        let validation = match rows.find(&KEY, &key) {
            Some(known) => known["validation_auc"].as_f64(),
            None => {
                let found = experiment.row(labs.with(method.wire)?, &method, target)?;
                let mut row = found.row;
                for (k, v) in KEY.iter().zip(&key) {
                    row[*k] = v.clone();
                }
                rows.push(row)?;
                found.validation
            }
        };
        if method.rule == Rule::Central {
            target = validation.map(|v| v - 0.01);
        }
    }
    Ok(())
}

impl Args {
    /// All that decides a row besides seed, method and arithmetic: rows of another are not taken
    /// for this one's.
    fn setting(&self, kind: Kind) -> String {
        let rounds = match kind {
            Kind::Silos => format!("{} rounds", self.silo_rounds),
            Kind::Users => format!(
                "{} rounds of {} by {}",
                self.user_rounds, self.cohort, self.user_samples
            ),
        };
        let (layers, people, epochs, lr, server) = (
            self.last_layers,
            self.people,
            self.central_epochs,
            self.lr,
            self.server_lr,
        );
        format!(
            "{} users of {}+{}+{}, {rounds}, {epochs} passes, rates {lr} and {server}, {layers} \
             layers, {people} made up",
            self.users, self.train, self.validation, self.test
        )
    }

    fn recipe(&self, kind: Kind, clients: usize) -> Recipe {
        let adam = ServerAdam {
            device_lr: 1.0,
            lr: self.server_lr,
        };
        let (rounds, cohort, samples, client_batch, server_adam, validate_every) = match kind {
            Kind::Silos => (self.silo_rounds, clients, usize::MAX, 8, None, 2),
            Kind::Users => (
                self.user_rounds,
                self.cohort,
                self.user_samples,
                2,
                Some(adam),
                24,
            ),
        };
        Recipe {
            rounds,
            cohort,
            central_epochs: self.central_epochs,
            batch: 8,
            samples,
            lr: self.lr,
            rank: 8,
            client_batch,
            server_adam,
            validate_every,
        }
    }
}

/// The model and the samples, once per number format of the wire.
struct Labs<'a> {
    model: &'a Path,
    data: &'a Dataset,
    population: &'a Population,
    args: &'a Args,
    home: &'a Path,
    open: HashMap<&'static str, Lab>,
}

impl Labs<'_> {
    fn with(&mut self, wire: WireFormat) -> anyhow::Result<&mut Lab> {
        let name = match wire {
            WireFormat::F32 => "f32",
            WireFormat::F16 => "f16",
            WireFormat::Int8 => "int8",
        };
        if !self.open.contains_key(name) {
            let last_layers = self.args.last_layers;
            // The product's split: 4 layers and the last one on the device.
            let (people, targets) = (self.args.people, QV);
            let compute = if self.args.bf16 {
                Compute::Bf16
            } else {
                Compute::F32
            };
            let setting = Setting {
                split: SplitSpec { k_in: 4, k_out: 1 },
                last_layers,
                wire,
                compute,
                people,
                targets,
            };
            let mut lab = Lab::load(
                self.model,
                self.data.clone(),
                Template::movie(),
                self.population.rows.clone(),
                setting,
                &self.home.join("states"),
            )?;
            lab.prepare(usize::MAX)?;
            self.open.insert(name, lab);
        }
        self.open.get_mut(name).context("just opened")
    }
}
