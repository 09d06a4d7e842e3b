//! `lethe demo`: the main job with embedded defaults.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use lethe_learn::seed::Seed;
use lethe_recsys::data::{DataSpec, Dataset, load};
use lethe_recsys::samples::{Part, Samples, Split};
use lethe_seal::disk::{Disk, Verdict};
use serde_json::{Value, json};

use super::train_central::{self, SplitArg};
use crate::commands::fleet::Command;
use crate::demo::federation::{Federation, Setup, done};
use crate::demo::figures::{Figures, Known, figures, log_loss, references};
use crate::demo::lists::{self, Lists, Measured};
use crate::demo::processes::third_party;
use crate::demo::report::Report;
use crate::demo::table;
use crate::inputs::{self, Inputs};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    inputs: Inputs,
    /// A small run that ends within 3 minutes on 2 cores; everything still happens for real.
    #[arg(long)]
    quick: bool,
    /// Clients that train adapters, too; each is one user of the data set. All users take part in
    /// lists.
    #[arg(long)]
    clients: Option<usize>,
    /// Rounds per stage and shard.
    #[arg(long)]
    rounds: Option<usize>,
    /// Test samples per client.
    #[arg(long)]
    tests: Option<usize>,
    /// Split by time: within each user, or over everybody.
    #[arg(long, value_enum, default_value = "per-user")]
    split: SplitArg,
    /// Recipe file (TOML) whose keys replace the demo's.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Also fine-tune centrally on as many samples, for comparison.
    #[arg(long)]
    central: bool,
    /// Let the coordinator hold what people contribute, and compute with it: one process less, and
    /// it sees names and histories. Without this a tally of its own holds them.
    #[arg(long)]
    embedded: bool,
    /// Also train a federation with FedAvg, for comparison.
    #[arg(long)]
    fedavg: bool,
    /// Seed of the choice of clients and of the training.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder of the run; below the cache folder when absent.
    #[arg(long)]
    home: Option<PathBuf>,
    /// Go on with what the last run left instead of starting clean.
    #[arg(long)]
    resume: bool,
    /// Write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a self-contained HTML page.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// Sizes of a run.
struct Sizes {
    clients: usize,
    rounds: usize,
    tests: usize,
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let (quick_default, full_default) = ((20, 1, 4), (48, 6, 6));
    let (clients, rounds, tests) = if args.quick {
        quick_default
    } else {
        full_default
    };
    let sizes = Sizes {
        clients: args.clients.unwrap_or(clients),
        rounds: args.rounds.unwrap_or(rounds),
        tests: args.tests.unwrap_or(tests),
    };
    let (model, folder) = args.inputs.paths()?;
    let (model, folder) = (std::path::absolute(model)?, std::path::absolute(folder)?);
    let spec = DataSpec::of_folder(&folder)?;
    let data = load(&folder, &spec, args.inputs.strict)?;
    inputs::say(&data.readings);
    let home = home(args)?;
    let disk = Disk::of(&home);
    if disk.verdict == Verdict::Kept {
        // The demo deletes nobody's data, and goes on.
        writeln!(
            std::io::stderr(),
            "{disk}. A server refuses that unless it is accepted (docs/operations.md)"
        )?;
    }
    let users = choose_users(&data, args.split.into(), &sizes, args.seed, &home)?;
    let listers = others(&data, &users, &home);
    let setup = Setup {
        folder: home.join("pplr"),
        model: &model,
        data: &folder,
        split: args.split.into(),
        users: &users,
        listers: &listers,
        recipe: recipe(args, &sizes)?,
        passes: 3,
        apart: !args.embedded,
    };
    let (parties, who) = match setup.apart {
        true => (
            "a coordinator, a tally",
            "sums = \"tally\": the coordinator knows names and no history, the tally histories and \
             no name",
        ),
        false => (
            "a coordinator",
            "sums = \"embedded\": the coordinator of this demo holds what people contribute and \
             computes with it",
        ),
    };
    say(&format!(
        "starting {parties} and {} clients in {}: all take part in lists, {} train adapters, \
         too\n{who}",
        users.len() + listers.len(),
        home.display(),
        users.len()
    ));
    let mut federation = Federation::start(&setup)?;
    let mut story = Story {
        args,
        lists: Lists {
            data: &data,
            spec: &spec,
            split: args.split.into(),
        },
        data: &data,
        sizes: &sizes,
        users: &users,
        home: &home,
        victim: String::new(),
        trained_samples: 0,
        out: json!({ "data": data.readings }),
    };
    let mut rest = story.tell(&mut federation, &setup)?;
    drop(federation);
    if args.fedavg {
        story.fedavg(&setup)?;
    }
    if args.central {
        story.central()?;
    }
    story.out["seconds"]["total"] = json!(started.elapsed().as_secs_f64());
    rest.table = table::render(&story.out);
    say(&format!("\n{}", rest.table));
    story.write(&rest)
}

/// The folder of the run: emptied unless it is to be resumed.
fn home(args: &Args) -> anyhow::Result<PathBuf> {
    let home = match &args.home {
        Some(h) => std::path::absolute(h)?,
        None => lethe_assets::default_home()?.join("demo"),
    };
    let marker = home.join("lethe-demo");
    if home.exists() && !args.resume {
        let empty = std::fs::read_dir(&home)?.next().is_none();
        if !marker.exists() && !empty {
            bail!(
                "{} exists and is no demo folder: give another --home",
                home.display()
            );
        }
        std::fs::remove_dir_all(&home).with_context(|| home.display().to_string())?;
    }
    std::fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
    std::fs::write(marker, "a run of `lethe demo`; removed by the next one\n")?;
    Ok(home)
}

/// Users with samples of every part, by a seeded rank, without those that earlier runs deleted.
fn choose_users(
    data: &Dataset,
    split: Split,
    sizes: &Sizes,
    seed: u64,
    home: &Path,
) -> anyhow::Result<Vec<String>> {
    let gone = std::fs::read_to_string(home.join("deleted")).unwrap_or_default();
    let samples = Samples::build(data, split);
    let count = |part: Part| {
        let mut n = vec![0; data.users.len()];
        samples.part(part).for_each(|s| n[s.user as usize] += 1);
        n
    };
    let (train, validation, test) = (
        count(Part::Train),
        count(Part::Validation),
        count(Part::Test),
    );
    let seed = Seed::from_u64(seed);
    let mut ranked: Vec<(u64, &String)> = (0..data.users.len())
        .filter(|u| train[*u] >= 4 && validation[*u] >= 1 && test[*u] >= sizes.tests)
        .map(|u| {
            (
                seed.rank("demo-clients", data.users[u].as_bytes()),
                &data.users[u],
            )
        })
        .collect();
    ranked.sort();
    if ranked.len() < sizes.clients {
        bail!(
            "only {} users of the data set have enough events for {} clients: ask for fewer",
            ranked.len(),
            sizes.clients
        );
    }
    let chosen = ranked
        .into_iter()
        .take(sizes.clients)
        .map(|(_, u)| u.clone());
    Ok(chosen.filter(|u| !gone.lines().any(|g| g == u)).collect())
}

/// Everybody else, without those that earlier runs deleted.
fn others(data: &Dataset, users: &[String], home: &Path) -> Vec<String> {
    let gone = std::fs::read_to_string(home.join("deleted")).unwrap_or_default();
    let is_other = |u: &&String| !users.contains(u) && !gone.lines().any(|g| g == *u);
    data.users.iter().filter(is_other).cloned().collect()
}

fn recipe(args: &Args, sizes: &Sizes) -> anyhow::Result<toml::Table> {
    let mut table = toml::Table::new();
    table.insert("rounds".into(), (sizes.rounds as i64).into());
    table.insert("seed".into(), (args.seed as i64).into());
    if let Some(path) = &args.recipe {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        lethe_recipe::Recipe::from_file(path, &text)?;
        table.extend(
            text.parse::<toml::Table>()
                .with_context(|| path.display().to_string())?,
        );
    }
    // Refused here, with the file's name, rather than by the coordinator.
    lethe_recipe::Recipe::from_toml(&toml::to_string(&table)?)?;
    Ok(table)
}

/// What training took.
struct Spent {
    /// Seconds until a release was served.
    train: f64,
    /// Seconds of one score.
    score: f64,
    /// Passes at once.
    passes: usize,
    /// Memory of the fleet before, in MiB.
    idle: f64,
}

/// What the report shows beside the figures.
struct Rest {
    table: String,
    losses: Value,
    receipt: String,
}

/// The run, step by step.
struct Story<'a> {
    args: &'a Args,
    lists: Lists<'a>,
    data: &'a Dataset,
    sizes: &'a Sizes,
    users: &'a [String],
    home: &'a Path,
    /// Who is deleted.
    victim: String,
    /// Samples of all updates so far.
    trained_samples: usize,
    out: Value,
}

impl Story<'_> {
    fn put(&mut self, name: &str, f: Figures) {
        self.out["auc"][name] = json!(f.auc);
        self.out["uauc"][name] = json!(f.uauc);
        self.out["test_samples"][name] = json!(f.samples);
    }

    fn tell(&mut self, fed: &mut Federation, setup: &Setup<'_>) -> anyhow::Result<Rest> {
        let device = fed.ready["device_weights_mib"].as_f64().unwrap_or(0.0);
        say(&format!(
            "each device holds {device:.0} MiB of weights; the coordinator holds the middle layers"
        ));
        let measured = self.show_lists(fed)?;
        // Nothing is contributed from here on: what was held out may be known to its person.
        fed.fleet.ask(&Command::RecordHeldOut)?;
        let settled = fed.fleet.ask(&Command::Settle)?;
        let idle = settled["resident_mib"].as_f64().unwrap_or(0.0);
        let (untrained, _) = fed.evaluate(true, self.sizes.tests)?;
        let train_seconds = fed.train()?;
        say(&format!("trained in {train_seconds:.0} s"));
        let status = fed.validated()?;
        let losses: Value = status["shards"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|s| s["losses"].clone())
            .collect();
        let (federated, score_seconds) = fed.evaluate(false, self.sizes.tests)?;
        let victim = self.choose_victim(fed)?;
        self.victim = victim.clone();
        let fortunate = self.users[0].clone();
        self.recommend(fed, &fortunate)?;
        measured.write(&self.lists, &victim, &mut self.out)?;

        let receipt = self.delete(fed, &victim, &measured)?;
        fed.validated()?;
        let (after, _) = fed.evaluate(false, self.sizes.tests)?;
        self.replay(fed)?;

        // The deleted person is left out of all figures, so that before and after are over the same
        // samples.
        for (name, rows) in [
            ("untrained", &untrained),
            ("federated", &federated),
            ("after_deletion", &after),
        ] {
            self.put(name, figures(rows, Some(&victim)));
            self.out["log_loss"][name] = json!(log_loss(rows, &victim));
        }
        self.out["clients"]["auc"] = figures(&federated, Some(&victim)).spread_json();
        let known = Known::Train;
        for (name, f) in references(self.data, setup.split, known, &federated, &victim) {
            self.out["auc"]["references"][&name] = json!(f.auc);
            self.out["uauc"]["references"][&name] = json!(f.uauc);
        }
        let spent = Spent {
            train: train_seconds,
            score: score_seconds / federated.len().max(1) as f64,
            passes: setup.passes,
            idle,
        };
        self.resources(fed, &spent)?;
        Ok(Rest {
            table: String::new(),
            losses,
            receipt,
        })
    }

    /// Everybody contributes; lists for somebody who is known, and for somebody who is new.
    fn show_lists(&mut self, fed: &mut Federation) -> anyhow::Result<Measured> {
        say(&lists::contribute(fed, &mut self.out)?);
        say(&lists::who_saw_what(fed, &mut self.out)?);
        let measured = lists::measure(fed)?;
        let subject = self.users[0].clone();
        say(&format!(
            "\na list for person {subject}, made on their device (probability of a like):"
        ));
        say(&lists::list(fed, &subject, &mut self.out)?);
        say(&lists::newcomer(fed, &self.lists, &mut self.out)?);
        Ok(measured)
    }

    /// The last person whose updates have counted: a deletion of somebody whom no round has chosen
    /// changes nothing, and would show nothing.
    fn choose_victim(&self, fed: &Federation) -> anyhow::Result<String> {
        for user in self.users.iter().rev() {
            let lineage = fed.admin.json(&["lineage", "--subject", user])?;
            let counts = lineage["lists"]["counts"] == true;
            if counts && lineage["rounds"].as_u64() > Some(0) {
                return Ok(user.clone());
            }
        }
        bail!(
            "no client has taken part in a round and counts in the sums of the lists: there is \
             nobody \
             to forget"
        );
    }

    /// Ranks 40 films of the catalogue for one person; the list is shown.
    fn recommend(&mut self, fed: &mut Federation, subject: &str) -> anyhow::Result<()> {
        let seed = Seed::from_u64(self.args.seed);
        let mut ranked: Vec<(u64, &str)> = self
            .data
            .items
            .iter()
            .map(|i| (seed.rank("candidates", i.id.as_bytes()), i.id.as_str()))
            .collect();
        ranked.sort_unstable();
        let candidates = ranked
            .iter()
            .take(40)
            .map(|(_, id)| (*id).to_owned())
            .collect();
        let answer = fed.fleet.ask(&Command::Recommend {
            subject: subject.to_owned(),
            candidates,
            n: 5,
        })?;
        let seconds = answer["seconds"].as_f64().unwrap_or(0.0);
        say(&format!(
            "\nrecommended to client {subject} (40 candidates ranked in {seconds:.1} s over the \
             split model):"
        ));
        for item in answer["items"].as_array().into_iter().flatten() {
            let (title, score) = (
                item["title"].as_str().unwrap_or("?"),
                item["score"].as_f64().unwrap_or(0.0),
            );
            say(&format!("  {score:+.2}  {title}"));
        }
        Ok(())
    }

    /// Deletes a person as a privacy team would; returns the receipt.
    fn delete(
        &mut self,
        fed: &mut Federation,
        victim: &str,
        before: &Measured,
    ) -> anyhow::Result<String> {
        let key = fed.status()?["log_key"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.out["log_key"] = json!(key);
        say(&format!("\n$ lethe-admin lineage --subject {victim}"));
        say(&fed.admin.run(&["lineage", "--subject", victim])?);
        say(&format!("\n$ lethe-admin forecast --subject {victim}"));
        say(&fed.admin.run(&["forecast", "--subject", victim])?);
        say(&format!("$ lethe-admin --json forget --subject {victim}"));
        let accepted = fed.admin.json(&["forget", "--subject", victim])?;
        let id = accepted["deletions"][0]["id"]
            .as_u64()
            .context("the deletion has no number")?
            .to_string();
        self.remember_deleted(victim)?;
        fed.fleet.ask(&Command::Erase {
            subject: victim.to_owned(),
        })?;
        fed.wait("retraining", done)?;
        let state = loop {
            let state = fed.admin.json(&["status", "--deletion", &id])?;
            if state["phase"] == "done" {
                break state;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        };
        say(&format!("$ lethe-admin status --deletion {id}"));
        say(&fed.admin.run(&["status", "--deletion", &id])?);
        let affected: Vec<u64> = state["affected"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_u64)
            .collect();
        let hashes: Vec<Value> = hash_pairs(&state);
        let same = |h: &Value| {
            affected.contains(&h["shard"].as_u64().unwrap_or(u64::MAX)) || h["before"] == h["after"]
        };
        self.out["deletion"] = json!({
            "seconds_until_exact": state["seconds_until_exact"],
            "seconds_until_retrained": state["seconds_until_retrained"],
            "other_shards_unchanged": hashes.iter().all(same),
            "affected": affected,
            "hashes": hashes,
        });
        let trainers = self.users.iter().cloned().collect();
        let text = lists::after_deletion(fed, victim, &trainers, before, &state, &mut self.out)?;
        say(&text);
        self.verify(fed, &id, &key)
    }

    /// Later runs in this folder leave the person out.
    fn remember_deleted(&self, victim: &str) -> anyhow::Result<()> {
        let path = self.home.join("deleted");
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)?;
        writeln!(file, "{victim}").with_context(|| path.display().to_string())
    }

    /// Fetches the receipt and verifies it offline; an altered copy must be refused.
    fn verify(&mut self, fed: &Federation, id: &str, key: &str) -> anyhow::Result<String> {
        let file = self.home.join("receipt.json");
        let path = file.to_string_lossy().into_owned();
        fed.admin
            .run(&["receipt", "--deletion", id, "--out", &path])?;
        let mut check = vec!["receipt", &path, "--log-key", key];
        let tally_key = fed.status()?["lists"]["key"].take();
        if fed.tally.is_some() {
            // Both parties must have signed.
            say("$ lethe-verify receipt receipt.json --log-key ... --tally-key ...");
            check.extend(["--tally-key", tally_key.as_str().unwrap_or_default()]);
        } else {
            say("$ lethe-verify receipt receipt.json --log-key ...");
        }
        let (good, text) = third_party(&check)?;
        say(&text);
        let log = self.home.join("log").to_string_lossy().into_owned();
        say("$ lethe-admin log --out LOG && lethe-verify log LOG --log-key ...");
        fed.admin.run(&["log", "--out", &log])?;
        let (audited, text) = third_party(&["log", &log, "--log-key", key])?;
        say(&text);
        let receipt = std::fs::read_to_string(&file)?;
        let altered = self.home.join("altered.json");
        std::fs::write(
            &altered,
            receipt.replacen("\"deletion\": ", "\"deletion\": 1", 1),
        )?;
        let (bad, _) = third_party(&["receipt", &altered.to_string_lossy(), "--log-key", key])?;
        self.out["receipt"]["verified"] = json!(good && audited && !bad);
        Ok(receipt)
    }

    /// Retrains the affected shard from scratch without the person and compares.
    fn replay(&mut self, fed: &Federation) -> anyhow::Result<()> {
        let shards: Vec<u64> = self.out["deletion"]["affected"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_u64)
            .collect();
        // A deletion that affects no shard would show nothing here.
        let (mut equal, mut control) = (!shards.is_empty(), !shards.is_empty());
        for shard in shards {
            say(&format!("$ lethe-admin replay {shard}"));
            let (_, text) = fed
                .admin
                .try_run(&["--json", "replay", &shard.to_string()])?;
            let r: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
            let before = self.out["deletion"]["hashes"][shard as usize]["before"].clone();
            equal &= r["equal"] == true;
            // What a deletion without retraining would have left must not pass.
            control &= r["replayed"] != before;
            say(&format!(
                "replayed {} rounds in {} s: {}",
                r["rounds"], r["seconds"], r["replayed"]
            ));
            self.out["deletion"]["replay_seconds"] = r["seconds"].clone();
        }
        self.out["deletion"]["replay_equal"] = json!(equal);
        self.out["deletion"]["negative_control"] = json!(control);
        Ok(())
    }

    fn resources(&mut self, fed: &mut Federation, spent: &Spent) -> anyhow::Result<()> {
        let stats = fed.fleet.ask(&Command::Stats)?;
        let n = stats["clients"].as_f64().unwrap_or(1.0);
        let each = |k: &str| stats[k].as_f64().unwrap_or(0.0) / n;
        self.out["bytes_per_client"] =
            json!({ "updates": each("updates"), "activations": each("activations") });
        let number = |k: &str| fed.ready[k].as_f64().unwrap_or(0.0);
        // What all clients share, this client's part of the rest, and the working memory of one
        // pass at the peak.
        let device = number("one_device_mib");
        let everybody = number("ready").max(1.0);
        let own = (number("fleet_mib") - device).max(0.0) / everybody;
        let peak = stats["peak_mib"].as_f64().unwrap_or(0.0);
        let passes = (peak - spent.idle).max(0.0) / spent.passes as f64;
        let client = device + own + passes;
        self.out["memory_mib"] = json!({
            "coordinator": fed.server.peak_mib(), "client": client, "fleet_peak": stats["peak_mib"],
            "device_weights": fed.ready["device_weights_mib"],
        });
        // Training everything again is the same work as the first training, less one person. A
        // resumed run did not do all of it.
        let full = (!self.args.resume).then_some(spent.train);
        self.out["deletion"]["full_retrain_seconds"] = json!(full);
        self.trained_samples = stats["samples"].as_u64().unwrap_or(0) as usize;
        self.out["seconds"] = json!({ "train": spent.train, "score_one": spent.score });
        self.out["training_clients"] = json!(self.users.len());
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.out["at"] = json!(since.map_or(0, |d| d.as_secs()));
        self.out["seed"] = json!(self.args.seed);
        self.out["build"] = json!(concat!("lethe ", env!("CARGO_PKG_VERSION")));
        Ok(())
    }

    /// The same federation with FedAvg weights.
    fn fedavg(&mut self, setup: &Setup<'_>) -> anyhow::Result<()> {
        say("training again with FedAvg");
        let mut recipe = setup.recipe.clone();
        recipe.insert("aggregation".into(), "fedavg".into());
        let setup = Setup {
            folder: self.home.join("fedavg"),
            recipe,
            ..*setup
        };
        let mut fed = Federation::start(&setup)?;
        fed.train()?;
        fed.validated()?;
        let (rows, _) = fed.evaluate(false, self.sizes.tests)?;
        let f = figures(&rows, Some(&self.victim));
        self.out["fedavg"] =
            json!({ "auc": f.auc, "uauc": f.uauc, "clients": { "auc": f.spread_json() } });
        Ok(())
    }

    /// Central fine-tuning on as many samples as the clients of this run trained on.
    fn central(&mut self) -> anyhow::Result<()> {
        let f = train_central::reference(
            &self.args.inputs,
            self.trained_samples.max(1),
            self.args.split,
            self.args.seed,
        )?;
        self.out["auc"]["central"] = f["trained"]["auc"].clone();
        self.out["uauc"]["central"] = f["trained"]["uauc"].clone();
        Ok(())
    }

    fn write(&self, rest: &Rest) -> anyhow::Result<()> {
        if let Some(path) = &self.args.json {
            lethe_run::files::write(path, &serde_json::to_vec_pretty(&self.out)?)
                .with_context(|| path.display().to_string())?;
        }
        if let Some(path) = &self.args.report {
            let report = Report {
                figures: &self.out,
                table: &rest.table,
                losses: &rest.losses,
                receipt: &rest.receipt,
            };
            let page = report.page();
            lethe_run::files::write(path, page.as_bytes())
                .with_context(|| path.display().to_string())?;
            say(&format!("report: {}", path.display()));
        }
        let must = [
            &self.out["deletion"]["replay_equal"],
            &self.out["deletion"]["negative_control"],
            &self.out["deletion"]["lists_replay_equal"],
            &self.out["deletion"]["other_shards_unchanged"],
            &self.out["receipt"]["verified"],
        ];
        if must.iter().any(|v| **v != json!(true)) {
            bail!("the run did not show what it must: see the table");
        }
        Ok(())
    }
}

/// Hash of every shard before and after, as hexadecimal.
fn hash_pairs(state: &Value) -> Vec<Value> {
    let before = state["before"].as_array();
    let now = state["now"].as_array();
    let pairs = before.into_iter().flatten().zip(now.into_iter().flatten());
    pairs
        .enumerate()
        .map(|(k, (b, n))| json!({ "shard": k, "before": b, "after": n }))
        .collect()
}
