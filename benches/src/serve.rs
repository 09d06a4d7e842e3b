//! Load on the coordinator's middle layers: clients that score without a pause, over loopback QUIC with certificates.
//! Writes CSV: clients, tokens per request, requests per second, median and 99th percentile of the latency.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use lethe_coordinator::Coordinator;
use lethe_coordinator::config::ServerConfig;
use lethe_learn::seed::Seed;
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::SubjectId;
use lethe_proto::message::{BatchShape, Purpose, Reply, Request};
use lethe_proto::payload::{Payload, WireFormat};
use lethe_transport::client::{Connection, enrol};
use lethe_transport::identity::Invitation;

/// Measures scoring requests of SmolLM2-135M's middle layers.
#[derive(Parser)]
struct Cli {
    /// Clients at once.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    clients: Vec<usize>,
    /// Tokens of a request.
    #[arg(long, value_delimiter = ',', default_value = "16,180")]
    tokens: Vec<u32>,
    /// Seconds of each measurement, after one of warming up.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
}

const HIDDEN: usize = 576;

async fn connect(addr: SocketAddr, text: &str) -> anyhow::Result<Connection> {
    let invitation = Invitation::parse(text)?;
    let identity = enrol(addr, &invitation).await?;
    Ok(Connection::open(addr, &invitation.authority()?, Some(&identity)).await?)
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let files = lethe_assets::fetch(&lethe_assets::default_home()?, &mut |_| {})?;
    let dir = tempfile::tempdir()?;
    let config = ServerConfig::parse(&format!(
        "listen = \"127.0.0.1:0\"\ndata_dir = {:?}\nmodel = {:?}\ncatalogue = {:?}\nmin_subjects = 1000000\n",
        dir.path(),
        files.model,
        files.movielens
    ))?;
    let coordinator = Coordinator::open(config)?;
    let operator = coordinator.first_admin()?.context("a fresh coordinator invites")?.text();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let addr = coordinator.listen()?;
        let operator = connect(addr, &operator).await?;
        let mut connections = vec![];
        for i in 0..cli.clients.iter().copied().max().unwrap_or(0) {
            let subject = Some(SubjectId::new(format!("load-{i}"))?);
            let Reply::Admin(AdminReply::Invited { token }) =
                operator.call(&Request::Admin(AdminRequest::Invite { subject })).await?
            else {
                bail!("the coordinator did not invite");
            };
            connections.push(std::sync::Arc::new(connect(addr, &token).await?));
        }
        writeln!(std::io::stdout(), "clients,tokens,requests_per_second,tokens_per_second,p50_ms,p99_ms")?;
        for tokens in &cli.tokens {
            for clients in &cli.clients {
                measure(&connections[..*clients], *tokens, cli.seconds).await?;
            }
        }
        Ok(())
    })
}

async fn measure(connections: &[std::sync::Arc<Connection>], tokens: u32, seconds: f64) -> anyhow::Result<()> {
    let mut tasks = vec![];
    let started = Instant::now();
    let (warm, end) = (started + Duration::from_secs(1), started + Duration::from_secs_f64(1.0 + seconds));
    for (i, connection) in connections.iter().enumerate() {
        let mut rng = Seed::from_u64(i as u64).rng();
        let hidden: Vec<f32> = (0..tokens as usize * HIDDEN).map(|_| rng.normal()).collect();
        let request = Request::Forward {
            purpose: Purpose::Score { release: 0, omega: vec![] },
            shape: BatchShape { prefix: 0, lens: vec![tokens] },
            hidden: Payload::encode(&hidden, HIDDEN, WireFormat::F16),
        };
        let connection = connection.clone();
        tasks.push(tokio::spawn(async move {
            let mut latencies = vec![];
            while Instant::now() < end {
                let sent = Instant::now();
                connection.call(&request).await?;
                let done = Instant::now();
                if done >= warm && done <= end {
                    latencies.push((done - sent).as_secs_f64() * 1e3);
                }
            }
            anyhow::Ok(latencies)
        }));
    }
    let mut all: Vec<f64> = vec![];
    for t in tasks {
        all.extend(t.await??);
    }
    all.sort_by(f64::total_cmp);
    let at = |q: f64| {
        all.get(((all.len() as f64 * q) as usize).min(all.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    };
    let rate = all.len() as f64 / seconds;
    writeln!(
        std::io::stdout(),
        "{},{tokens},{rate:.2},{:.0},{:.1},{:.1}",
        connections.len(),
        rate * f64::from(tokens),
        at(0.5),
        at(0.99)
    )?;
    Ok(())
}
