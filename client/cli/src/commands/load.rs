//! `lethe fleet --clients N`: what a coordinator bears. Thousands of puppets (the real protocol
//! over real QUIC, noise for updates) against a coordinator in a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lethe_model::config::ModelConfig;
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::{Reply, Request};
use lethe_puppet::{Did, Puppet, PuppetError, Role, identity};
use lethe_run::files::Temporary;
use lethe_transport::TransportError;
use lethe_transport::client::{Connection, Dialer, enrol};
use lethe_transport::identity::Invitation;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use crate::demo::processes::Server;

#[derive(clap::Args)]
pub(crate) struct LoadArgs {
    /// Puppets that all take part in every round.
    #[arg(long)]
    clients: Option<usize>,
    /// Rounds that are measured.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Number format of updates and of the adapters that clients start from: f32, int8 or int4. Or
    /// masked: updates under masks that a tally of its own sums, aggregated by FedAvg; adapters are
    /// exact then.
    #[arg(long, default_value = "f32")]
    updates: String,
    /// Adapted layers; two give 30,720 values.
    #[arg(long, default_value_t = 2)]
    last_layers: usize,
    /// Figures of the peer from the same machine (`benches/compare/flower.py --json`), to stand
    /// beside ours.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Puppets per socket.
const PER_SOCKET: usize = 250;
/// Handshakes at once: a phone's takes longer than any of these waits.
const AT_ONCE: usize = 16;
/// Between two questions of the one who measures how long answers take.
const PROBE: Duration = Duration::from_millis(5);
/// Handshakes that one puppet begins again.
const PATIENCE: u32 = 5;

impl LoadArgs {
    pub(crate) fn wanted(&self) -> bool {
        self.clients.is_some()
    }
}

pub(crate) fn run(args: &LoadArgs) -> anyhow::Result<()> {
    let clients = args.clients.context("--clients is missing")?;
    let dir = Temporary::new()?;
    let files = lethe_assets::fetch(&lethe_assets::default_home()?, &mut |_| {})?;
    let source = lethe_model::source::open(&files.model)?;
    let (config, layers) = (source.config().clone(), source.config().layers);
    drop(source);
    let data_dir = dir.path().join("server");
    let on_top = args.last_layers.clamp(1, layers);
    // The device holds all that is trained, so that the coordinator's work is what is measured:
    // rounds, not layers.
    let masked = args.updates == "masked";
    let tally = match masked {
        true => {
            let lists = toml::Table::new();
            Some(Server::tally_beside(dir.path(), &files.movielens, lists)?)
        }
        false => None,
    };
    let (adapters, more) = match masked {
        true => ("f32", "aggregation = \"fedavg\"\n"),
        false => (args.updates.as_str(), ""),
    };
    let text = format!(
        "listen = \"127.0.0.1:0\"\ndata_dir = {data_dir:?}\nmodel = {:?}\ncatalogue = \
         {:?}\nmin_subjects = {clients}\n\
         reserve_mib = 0\n[recipe]\n{more}shards = 1\nanchors = 1\nslices = 1\nrounds = {}\n\
         cohort = {clients}\nquorum = {clients}\ndeadline_s = 3600\nvalidation = 1\n\
         updates = {:?}\nadapters = {:?}\nsplit = {{ k_in = {}, k_out = {on_top} }}\n\
         lora = {{ rank = 8, alpha = 16.0, targets = [\"q\", \"v\"], last_layers = {on_top} }}\n",
        files.model,
        files.movielens,
        args.rounds + 1,
        args.updates,
        adapters,
        layers - on_top,
    );
    let mut table: toml::Table = text.parse()?;
    table.extend(tally.iter().flat_map(|(_, more)| more.clone()));
    let path = dir.path().join("server.toml");
    std::fs::write(&path, toml::to_string(&table)?)?;
    let server = Server::start(&path, &data_dir)?;
    let model = lethe_recipe::model_digest(&files.model)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut figures = runtime.block_on(measure(
        &server,
        &data_dir,
        &config,
        model,
        clients,
        args.rounds,
    ))?;
    runtime.shutdown_timeout(Duration::from_secs(2));
    figures["update_values"] = json!(
        8 * on_top
            * (2 * config.hidden
                + config.heads * config.head_dim
                + config.kv_heads * config.head_dim)
    );
    figures["updates"] = json!(args.updates);
    if let Some((tally, _)) = &tally {
        figures["tally_cpu_s"] = json!(tally.cpu_seconds());
        figures["tally_peak_mib"] = json!(tally.peak_mib());
    }
    figures["peer"] = match &args.peer {
        Some(p) => {
            serde_json::from_slice(&std::fs::read(p).with_context(|| p.display().to_string())?)?
        }
        None => Value::Null,
    };
    let text = serde_json::to_string_pretty(&figures)?;
    if let Some(path) = &args.json {
        std::fs::write(path, &text).with_context(|| path.display().to_string())?;
    }
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

struct Operator(Connection);

impl Operator {
    async fn enrol(addr: SocketAddr, data_dir: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(data_dir.join("admin-invitation"))?;
        let invitation = Invitation::parse(text.trim())?;
        let me = enrol(addr, &invitation).await?;
        Ok(Self(
            Connection::open(addr, &invitation.authority()?, Some(&me)).await?,
        ))
    }

    async fn ask(&self, request: AdminRequest) -> anyhow::Result<AdminReply> {
        match self.0.call(&Request::Admin(request)).await? {
            Reply::Admin(reply) => Ok(reply),
            _ => bail!("the coordinator answered an operator with something else"),
        }
    }

    async fn invite(&self, n: usize) -> anyhow::Result<String> {
        let subject = Some(SubjectId::new(format!("puppet-{n}"))?);
        match self.ask(AdminRequest::Invite { subject }).await? {
            AdminReply::Invited { token } => Ok(token),
            _ => bail!("the coordinator did not invite"),
        }
    }
}

/// Measures on a thread of its own: its question waits for no puppet of this process.
fn ask(
    addr: SocketAddr,
    invitation: String,
    stop: Arc<AtomicBool>,
) -> JoinHandle<anyhow::Result<Vec<Duration>>> {
    tokio::task::spawn_blocking(move || {
        let mut own = tokio::runtime::Builder::new_current_thread();
        own.enable_all()
            .build()?
            .block_on(probe(addr, invitation, stop))
    })
}

/// Asks for a release again and again, which is answered at once and waits for what a poll waits
/// for. Returns how long each answer took, until it is told to stop.
async fn probe(
    addr: SocketAddr,
    invitation: String,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Vec<Duration>> {
    let invitation = Invitation::parse(&invitation)?;
    let me = enrol(addr, &invitation).await?;
    let connection = Connection::open(addr, &invitation.authority()?, Some(&me)).await?;
    let request = Request::Release {
        have: None,
        adapters: vec![],
    };
    let mut waits = vec![];
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        match connection.call(&request).await {
            // There is none before the last round has closed.
            Ok(_) | Err(TransportError::Refused { .. }) => waits.push(asked.elapsed()),
            Err(e) => return Err(e.into()),
        }
        tokio::time::sleep(PROBE).await;
    }
    Ok(waits)
}

/// The value below which a share of them lies, in milliseconds.
fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    let last = sorted.len().saturating_sub(1);
    let value = sorted.get(at.min(last));
    value.map_or(0.0, |d| d.as_secs_f64() * 1000.0)
}

fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

async fn measure(
    server: &Server,
    data_dir: &Path,
    config: &ModelConfig,
    model: Digest,
    clients: usize,
    rounds: usize,
) -> anyhow::Result<Value> {
    let addr: SocketAddr = server.address.parse()?;
    let operator = Operator::enrol(addr, data_dir).await?;
    let started = Instant::now();
    let mut invitations = Vec::with_capacity(clients);
    for n in 0..clients {
        invitations.push(operator.invite(n).await?);
    }
    let invited_s = started.elapsed().as_secs_f64();
    let dialers = (0..clients.div_ceil(PER_SOCKET))
        .map(|_| Dialer::bind(addr))
        .collect::<Result<Vec<_>, _>>()?;
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut entering = JoinSet::new();
    for (n, invitation) in invitations.into_iter().enumerate() {
        let (dialer, at_once, config) = (
            dialers[n / PER_SOCKET].clone(),
            at_once.clone(),
            config.clone(),
        );
        entering.spawn(async move {
            let _turn = at_once.acquire_owned().await?;
            let role = Role {
                config: &config,
                model,
                seed: n as u64,
            };
            let authority = Invitation::parse(&invitation)?.authority()?;
            // As phones do: a handshake that gets no answer is begun again.
            let mut repeated = 0u32;
            let me = loop {
                match identity(&dialer, addr, &invitation).await {
                    Err(PuppetError::Transport(e)) if e.is_transient() && repeated < PATIENCE => {
                        repeated += 1
                    }
                    other => break other?,
                }
            };
            let mut puppet = loop {
                match Puppet::connect(&dialer, addr, &authority, &me, &role).await {
                    Err(PuppetError::Transport(e)) if e.is_transient() && repeated < PATIENCE => {
                        repeated += 1
                    }
                    other => break other?,
                }
            };
            puppet.join().await?;
            anyhow::Ok((puppet, repeated))
        });
    }
    let mut puppets = Vec::with_capacity(clients);
    let mut repeated = 0;
    while let Some(entered) = entering.join_next().await {
        let (puppet, again) = entered??;
        puppets.push(puppet);
        repeated += again;
    }
    let joined_s = started.elapsed().as_secs_f64() - invited_s;
    say(&format!("{clients} joined: {joined_s:.0} s"));
    let stop = Arc::new(AtomicBool::new(false));
    let asking = ask(addr, operator.invite(clients).await?, stop.clone());
    let (idle_mib, idle_cpu) = (server.resident_mib(), server.cpu_seconds());
    let (told, mut events) = mpsc::unbounded_channel();
    let mut work = JoinSet::new();
    for mut puppet in puppets {
        let told = told.clone();
        work.spawn(async move {
            loop {
                match puppet.step().await {
                    Ok(Did::Trained(round)) => drop(told.send(Ok((round.round, Instant::now())))),
                    Ok(_) => {}
                    Err(e) => {
                        let _ = told.send(Err(e));
                        return;
                    }
                }
            }
        });
    }
    let mut ends: Vec<Option<Instant>> = vec![None; rounds + 1];
    let mut counts = vec![0usize; rounds + 1];
    while counts[rounds] < clients {
        let event: Result<_, PuppetError> = events.recv().await.context("the puppets are gone")?;
        let (round, at) = event?;
        counts[usize::from(round)] += 1;
        if counts[usize::from(round)] == clients {
            say(&format!(
                "round {round} is answered: {:.0} s",
                started.elapsed().as_secs_f64()
            ));
        }
        ends[usize::from(round)] = Some(at);
    }
    let cpu = server.cpu_seconds() - idle_cpu;
    stop.store(true, Ordering::Relaxed);
    let mut waits = asking.await??;
    waits.sort_unstable();
    work.abort_all();
    // The first round is the one that warms up; each of the others lasts from the last answer of
    // the one before.
    let ends: Vec<Instant> = ends.into_iter().flatten().collect();
    let mut seconds: Vec<f64> = ends
        .windows(2)
        .map(|w| (w[1] - w[0]).as_secs_f64())
        .collect();
    let per_second = seconds.len() as f64 / seconds.iter().sum::<f64>();
    seconds.sort_by(f64::total_cmp);
    let at =
        |q: f64| seconds[((seconds.len() as f64 * q) as usize).min(seconds.len() - 1)] * 1000.0;
    Ok(json!({
        "clients": clients,
        "rounds": rounds,
        "rounds_per_second": per_second,
        "round_p50_ms": at(0.5),
        "round_p99_ms": at(0.99),
        "coordinator_rss_mib": server.resident_mib(),
        "coordinator_peak_mib": server.peak_mib(),
        "coordinator_idle_rss_mib": idle_mib,
        "coordinator_cpu_s": cpu,
        "invited_s": invited_s,
        "joined_s": joined_s,
        "handshakes_repeated": repeated,
        "answers": waits.len(),
        "answer_p50_ms": quantile(&waits, 0.5),
        "answer_p99_ms": quantile(&waits, 0.99),
        "answer_max_ms": quantile(&waits, 1.0),
    }))
}
