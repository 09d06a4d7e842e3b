//! What an app waits for: opening a folder, recording, lists. Prints JSON.
//!
//! `bench-client [--items N]... [--events N]` makes up a catalogue, a history of 200 events and
//! tables, and keeps them in a client's folder as a coordinator's snapshot would be.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use lethe_client::{Catalogue, Client, EventTable, Item, LocalEvent, Options, Query};
use lethe_learn::seed::Seed;
use lethe_parts::content::{Content, Description};
use lethe_parts::contribution::{Bounds, Contribution};
use lethe_parts::history::Interaction;
use lethe_parts::snapshot::{self, Packing};
use lethe_parts::solve::{Settings, solve};
use lethe_parts::sums::Sums;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::lists::{ListState, ListTerms, ServedTables, SnapshotReply};
use lethe_proto::message::{Refusal, Reply, Request};
use lethe_receipt::note::Signer;
use lethe_receipt::snapshot::SnapshotStatement;
use lethe_transport::identity::{Authority, Invitation};
use lethe_transport::server::{Handler, ReplyFuture, Server};
use serde_json::{Value, json};

const TAGS: usize = 18;
/// The most events of a contribution.
const CLIP: usize = 200;
const DAY: i32 = 20_000;

#[derive(Parser)]
struct Args {
    /// Items of a catalogue; may be given several times.
    #[arg(long, default_values_t = [1_682, 20_000])]
    items: Vec<usize>,
    /// Events of the person's history: a list takes longer the more there are.
    #[arg(long, default_value_t = 200)]
    events: usize,
    /// How many people the tables are made from.
    #[arg(long, default_value_t = 943)]
    people: usize,
    /// Calls that percentiles are of.
    #[arg(long, default_value_t = 200)]
    calls: usize,
}

fn tag(item: usize) -> usize {
    item * 7 % TAGS
}

fn catalogue(items: usize) -> anyhow::Result<Arc<Catalogue>> {
    let item = |i: usize| Item {
        id: i.to_string(),
        title: format!("Title {i}"),
        year: Some(1980 + (i % 40) as u16),
        tags: vec![format!("tag{}", tag(i)), format!("tag{}", i % 5)],
    };
    let all = (0..items).map(item).collect();
    Ok(Catalogue::new(all, &EventTable::default(), None)?)
}

/// People meet popular items, and those of one tag, more often.
fn met(person: usize, items: usize, events: usize) -> Vec<u32> {
    let name = (person as u64).to_le_bytes();
    let mut rng = Seed::from_u64(7).derive("person", &[&name]).rng();
    let taste = person % TAGS;
    let mut out = vec![];
    while out.len() < events {
        let popular = (rng.unit() * rng.unit() * items as f32) as usize;
        let item = popular.min(items - 1);
        if tag(item) == taste || rng.unit() < 0.3 {
            out.push(item as u32);
        }
    }
    out
}

fn tables(items: usize, people: usize) -> anyhow::Result<Vec<u8>> {
    let described: Vec<Description> = (0..items)
        .map(|i| Description {
            title: format!("Title {i}"),
            year: Some(1980 + (i % 40) as u16),
            tags: vec![format!("tag{}", tag(i)), format!("tag{}", i % 5)],
        })
        .collect();
    let bounds = Bounds {
        items,
        clip: CLIP,
        first_day: 0,
        last_day: DAY,
    };
    let mut sums = Sums::new(items);
    for person in 0..people {
        let interaction = |(n, item): (usize, u32)| Interaction {
            item,
            day: DAY - 100 + (n / 2) as i32,
            seen: true,
            half_stars: Some(4 + (item % 7) as u8),
            liked: item % 7 > 2,
            hidden: false,
        };
        let read = met(person, items, 100).into_iter().enumerate();
        let read: Vec<Interaction> = read.map(interaction).collect();
        sums.fold(&Contribution::new(&read, &bounds)?)?;
    }
    let content = Content::new(&described);
    let solved = solve(&sums, &content, &Settings::default(), DAY)?;
    Ok(snapshot::encode(&solved.tables, &Packing::default())?)
}

/// Hands the snapshot out once.
struct Coordinator {
    authority: Authority,
    signer: Signer,
    bytes: Mutex<Vec<u8>>,
}

impl Coordinator {
    fn answer(&self, request: Request) -> anyhow::Result<Reply> {
        let state = ListState {
            served: Some(1),
            recalled: 0,
        };
        Ok(match request {
            Request::Enrol { csr, .. } => Reply::Enrolled {
                certificate: self.authority.sign(&csr, Duration::from_secs(600))?,
                subject: SubjectId::new("bench").ok(),
            },
            Request::Hello { .. } => Reply::Welcome {
                recipe: lethe_recipe::Recipe::default().to_json(),
                anchors: vec![],
                engine: String::new(),
                minor: 2,
                log_key: self.signer.verifier().text(),
                recalled: 0,
            },
            Request::Snapshot { .. } => {
                let bytes = std::mem::take(&mut *self.bytes.lock().expect("not poisoned"));
                let statement = SnapshotStatement {
                    number: 1,
                    day: DAY,
                    snapshot: snapshot::digest(&bytes),
                    sums: [0; 32],
                    fold: [0; 32],
                    people: 0,
                    cell: 0,
                    changed: 0,
                    k: 3,
                    noise: None,
                };
                let note = statement.sign(&self.signer)?;
                Reply::Snapshot(SnapshotReply {
                    terms: Some(ListTerms {
                        clip: 200,
                        refresh_s: 3_600,
                        valid_s: 86_400,
                    }),
                    state,
                    key: self.signer.verifier().text(),
                    items: vec![],
                    tables: ServedTables::Whole { note, bytes },
                })
            }
            _ => Reply::Refused {
                code: Refusal::Invalid,
                message: "not in this bench".into(),
            },
        })
    }
}

impl Handler for Coordinator {
    fn admits(&self, _: &Digest) -> bool {
        true
    }
    fn longest(&self, kind: u16) -> usize {
        lethe_proto::codec::limit(kind).unwrap_or(0)
    }
    fn handle(&self, _: Option<Digest>, request: Request, _: usize) -> ReplyFuture {
        let reply = self.answer(request).unwrap_or_else(|e| Reply::Refused {
            code: Refusal::Internal,
            message: e.to_string(),
        });
        Box::pin(async move { reply })
    }
    fn disconnected(&self, _: &Digest) {}
}

/// A folder that has a history of so many events, and tables.
async fn prepare(
    folder: &Path,
    catalogue: &Arc<Catalogue>,
    events: usize,
    bytes: Vec<u8>,
) -> anyhow::Result<()> {
    let coordinator = Arc::new(Coordinator {
        authority: Authority::create()?,
        signer: Signer::from_seed("tally", &[1; 32])?,
        bytes: Mutex::new(bytes),
    });
    let server = Server::bind("127.0.0.1:0".parse()?, &coordinator.authority)?;
    let listener = server.clone();
    let invitation = Invitation::new("any".into(), &coordinator.authority).text();
    let handler = coordinator.clone();
    tokio::spawn(async move { listener.run(handler).await });
    let options = Options::new(catalogue.clone())
        .server(server.local_addr()?)
        .invitation(invitation)
        .contribute(false);
    let client = Client::open(folder, options)?;
    client.refresh().await?;
    let items = catalogue.items().len();
    let event = |(n, item): (usize, u32)| {
        let time = i64::from(DAY - 50) * 86_400 + n as i64;
        LocalEvent::rating(item.to_string(), 1.0 + (item % 5) as f32, time)
    };
    let own = met(5, items, events).into_iter().enumerate().map(event);
    client.record_all(own)?;
    client.close().await;
    server.close();
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

/// The median and the 99th percentile of calls, in milliseconds.
fn percentiles(
    calls: usize,
    mut call: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Value> {
    let mut all = vec![];
    for n in 0..calls {
        let started = Instant::now();
        call(n)?;
        all.push(ms(started));
    }
    all.sort_by(f64::total_cmp);
    let at = |q: f64| all[((calls as f64 * q) as usize).min(calls - 1)];
    Ok(json!({ "p50_ms": at(0.5), "p99_ms": at(0.99) }))
}

fn measure(folder: &Path, catalogue: &Arc<Catalogue>, calls: usize) -> anyhow::Result<Value> {
    let started = Instant::now();
    let client = Client::open(folder, Options::new(catalogue.clone()))?;
    let open = ms(started);
    let events = client.history().len();
    let started = Instant::now();
    let page = client.top(&Query::first(10))?;
    let first = ms(started);
    let bytes = client.status().snapshot.context("no snapshot")?.bytes;
    let list = percentiles(calls, |_| {
        client.top(&Query::first(10))?;
        Ok(())
    })?;
    let kept = client.top(&Query::first(10))?;
    let after = kept.next.context("no next page")?;
    let next = percentiles(calls, |_| {
        client.top(&Query::next(10, after))?;
        Ok(())
    })?;
    let diverse = percentiles(calls.min(50), |_| {
        client.top(&Query {
            diversity: 0.5,
            ..Query::first(10)
        })?;
        Ok(())
    })?;
    let items = catalogue.items().len();
    let similar = percentiles(calls, |n| {
        client.similar(&(n * 37 % items).to_string(), 10)?;
        Ok(())
    })?;
    let explain = percentiles(calls, |n| {
        client.explain(&(n * 37 % items).to_string())?;
        Ok(())
    })?;
    let record = percentiles(calls, |n| {
        let time = i64::from(DAY) * 86_400 + n as i64;
        client.record(LocalEvent::liked((n * 41 % items).to_string(), time))?;
        Ok(())
    })?;
    Ok(json!({
        "items": items, "events": events, "open_ms": open, "first_list_ms": first, "list": list,
        "next_page": next,
        "diverse_list": diverse, "similar": similar, "explain": explain, "record": record,
        "snapshot_bytes": bytes, "source": format!("{:?}", page.source),
    }))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    let mut rows = vec![];
    for items in args.items {
        let dir = tempfile::tempdir_in(".")?;
        let catalogue = catalogue(items)?;
        let bytes = tables(items, args.people)?;
        runtime.block_on(prepare(dir.path(), &catalogue, args.events, bytes))?;
        rows.push(measure(dir.path(), &catalogue, args.calls)?);
    }
    writeln!(std::io::stdout(), "{:#}", Value::Array(rows))?;
    Ok(())
}
