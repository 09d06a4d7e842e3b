//! What monitoring sees, over real HTTP.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lethe_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn get(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut out = String::new();
    let _ = stream.read_to_string(&mut out).await;
    out
}

async fn scrape(addr: SocketAddr) -> BTreeMap<String, f64> {
    let text = get(addr, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(
        text.starts_with("HTTP/1.1 200") && text.trim_end().ends_with("# EOF"),
        "{text}"
    );
    let sample = |l: &str| {
        let (name, value) = l.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines()
        .filter(|l| l.starts_with("lethe_"))
        .filter_map(sample)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overdue_deletion_is_alarmed() {
    let world = World::new(6);
    let mut config = world.config("");
    config.metrics = Some("127.0.0.1:0".parse().unwrap());
    config.deadline_days = 0;
    let (coordinator, addr) = world.start_with(config).await;
    let metrics = coordinator.listen_metrics().await.unwrap().unwrap();
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let m = scrape(metrics).await;
    assert_eq!(
        (
            m["lethe_subjects"],
            m["lethe_release"],
            m["lethe_deletions_overdue"]
        ),
        (6.0, 1.0, 0.0)
    );
    assert!(
        m.keys().any(|k| k.starts_with("lethe_keys_disk{kind=")),
        "where keys lie: {:?}",
        m.keys()
    );
    assert!(
        m["lethe_update_bytes_total"] > 0.0
            && !m.contains_key("lethe_deletion_next_deadline_seconds")
    );
    assert_eq!(
        m["lethe_shard_rounds_done{shard=\"1\"}"],
        m["lethe_shard_rounds{shard=\"1\"}"]
    );

    // Nobody is there to retrain: the deletion is exact, and cannot be done before its deadline.
    fleet.stop().await;
    op.ask_to_forget(1, &[]).await.unwrap();
    let m = scrape(metrics).await;
    assert_eq!(
        (
            m["lethe_deletions_overdue"],
            m["lethe_deletions{phase=\"retraining\"}"]
        ),
        (1.0, 1.0)
    );
    assert!(m["lethe_deletion_next_deadline_seconds"] <= 0.0);
    assert_eq!(
        (m["lethe_deletion_exact_seconds_count"], m["lethe_subjects"]),
        (1.0, 5.0)
    );

    assert!(
        get(metrics, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .contains("200 OK")
    );
    assert!(
        get(metrics, "POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .contains("405")
    );
    assert!(
        get(metrics, "GET /person-1 HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .contains("404")
    );
    assert!(get(metrics, "nonsense\r\n\r\n").await.contains("400"));
}

/// `/healthz` starves under 48 slow connections (audit, L); it did under 130 idle ones from one
/// address too.
#[tokio::test(flavor = "multi_thread")]
async fn healthz_answers_beside_connections_that_never_ask() {
    let world = World::new(2);
    let mut config = world.config("");
    config.metrics = Some("127.0.0.1:0".parse().unwrap());
    let (coordinator, _addr) = world.start_with(config).await;
    let metrics = coordinator.listen_metrics().await.unwrap().unwrap();
    let mut idle = vec![];
    for n in 0..400 {
        let mut stream = TcpStream::connect(metrics).await.unwrap();
        if n % 2 == 0 {
            stream.write_all(b"GET /healthz HT").await.unwrap();
        }
        idle.push(stream);
        if n == 48 || n == 130 || n == 399 {
            let started = Instant::now();
            let text = get(metrics, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(text.contains("200 OK"), "beside {n}: {text}");
            let took = started.elapsed();
            assert!(took < Duration::from_secs(2), "beside {n}: {took:?}");
        }
    }
    // A head that never ends costs a place for seconds, not for ever.
    let mut last = idle.pop().unwrap();
    let mut byte = [0];
    let closed = tokio::time::timeout(Duration::from_secs(8), last.read(&mut byte)).await;
    assert!(closed.is_ok(), "closed by its time-out");
}
