//! `lethe bench unlearn`: the published unlearning methods on the same data, model and deletions.
//!
//! Everything that is computed is kept in a folder, by a digest of all that it depends on: an
//! interrupted run goes on, and methods that need the same model share it (each is charged what it
//! cost).

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use lethe_benches::lab::eprint_line;
use lethe_learn::apa::ApaParams;
use lethe_learn::seed::Seed;
use lethe_model::kernels::panels::Compute;
use lethe_recsys::data::{DataSpec, load};
use lethe_recsys::prompt::Template;
use lethe_recsys::samples::Split;

mod ablation;
mod composed;
mod experiment;
mod methods;
mod plot;
mod table;
mod tune;
mod world;

use experiment::{Experiment, Sizes};
use world::{Recipe, Task};

#[derive(Parser)]
#[command(
    name = "bench-unlearn",
    about = "The published unlearning methods, side by side"
)]
struct Args {
    /// Data sets.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["movielens", "books"])]
    dataset: Vec<Which>,
    /// Seeds.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3])]
    seeds: Vec<u64>,
    /// Draw training, validation and test samples by this seed for all: seeds then differ in the
    /// adapter's start, the order of samples, the partition and who leaves. Absent: each seed draws
    /// its own.
    #[arg(long)]
    data_seed: Option<u64>,
    /// Training samples.
    #[arg(long, default_value_t = 1024)]
    samples: usize,
    /// Test samples.
    #[arg(long, default_value_t = 800)]
    test: usize,
    /// Validation samples.
    #[arg(long, default_value_t = 400)]
    validation: usize,
    /// Queries that are timed per method; needs a quiet machine.
    #[arg(long, default_value_t = 24)]
    timed: usize,
    /// Passes over the training samples.
    #[arg(long, value_delimiter = ',', default_values_t = [2.0])]
    epochs: Vec<f64>,
    /// Shards.
    #[arg(long, default_value_t = 4)]
    shards: usize,
    /// What is deleted, one after the other from the same state.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_values = ["one-percent", "five-percent", "interaction"],
    )]
    deletions: Vec<experiment::Deletion>,
    /// A run of some minutes: MovieLens, one seed, few samples; everything still happens for real.
    #[arg(long)]
    quick: bool,
    /// APA's inverse temperature; the paper's is 1000, where one shard answers a query alone.
    #[arg(long, default_value_t = 100.0)]
    tau: f64,
    /// Nearest validation samples that APA asks per query; the paper's are 20 for movies and 100
    /// for books.
    #[arg(long, default_value_t = 100)]
    neighbours: usize,
    /// Only what the partition does, K = 2, 4, 8: how often deletions move others, and the AUC of
    /// APA(ND) before any.
    #[arg(long)]
    partitions: bool,
    /// Only which recipe is best on validation samples, over the lists that follow.
    #[arg(long)]
    tune: bool,
    /// Adapted layers, counted from the last.
    #[arg(long, value_delimiter = ',', default_values_t = [Recipe::default().last_layers])]
    last_layers: Vec<usize>,
    /// Learning rates.
    #[arg(long, value_delimiter = ',', default_values_t = [Recipe::default().lr])]
    lr: Vec<f32>,
    /// Samples per step.
    #[arg(long, value_delimiter = ',', default_values_t = [Recipe::default().batch])]
    batch: Vec<usize>,
    /// Adapt all projections of those layers, not q and v alone.
    #[arg(long)]
    all_projections: bool,
    /// Made-up people that the base model learns from first: the same for every method, and
    /// nobody's data. 0: none.
    #[arg(long, default_value_t = Recipe::default().people)]
    people: usize,
    /// Products with frozen weights in bf16: on some CPUs with bf16 dot products twice as fast, on
    /// others half (`bench-products`).
    #[arg(long)]
    bf16: bool,
    /// Folder of what is computed; below the cache folder when absent.
    #[arg(long)]
    home: Option<PathBuf>,
    /// Write the rows as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the rows as CSV.
    #[arg(long)]
    csv: Option<PathBuf>,
    /// Draw them.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Compute nothing: the rows of these files (of `--json`), as one table.
    #[arg(long, num_args = 1..)]
    merge: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// MovieLens-100K, global chronological split.
    Movielens,
    /// Book-Crossing, seeded order within each user.
    Books,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::Movielens => "movielens-100k",
            Self::Books => "book-crossing",
        }
    }

    fn load(self) -> anyhow::Result<Task> {
        let home = lethe_assets::default_home()?;
        let folder = match self {
            Self::Movielens => lethe_assets::fetch(&home, &mut |_| {})?.movielens,
            Self::Books => lethe_assets::fetch_books(&home, &mut eprint_line)?,
        };
        let mut data =
            load(&folder, &DataSpec::of_folder(&folder)?, false).context("loading the data")?;
        let (split, template) = match self {
            Self::Movielens => (Split::Global, Template::movie()),
            Self::Books => {
                data.order_by_seed(&Seed::from_u64(1).derive("books", &[]));
                (Split::PerUser, Template::book())
            }
        };
        Ok(Task {
            data,
            split,
            template,
        })
    }
}

impl Args {
    /// Every recipe of the lists.
    fn recipes(&self) -> Vec<Recipe> {
        let mut out = vec![];
        for last_layers in &self.last_layers {
            for lr in &self.lr {
                for batch in &self.batch {
                    let (last_layers, lr, batch) = (*last_layers, *lr, *batch);
                    let (all_projections, people) = (self.all_projections, self.people);
                    let compute = if self.bf16 {
                        Compute::Bf16
                    } else {
                        Compute::F32
                    };
                    out.push(Recipe {
                        last_layers,
                        lr,
                        batch,
                        all_projections,
                        people,
                        compute,
                        ..Recipe::default()
                    });
                }
            }
        }
        out
    }

    /// The one recipe of a run that does not tune.
    fn recipe(&self) -> anyhow::Result<(Recipe, f64)> {
        match (&self.recipes()[..], &self.epochs[..]) {
            ([recipe], [epochs]) => Ok((recipe.clone(), *epochs)),
            _ => anyhow::bail!(
                "lists of layers, rates, batches or epochs are for --tune; give one of each"
            ),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let mut args = Args::parse();
    if args.quick {
        (args.dataset, args.seeds) = (vec![Which::Movielens], vec![1]);
        (args.samples, args.test, args.validation, args.epochs) = (24, 12, 8, vec![1.0]);
        args.people = 16;
        args.deletions = vec![experiment::Deletion::Interaction];
    }
    if !args.merge.is_empty() {
        let rows = merged(&args.merge)?;
        write(&args, &rows)?;
        writeln!(std::io::stdout(), "{}", table::render(&rows))?;
        return Ok(());
    }
    let home = match &args.home {
        Some(h) => h.clone(),
        None => lethe_assets::default_home()?.join("unlearn"),
    };
    let model = lethe_assets::fetch(&lethe_assets::default_home()?, &mut |_| {})?.model;
    let (attacked, timed) = if args.quick { (4, 1) } else { (64, args.timed) };
    let mut rows = vec![];
    for which in &args.dataset {
        let task = which.load()?;
        let (train, test, validation) = (args.samples, args.test, args.validation);
        let apa = ApaParams {
            tau: args.tau,
            neighbours: args.neighbours,
            ..ApaParams::default()
        };
        let sizes = Sizes {
            train,
            test,
            validation,
            attacked,
            timed,
            apa,
        };
        for seed in &args.seeds {
            let seed_of = Seed::from_u64(*seed);
            let drawn = Seed::from_u64(args.data_seed.unwrap_or(*seed));
            let load = |recipe: Recipe| {
                Experiment::new(
                    &model,
                    task.clone(),
                    &sizes,
                    recipe,
                    &seed_of,
                    &drawn,
                    &home,
                )
            };
            if args.tune {
                let recipes = args.recipes();
                for recipe in &recipes {
                    let (name, only) = (which.name(), recipes.len() == 1);
                    rows.extend(load(recipe.clone())?.tune(
                        name,
                        *seed,
                        recipe,
                        args.shards,
                        &args.epochs,
                        only,
                    )?);
                    write(&args, &rows)?;
                }
                continue;
            }
            let (recipe, epochs) = args.recipe()?;
            let mut experiment = load(recipe)?;
            // After every row: an interruption loses none.
            let mut ready = |row| {
                rows.push(row);
                write(&args, &rows)
            };
            if args.partitions {
                experiment.partitions(which.name(), *seed, epochs, &mut ready)?;
                continue;
            }
            experiment.run(
                which.name(),
                *seed,
                args.shards,
                epochs,
                &args.deletions,
                &mut ready,
            )?;
        }
    }
    write(&args, &rows)?;
    writeln!(std::io::stdout(), "{}", table::render(&rows))?;
    Ok(())
}

/// Rows of several runs. One that two runs have would count twice.
fn merged(paths: &[PathBuf]) -> anyhow::Result<Vec<serde_json::Value>> {
    let mut rows = vec![];
    for path in paths {
        for row in lethe_benches::rows::read(path)? {
            // Rows of `--tune` have more that tells them apart, and no mean is taken of them.
            let key = |r: &serde_json::Value| {
                let names = [
                    "dataset",
                    "people",
                    "deletion",
                    "method",
                    "seed",
                    "partition",
                    "shards",
                ];
                r["validation_auc"]
                    .is_null()
                    .then(|| names.map(|k| r[k].clone()))
            };
            let twice = key(&row).is_some_and(|k| rows.iter().any(|r| key(r).as_ref() == Some(&k)));
            anyhow::ensure!(
                !twice,
                "{}: a row that was there already: {row}",
                path.display()
            );
            rows.push(row);
        }
    }
    Ok(rows)
}

fn write(args: &Args, rows: &[serde_json::Value]) -> anyhow::Result<()> {
    if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(&serde_json::json!({ "rows": rows }))?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &args.csv {
        std::fs::write(path, lethe_benches::rows::csv(rows))
            .with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, plot::svg(rows)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
