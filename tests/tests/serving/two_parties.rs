//! Coordinator and tally as two parties, over real QUIC: nobody holds both names and histories.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use lethe_coordinator::config::ServerConfig;
use lethe_coordinator::lists::Sums;
use lethe_coordinator::{Coordinator, CoordinatorError};
use lethe_proto::admin::{AdminReply, AdminRequest, DeletionLists};
use lethe_proto::message::{Refusal, Request};
use lethe_proto::tally::{Confided, SealedContribution, padded};
use lethe_receipt::receipt::Receipt;
use lethe_scan::{Scanner, Secret};
use lethe_tallyd::config::Config;
use lethe_tallyd::process;
use lethe_tests::lists::{Lister, events, seal};
use lethe_tests::party;
use lethe_tests::world::{Operator, World, id, noise};
use lethe_transport::TransportError;

const PEOPLE: u32 = 80;

/// A tally in a process of its own.
struct Tally {
    config: Config,
    file: PathBuf,
    log: PathBuf,
    invitation: String,
    child: Option<Child>,
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Tally {
    fn new(world: &World) -> Self {
        let dir = world.dir.path();
        let config = party::config(world);
        let invitation = process::init(&config).unwrap();
        Self {
            file: dir.join("tally.toml"),
            log: dir.join("tally.log"),
            config,
            invitation,
            child: None,
        }
    }

    /// Starts the process; from the second time on where it was before.
    fn start(&mut self) -> SocketAddr {
        std::fs::write(&self.file, toml::to_string(&self.config).unwrap()).unwrap();
        let address = self.config.data_dir.join("address");
        let _ = std::fs::remove_file(&address);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_tally-process"))
            .arg(&self.file)
            .stdin(std::process::Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.config.listen = party::address(&self.config);
        self.config.listen
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }
}

fn config(world: &World, tally: &Tally, addr: SocketAddr) -> ServerConfig {
    party::of_coordinator(world, addr, &tally.invitation)
}

/// A fleet without models, with a coordinator in this process and a tally in its own.
struct Parties {
    world: World,
    tally: Tally,
    tally_at: SocketAddr,
    coordinator: Coordinator,
    op: Operator,
    devices: Vec<Lister>,
}

async fn parties(people: u32) -> Parties {
    parties_with(people, |_| {}).await
}

/// The same, with a tally of another configuration.
async fn parties_with(people: u32, change: impl FnOnce(&mut Config)) -> Parties {
    let world = World::new(1_000);
    let mut tally = Tally::new(&world);
    change(&mut tally.config);
    let tally_at = tally.start();
    let (coordinator, addr) = world.start_with(config(&world, &tally, tally_at)).await;
    let op = world.operator(addr).await;
    let mut devices = vec![];
    for subject in 0..people {
        let device = Lister::new(addr, &op, subject).await;
        let said = device.contribute_sealed(12).await.unwrap();
        assert_eq!(said, Confided::Taken);
        devices.push(device);
    }
    Parties {
        world,
        tally,
        tally_at,
        coordinator,
        op,
        devices,
    }
}

/// Waits until everybody who counts is in the snapshot that is served; its number.
async fn settled(device: &Lister) -> u64 {
    let mut number = 0;
    loop {
        number = device.served_after(number).await.served.unwrap();
        let got = device.fetch().await;
        if got.is_some_and(|g| g.statement.people == 32) {
            return number;
        }
    }
}

async fn counts(op: &Operator, subject: u32) -> bool {
    let subject = id(subject);
    match op.ask(AdminRequest::ListsLineage { subject }).await {
        Ok(AdminReply::ListsLineage(lineage)) => lineage.counts,
        other => panic!("{other:?}"),
    }
}

async fn counted(op: &Operator) -> u32 {
    for subject in 0..PEOPLE {
        if counts(op, subject).await {
            return subject;
        }
    }
    panic!("nobody counts");
}

async fn of_deletion(op: &Operator, deletion: u64) -> DeletionLists {
    match op.ask(AdminRequest::ListsOf { deletion }).await {
        Ok(AdminReply::ListsOf(Some(lists))) => lists,
        other => panic!("{other:?}"),
    }
}

fn refused(result: Result<Confided, TransportError>) -> Refusal {
    match result {
        Err(TransportError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

impl Parties {
    /// Deletes somebody who counts; the number of the deletion, and who it was.
    async fn forget(&self) -> Forgotten {
        let who = counted(&self.op).await;
        let deletion = self.op.ask_to_forget(who, &[]).await.unwrap();
        Forgotten { who, deletion }
    }

    async fn receipt(&self, deletion: u64) -> Receipt {
        self.op.deleted(deletion).await;
        let bytes = self.op.receipt(deletion).await;
        let key = self.op.status().await.log_key;
        let key = lethe_receipt::note::VerifierKey::parse(&key).unwrap();
        lethe_receipt::receipt::verify(&bytes, &key).unwrap()
    }
}

struct Forgotten {
    who: u32,
    deletion: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_tally_of_its_own_makes_the_lists_and_forgets() {
    let p = parties(PEOPLE).await;
    let before = settled(&p.devices[0]).await;
    let status = p.op.lists().await;
    assert!(status.sums.starts_with("tally: "), "{}", status.sums);
    assert_eq!((status.people, status.counting), (80, 32));
    let Forgotten { who, deletion } = p.forget().await;
    let lists = of_deletion(&p.op, deletion).await;
    assert!(lists.held);
    assert_eq!(lists.recalled.map(|s| s.number), Some(before));
    let receipt = p.receipt(deletion).await;
    // Both parties have signed: the tally has nothing of the person.
    let vouched = receipt.vouched().unwrap().expect("the tally signs, too");
    assert_eq!(vouched.handles.len(), 1);
    assert_eq!(vouched.handles[0].since, None);
    let replaced = receipt
        .statement
        .lists
        .clone()
        .unwrap()
        .replaced_by
        .unwrap();
    assert!(replaced.number > before);
    assert!(!counts(&p.op, who).await);
    let replayed = match p.op.ask(AdminRequest::ListsReplay).await {
        Ok(AdminReply::ListsReplayed(replayed)) => replayed,
        other => panic!("{other:?}"),
    };
    assert_eq!(replayed.stated, Some(true), "{replayed:?}");
    p.coordinator.shutdown();
}

/// The note about it is the tally's: the coordinator adds up nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_receipt_says_what_noise_has_cost() {
    let p = parties_with(PEOPLE, |config| config.lists.noise = Some(noise(5.0))).await;
    settled(&p.devices[0]).await;
    let Forgotten { deletion, .. } = p.forget().await;
    let receipt = p.receipt(deletion).await;
    assert!(receipt.vouched().unwrap().is_some());
    let stated = receipt.noise_stated().unwrap().expect("the tally says it");
    let said = stated.noise.unwrap();
    assert!(said.epsilon_millionths <= 5_000_000);
    assert!(said.releases >= 2, "one before, one after");
    assert!(said.spent_millionths > said.epsilon_millionths);
    let status = p.op.lists().await;
    assert!(status.sums.contains("noise: epsilon"), "{}", status.sums);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_deletion_is_exact_while_the_tally_is_away_and_the_receipt_comes_later() {
    let mut p = parties(PEOPLE).await;
    let before = settled(&p.devices[0]).await;
    let who = counted(&p.op).await;
    p.tally.kill();
    let deletion = p.op.ask_to_forget(who, &[]).await.unwrap();
    let state = match p.op.ask(AdminRequest::Deletion { id: deletion }).await {
        Ok(AdminReply::Deletion(state)) => state,
        other => panic!("{other:?}"),
    };
    assert!(state.seconds_until_exact.is_some(), "{state:?}");
    // What was served is out: devices fall back to what they have.
    let other = &p.devices[usize::from(who == 0)];
    let reply = other.reply(0).await;
    assert_eq!(reply.state.served, None);
    assert!(reply.state.recalled >= before);
    assert!(other.fetch().await.is_none());
    let status = p.op.lists().await;
    assert!(status.sums.contains("AWAY"), "{}", status.sums);
    // Who contributes meanwhile is told to come again.
    assert_eq!(refused(other.contribute_sealed(13).await), Refusal::Busy);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(
        p.op.ask(AdminRequest::Receipt { id: deletion })
            .await
            .is_err()
    );
    let again = p.tally.start();
    assert_eq!(again, p.tally_at);
    let receipt = p.receipt(deletion).await;
    let lists = receipt.statement.lists.clone().unwrap();
    assert_eq!(lists.recalled.map(|s| s.number), Some(before));
    let vouched = receipt.vouched().unwrap().unwrap();
    assert_eq!(vouched.handles[0].since, None);
    assert!(!counts(&p.op, who).await);
    p.coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn envelopes_are_good_once_and_for_one_handle_and_nothing_goes_in_clear() {
    let p = parties(2).await;
    let alice = &p.devices[0];
    let bob = &p.devices[1];
    let terms = alice.terms().await.unwrap().unwrap();
    let body = alice.body(events(0, 5));
    let envelope = seal(&terms, &body).envelope;
    let send = || {
        Request::ContributeSealed(SealedContribution {
            ticket: terms.ticket,
            envelope: envelope.clone(),
        })
    };
    // Somebody else's handle does not open it.
    match bob.call(&send()).await {
        Err(TransportError::Refused { code, .. }) => assert_eq!(code, Refusal::Invalid),
        other => panic!("{other:?}"),
    }
    // The ticket is still good: nothing was spent.
    assert_eq!(alice.bring(&terms, &body).await.unwrap(), Confided::Taken);
    // Once.
    assert_eq!(alice.bring(&terms, &body).await.unwrap(), Confided::Stale);
    // Handles stay the same, and differ.
    let mine = alice.terms().await.unwrap().unwrap().handle;
    assert_eq!(mine, terms.handle);
    assert_ne!(bob.terms().await.unwrap().unwrap().handle, mine);
    // What is outside its bounds is said to the device alone.
    let mut long = alice.body(events(0, 200));
    long.events.push(long.events[0].clone());
    let terms = alice.terms().await.unwrap().unwrap();
    let said = alice.bring(&terms, &long).await.unwrap();
    assert!(matches!(said, Confided::Invalid(_)), "{said:?}");
    // A device that would contribute in clear is refused.
    match alice.contribute(3).await {
        Err(TransportError::Refused { code, .. }) => assert_eq!(code, Refusal::Invalid),
        other => panic!("{other:?}"),
    }
    p.coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_restart_while_the_tally_is_away_still_names_the_snapshot_that_devices_hold() {
    let mut p = parties(PEOPLE).await;
    let before = settled(&p.devices[0]).await;
    let who = counted(&p.op).await;
    p.tally.kill();
    p.coordinator.shutdown();
    let config = config(&p.world, &p.tally, p.tally_at);
    // As if the process had been killed: on a copy.
    let copy = p.world.dir.path().join("again");
    let config = lethe_tests::world::copied(&config, &config.data_dir, &copy);
    let (coordinator, addr) = p.world.start_with(config).await;
    p.op = p.op.reconnect(addr).await;
    p.coordinator = coordinator;
    let deletion = p.op.ask_to_forget(who, &[]).await.unwrap();
    let lists = of_deletion(&p.op, deletion).await;
    assert_eq!(lists.recalled.map(|s| s.number), Some(before));
    p.tally.start();
    let receipt = p.receipt(deletion).await;
    assert!(receipt.vouched().unwrap().is_some());
    assert!(!counts(&p.op, who).await);
    p.coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_folder_stays_with_its_mode() {
    let p = parties(1).await;
    p.coordinator.shutdown();
    let config = config(&p.world, &p.tally, p.tally_at);
    let copy = p.world.dir.path().join("again");
    let config = lethe_tests::world::copied(&config, &config.data_dir, &copy);
    for sums in [Sums::Embedded, Sums::Off] {
        let other = ServerConfig {
            sums,
            tally: None,
            ..config.clone()
        };
        let opened = Coordinator::open(other);
        assert!(
            matches!(opened, Err(CoordinatorError::OtherSums { .. })),
            "{opened:?}"
        );
    }
    // Settings of lists are the tally's.
    let mut own = config.clone();
    own.lists.cell = 2;
    let opened = Coordinator::open(own);
    assert!(
        matches!(opened, Err(CoordinatorError::TallyConfig(_))),
        "{opened:?}"
    );
}

/// Bytes that are read at once: what is in a process is read page by page.
#[cfg(target_os = "linux")]
const PAGE: usize = 4096;

/// What a process has in memory that it can write.
#[cfg(target_os = "linux")]
fn memory(pid: u32) -> Vec<u8> {
    use std::io::{Read, Seek, SeekFrom};
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut file = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut out = vec![];
    for line in maps.lines().filter(|l| l.contains(" rw")) {
        let range = line.split(' ').next().unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let from = u64::from_str_radix(from, 16).unwrap();
        let to = u64::from_str_radix(to, 16).unwrap();
        for page in (from..to).step_by(PAGE) {
            let mut bytes = [0; PAGE];
            let read = file
                .seek(SeekFrom::Start(page))
                .and_then(|_| file.read_exact(&mut bytes));
            // Some pages cannot be read; nothing goes on across them.
            match read {
                Ok(()) => out.extend_from_slice(&bytes),
                Err(_) => out.push(0),
            }
        }
        out.push(0);
    }
    out
}

/// How often one of these is in there.
#[cfg(target_os = "linux")]
fn hits<T: AsRef<[u8]>>(haystack: &[u8], needles: &[T]) -> usize {
    let machine = aho_corasick::AhoCorasick::new(needles).unwrap();
    machine.find_iter(haystack).count()
}

/// Names that nothing else contains, and contributions that nothing else contains: neither party
/// has the other's, in files, logs or memory.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn neither_party_has_what_the_other_has() {
    let world = World::new(1_000);
    let mut tally = Tally::new(&world);
    let tally_at = tally.start();
    let server_log = world.dir.path().join("server.log");
    let config = config(&world, &tally, tally_at);
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_coordinator-process"));
    let (mut server, addr) = world.spawn(&binary, &config, &server_log);
    let op = world.operator(addr).await;
    let mut names = vec![];
    let mut sources = vec![];
    let mut plains = vec![];
    let mut bodies = vec![];
    let mut devices = vec![];
    for subject in 100_000..100_070 {
        let device = Lister::new(addr, &op, subject).await;
        let mut body = device.body(events(subject, 12));
        // As a device draws it.
        body.source = lethe_seal::random().unwrap();
        let terms = device.terms().await.unwrap().unwrap();
        let said = device.bring(&terms, &body).await.unwrap();
        assert_eq!(said, Confided::Taken);
        names.push(id(subject).as_str().to_owned());
        sources.push(body.source);
        // The first events, as they are sealed: after length, source, "whole" and count.
        let plain = padded(&body).unwrap();
        plains.push(plain[4 + 16 + 2..][..60].to_vec());
        bodies.push(plain);
        devices.push(device);
    }
    let last = devices.last().unwrap();
    last.served_after(0).await;
    last.fetch().await.unwrap();

    let of_server = memory(server.id());
    let of_tally = memory(tally.pid());
    assert_eq!(
        hits(&of_server, &sources),
        0,
        "contributions in the coordinator's memory"
    );
    assert_eq!(
        hits(&of_server, &plains),
        0,
        "events in the coordinator's memory"
    );
    assert_eq!(hits(&of_tally, &names), 0, "names in the tally's memory");
    // The search finds what is there.
    assert!(hits(&of_server, &names) > 0);
    let here = bodies.concat();
    assert_eq!(hits(&here, &sources), sources.len());
    assert!(hits(&here, &plains) >= plains.len());
    assert!(hits(&memory(std::process::id()), &sources) > 0);
    let terms = last.terms().await.unwrap().unwrap();
    assert!(hits(&memory(tally.pid()), &[terms.handle]) > 0);

    server.kill().unwrap();
    server.wait().unwrap();
    tally.kill();
    let scan = |secrets: &[Secret], paths: &[PathBuf]| {
        let scanner = Scanner::new(secrets).unwrap();
        scanner.scan(paths).unwrap().found
    };
    let of_names: Vec<Secret> = names.iter().cloned().map(Secret::Text).collect();
    let tally_files = [
        tally.config.data_dir.clone(),
        tally.config.evidence(),
        tally.log.clone(),
    ];
    assert_eq!(
        scan(&of_names, &tally_files),
        0,
        "names in the tally's files"
    );
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let server_files = [config.data_dir.clone(), config.evidence(), server_log];
    let of_sources: Vec<Secret> = sources.iter().map(|s| Secret::Text(hex(s))).collect();
    assert_eq!(
        scan(&of_sources, &server_files),
        0,
        "contributions in the coordinator's files"
    );
}
