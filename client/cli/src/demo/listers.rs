//! What a fleet's clients do with lists: contribute, fetch tables, rank. Everything goes through
//! the client library and over QUIC, as an app would do it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lethe_client::{Client, ClientError, LocalEvent, Page, Query};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Clients that talk to the coordinator at the same time.
const AT_ONCE: usize = 64;
/// Longest wait for tables.
const PATIENCE: Duration = Duration::from_secs(60);
/// Places of a list.
const PLACES: usize = 10;
/// Likes after which a newcomer looks at a list.
const LIKES: [usize; 3] = [0, 1, 3];

/// A person of the fleet.
#[derive(Clone)]
pub(crate) struct Person {
    /// Their client, with the events before those that are held out.
    pub(crate) client: Client,
    /// Events that nobody was told of, oldest first, and whether they count as a like.
    pub(crate) held_out: Arc<Vec<(LocalEvent, bool)>>,
}

/// Everybody, by name.
pub(crate) type People = BTreeMap<String, Person>;

/// How often something is tried on a machine that is too busy to answer in time.
const TRIES: u32 = 5;
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(2);

/// Does something with every client, so many at a time; the first failure ends it. Where the
/// coordinator does not answer, it is tried again a few times, as an app does it.
pub(crate) async fn all<T: Send + 'static, F>(
    people: &People,
    at_once: usize,
    work: impl Fn(Person) -> F + Clone + Send + Sync + 'static,
) -> anyhow::Result<Vec<T>>
where
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(at_once));
    let mut tasks = JoinSet::new();
    for (name, person) in people {
        let places = places.clone();
        let name = name.clone();
        let work = work.clone();
        let person = person.clone();
        tasks.spawn(async move {
            let _place = places.acquire().await;
            let done = patiently(|| work(person.clone())).await;
            done.with_context(|| format!("client {name}"))
        });
    }
    let mut out = vec![];
    while let Some(done) = tasks.join_next().await {
        out.push(done??);
    }
    Ok(out)
}

async fn patiently<T, F>(work: impl Fn() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let mut tried = 1;
    loop {
        let done = work().await;
        let Err(e) = &done else { return done };
        let offline = e.downcast_ref::<ClientError>().map(ClientError::is_offline);
        if offline != Some(true) || tried == TRIES {
            return done;
        }
        tried += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Everybody contributes the newest events of their history.
pub(crate) async fn contribute(people: &People) -> anyhow::Result<Value> {
    let started = Instant::now();
    let contributed = all(people, AT_ONCE, |person| async move {
        Ok(person.client.refresh().await?.contributed)
    })
    .await?;
    let n = contributed.iter().filter(|c| **c).count();
    Ok(json!({ "contributed": n, "seconds": started.elapsed().as_secs_f64() }))
}

/// The number of the tables that a client has; 0: none.
fn number(client: &Client) -> u64 {
    client.status().snapshot.map_or(0, |s| s.number)
}

/// Everybody fetches tables after `after`.
pub(crate) async fn fetch(people: &People, after: u64) -> anyhow::Result<Value> {
    let started = Instant::now();
    let numbers = all(people, AT_ONCE, move |person| async move {
        let begun = Instant::now();
        while number(&person.client) <= after {
            person.client.refresh().await?;
            if begun.elapsed() > PATIENCE {
                bail!("no tables after number {after} within {PATIENCE:?}");
            }
            if number(&person.client) <= after {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(number(&person.client))
    })
    .await?;
    let first = people.values().next().context("nobody is in the fleet")?;
    let bytes = first.client.status().snapshot.map_or(0, |s| s.bytes);
    Ok(json!({
        "number": numbers.iter().max(), "bytes": bytes,
        "seconds": started.elapsed().as_secs_f64(),
    }))
}

/// Ranks the first event that was held out of each person, and scores all of them.
pub(crate) fn quality(people: &People) -> anyhow::Result<Value> {
    let mut ranks = vec![];
    let mut likes = vec![];
    let mut milliseconds = vec![];
    let mut first_list = None;
    for (name, person) in people {
        let Some((target, _)) = person.held_out.first() else {
            continue;
        };
        let query = Query {
            at: Some(target.time),
            ..Query::first(PLACES)
        };
        let started = Instant::now();
        let page = person.client.top(&query)?;
        let took = started.elapsed().as_secs_f64() * 1000.0;
        match first_list {
            // The first one decodes the tables.
            None => first_list = Some(took),
            Some(_) => milliseconds.push(took),
        }
        let rank = page.items.iter().position(|i| i.item == target.item);
        ranks.push(json!([name, target.item, rank]));
        let asked = Query {
            at: Some(target.time),
            candidates: Some(person.held_out.iter().map(|e| e.0.item.clone()).collect()),
            ..Query::first(person.held_out.len().clamp(1, lethe_client::MAX_PAGE))
        };
        let scored = person.client.top(&asked)?;
        let of: BTreeMap<&str, f64> = scored
            .items
            .iter()
            .filter_map(|i| Some((i.item.as_str(), i.like?)))
            .collect();
        for (event, liked) in person.held_out.iter() {
            if let Some(like) = of.get(event.item.as_str()) {
                likes.push(json!([name, event.item, event.time, like, liked]));
            }
        }
    }
    milliseconds.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let last = milliseconds.len().saturating_sub(1) as f64;
        milliseconds.get((share * last).round() as usize).copied()
    };
    Ok(json!({
        "ranks": ranks, "rows": likes,
        "top_ms": { "first": first_list, "p50": at(0.5), "p99": at(0.99) },
    }))
}

/// A page for the output: titles, probabilities, reasons.
fn shown(page: &Page) -> Value {
    let item = |i: &lethe_client::Listed| {
        let because: Vec<&str> = i.reasons.iter().map(|r| r.title.as_str()).collect();
        json!({
            "item": i.item, "title": i.title, "like": i.like, "because": because,
            "unseen": i.unseen,
        })
    };
    let items: Vec<Value> = page.items.iter().map(item).collect();
    json!({ "source": page.source, "items": items })
}

/// A list for one person.
pub(crate) fn top(people: &People, subject: &str, n: usize) -> anyhow::Result<Value> {
    let person = people.get(subject).context("no such client")?;
    let at = person.held_out.first().map(|e| e.0.time);
    let query = Query {
        at,
        ..Query::first(n)
    };
    Ok(shown(&person.client.top(&query)?))
}

/// Somebody who has just installed the app: the list before the first like, after one, after three.
/// They like what stands first.
pub(crate) async fn newcomer(client: &Client, at: i64) -> anyhow::Result<Value> {
    client.refresh().await?;
    let mut steps = vec![];
    let mut liked: Vec<String> = vec![];
    for wanted in LIKES {
        while liked.len() < wanted {
            let query = Query {
                at: Some(at),
                ..Query::first(1)
            };
            let page = client.top(&query)?;
            let best = page.items.first().context("the list is empty")?;
            liked.push(best.title.clone());
            client.record(LocalEvent::liked(&best.item, at))?;
        }
        let query = Query {
            at: Some(at),
            ..Query::first(5)
        };
        let mut step = shown(&client.top(&query)?);
        step["liked"] = json!(liked);
        steps.push(step);
    }
    Ok(json!({ "steps": steps }))
}
