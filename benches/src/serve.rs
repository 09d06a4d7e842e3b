//! Load on the coordinator's middle layers: clients that score without a pause, over loopback QUIC
//! with certificates, each with its own mixture of the four shards' trained adapters. Writes CSV:
//! clients, tokens per request, requests per second, median and 99th percentile of the latency.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Parser;
use lethe_benches::{Federation, connect};
use lethe_learn::seed::Seed;
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::message::{BatchShape, Purpose, Reply, Request};
use lethe_proto::payload::{Payload, WireFormat};
use lethe_transport::client::Connection;

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

/// Shards, each with adapters that some clients trained in one round.
const SHARDS: usize = 4;
const TRAINERS: u32 = 8;
const RECIPE: &str =
    "shards = 4\nanchors = 1\nslices = 1\nrounds = 1\ncohort = 4\nvalidation = 1\n";

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let federation = Federation::start(RECIPE, TRAINERS as usize).await?;
            let release = train(&federation).await?;
            let mut connections = vec![];
            for i in 0..cli.clients.iter().copied().max().unwrap_or(0) {
                let token = federation.invite(&format!("load-{i}")).await?;
                connections.push(Arc::new(connect(federation.addr, &token).await?));
            }
            writeln!(
                std::io::stdout(),
                "clients,tokens,requests_per_second,tokens_per_second,p50_ms,p99_ms"
            )?;
            for tokens in &cli.tokens {
                for clients in &cli.clients {
                    measure(&connections[..*clients], release, *tokens, cli.seconds).await?;
                }
            }
            Ok(())
        })
}

/// Trains all shards for a round; the number of the release.
async fn train(federation: &Federation) -> anyhow::Result<u64> {
    let mut fleet = tokio::task::JoinSet::new();
    for user in 0..TRAINERS {
        let events = federation.events(user, 16);
        let client = federation.client(user, &events, 14).await?;
        fleet.spawn(async move { while client.step().await.is_ok() {} });
    }
    loop {
        let Reply::Admin(AdminReply::Status(s)) = federation
            .operator
            .call(&Request::Admin(AdminRequest::Status))
            .await?
        else {
            bail!("the coordinator did not tell its state");
        };
        if s.release > 0 && s.validated {
            fleet.abort_all();
            return Ok(s.release);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn measure(
    connections: &[Arc<Connection>],
    release: u64,
    tokens: u32,
    seconds: f64,
) -> anyhow::Result<()> {
    let mut tasks = vec![];
    let started = Instant::now();
    let (warm, end) = (
        started + Duration::from_secs(1),
        started + Duration::from_secs_f64(1.0 + seconds),
    );
    for (i, connection) in connections.iter().enumerate() {
        let mut rng = Seed::from_u64(i as u64).rng();
        let hidden: Vec<f32> = (0..tokens as usize * HIDDEN)
            .map(|_| rng.normal())
            .collect();
        let omega: Vec<f32> = (0..SHARDS).map(|_| rng.uniform(0.1, 0.4)).collect();
        let request = Request::Forward {
            purpose: Purpose::Score { release, omega },
            shape: BatchShape {
                prefix: 0,
                lens: vec![tokens],
            },
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
        all.get(((all.len() as f64 * q) as usize).min(all.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
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
