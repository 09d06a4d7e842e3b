//! `lethe training-data` and `lethe audit`: a shard trained again by somebody else, on their own
//! machine. `audit --lists` is beside it ([`audit_lists`]).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use lethe_client::{
    Catalogue, Client, ClientModel, Cutoffs, ModelOptions, Options, TrainingData, TrainingEvent,
};
use lethe_proto::catalogue::Versions;
use lethe_receipt::audit::Bundle;
use lethe_receipt::note::VerifierKey;
use lethe_recipe::Recipe;
use lethe_recsys::versions::entries;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::commands::audit_lists;
use crate::demo::processes::{Admin, Server};
use crate::inputs::{self, Inputs};

#[derive(clap::Args)]
pub(crate) struct ExportArgs {
    /// Folder of the client's sealed state (also --folder).
    #[arg(long, alias = "folder")]
    home: PathBuf,
    /// Write it here: one file per person, readable by its user only.
    #[arg(long)]
    out: PathBuf,
    /// Number of the epoch that is audited; the newest that the device joined when absent.
    #[arg(long)]
    epoch: Option<u32>,
}

/// The person's own training data, for an auditor. Whoever runs it on the device agrees for the
/// person.
pub(crate) fn export(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    if !args.home.is_dir() {
        bail!(
            "{}: there is no such folder; give the --home of `lethe record` and `lethe \
             participate`",
            args.home.display()
        );
    }
    let data = match args.epoch {
        Some(epoch) => TrainingData::of_epoch(&args.home, None, epoch)?,
        None => TrainingData::of_folder(&args.home, None)?,
    };
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options
        .open(&args.out)
        .with_context(|| args.out.display().to_string())?;
    file.write_all(&data.bytes())?;
    let events = data.events.len();
    let contributions = data.contributed.len();
    writeln!(
        std::io::stdout(),
        "{}: {events} events in clear, which open the commitment in the log, and {contributions} \
         contributions to the lists",
        args.out.display()
    )?;
    Ok(ExitCode::SUCCESS)
}

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["bundle", "lists"])))]
pub(crate) struct Args {
    /// The bundle of a shard, from `lethe-admin export-audit SHARD`.
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// The bundle of the lists, from `lethe-admin export-audit --lists`: their sums are folded
    /// again. No model is needed.
    #[arg(long)]
    lists: Option<PathBuf>,
    /// The log's public key, with --lists that of the lists, from a source that you trust: an app,
    /// a device (`lethe-admin status` prints both).
    #[arg(long)]
    key: String,
    /// Folder with the files of `lethe training-data`: one for every record of the bundle, with
    /// --lists one of each person who counts, or a folder with those of the person's devices.
    #[arg(long)]
    exports: PathBuf,
    #[command(flatten)]
    inputs: Inputs,
    /// Folder of the run, new or empty; a temporary one when absent.
    #[arg(long)]
    home: Option<PathBuf>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Exit code 0: equal; 3: different, or with --lists somebody is missing.
pub(crate) fn audit(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(lists) = &args.lists {
        return audit_lists::run(&audit_lists::Asked {
            bundle: lists,
            key: &args.key,
            exports: &args.exports,
            data: &args.inputs.data_folder()?,
            strict: args.inputs.strict,
            json: args.json,
        });
    }
    match &args.bundle {
        Some(bundle) => audit_shard(args, bundle),
        None => bail!("give a bundle: --bundle of a shard, or --lists"),
    }
}

fn audit_shard(args: &Args, file: &Path) -> anyhow::Result<ExitCode> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    let key = VerifierKey::parse(&args.key).context("--key")?;
    let bundle = Bundle::verify(&bytes, &key).with_context(|| file.display().to_string())?;
    let people = people(&bundle, &args.exports)?;
    let temporary = lethe_run::files::Temporary::new()?;
    let home = args
        .home
        .clone()
        .unwrap_or_else(|| temporary.path().join("audit"));
    std::fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
    if std::fs::read_dir(&home)?.next().is_some() {
        bail!(
            "{} is not empty: an audit starts from nothing; give another --home",
            home.display()
        );
    }
    let (model, data) = args.inputs.paths()?;
    let (model, data) = (std::path::absolute(model)?, std::path::absolute(data)?);
    if bundle.engine != lethe_model::engine::kind_from_env() {
        let (theirs, mine) = (&bundle.engine, lethe_model::engine::kind_from_env());
        writeln!(
            std::io::stderr(),
            "note: trained with {theirs}, this machine computes with {mine}: last bits may differ"
        )?;
    }
    if let Some(note) = other_catalogue(&bundle, &data, args.inputs.strict)? {
        writeln!(std::io::stderr(), "note: {note}")?;
    }
    let more = Given {
        file,
        key: &args.key,
        model: &model,
        data: &data,
    };
    let verdict = train(&home, &bundle, people, &more)?;
    let equal = verdict["equal"] == json!(true);
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{verdict:#}")?;
    } else {
        let word = if equal { "EQUAL" } else { "DIFFERENT" };
        writeln!(
            out,
            "{word}: shard {} trained again on {} records that the log committed to before (entry \
             {})\n  trained here {}\n  theirs       {}",
            bundle.training.training.shard,
            bundle.members.len(),
            bundle.training.index,
            verdict["replayed"].as_str().unwrap_or_default(),
            bundle.adapter
        )?;
    }
    Ok(if equal {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

/// What to know of the catalogue, if the folder may be another version than the epoch has.
fn other_catalogue(bundle: &Bundle, data: &Path, strict: bool) -> anyhow::Result<Option<String>> {
    let Some(of) = &bundle.catalogue else {
        return Ok(None);
    };
    let items = inputs::items(data, strict)?;
    let here = Versions::founded(entries(&items))?.digest().hex();
    let number = of.number;
    Ok((here != of.digest).then(|| {
        format!(
            "prompts are made of version {number} of the catalogue: where the items and titles of \
             --data are others, bytes differ"
        )
    }))
}

/// The exports in the order of the bundle, each matched by the commitment that it opens.
fn people(bundle: &Bundle, folder: &Path) -> anyhow::Result<Vec<TrainingData>> {
    let mut found: BTreeMap<String, TrainingData> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let data = TrainingData::parse(&text).with_context(|| path.display().to_string())?;
        let commitment = data
            .commitment()
            .with_context(|| format!("{}: its salt is not 32 bytes", path.display()))?;
        found.insert(commitment.hex(), data);
    }
    let all = bundle.members.len();
    let people: Vec<TrainingData> = bundle
        .members
        .iter()
        .filter_map(|m| found.remove(&m.data))
        .collect();
    if people.len() < all {
        bail!(
            "{} of {all} records have an export that opens their commitment: without all of them \
             the shard cannot be trained again",
            people.len()
        );
    }
    Ok(people)
}

/// What a coordinator that audits a shard is started with.
struct Given<'a> {
    file: &'a Path,
    key: &'a str,
    model: &'a Path,
    data: &'a Path,
}

/// A coordinator of its own, and one client per record, over QUIC on this machine.
fn train(
    home: &Path,
    bundle: &Bundle,
    people: Vec<TrainingData>,
    given: &Given<'_>,
) -> anyhow::Result<serde_json::Value> {
    let Given { model, data, .. } = *given;
    let recipe = Recipe::from_json(&bundle.recipe)?;
    let data_dir = home.join("server");
    std::fs::create_dir_all(&data_dir)?;
    let mut config = toml::Table::new();
    config.insert("listen".into(), "127.0.0.1:0".into());
    for (key, path) in [
        ("data_dir", data_dir.as_path()),
        ("model", model),
        ("catalogue", data),
    ] {
        config.insert(key.into(), path.to_string_lossy().into_owned().into());
    }
    config.insert("recipe".into(), recipe.to_toml()?.into());
    // The auditor is both parties here, and sums as few people as the bundle says.
    let _tally = match recipe.grid() {
        Some(_) => {
            let lists = toml::Table::from_iter([("cells".to_owned(), "off".into())]);
            let (tally, more) = Server::tally_beside(home, data, lists)?;
            config.extend(more);
            Some(tally)
        }
        None => None,
    };
    let file = home.join("server.toml");
    std::fs::write(&file, toml::to_string(&config)?)?;
    let bundle_path = std::path::absolute(given.file)?;
    let more = [
        "--audit".as_ref(),
        bundle_path.as_os_str(),
        "--log-key".as_ref(),
        given.key.as_ref(),
    ];
    let server = Server::start_with(&file, &data_dir, &more)?;
    let admin = Admin::enrol(home.join("admin"), &server, &data_dir)?;
    let names: Vec<String> = (0..people.len())
        .map(|i| format!("member-{i:06}"))
        .collect();
    let mut invite = vec!["invite"];
    names.iter().for_each(|n| invite.extend(["--subject", n]));
    let invitations: Vec<String> = admin.run(&invite)?.lines().map(str::to_owned).collect();
    let options = ModelOptions {
        split: recipe.split,
        compute: recipe.compute,
    };
    let loaded = ClientModel::load_on(&lethe_model::engine::Engine::from_env()?, model, options)?;
    let catalogue = Catalogue::load(data)?;
    let addr: std::net::SocketAddr = server.address.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let passes = Arc::new(Semaphore::new(2));
        for ((name, invitation), person) in names.iter().zip(&invitations).zip(people) {
            let cutoffs = Cutoffs {
                train: person.events.len(),
                validate: person.events.len(),
            };
            let options = Options::new(catalogue.clone())
                .server(addr)
                .model(loaded.clone())
                .cutoffs(cutoffs)
                .invitation(invitation)
                .passes(passes.clone())
                .contribute(false);
            let client = Client::open(home.join("clients").join(name), options)?;
            let event = |e: &TrainingEvent| catalogue.thumb(&e.item, e.liked, e.time);
            client.record_all(person.events.iter().map(event))?;
            client.join().await?;
            tokio::spawn(async move {
                loop {
                    if client.step().await.is_err() {
                        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                    }
                }
            });
        }
        anyhow::Ok(())
    })?;
    let shard = bundle.training.training.shard.to_string();
    let (_, text) = admin.try_run(&["--json", "replay", &shard])?;
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    serde_json::from_str(&text).with_context(|| text.trim().to_owned())
}
