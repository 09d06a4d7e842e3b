//! A third party folds the sums of the lists again: from the operator's bundle, with the files of
//! those who count.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lethe_client::{Client, LocalEvent, SentContribution, TrainingData};
use lethe_parts::refold::salted;
use lethe_parts::snapshot;
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::lists::Placed;
use lethe_receipt::hex::{hex, unhex};
use lethe_receipt::lists_audit::ListsBundle;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::receipt;
use lethe_tests::party;
use lethe_tests::tiny::{ITEMS, time};
use lethe_tests::world::{Operator, PATIENCE, World, id};
use serde_json::Value;

const PEOPLE: u32 = 80;

/// Files of an audit, and an operator's shell.
struct Desk {
    folder: PathBuf,
    data: PathBuf,
    key: String,
}

/// What `lethe audit` said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Desk {
    async fn new(world: &World, op: &Operator, addr: SocketAddr) -> Self {
        let invite = AdminRequest::Invite { subject: None };
        let Ok(AdminReply::Invited { token }) = op.ask(invite).await else {
            panic!("others have to agree")
        };
        let desk = Self {
            folder: world.dir.path().join("audit"),
            data: world.dir.path().join("data"),
            key: op.lists().await.key,
        };
        std::fs::create_dir_all(desk.exports()).unwrap();
        let invitation = desk.folder.join("invitation");
        std::fs::write(&invitation, token).unwrap();
        let server = addr.to_string();
        let invitation = invitation.to_string_lossy().into_owned();
        desk.admin(&["enrol", "--server", &server, "--invitation", &invitation])
            .await;
        desk
    }

    fn exports(&self) -> PathBuf {
        self.folder.join("exports")
    }

    fn file_of(&self, subject: u32) -> PathBuf {
        self.exports().join(format!("{subject}.json"))
    }

    /// The admin tool, as people use it.
    async fn admin(&self, args: &[&str]) {
        let mut all: Vec<std::ffi::OsString> = vec!["lethe-admin".into(), "--home".into()];
        all.push(self.folder.join("home").into());
        all.extend(args.iter().map(Into::into));
        let run = move || lethe_admin::run(all.into_iter());
        // It has a runtime of its own.
        tokio::task::spawn_blocking(run).await.unwrap();
    }

    /// `lethe-admin export-audit --lists`.
    async fn bundle(&self, name: &str) -> PathBuf {
        let path = self.folder.join(name);
        let out = path.to_string_lossy().into_owned();
        let started = std::time::Instant::now();
        // While one snapshot follows another none can be audited: the tool says to ask again.
        while !path.exists() {
            assert!(started.elapsed() < PATIENCE, "no bundle was written");
            self.admin(&["export-audit", "--lists", "--out", &out])
                .await;
        }
        path
    }

    /// `lethe audit --lists`, with another catalogue or key if these say so.
    fn audit_with(&self, bundle: &Path, data: &Path, key: &str, more: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lethe"));
        command.arg("audit").arg("--lists").arg(bundle);
        command.arg("--data").arg(data).arg("--key").arg(key);
        command.arg("--exports").arg(self.exports()).args(more);
        let out = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said {
            code: out.status.code().unwrap(),
            out: text(&out.stdout),
            err: text(&out.stderr),
        }
    }

    fn audit(&self, bundle: &Path) -> Said {
        self.audit_with(bundle, &self.data, &self.key, &[])
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A bundle that the operator has changed.
fn changed(bundle: &Path, change: impl Fn(&mut Value)) -> PathBuf {
    let mut value = read(bundle);
    change(&mut value);
    let path = bundle.with_extension("changed");
    let changed: ListsBundle = serde_json::from_value(value).unwrap();
    std::fs::write(&path, changed.bytes()).unwrap();
    path
}

async fn everybody_contributes(world: &World, op: &Operator, addr: SocketAddr) {
    for subject in 0..PEOPLE {
        let client = world.client(addr, op, subject).await;
        assert!(client.refresh().await.unwrap().contributed);
        client.close().await;
    }
}

/// Waits until so many people are in the snapshot that is served.
async fn served(op: &Operator, people: u64, after: u64) -> u64 {
    let started = std::time::Instant::now();
    while started.elapsed() < PATIENCE {
        let lists = op.lists().await;
        let number = lists.served.filter(|n| *n > after);
        if let Some(number) = number.filter(|_| lists.snapshot_people == people) {
            return number;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", op.lists().await);
}

/// More often than the tally counts it.
fn meets_an_item_again(client: &Client, subject: u32) {
    for day in 1..6 {
        let item = format!("i{}", subject % ITEMS);
        let bought = LocalEvent::purchased(item, time(day * 86_400));
        client.record(bought).unwrap();
    }
}

async fn counts(op: &Operator, subject: u32) -> bool {
    let subject = id(subject);
    match op.ask(AdminRequest::ListsLineage { subject }).await {
        Ok(AdminReply::ListsLineage(lineage)) => lineage.counts,
        other => panic!("{other:?}"),
    }
}

/// The digest of a contribution in a bundle with this salt: by nothing but what is documented.
fn digest_of(sent: &SentContribution, salt: &str) -> String {
    let place = |item: &str| item.strip_prefix('i')?.parse().ok();
    let placed = Placed::of(sent.whole, &sent.events, place).unwrap();
    let salt: [u8; 32] = unhex(salt).unwrap().try_into().unwrap();
    let sealed = snapshot::digest(&placed.to_bytes().unwrap());
    hex(&salted(&salt, &sealed))
}

/// A vector for each item; the coordinator takes them as the auditor does.
fn write_vectors(folder: &Path) {
    let number = |n: u32| ((n * 37 % 17) as f32).to_le_bytes();
    let bytes: Vec<u8> = (0..ITEMS * 4).flat_map(number).collect();
    std::fs::write(folder.join(lethe_client::TEXT_VECTORS), bytes).unwrap();
}

/// Everybody's file, made by their client; the first by the command.
fn export_all(world: &World, desk: &Desk) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lethe"));
    command.arg("training-data").arg("--folder");
    command.arg(world.client_folder(0)).arg("--out");
    let done = command.arg(desk.file_of(0)).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    for subject in 1..PEOPLE {
        let data = TrainingData::of_folder(&world.client_folder(subject), None).unwrap();
        let text = serde_json::to_vec(&data).unwrap();
        std::fs::write(desk.file_of(subject), text).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_party_folds_the_sums_again() {
    let world = World::new(1_000);
    write_vectors(&world.dir.path().join("data"));
    let mut config = world.config_with_lists("");
    config.lists.cell = 16;
    config.lists.changed = 8;
    let (coordinator, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    for subject in 0..PEOPLE {
        let client = world.client(addr, &op, subject).await;
        if subject % 2 == 0 {
            meets_an_item_again(&client, subject);
        }
        assert!(client.refresh().await.unwrap().contributed);
        client.close().await;
    }
    // Of 80 people two cells of 16 count: fewer than 64 wait then.
    let first = served(&op, 32, 0).await;
    let desk = Desk::new(&world, &op, addr).await;
    export_all(&world, &desk);
    let bundle = desk.bundle("lists.json").await;
    let text = std::fs::read_to_string(&bundle).unwrap();
    assert!(!text.contains("person-"), "it names nobody");
    let again = read(&desk.bundle("again.json").await);
    let value = read(&bundle);
    let people = value["people"].as_array().unwrap().clone();
    assert_eq!(people.len(), 32);
    assert_ne!(value["salt"], again["salt"], "drawn for each bundle");
    assert_eq!(value["key"], desk.key.as_str());

    equal_and_different(&desk, &bundle);
    let (mut counting, mut waiting) = (vec![], vec![]);
    for subject in 0..PEOPLE {
        match counts(&op, subject).await {
            true => counting.push(subject),
            false => waiting.push(subject),
        }
    }
    somebody_is_missing(&desk, &bundle, counting[0], waiting[0]);
    assert!(
        counting.iter().any(|s| s % 2 == 0),
        "none meets an item again"
    );
    // Of those whose contribution is sealed as it was sent.
    let odd = |of: &[u32]| of.iter().copied().find(|subject| subject % 2 == 1).unwrap();
    somebody_was_exchanged(&desk, &bundle, odd(&counting), odd(&waiting));

    // A deletion: the next snapshot is of those who remain, and needs no file of the one who left.
    let gone = counting[0];
    op.forget(gone, &[]).await;
    let second = served(&op, 16, first).await;
    std::fs::remove_file(desk.file_of(gone)).unwrap();
    assert_eq!(desk.audit(&bundle).code, 3, "the old one is about them");
    let after = desk.bundle("after.json").await;
    let said = desk.audit(&after);
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);
    assert!(said.out.starts_with(&format!("EQUAL: snapshot {second}")));

    // Items that were taken down: devices still have them in what they sent.
    let items = vec!["i3".to_owned(), "i7".to_owned()];
    let asked = op.ask_for(vec![DeletionRequest::Takedown { items }]).await;
    asked.unwrap();
    // Not its end: that waits for devices, which are away.
    served(&op, 16, second).await;
    let cleared = desk.bundle("cleared.json").await;
    assert_eq!(read(&cleared)["taken_down"], serde_json::json!([3, 7]));
    let said = desk.audit(&cleared);
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);
    let kept = changed(&cleared, |b| b["taken_down"] = serde_json::json!([3]));
    assert_eq!(desk.audit(&kept).code, 3);
    coordinator.shutdown();
}

/// What counts of a person with several devices is in no file alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_with_two_devices_is_found_in_a_folder_of_their_own() {
    let world = World::new(1_000);
    let (coordinator, addr) = world.start_with(world.config_without_cells()).await;
    let op = world.operator(addr).await;
    let met = |days: std::ops::Range<i64>| -> Vec<LocalEvent> {
        // Of one item more often than it counts, on both devices.
        let item = |day: i64| if day % 2 == 0 { 0 } else { day };
        let one = |d| LocalEvent::purchased(format!("i{}", item(d)), time(d * 86_400));
        days.map(one).collect()
    };
    let desk = Desk::new(&world, &op, addr).await;
    let own = desk.exports().join("0");
    std::fs::create_dir_all(&own).unwrap();
    let mut files = vec![];
    for (device, days) in [("a", 0..8), ("b", 6..15)] {
        let folder = world.dir.path().join(device);
        let options = world.options(addr).invitation(op.invite(0).await);
        let client = Client::open(folder, options).unwrap();
        client.connect().await.unwrap();
        client.record_all(met(days)).unwrap();
        assert!(client.refresh().await.unwrap().contributed);
        // An older one beside the newest, which does not count.
        client.record_all(met(20..21)).unwrap();
        assert!(client.refresh().await.unwrap().contributed);
        files.push((device, client.export().unwrap()));
        client.close().await;
    }
    let client = world.client(addr, &op, 1).await;
    assert!(client.refresh().await.unwrap().contributed);
    client.close().await;
    let started = std::time::Instant::now();
    loop {
        let replayed = op.ask(AdminRequest::ListsReplay).await;
        if matches!(replayed, Ok(AdminReply::ListsReplayed(ref r)) if r.stated == Some(true)) {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{replayed:?}");
    }
    let data = TrainingData::of_folder(&world.client_folder(1), None).unwrap();
    std::fs::write(desk.file_of(1), serde_json::to_vec(&data).unwrap()).unwrap();
    let bundle = desk.bundle("lists.json").await;
    let write = |device: &str, json: &[u8]| {
        std::fs::write(own.join(format!("{device}.json")), json).unwrap();
    };
    for (device, json) in &files {
        let said = desk.audit(&bundle);
        assert_eq!(said.code, 3, "before {device}: {} {}", said.out, said.err);
        assert!(said.out.contains("1 of 2 people"), "{}", said.out);
        write(device, json);
    }
    let said = desk.audit(&bundle);
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);
    assert!(said.out.starts_with("EQUAL: snapshot "), "{}", said.out);
    coordinator.shutdown();
}

/// What a tally of its own serves is, byte for byte, what the same fold gives: no figure of its
/// lists can differ from those of a coordinator that holds the sums itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_sums_of_a_tally_of_its_own_are_folded_again_with_both_parties_consent() {
    let world = World::new(1_000);
    let tally = party::config(&world);
    let (tally_at, invitation) = party::serve_here(&tally);
    let config = party::of_coordinator(&world, tally_at, &invitation);
    let (coordinator, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    everybody_contributes(&world, &op, addr).await;
    served(&op, 32, 0).await;
    let desk = Desk::new(&world, &op, addr).await;
    export_all(&world, &desk);
    let bundle = desk.bundle("lists.json").await;
    let text = std::fs::read_to_string(&bundle).unwrap();
    assert!(!text.contains("person-"), "it names nobody");
    let said = desk.audit(&bundle);
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);
    assert!(said.out.starts_with("EQUAL: snapshot "), "{}", said.out);
    let more = changed(&bundle, |b| b["taken_down"] = serde_json::json!([3]));
    assert_eq!(desk.audit(&more).code, 3);
    coordinator.shutdown();
}

/// As an operator might change how noise was made.
fn with_noise(bundle: &Path, change: impl Fn(&mut Value)) -> PathBuf {
    changed(bundle, |b| {
        let mut method: Value = serde_json::from_str(b["method"].as_str().unwrap()).unwrap();
        change(&mut method);
        b["method"] = method.to_string().into();
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_is_drawn_again_and_no_other_noise_is_taken() {
    let world = World::new(1_000);
    let mut config = world.config_with_noise(5.0);
    config.lists.cell = 16;
    config.lists.changed = 8;
    config.lists.repeats = 1;
    let (coordinator, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    everybody_contributes(&world, &op, addr).await;
    served(&op, 32, 0).await;
    let sums = op.lists().await.sums;
    assert!(
        sums.contains("noise: epsilon ") && sums.contains("delta 1e-6"),
        "{sums}"
    );
    let desk = Desk::new(&world, &op, addr).await;
    export_all(&world, &desk);
    let bundle = desk.bundle("lists.json").await;
    let note = read(&bundle)["note"].as_str().unwrap().to_owned();
    assert!(note.starts_with("lethe tally snapshot 2\n"), "{note}");
    let said = desk.audit(&bundle);
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);
    let seed = with_noise(&bundle, |m| m["noise"]["seed"] = vec![7; 32].into());
    let said = desk.audit(&seed);
    assert_eq!(said.code, 3, "{} {}", said.out, said.err);
    assert!(
        said.out.starts_with("DIFFERENT: the sums are those"),
        "{}",
        said.out
    );
    // Before anything is computed.
    let hostile: [&dyn Fn(&mut Value); 6] = [
        &|m| drop(m.as_object_mut().unwrap().remove("noise")),
        &|m| m["noise"]["mechanism"]["charge"] = 0.into(),
        &|m| m["noise"]["mechanism"]["charge"] = 1_000_000_000_000_000u64.into(),
        &|m| m["noise"]["mechanism"]["clip"] = 4_000_000_000u32.into(),
        &|m| m["noise"]["mechanism"]["repeats"] = 2.into(),
        &|m| m["solve"]["unseen"] = 4_000_000_000u32.into(),
    ];
    for (at, change) in hostile.iter().enumerate() {
        let said = desk.audit(&with_noise(&bundle, change));
        assert_eq!(said.code, 1, "{at}: {} {}", said.out, said.err);
    }
    // A deletion costs a snapshot, and its receipt says so.
    let deletion = op.ask_to_forget(0, &[]).await.unwrap();
    op.deleted(deletion).await;
    let key = VerifierKey::parse(&op.status().await.log_key).unwrap();
    let receipt = receipt::verify(&op.receipt(deletion).await, &key).unwrap();
    assert!(receipt.noise_stated().unwrap().is_some());
    coordinator.shutdown();
}

fn equal_and_different(desk: &Desk, bundle: &Path) {
    let said = desk.audit(bundle);
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);
    assert!(said.out.starts_with("EQUAL"), "{}", said.out);
    let json = desk.audit_with(bundle, &desk.data, &desk.key, &["--json"]);
    let value: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((json.code, &value["equal"]), (0, &true.into()));
    for part in ["sums", "snapshot"] {
        assert_eq!(value[part]["here"], value[part]["signed"]);
        let digest = value[part]["here"].as_str().unwrap();
        assert_eq!(said.out.matches(digest).count(), 2, "{}", said.out);
    }
    // Without the text vectors that the operator has: the sums are the same, the tables are not.
    let plain = desk.folder.join("plain");
    std::fs::create_dir_all(&plain).unwrap();
    for file in ["dataset.toml", "items.csv"] {
        std::fs::copy(desk.data.join(file), plain.join(file)).unwrap();
    }
    let said = desk.audit_with(bundle, &plain, &desk.key, &[]);
    assert_eq!(said.code, 3, "{} {}", said.out, said.err);
    assert!(said.out.contains("text vectors here"), "{}", said.out);
    assert!(said.out.starts_with("DIFFERENT: the sums are those"));
    // Another order of items is another catalogue.
    let rows = std::fs::read_to_string(plain.join("items.csv")).unwrap();
    let turned = rows.replacen("i0,", "i1,", 1);
    std::fs::write(
        plain.join("items.csv"),
        turned.replacen("\ni1,F1", "\ni0,F1", 1),
    )
    .unwrap();
    let said = desk.audit_with(bundle, &plain, &desk.key, &[]);
    assert_eq!(said.code, 1, "{} {}", said.out, said.err);
    assert!(said.err.contains("item 0"), "{}", said.err);
    // Another key, or a note that was altered.
    let other = lethe_receipt::note::Signer::from_seed("tally", &[1; 32]).unwrap();
    let said = desk.audit_with(bundle, &desk.data, &other.verifier().text(), &[]);
    assert_eq!(said.code, 1, "{} {}", said.out, said.err);
    let altered = changed(bundle, |b| {
        let note = b["note"]
            .as_str()
            .unwrap()
            .replace("people 32", "people 33");
        b["note"] = note.into();
    });
    assert_eq!(desk.audit(&altered).code, 1);
    let salt = changed(bundle, |b| b["sums_salt"] = hex(&[0; 32]).into());
    let said = desk.audit(&salt);
    assert_eq!(said.code, 3, "{} {}", said.out, said.err);
    assert!(said.out.contains("are not those that"), "{}", said.out);
}

fn somebody_is_missing(desk: &Desk, bundle: &Path, counting: u32, waiting: u32) {
    let missing = |why: &str| {
        let said = desk.audit(bundle);
        assert_eq!(said.code, 3, "{why}: {} {}", said.out, said.err);
        assert!(
            said.out.contains("31 of 32") && said.out.contains("1 are missing"),
            "{why}: {}",
            said.out
        );
        let json = desk.audit_with(bundle, &desk.data, &desk.key, &["--json"]);
        let value: Value = serde_json::from_str(&json.out).unwrap();
        assert_eq!((json.code, &value["missing"]), (3, &1.into()));
    };
    let path = desk.file_of(counting);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    missing("no file");
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value["contributed"][0]["events"][2]["half_stars"] = 9.into();
    std::fs::write(&path, value.to_string()).unwrap();
    missing("an event was changed");
    // A device of before keeps nothing.
    value.as_object_mut().unwrap().remove("contributed");
    std::fs::write(&path, value.to_string()).unwrap();
    missing("no contributions");
    std::fs::write(&path, &text).unwrap();
    // Who waits is not needed.
    let path = desk.file_of(waiting);
    let kept = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(desk.audit(bundle).code, 0);
    std::fs::write(&path, kept).unwrap();
}

/// The operator leaves somebody out of the bundle, and names somebody else instead.
fn somebody_was_exchanged(desk: &Desk, bundle: &Path, counting: u32, waiting: u32) {
    let salt = read(bundle)["salt"].as_str().unwrap().to_owned();
    let of = |subject: u32| {
        let text = std::fs::read(desk.file_of(subject)).unwrap();
        let data: TrainingData = serde_json::from_slice(&text).unwrap();
        digest_of(&data.contributed[0], &salt)
    };
    let (in_it, not_in_it) = (of(counting), of(waiting));
    let other = changed(bundle, |b| {
        let mut people: Vec<String> = serde_json::from_value(b["people"].take()).unwrap();
        let at = people.iter().position(|p| *p == in_it).unwrap();
        assert!(!people.contains(&not_in_it));
        people[at] = not_in_it.clone();
        let hash = |p: &String| unhex(p).unwrap().try_into().unwrap();
        b["people"] = ListsBundle::sorted(people.iter().map(hash).collect()).into();
    });
    let said = desk.audit(&other);
    assert_eq!(said.code, 3, "{} {}", said.out, said.err);
    assert!(
        said.out.starts_with("DIFFERENT: the sums of"),
        "{}",
        said.out
    );
}
