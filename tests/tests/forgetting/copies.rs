//! A deletion reaches every copy: where keys lie, and what an operator is told of it
//! (docs/faults.md, 3).
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use lethe_client::{Catalogue, Client, ClientError, LocalEvent, Options, Source};
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::disks::KeyFate;
use lethe_seal::disk::{Disk, Verdict};
use lethe_tests::tiny;
use lethe_tests::world::{World, id};

#[tokio::test(flavor = "multi_thread")]
async fn h7_an_operator_is_told_where_keys_lie_and_what_becomes_of_destroyed_ones() {
    let world = World::new(2);
    let config = world.config("");
    let data = config.data_dir.clone();
    let (coordinator, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let disks = match op.ask(AdminRequest::KeyDisks).await.unwrap() {
        AdminReply::KeyDisks(disks) => disks,
        other => panic!("{other:?}"),
    };
    let here = Disk::of(&data);
    let fate = match here.verdict {
        Verdict::InPlace => KeyFate::Gone,
        Verdict::Unknown => KeyFate::Unknown,
        Verdict::Kept => KeyFate::Recoverable,
    };
    assert_eq!(disks.len(), 1, "one file system is told once: {disks:?}");
    assert_eq!(disks[0].kind, here.kind);
    assert_eq!(disks[0].fate, fate);
    assert!(disks[0].text.contains(&here.why), "{disks:?}");
    let left = std::fs::read_dir(&data).unwrap().flatten();
    let probes = left.filter(|f| f.file_name().to_string_lossy().contains("lethe-disk"));
    assert_eq!(probes.count(), 0, "what looking made is gone");
    coordinator.shutdown();
}

async fn list(client: &Client) -> Result<Source, ClientError> {
    let items: Vec<String> = (0..tiny::ITEMS).map(|i| format!("i{i}")).collect();
    Ok(client.recommend(&items, 3).await?.source)
}

#[tokio::test(flavor = "multi_thread")]
async fn m1_a_revoked_device_drops_what_came_from_the_coordinator() {
    let world = World::new(6);
    let (coordinator, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let clients = fleet.stop().await;
    let revoked = &clients[1];
    assert!(matches!(list(revoked).await, Ok(Source::Live { .. })));
    let events = revoked.history().len();
    let cached = world.client_folder(1).join("list");
    assert!(cached.exists());
    let subject = id(1);
    let done = op.ask(AdminRequest::Revoke { subject }).await.unwrap();
    assert_eq!(done, AdminReply::Done);
    // It asks for something, whatever it is.
    let told = revoked.step().await.unwrap_err();
    assert!(matches!(told, ClientError::Deleted), "{told}");
    assert!(!cached.exists(), "the list is gone from the disk");
    assert_eq!(revoked.history().len(), events, "the history is its own");
    // Offline from now on: nothing of the release is shown.
    coordinator.shutdown();
    let shown = list(revoked).await;
    assert!(
        matches!(shown, Err(ClientError::Deleted) | Ok(Source::OnDevice(_))),
        "{shown:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn case_08_one_item_is_left_out_and_named_and_the_rest_of_a_list_stays() {
    let world = World::new(6);
    let (coordinator, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let mut clients = fleet.stop().await;
    let client = clients.remove(1);
    let items: Vec<String> = (0..tiny::ITEMS).map(|i| format!("i{i}")).collect();
    let all = client.recommend(&items, 6).await.unwrap();
    assert!(all.left_out.is_empty());
    // One that was never there.
    let some = [&items[..], &["nope".to_owned()]].concat();
    let named = client.recommend(&some, 6).await.unwrap();
    assert_eq!(named.items, all.items);
    assert_eq!(named.left_out.len(), 1);
    assert_eq!(named.left_out[0].item, "nope");
    assert!(named.left_out[0].why.contains("not in the catalogue"));

    // Offline: what was met since, and what has left the catalogue meanwhile, is not shown.
    coordinator.shutdown();
    let met = all.items[0].item.clone();
    client
        .record(LocalEvent::liked(met.as_str(), 5_000_000_000))
        .unwrap();
    client.close().await;
    let left = all.items[2].item.clone();
    let folder = world.dir.path().join("data");
    let rows = std::fs::read_to_string(folder.join("items.csv")).unwrap();
    let row = format!("{left},");
    let kept: Vec<&str> = rows.lines().filter(|l| !l.starts_with(&row)).collect();
    std::fs::write(folder.join("items.csv"), kept.join("\n")).unwrap();
    let options = Options::new(Catalogue::load(&folder).unwrap());
    let options = options.server(addr).model(world.model());
    let client = Client::open(world.client_folder(1), options).unwrap();
    let cached = client.recommend(&items, 6).await.unwrap();
    assert_eq!(cached.source, Source::Cached);
    let shown: Vec<&String> = cached.items.iter().map(|r| &r.item).collect();
    assert_eq!(shown.len(), 4, "{shown:?}");
    assert!(
        !shown.contains(&&met) && !shown.contains(&&left),
        "{shown:?}"
    );
}

/// Logs are read by more people than the data is, and kept elsewhere: they name nobody.
#[test]
fn m7_no_log_line_of_a_server_has_a_person_in_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut stack = vec![root.join("server"), root.join("shared")];
    let mut lines = 0;
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            stack.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.extension().is_some_and(|x| x == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for at in text.match_indices("tracing::").map(|(at, _)| at) {
                let statement: String = text[at..].chars().take_while(|c| *c != ';').collect();
                lines += 1;
                for named in [
                    "subject =",
                    "subject}",
                    "person =",
                    "handle =",
                    "invitation =",
                ] {
                    assert!(
                        !statement.contains(named),
                        "{}: a log line with {named:?}: {statement}",
                        path.display()
                    );
                }
            }
        }
    }
    assert!(lines > 50, "the log lines were not found");
}
