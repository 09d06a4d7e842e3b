//! The processes of the demo. Each ends when its standard input closes, so nothing is left running
//! whatever happens to the demo itself; a signal that ends the demo ends them first
//! (`lethe_run::children`).

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lethe_run::children::{Running, output};
use serde_json::Value;

/// A program that was built beside this one.
pub(crate) fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let mut path = std::env::current_exe()?;
    path.set_file_name(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if !path.exists() {
        bail!(
            "{} is missing: build all programs with `cargo build --release`",
            path.display()
        );
    }
    Ok(path)
}

/// A running coordinator, or a running tally.
pub(crate) struct Server {
    child: Running,
    /// Where it listens.
    pub(crate) address: String,
}

impl Server {
    /// Starts `lethe-server` and waits until it listens. Its log goes to `server.log` beside the
    /// configuration.
    pub(crate) fn start(config: &Path, data_dir: &Path) -> anyhow::Result<Self> {
        Self::start_with(config, data_dir, &[])
    }

    /// The same, with more arguments.
    pub(crate) fn start_with(
        config: &Path,
        data_dir: &Path,
        more: &[&OsStr],
    ) -> anyhow::Result<Self> {
        Self::spawn("lethe-server", config, data_dir, more)
    }

    /// Starts `lethe-tally`, and founds its folder in the first run. Returns the invitation for the
    /// coordinator, too.
    pub(crate) fn tally(config: &Path, data_dir: &Path) -> anyhow::Result<(Self, String)> {
        let file = config.with_file_name("tally-invitation");
        if !file.exists() {
            let mut command = Command::new(sibling("lethe-tally")?);
            command.arg("init").arg("--accept-recoverable-keys");
            command.arg("--config").arg(config);
            let (done, text) = said(&mut command)?;
            let invitation = text.split_whitespace().find(|w| w.starts_with("lethe1:"));
            match invitation.filter(|_| done) {
                Some(invitation) => std::fs::write(&file, invitation)?,
                None => bail!("lethe-tally init: {}", text.trim()),
            }
        }
        let invitation = std::fs::read_to_string(&file)?;
        let tally = Self::spawn("lethe-tally", config, data_dir, &["serve".as_ref()])?;
        Ok((tally, invitation))
    }

    /// A tally of its own in a folder, and what the configuration of a coordinator beside it says:
    /// `sums` and `[tally]`.
    pub(crate) fn tally_beside(
        folder: &Path,
        catalogue: &Path,
        lists: toml::Table,
    ) -> anyhow::Result<(Self, toml::Table)> {
        let data_dir = folder.join("tally");
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut config = toml::Table::new();
        config.insert("listen".into(), "127.0.0.1:0".into());
        config.insert("data_dir".into(), text(&data_dir).into());
        config.insert("catalogue".into(), text(catalogue).into());
        config.insert("reserve_mib".into(), 0.into());
        config.insert("lists".into(), lists.into());
        let file = folder.join("tally.toml");
        std::fs::write(&file, toml::to_string(&config)?)?;
        let (tally, invitation) = Self::tally(&file, &data_dir)?;
        let mut at = toml::Table::new();
        at.insert("address".into(), tally.address.clone().into());
        at.insert("invitation".into(), invitation.trim().into());
        let mut of_coordinator = toml::Table::new();
        of_coordinator.insert("sums".into(), "tally".into());
        of_coordinator.insert("tally".into(), at.into());
        Ok((tally, of_coordinator))
    }

    fn spawn(
        program: &str,
        config: &Path,
        data_dir: &Path,
        more: &[&OsStr],
    ) -> anyhow::Result<Self> {
        let address = data_dir.join("address");
        let _ = std::fs::remove_file(&address);
        let log = config.with_extension("log");
        let mut command = Command::new(sibling(program)?);
        command
            .args([
                "--with-parent".as_ref(),
                // What a demonstration, a load test or an audit deletes is nobody's.
                "--accept-recoverable-keys".as_ref(),
                "--config".as_ref(),
                config.as_os_str(),
            ])
            .args(more)
            .stdin(Stdio::piped())
            .stderr(std::fs::File::create(&log)?);
        let child = Running::start(&mut command).with_context(|| format!("starting {program}"))?;
        let mut server = Self {
            child,
            address: String::new(),
        };
        let started = Instant::now();
        while server.address.is_empty() {
            if let Some(status) = server.child.try_wait()? {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                bail!("{program} ended with {status}:\n{text}");
            }
            if started.elapsed() > Duration::from_secs(120) {
                bail!(
                    "{program} did not start within 120 s; see {}",
                    log.display()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
            server.address = std::fs::read_to_string(&address).unwrap_or_default();
        }
        Ok(server)
    }

    /// Peak memory so far, in MiB (Linux; 0 elsewhere).
    pub(crate) fn peak_mib(&self) -> f64 {
        self.status_mib("VmHWM:")
    }

    /// Memory now, in MiB (Linux; 0 elsewhere).
    pub(crate) fn resident_mib(&self) -> f64 {
        self.status_mib("VmRSS:")
    }

    fn status_mib(&self, field: &str) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix(field));
        line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok())
            .unwrap_or(0.0)
            / 1024.0
    }

    /// Processor seconds so far (Linux; 0 elsewhere).
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // After the name, which may hold anything: the 12th and 13th fields, in hundredths.
        let fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(11)
            .take(2);
        fields.filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / 100.0
    }
}

/// A running fleet.
pub(crate) struct Fleet {
    // Closed before its process is waited for, which ends when it is.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    _child: Running,
}

impl Fleet {
    /// Starts `lethe fleet` and waits until all clients have joined; returns its first line too.
    pub(crate) fn start(config: &Path) -> anyhow::Result<(Self, Value)> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["fleet".as_ref(), "--config".as_ref(), config.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let child = Running::start(&mut command).context("starting the fleet")?;
        let output = child.take_stdout().context("the fleet has no output")?;
        let mut fleet = Self {
            input: child.take_stdin(),
            output: BufReader::new(output),
            _child: child,
        };
        let ready = fleet.read()?;
        Ok((fleet, ready))
    }

    fn read(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the fleet process ended: its last words are above");
        }
        let value: Value = serde_json::from_str(&line)?;
        match value.get("error").and_then(Value::as_str) {
            Some(e) => bail!("the fleet: {e}"),
            None => Ok(value),
        }
    }

    /// One command and its answer.
    pub(crate) fn ask(
        &mut self,
        command: &crate::commands::fleet::Command,
    ) -> anyhow::Result<Value> {
        let input = self.input.as_mut().context("the fleet was closed")?;
        serde_json::to_writer(&mut *input, command)?;
        writeln!(input)?;
        input.flush()?;
        self.read()
    }
}

/// Whether a command succeeded, and its standard output (its errors when there is none).
fn said(command: &mut Command) -> anyhow::Result<(bool, String)> {
    let out = output(command)?;
    let text = if out.stdout.is_empty() {
        out.stderr
    } else {
        out.stdout
    };
    Ok((
        out.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

/// `lethe-verify`, as a third party would call it.
pub(crate) fn third_party(args: &[&str]) -> anyhow::Result<(bool, String)> {
    said(Command::new(sibling("lethe-verify")?).args(args))
}

/// The admin tool, as a privacy team would call it.
pub(crate) struct Admin {
    home: PathBuf,
}

impl Admin {
    /// Enrols with the coordinator's first invitation, unless that was done in an earlier run.
    pub(crate) fn enrol(home: PathBuf, server: &Server, data_dir: &Path) -> anyhow::Result<Self> {
        let admin = Self { home };
        let invitation = data_dir.join("admin-invitation");
        if !admin.home.join("identity.json").exists() {
            admin.run(&[
                "enrol",
                "--server",
                &server.address,
                "--invitation",
                &invitation.to_string_lossy(),
            ])?;
        }
        Ok(admin)
    }

    /// Runs a command; its standard output, and whether it succeeded.
    pub(crate) fn try_run(&self, args: &[&str]) -> anyhow::Result<(bool, String)> {
        said(
            Command::new(sibling("lethe-admin")?)
                .arg("--home")
                .arg(&self.home)
                .args(args),
        )
    }

    /// Runs a command that must succeed.
    pub(crate) fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        match self.try_run(args)? {
            (true, text) => Ok(text),
            (false, text) => bail!("lethe-admin {}: {}", args.join(" "), text.trim()),
        }
    }

    /// Runs a command with `--json`.
    pub(crate) fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(
            &self.run(&[&["--json"], args].concat())?,
        )?)
    }
}
