//! Canaries: subjects with unmistakable names, deleted in random order while the coordinator is
//! killed again and again. Afterwards nothing of them may be left.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lethe_learn::seed::Seed;
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::deletion::DeletionRequest;
use lethe_scan::{Scanner, Secret};

use crate::world::{Fleet, Operator, World, copy_folder, id};

/// Numbers of canaries have six digits, so that none begins like another.
const FIRST: u32 = 100_000;

/// Longest time for all of them to train and to be measured.
const PATIENCE: Duration = Duration::from_secs(900);

/// What was left of the canaries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Canaries deleted.
    pub deleted: u32,
    /// Times that the coordinator was killed in the middle of a deletion.
    pub kills: u32,
    /// Hits in files: data folder, evidence folder, a backup, the server's log.
    pub in_files: u64,
    /// Hits in the records, decrypted, but for the evidence.
    pub in_records: u64,
    /// Files searched.
    pub files: u64,
    /// Hits of a subject that was not deleted, in the records: shows that the search finds what is
    /// there.
    pub control: u64,
}

/// Enrols, trains and measures with all of them at work, and lets them go.
async fn train(world: &World, op: &Operator, addr: SocketAddr, subjects: &[u32]) {
    let mut fleet = Fleet::default();
    for s in subjects {
        let c = world.client(addr, op, *s).await;
        c.join().await.expect("joins");
        fleet.add(c);
    }
    let started = Instant::now();
    loop {
        let s = op.status().await;
        let lists = op.lists().await;
        let listed = lists.people == subjects.len() as u64 && lists.served.is_some();
        if listed && s.release > 0 && s.validated && s.shards.iter().all(|k| k.done) {
            return fleet.abort();
        }
        assert!(
            started.elapsed() < PATIENCE,
            "training and measuring took too long: {s:?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Deletes `canaries` subjects in random order, in batches, with about `kills` SIGKILLs of the
/// coordinator (the program `binary`) in the middle of deletions, and searches for what is left.
pub async fn run(binary: &Path, canaries: u32, kills: u32, seed: u64) -> Left {
    let world = World::new(canaries + 1);
    let config = world.config_with_lists("rounds = 1\ncohort = 4\nvalidation = 1\n");
    let log = world.dir.path().join("server.log");
    let (mut child, addr) = world.spawn(binary, &config, &log);
    let mut config = config;
    config.listen = addr;
    let mut op = world.operator(addr).await;
    let mut order: Vec<u32> = (FIRST..FIRST + canaries).collect();
    let witness = FIRST + canaries;
    let everybody: Vec<u32> = (FIRST..=witness).collect();
    train(&world, &op, addr, &everybody).await;

    let mut rng = Seed::from_u64(seed).derive("canaries", &[]).rng();
    rng.shuffle(&mut order);
    let mut left = Left {
        deleted: canaries,
        ..Left::default()
    };
    let backup = world.dir.path().join("backup");
    let mut rest = &order[..];
    while !rest.is_empty() {
        let (batch, tail) = rest.split_at((1 + (rng.unit() * 4.0) as usize).min(rest.len()));
        rest = tail;
        let requests = || {
            batch
                .iter()
                .map(|s| DeletionRequest::Erase { subject: id(*s) })
                .collect::<Vec<_>>()
        };
        let batches_left = rest.len() as f32 / 2.5 + 1.0;
        if rng.unit() * batches_left < (kills.saturating_sub(left.kills)) as f32 {
            let delay = Duration::from_micros((rng.unit() * 40_000.0) as u64);
            let asked = op.ask_within(requests(), delay).await;
            child.kill().expect("is running");
            child.wait().expect("ends");
            left.kills += 1;
            copy_folder(&config.data_dir, &backup);
            (child, _) = world.spawn(binary, &config, &log);
            op = op.reconnect(addr).await;
            if asked.is_some() {
                continue;
            }
        }
        // Those that were accepted without an answer are unknown by now.
        for r in requests() {
            let _ = op.ask_for(vec![r]).await;
        }
    }
    for s in &order {
        assert!(op.lineage(*s).await.is_err(), "{} is still known", id(*s));
    }
    let texts = |list: &[u32]| {
        list.iter()
            .map(|s| id(*s).as_str().to_owned())
            .collect::<Vec<_>>()
    };
    for part in order.chunks(200) {
        left.in_records += scanned(&op, texts(part)).await;
    }
    left.control = scanned(&op, texts(&[witness])).await;
    child.kill().expect("is running");
    child.wait().expect("ends");
    let secrets: Vec<Secret> = texts(&order).into_iter().map(Secret::Text).collect();
    let paths: Vec<PathBuf> = vec![
        config.data_dir.clone(),
        config.evidence(),
        config.keys_dir(),
        backup,
        log,
    ];
    let paths: Vec<PathBuf> = paths.into_iter().filter(|p| p.exists()).collect();
    let report = Scanner::new(&secrets)
        .expect("long names")
        .scan(&paths)
        .expect("readable");
    (left.in_files, left.files) = (report.found, report.files);
    left
}

async fn scanned(op: &Operator, texts: Vec<String>) -> u64 {
    match op
        .ask(AdminRequest::Scan { texts })
        .await
        .expect("searches")
    {
        AdminReply::Scanned(s) => s.hits.iter().map(|(_, n)| n).sum(),
        other => panic!("{other:?}"),
    }
}
