//! `/metrics` and `/healthz` over plain HTTP: state as Prometheus text, computed when it is asked
//! for.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use lethe_ledger::View;
use lethe_proto::admin::ListsStatus;
use lethe_proto::disks::KeyDisk;
use lethe_transport::crowd::{Crowd, network_of};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// Most connections at once, and from one address. Who comes then takes the place of the oldest
/// that has asked nothing yet.
const CONNECTIONS: usize = 256;
const OF_AN_ADDRESS: usize = 128;
/// Longest wait for a request's head.
const HEAD: Duration = Duration::from_secs(5);
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(10);
/// Bounds of the time until exact, in seconds.
const EXACT: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

type Labels = Vec<(String, String)>;
type Floats = Gauge<f64, AtomicU64>;

/// What only the listener knows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) connections: u64,
    pub(crate) update_bytes: u64,
    pub(crate) activation_bytes: u64,
    /// Seconds since the start.
    pub(crate) up: f64,
    /// Space for deletions is set aside.
    pub(crate) space_held: bool,
    /// Duties that failed since the start.
    pub(crate) failures: u64,
}

/// The lists, for monitoring.
fn lists_gauges(r: &mut Registry, lists: &ListsStatus) {
    let out = lists.out_s.map_or(0.0, |s| s as f64);
    let gauges = [
        (
            "lists_people",
            "People who contribute to the sums",
            lists.people as f64,
        ),
        (
            "lists_counting",
            "People who count in the sums",
            lists.counting as f64,
        ),
        (
            "lists_waiting",
            "People who wait for a cell",
            lists.waiting as f64,
        ),
        ("lists_cells", "Cells that count", lists.cells as f64),
        (
            "lists_cells_out",
            "Published cells that lost somebody since the last snapshot",
            lists.cells_out as f64,
        ),
        (
            "lists_out_seconds",
            "Seconds for which no snapshot has been served after a recall; 0: one is",
            out,
        ),
        (
            "lists_cell",
            "Members of the next cell, n",
            lists.cell as f64,
        ),
        (
            "lists_smallest_cell",
            "Members of the smallest cell that counts; 0: none does",
            lists.smallest_cell.unwrap_or(0) as f64,
        ),
        (
            "lists_changed",
            "Members of a cell whose newer events count together, m",
            lists.changed as f64,
        ),
        (
            "lists_snapshot",
            "Number of the snapshot that is served; 0: none",
            lists.served.unwrap_or(0) as f64,
        ),
        (
            "lists_recalled",
            "Snapshots up to this number are recalled",
            lists.recalled as f64,
        ),
        (
            "lists_snapshot_bytes",
            "Bytes of the snapshot that is served",
            lists.snapshot_bytes as f64,
        ),
    ];
    for (name, help, value) in gauges {
        let g = Floats::default();
        g.set(value);
        r.register(name, help, g);
    }
}

/// The text that monitoring reads.
pub(crate) fn text(
    view: &View,
    traffic: Traffic,
    lists: Option<&ListsStatus>,
    key_disks: &[KeyDisk],
) -> String {
    let mut r = Registry::with_prefix("lethe");
    let disks = Family::<Labels, Gauge>::default();
    for disk in key_disks {
        let kind = ("kind".into(), disk.kind.clone());
        let fate = ("destroyed".into(), crate::disks::label(disk.fate).into());
        disks.get_or_create(&vec![kind, fate]).set(1);
    }
    let help = "1: keys lie on a file system of this kind; what becomes of destroyed ones";
    r.register("keys_disk", help, disks);
    if let Some(lists) = lists {
        lists_gauges(&mut r, lists);
    }
    let mut gauge = |name: &str, help: &str, value: f64| {
        let g = Floats::default();
        g.set(value);
        r.register(name, help, g);
    };
    gauge("subjects", "Subjects that joined", view.subjects as f64);
    gauge(
        "connections",
        "Live connections",
        traffic.connections as f64,
    );
    gauge(
        "release",
        "Number of the release that is served",
        view.release as f64,
    );
    gauge(
        "epoch",
        "Number of the epoch that is served or, before that, trained",
        f64::from(view.epoch),
    );
    gauge(
        "newest_epoch",
        "Number of the newest epoch: it differs while one follows another",
        f64::from(view.newest_epoch),
    );
    gauge(
        "uptime_seconds",
        "Seconds since the coordinator started",
        traffic.up,
    );
    gauge(
        "log_entries",
        "Entries of the transparency log",
        view.log_entries as f64,
    );
    gauge(
        "proposals_waiting",
        "Proposals that wait for other operators",
        view.proposals as f64,
    );
    gauge(
        "reserve_held",
        "1 while space is set aside for deletions",
        f64::from(u8::from(traffic.space_held)),
    );
    gauge(
        "deletions_overdue",
        "Deletions that are not done and past their deadline",
        view.overdue as f64,
    );
    if let Some(seconds) = view.next_deadline {
        let help =
            "Seconds until the first deadline of a deletion that is not done; negative: past";
        gauge("deletion_next_deadline_seconds", help, seconds);
    }
    for (name, help, value) in [
        (
            "update_bytes",
            "Bytes of updates received",
            traffic.update_bytes,
        ),
        (
            "activation_bytes",
            "Bytes of activations and gradients, both ways",
            traffic.activation_bytes,
        ),
        (
            "duty_failures",
            "Times that something that was due could not be done",
            traffic.failures,
        ),
    ] {
        r.register(name, help, ConstCounter::new(value));
    }
    let deletions = Family::<Labels, Gauge>::default();
    for (phase, n) in view.deletions {
        deletions
            .get_or_create(&vec![("phase".into(), phase.into())])
            .set(n as i64);
    }
    r.register("deletions", "Deletions by phase", deletions);
    let exact = Histogram::new(EXACT);
    view.exact.iter().for_each(|s| exact.observe(*s));
    r.register(
        "deletion_exact_seconds",
        "Seconds from acceptance until the served model was free of the data",
        exact,
    );
    let mut shards = |name: &str, help: &str, value: &dyn Fn(usize) -> i64| {
        let family = Family::<Labels, Gauge>::default();
        for k in 0..view.shards.len() {
            family
                .get_or_create(&vec![("shard".into(), shard_label(view, k))])
                .set(value(k));
        }
        r.register(name, help, family);
    };
    let of = |k: usize| &view.shards[k];
    shards(
        "shard_subjects",
        "Subjects that a shard is trained on",
        &|k| of(k).subjects as i64,
    );
    shards(
        "shard_rounds_done",
        "Rounds of a shard that are done",
        &|k| i64::from(of(k).rounds.0),
    );
    shards("shard_rounds", "Rounds of a shard in all", &|k| {
        i64::from(of(k).rounds.1)
    });
    shards(
        "shard_waiting",
        "Clients of the open round that have not answered",
        &|k| of(k).waiting as i64,
    );
    shards(
        "shard_starved",
        "Deadlines in a row without enough answers",
        &|k| i64::from(of(k).starved),
    );
    let help = "1: its database was damaged and set aside";
    shards("shard_quarantined", help, &|k| i64::from(of(k).quarantined));
    let help = "1: nothing is trained in it until an operator releases it";
    shards("shard_held", help, &|k| i64::from(of(k).held));
    let mut out = String::new();
    // Writing into a string does not fail.
    let _ = encode(&mut out, &r);
    out
}

/// A shard of the epoch that is served has its number; one of the epoch that follows has that
/// epoch's before it.
fn shard_label(view: &View, k: usize) -> String {
    let Some(shard) = view.shards.get(k) else {
        return k.to_string();
    };
    match shard.key.epoch.0 == view.epoch {
        true => shard.key.shard.0.to_string(),
        false => format!("{}-{}", shard.key.epoch.0, shard.key.shard.0),
    }
}

/// Binds the address.
pub(crate) async fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(addr).await
}

/// Answers until the task is dropped; `metrics` makes the text.
pub(crate) async fn serve(listener: TcpListener, metrics: Arc<dyn Fn() -> String + Send + Sync>) {
    let crowd: Arc<Crowd<IpAddr, Arc<Notify>>> = Arc::new(Crowd::new(OF_AN_ADDRESS, CONNECTIONS));
    loop {
        let (stream, address) = match listener.accept().await {
            Ok((stream, from)) => (stream, network_of(from.ip())),
            Err(e) => {
                tracing::warn!("metrics: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let told = Arc::new(Notify::new());
        let (place, gone) = crowd.enter(address, told.clone());
        if let Some(gone) = gone {
            gone.notify_one();
        }
        let metrics = metrics.clone();
        tokio::spawn(async move {
            let place = Arc::new(place);
            let answer = service_fn(move |request| {
                let metrics = metrics.clone();
                // It has asked: others go first.
                let busy = place.busy();
                async move {
                    let _busy = busy;
                    Ok::<_, Infallible>(answer(&request, metrics.as_ref()))
                }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(16 << 10)
                .keep_alive(false);
            let served = http.serve_connection(TokioIo::new(stream), answer);
            // A scraper that hangs or speaks nonsense costs itself a connection.
            tokio::select! {
                _ = tokio::time::timeout(LIFE, served) => {}
                () = told.notified() => {}
            }
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &dyn Fn() -> String) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics()),
        (&Method::GET, "/healthz") => (StatusCode::OK, "ok\n".into()),
        (&Method::GET, _) => (
            StatusCode::NOT_FOUND,
            "there are /metrics and /healthz\n".into(),
        ),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "GET only\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
