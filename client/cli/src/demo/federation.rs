//! One federation of the demo: started, trained, evaluated.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lethe_recsys::samples::Split;
use serde_json::{Value, json};

use super::figures::{Row, rows};
use super::processes::{Admin, Fleet, Server};
use crate::commands::fleet::{Command, FleetConfig};
use crate::progress::bar;

/// Longest wait for a snapshot.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a federation needs to start.
pub(crate) struct Setup<'a> {
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// Base model.
    pub(crate) model: &'a Path,
    /// Data set.
    pub(crate) data: &'a Path,
    /// How histories are divided.
    pub(crate) split: Split,
    /// Users whose clients train adapters.
    pub(crate) users: &'a [String],
    /// Other users, whose clients have no model and take part in lists only.
    pub(crate) listers: &'a [String],
    /// Keys of the recipe.
    pub(crate) recipe: toml::Table,
    /// Passes that run at once, per process.
    pub(crate) passes: usize,
    /// Whether a process of its own holds what people contribute.
    pub(crate) apart: bool,
}

/// A running federation.
pub(crate) struct Federation {
    /// The coordinator.
    pub(crate) server: Server,
    /// The tally, where it is a process of its own.
    pub(crate) tally: Option<Server>,
    /// The clients.
    pub(crate) fleet: Fleet,
    /// The privacy team.
    pub(crate) admin: Admin,
    /// What the fleet said when it was ready.
    pub(crate) ready: Value,
}

impl Federation {
    /// Starts a coordinator and a fleet, or resumes them in a folder that has both.
    pub(crate) fn start(setup: &Setup<'_>) -> anyhow::Result<Self> {
        let data_dir = setup.folder.join("server");
        std::fs::create_dir_all(&data_dir).with_context(|| data_dir.display().to_string())?;
        let port = port(&setup.folder, "port")?;
        let mut config = toml::Table::new();
        config.insert("listen".into(), format!("127.0.0.1:{port}").into());
        for (key, path) in [
            ("data_dir", data_dir.as_path()),
            ("model", setup.model),
            ("catalogue", setup.data),
        ] {
            config.insert(key.into(), path.to_string_lossy().into_owned().into());
        }
        config.insert("min_subjects".into(), (setup.users.len() as i64).into());
        config.insert("passes".into(), (setup.passes as i64).into());
        // Devices are on this machine too, and a second away: one long training pass is kept at a
        // time, so that the coordinator needs little memory.
        config.insert("tape_mib".into(), 512.into());
        let mut lists = toml::Table::new();
        // Often, so that nobody waits for the schedule of a real fleet.
        lists.insert("publish_s".into(), 3.into());
        fit_cells(&mut lists, setup.users.len() + setup.listers.len());
        let mut tally = None;
        if setup.apart {
            let (process, invitation) = start_tally(setup, lists)?;
            let mut table = toml::Table::new();
            table.insert("address".into(), process.address.clone().into());
            table.insert("invitation".into(), invitation.into());
            config.insert("sums".into(), "tally".into());
            config.insert("tally".into(), table.into());
            tally = Some(process);
        } else {
            // This server holds what people contribute: said in the output.
            config.insert("sums".into(), "embedded".into());
            config.insert("lists".into(), lists.into());
        }
        config.insert("recipe".into(), setup.recipe.clone().into());
        let file = setup.folder.join("server.toml");
        std::fs::write(&file, toml::to_string(&config)?)?;
        let server = Server::start(&file, &data_dir)?;
        let admin = Admin::enrol(setup.folder.join("admin"), &server, &data_dir)?;
        let fleet_file = setup.folder.join("fleet.json");
        let fleet_config = FleetConfig {
            server: server.address.parse()?,
            model: setup.model.to_owned(),
            data: setup.data.to_owned(),
            home: setup.folder.join("clients"),
            split: setup.split,
            recipe: toml::to_string(&setup.recipe)?,
            passes: setup.passes,
            clients: invitations(&admin, setup, setup.users)?,
            listers: invitations(&admin, setup, setup.listers)?,
            newcomer: newcomer(&admin, setup)?,
        };
        std::fs::write(&fleet_file, serde_json::to_vec(&fleet_config)?)?;
        let (fleet, ready) = Fleet::start(&fleet_file)?;
        Ok(Self {
            server,
            tally,
            fleet,
            admin,
            ready,
        })
    }

    /// Scores the clients' test samples.
    pub(crate) fn evaluate(
        &mut self,
        untrained: bool,
        limit: usize,
    ) -> anyhow::Result<(Vec<Row>, f64)> {
        let started = Instant::now();
        let answer = self.fleet.ask(&Command::Evaluate { untrained, limit })?;
        Ok((rows(&answer), started.elapsed().as_secs_f64()))
    }

    /// Everybody contributes, and gets tables with everybody in them who counts. Returns what the
    /// fleet said of both.
    pub(crate) fn lists(&mut self) -> anyhow::Result<(Value, Value)> {
        let contributed = self.fleet.ask(&Command::Contribute)?;
        let people = contributed["contributed"].as_u64().unwrap_or(0);
        let number = self.listed(people)?;
        let fetched = self.fleet.ask(&Command::Fetch { after: number - 1 })?;
        Ok((contributed, fetched))
    }

    /// Waits until the snapshot that is served has everybody in it who counts; its number.
    fn listed(&self, people: u64) -> anyhow::Result<u64> {
        let started = Instant::now();
        loop {
            let lists = self.status()?["lists"].take();
            let number = |k: &str| lists[k].as_u64().unwrap_or(0);
            let settled = number("waiting") < 4 * number("cell") && number("people") >= people;
            if settled && number("served") > 0 && number("snapshot_people") == number("counting") {
                return Ok(number("served"));
            }
            if started.elapsed() > PATIENCE {
                bail!("no snapshot has everybody in it who counts: {lists}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// State of the coordinator.
    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        self.admin.json(&["status"])
    }

    /// Waits until `ready`, showing finished rounds (and then validation) as a bar.
    pub(crate) fn wait(&self, name: &str, ready: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let progress = bar(1, name);
        loop {
            let status = self.status()?;
            let rounds = |k: usize| -> u64 {
                status["shards"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|s| s["rounds"][k].as_u64())
                    .sum()
            };
            progress.set_length(rounds(1).max(1));
            progress.set_position(rounds(0));
            if rounds(0) == rounds(1) {
                progress.set_message("measuring errors,");
            }
            if ready(&status) {
                progress.finish_and_clear();
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Trains until a release is served; returns the seconds it took.
    pub(crate) fn train(&mut self) -> anyhow::Result<f64> {
        let started = Instant::now();
        self.fleet.ask(&Command::Work { on: true })?;
        self.wait("training", |s| s["release"].as_u64() > Some(0) && done(s))?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Waits until all clients have measured what is served.
    pub(crate) fn validated(&self) -> anyhow::Result<Value> {
        self.wait("validation", |s| s["validated"] == json!(true) && done(s))
    }
}

/// All shards are trained.
pub(crate) fn done(status: &Value) -> bool {
    status["shards"]
        .as_array()
        .is_some_and(|s| s.iter().all(|k| k["done"] == json!(true)))
}

/// The same port in a resumed run, so that the clients and the admin tool find the coordinator
/// again.
fn port(folder: &Path, name: &str) -> anyhow::Result<u16> {
    let file = folder.join(name);
    if let Some(port) = std::fs::read_to_string(&file)
        .ok()
        .and_then(|t| t.parse().ok())
    {
        return Ok(port);
    }
    let port = std::net::UdpSocket::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    std::fs::write(&file, port.to_string())?;
    Ok(port)
}

/// People from which on the cells of a real fleet open: four times 16.
const FLEET: usize = 64;

/// Smaller cells where so few people have a history that none would open, and a run would wait for
/// tables in vain; with fewer than 8 people everybody counts alone.
fn fit_cells(lists: &mut toml::Table, people: usize) {
    if people >= FLEET {
        return;
    }
    if people < 8 {
        lists.insert("cells".into(), "off".into());
        return;
    }
    let cell = (people / 16).max(2) as i64;
    lists.insert("cell".into(), cell.into());
    lists.insert("changed".into(), 2.into());
}

/// The tally, in a folder of its own.
fn start_tally(setup: &Setup<'_>, lists: toml::Table) -> anyhow::Result<(Server, String)> {
    let data_dir = setup.folder.join("tally");
    let port = port(&setup.folder, "tally-port")?;
    let mut config = toml::Table::new();
    config.insert("listen".into(), format!("127.0.0.1:{port}").into());
    let text = |path: &Path| path.to_string_lossy().into_owned();
    config.insert("data_dir".into(), text(&data_dir).into());
    config.insert("catalogue".into(), text(setup.data).into());
    config.insert("lists".into(), lists.into());
    let file = setup.folder.join("tally.toml");
    std::fs::write(&file, toml::to_string(&config)?)?;
    Server::tally(&file, &data_dir)
}

/// Somebody who is not in the data set.
const NEWCOMER: &str = "newcomer";

fn newcomer(admin: &Admin, setup: &Setup<'_>) -> anyhow::Result<String> {
    let all = invitations(admin, setup, &[NEWCOMER.to_owned()])?;
    Ok(all.into_iter().next().map_or(String::new(), |(_, i)| i))
}

/// An invitation for every client that has no identity yet.
fn invitations(
    admin: &Admin,
    setup: &Setup<'_>,
    users: &[String],
) -> anyhow::Result<Vec<(String, String)>> {
    let known = |u: &&String| {
        let folder = setup.folder.join("clients").join(u);
        folder.join("identity").exists()
    };
    let (old, new): (Vec<&String>, Vec<&String>) = users.iter().partition(known);
    let mut out: Vec<(String, String)> = old
        .into_iter()
        .map(|u| (u.clone(), String::new()))
        .collect();
    if !new.is_empty() {
        let args: Vec<&str> = new.iter().flat_map(|u| ["--subject", u.as_str()]).collect();
        let issued = admin.json(&[&["invite"], &args[..]].concat())?;
        let text = |v: &Value| {
            Some((
                v["subject"].as_str()?.to_owned(),
                v["invitation"].as_str()?.to_owned(),
            ))
        };
        out.extend(issued.as_array().into_iter().flatten().filter_map(text));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_24_a_demo_with_few_people_has_cells_that_open() {
        let fitted = |people| {
            let mut lists = toml::Table::new();
            fit_cells(&mut lists, people);
            lists
        };
        assert!(fitted(64).is_empty(), "a fleet's own");
        for people in 8..64 {
            let lists = fitted(people);
            let cell = lists["cell"].as_integer().expect("a number");
            assert!((2..=people as i64 / 4).contains(&cell), "{people}: {cell}");
            let changed = lists["changed"].as_integer().expect("a number");
            assert!((2..=cell).contains(&changed), "{people}: {changed}");
        }
        assert_eq!(fitted(7)["cells"].as_str(), Some("off"));
    }
}
