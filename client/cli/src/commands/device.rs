//! `lethe record`, `top`, `recommend`, `participate` and `erase`: one person's client without an
//! app around it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lethe_client::{
    Catalogue, Client, ClientError, ClientModel, Done, Fallback, Filter, ListSource, LocalEvent,
    ModelOptions, Options, Page, Query, Source, Status,
};
use lethe_recipe::Recipe;
use lethe_recsys::samples::HISTORY;
use lethe_seal::disk::{Disk, Verdict};
use lethe_transport::identity::Invitation;
use lethe_transport::place::Place;

use crate::inputs::Inputs;
use crate::words;

/// Which client, and where its coordinator is.
#[derive(clap::Args)]
pub(crate) struct Device {
    #[command(flatten)]
    inputs: Inputs,
    /// Folder of the client's sealed state (also --folder).
    #[arg(long, alias = "folder")]
    home: PathBuf,
    /// Where the coordinator is; what works on the device alone needs none.
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<Place>,
    /// Invitation, needed the first time only: its text (lethe1:...), or a file that holds it. It
    /// is kept until it was used.
    #[arg(long, value_name = "TEXT|FILE")]
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
pub(crate) struct TopArgs {
    #[command(flatten)]
    device: Device,
    /// Length of the list.
    #[arg(short, default_value_t = 10)]
    n: usize,
    /// Only items with one of these tags.
    #[arg(long)]
    tag: Vec<String>,
    /// Items like this one, instead of a list for the person.
    #[arg(long, conflicts_with_all = ["tag", "popular"])]
    similar: Option<String>,
    /// What people meet first and lately, instead of a list for the person.
    #[arg(long, conflicts_with = "tag")]
    popular: bool,
    /// What an item loses that is like one above it, in units of the score.
    #[arg(long, default_value_t = 0.0)]
    diversity: f64,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
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
    /// A rating on the catalogue's scale, instead of a like.
    #[arg(long, conflicts_with = "disliked")]
    rating: Option<f32>,
    /// Seconds for which it was watched, read or heard, instead of a like.
    #[arg(long, conflicts_with_all = ["disliked", "rating"])]
    viewed: Option<f32>,
    /// The person asked not to be shown it again.
    #[arg(long, conflicts_with_all = ["disliked", "rating", "viewed"])]
    hidden: bool,
}

#[derive(clap::Args)]
pub(crate) struct EraseArgs {
    /// Folder of the client's sealed state (also --folder): all that the client keeps in it is
    /// destroyed.
    #[arg(long, alias = "folder")]
    home: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct ParticipateArgs {
    #[command(flatten)]
    device: Device,
    /// Load no model: take part in the sums behind lists only.
    #[arg(long)]
    no_model: bool,
    /// The person consents to orders that erase (almost) everything on this device.
    #[arg(long)]
    consent_to_erasure: bool,
    /// Seconds to look for work.
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
}

impl Device {
    /// What needs no model and no network.
    fn local(&self) -> anyhow::Result<Options> {
        let folder = self.inputs.data_folder()?;
        let catalogue = match self.inputs.strict {
            true => Catalogue::load_strict(&folder)?,
            false => Catalogue::load(&folder)?,
        };
        let mut options = Options::new(catalogue);
        if let Some(given) = &self.invitation {
            options = options.invitation(Invitation::given(given)?.text());
        }
        if let Some(place) = &self.server {
            options = options.server(place.clone());
        }
        Ok(options)
    }

    fn alone(&self) -> anyhow::Result<Client> {
        self.opened(self.local()?)
    }

    /// Says it once, with a new folder, when a key that is destroyed in it can be recovered.
    fn opened(&self, options: Options) -> anyhow::Result<Client> {
        let new = !self.home.join(KEY).exists();
        let client = Client::open(&self.home, options)?;
        if new && let Some(kept) = keeps_keys(&self.home) {
            writeln!(std::io::stderr(), "lethe: {kept}")?;
        }
        Ok(client)
    }

    fn with_model(&self) -> anyhow::Result<Client> {
        if self.server.is_none() {
            bail!("the model's middle layers are the coordinator's: give --server ADDRESS");
        }
        let recipe = match &self.recipe {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                Recipe::from_file(path, &text.with_context(|| path.display().to_string())?)?
            }
            None => Recipe::default(),
        };
        let options = ModelOptions {
            split: recipe.split,
            compute: recipe.compute,
        };
        let (model, _) = self.inputs.paths()?;
        let options = self.local()?.model(ClientModel::load(&model, options)?);
        self.opened(options)
    }
}

/// The file of the key that seals a folder; `lethe` brings none of its own.
const KEY: &str = "device.key";

/// What there is to say of a folder in which a key that is destroyed can be recovered.
fn keeps_keys(home: &Path) -> Option<String> {
    let disk = Disk::of(home);
    (disk.verdict == Verdict::Kept).then(|| {
        format!(
            "what is erased here can be recovered from the disk for a time: {disk}. Another \
             folder, or a disk that is encrypted, does not have that"
        )
    })
}

fn block_on<T>(job: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(job)
}

fn now() -> anyhow::Result<i64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    i64::try_from(now.as_secs()).context("the clock is far off")
}

pub(crate) fn recommend(args: &RecommendArgs) -> anyhow::Result<()> {
    let client = args.device.with_model()?;
    let catalogue = client.catalogue().clone();
    let history = client.history();
    let unseen = catalogue
        .items()
        .iter()
        .filter(|i| history.iter().all(|e| e.item != i.id));
    let candidates: Vec<String> = if args.item.is_empty() {
        unseen.take(args.candidates).map(|i| i.id.clone()).collect()
    } else {
        args.item.clone()
    };
    let ranked = block_on(async {
        let list = client.recommend(&candidates, args.n).await;
        client.close().await;
        Ok(list)
    })?;
    let list = ranked?;
    let mut out = std::io::stdout().lock();
    match list.source {
        Source::Live { release } => writeln!(
            out,
            "ranked {} candidates with release {release}",
            candidates.len()
        )?,
        Source::Cached => writeln!(out, "the coordinator is away: the list of the last time")?,
        Source::OnDevice(source) => writeln!(
            out,
            "the coordinator is away, and there is no last list: ranked on the device, {}",
            stands_on(source)
        )?,
    }
    for r in &list.items {
        let title = catalogue.item(&r.item).map(|i| i.label());
        let title = words::title(&title.unwrap_or_default());
        writeln!(out, "{:+.3}  {:<8} {title}", r.score, r.item)?;
    }
    for left in &list.left_out {
        let item = words::title(&left.item);
        writeln!(std::io::stderr(), "{item} is left out: {}", left.why)?;
    }
    Ok(())
}

pub(crate) fn top(args: &TopArgs) -> anyhow::Result<()> {
    let client = args.device.alone()?;
    let page = match &args.similar {
        Some(item) => client.similar(item, args.n)?,
        None if args.popular => client.popular(args.n)?,
        None => client.top(&Query {
            filter: Filter {
                tags: args.tag.clone(),
                allows: None,
            },
            diversity: args.diversity,
            ..Query::first(args.n)
        })?,
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&page)?)?;
        return Ok(());
    }
    writeln!(out, "{}", stands_on(page.source))?;
    Ok(print(&mut out, &page)?)
}

fn stands_on(source: ListSource) -> &'static str {
    match source {
        ListSource::OwnHistory => "from the person's history and the tables of all",
        ListSource::FewEvents => "from few events and the tables of all",
        ListSource::PopularNow => "nothing was met yet: what people meet first, and lately",
        ListSource::Similar => "met by those who meet it, from the tables of all",
        ListSource::Catalogue(Fallback::NoSnapshot) => {
            "there are no tables yet (`lethe participate` fetches them; the coordinator makes the \
             first when 64 people have contributed, unless its operator has set other cells): by \
             content"
        }
        ListSource::Catalogue(Fallback::Recalled) => {
            "a deletion has recalled the tables (`lethe participate` fetches the next): by content"
        }
        ListSource::Catalogue(Fallback::Expired) => {
            "the tables are too old (`lethe participate` fetches the next): by content"
        }
    }
}

fn print(out: &mut impl Write, page: &Page) -> std::io::Result<()> {
    for place in &page.items {
        let like = place
            .like
            .map_or(String::new(), |p| format!("{:3.0} %", p * 100.0));
        let title = words::title(&place.title);
        write!(
            out,
            "{:+.3}  {like:<6} {:<8} {title}",
            place.score, place.item
        )?;
        let reasons = place.reasons.iter();
        let titles: Vec<String> = reasons.map(|r| words::title(&r.title)).collect();
        if !titles.is_empty() {
            write!(out, "  (because of {})", titles.join(", "))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

pub(crate) fn record(args: &RecordArgs) -> anyhow::Result<()> {
    let item = args.item.as_str();
    let time = now()?;
    let event = match (args.rating, args.viewed) {
        (Some(rating), _) => LocalEvent::rating(item, rating, time),
        (_, Some(seconds)) => LocalEvent::viewed(item, seconds, time),
        _ if args.hidden => LocalEvent::hidden(item, time),
        _ if args.disliked => LocalEvent::disliked(item, time),
        _ => LocalEvent::liked(item, time),
    };
    args.device.alone()?.record(event)?;
    Ok(())
}

pub(crate) fn erase(args: &EraseArgs) -> anyhow::Result<()> {
    Client::erase_folder(&args.home)?;
    let home = args.home.display();
    writeln!(std::io::stdout(), "{home}: nothing of the client is left")?;
    if let Some(kept) = keeps_keys(&args.home) {
        writeln!(std::io::stderr(), "lethe: {kept}")?;
    }
    Ok(())
}

/// How far the person's lists are; `None` before anything was contributed or fetched.
fn lists_in_words(status: &Status) -> Option<String> {
    if status.restricted {
        return Some(
            "lists: the data of this person is restricted: it is kept and not used, and nothing \
             is contributed until the coordinator's operator lifts the restriction"
                .into(),
        );
    }
    if let Some(tables) = &status.snapshot {
        let (number, items) = (tables.number, tables.items);
        return Some(format!(
            "lists: tables {number} are here, of {items} items; `lethe top` uses them"
        ));
    }
    let (_, events) = status.contributed?;
    Some(format!(
        "lists: {events} event(s) contributed, no tables yet. The coordinator makes the first when \
         64 people have contributed, unless its operator has set other cells; until then `lethe \
         top` goes by content"
    ))
}

/// From when on the person's data trains, and what the device lacks for it.
fn say_of_training(client: &Client) -> anyhow::Result<()> {
    let status = client.status();
    let mut err = std::io::stderr();
    if let Some(trains) = status.trains {
        writeln!(err, "{}", words::of_training(trains))?;
    }
    if let Some(needs) = &status.needs {
        writeln!(err, "{}", words::of_needs(needs))?;
    }
    Ok(())
}

/// Says it when it is not what was said before.
fn say_of_lists(client: &Client, before: Option<String>) -> anyhow::Result<Option<String>> {
    let now = lists_in_words(&client.status());
    match &now {
        Some(text) if now != before => writeln!(std::io::stderr(), "{text}")?,
        _ => {}
    }
    Ok(now)
}

pub(crate) fn participate(args: &ParticipateArgs) -> anyhow::Result<()> {
    let client = match args.no_model {
        true => args.device.alone()?,
        false => args.device.with_model()?,
    };
    block_on(async {
        match client.join().await {
            // Another device of this person joined with other data: this one contributes, ranks and
            // erases all the same.
            Err(e @ ClientError::OtherData) => writeln!(std::io::stderr(), "{e}")?,
            other => other?,
        }
        if client.training_samples() == 0 && !args.no_model {
            writeln!(
                std::io::stderr(),
                "this person gives no training sample: {} events are recorded, more than {HISTORY} \
                 are needed (some of them validate)",
                client.history().len()
            )?;
        }
        say_of_training(&client)?;
        let mut said = None;
        let until = Instant::now() + Duration::from_secs(args.seconds);
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            // The folder is free again when the time is over, not when a poll has ended.
            let Ok(asked) = tokio::time::timeout(left, client.next_task()).await else {
                break;
            };
            let done = match asked {
                Ok(Some(task)) => client.perform(task).await,
                Ok(None) => Ok(Done::Nothing),
                Err(e) => Err(e),
            };
            match done {
                Ok(Done::ConsentNeeded) if args.consent_to_erasure => {
                    let done = client.consent_to_erasure().await?;
                    writeln!(std::io::stderr(), "consented, erased: {done}")?;
                }
                Ok(done) => writeln!(std::io::stderr(), "{done:?}")?,
                Err(e) => {
                    writeln!(std::io::stderr(), "{}; trying again", words::of(&e))?;
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
            }
            said = say_of_lists(&client, said)?;
        }
        say_of_lists(&client, said)?;
        client.close().await;
        Ok(())
    })
}
