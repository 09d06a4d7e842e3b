//! `lethe recommend`, `lethe record` and `lethe participate`: one person's client without an app
//! around it.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use lethe_client::{Client, ClientBuilder, ClientModel, Done, ModelOptions, Source};
use lethe_recipe::Recipe;
use lethe_recsys::data::{DataSpec, load_items};
use lethe_recsys::samples::HISTORY;

use crate::inputs::Inputs;

/// Which client, and where its coordinator is.
#[derive(clap::Args)]
pub(crate) struct Device {
    #[command(flatten)]
    inputs: Inputs,
    /// Folder of the client's sealed state.
    #[arg(long)]
    home: PathBuf,
    /// Address of the coordinator.
    #[arg(long)]
    server: SocketAddr,
    /// Invitation, needed the first time only.
    #[arg(long)]
    invitation: Option<String>,
    /// The coordinator's recipe (TOML), where it departs from the default in what the device loads.
    #[arg(long)]
    recipe: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct RecommendArgs {
    #[command(flatten)]
    device: Device,
    /// Items to rank; without any, the first --candidates items of the catalogue that the person
    /// has not seen.
    #[arg(long)]
    item: Vec<String>,
    /// How many items of the catalogue to rank.
    #[arg(long, default_value_t = 100)]
    candidates: usize,
    /// Length of the list.
    #[arg(short, default_value_t = 10)]
    n: usize,
}

#[derive(clap::Args)]
pub(crate) struct RecordArgs {
    #[command(flatten)]
    device: Device,
    /// Item of the catalogue.
    #[arg(long)]
    item: String,
    /// The person did not like it.
    #[arg(long)]
    disliked: bool,
}

#[derive(clap::Args)]
pub(crate) struct ParticipateArgs {
    #[command(flatten)]
    device: Device,
    /// The person consents to orders that erase (almost) everything on this device.
    #[arg(long)]
    consent_to_erasure: bool,
    /// Seconds to look for work.
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
}

impl Device {
    async fn open(&self) -> anyhow::Result<Client> {
        let (model, catalogue) = self.inputs.paths()?;
        let mut builder = ClientBuilder::new(&self.home, self.server);
        if let Some(text) = &self.invitation {
            builder = builder.invitation(text.clone());
        }
        let recipe = match &self.recipe {
            Some(path) => Recipe::from_toml(
                &std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
            )?,
            None => Recipe::default(),
        };
        let options = ModelOptions {
            split: recipe.split,
            compute: recipe.compute,
        };
        Ok(builder
            .build(ClientModel::load(&model, &catalogue, options)?)
            .await?)
    }
}

fn block_on<T>(job: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(job)
}

pub(crate) fn recommend(args: &RecommendArgs) -> anyhow::Result<()> {
    block_on(async {
        let mut client = args.device.open().await?;
        let (_, folder) = args.device.inputs.paths()?;
        let items = load_items(&folder, &DataSpec::of_folder(&folder)?)?;
        let unseen = items
            .iter()
            .filter(|i| client.history().iter().all(|e| e.item != i.id));
        let candidates: Vec<String> = if args.item.is_empty() {
            unseen.take(args.candidates).map(|i| i.id.clone()).collect()
        } else {
            args.item.clone()
        };
        let names: Vec<&str> = candidates.iter().map(String::as_str).collect();
        let list = client.recommend(&names, args.n).await?;
        let mut out = std::io::stdout().lock();
        match list.source {
            Source::Live { release } => writeln!(
                out,
                "ranked {} candidates with release {release}",
                names.len()
            )?,
            Source::Cached => writeln!(out, "the coordinator is away: the list of the last time")?,
        }
        for r in &list.items {
            let title = items
                .iter()
                .find(|i| i.id == r.item)
                .map(|i| i.label())
                .unwrap_or_default();
            writeln!(out, "{:+.3}  {:<8} {title}", r.score, r.item)?;
        }
        drop(out);
        client.close().await;
        Ok(())
    })
}

pub(crate) fn record(args: &RecordArgs) -> anyhow::Result<()> {
    block_on(async {
        let mut client = args.device.open().await?;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_secs();
        client.record(
            &args.item,
            !args.disliked,
            i64::try_from(now).context("the clock is far off")?,
        )?;
        client.close().await;
        Ok(())
    })
}

pub(crate) fn participate(args: &ParticipateArgs) -> anyhow::Result<()> {
    block_on(async {
        let mut client = args.device.open().await?;
        client.join().await?;
        if client.training_samples() == 0 {
            writeln!(
                std::io::stderr(),
                "this person gives no training sample: {} events are recorded, more than {HISTORY} \
                 are needed (some of them validate)",
                client.history().len()
            )?;
        }
        let until = Instant::now() + Duration::from_secs(args.seconds);
        while Instant::now() < until {
            match client.step().await {
                Ok(Done::ConsentNeeded) if args.consent_to_erasure => {
                    let done = client.consent_to_erasure().await?;
                    writeln!(std::io::stderr(), "consented, erased: {done}")?;
                }
                Ok(done) => writeln!(std::io::stderr(), "{done:?}")?,
                Err(e) => {
                    writeln!(std::io::stderr(), "{e}; trying again")?;
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
            }
        }
        client.close().await;
        Ok(())
    })
}
