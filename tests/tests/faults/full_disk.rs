//! A deletion on a disk that is full, in a file system of its own. Needs the right to mount one (as
//! root on Linux); without it the test says that it did nothing.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use lethe_tests::world::World;

struct Mounted(PathBuf);

impl Mounted {
    fn new(at: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", size, "tmpfs"])
            .arg(&at)
            .status();
        mount.is_ok_and(|s| s.success()).then_some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Writes until nothing fits any more.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for block in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![1; block]).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_succeeds_on_a_full_disk() {
    let world = World::new(8);
    let Some(disk) = Mounted::new(world.dir.path().join("disk"), "size=48m") else {
        eprintln!("SKIPPED: no right to mount a file system; nothing was tested");
        return;
    };
    let mut config = world.config_with_lists("");
    config.data_dir = disk.0.join("server");
    config.reserve_mib = 8;
    let binary = Path::new(env!("CARGO_BIN_EXE_coordinator-process"));
    let log = world.dir.path().join("log");
    let (mut child, addr) = world.spawn(binary, &config, &log);
    config.listen = addr;
    let op = world.operator_at(&config.data_dir, addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    while op.lists().await.served.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(config.data_dir.join("reserve").exists());

    fill(&disk.0.join("filler"));
    // What the database has set aside for its log takes some more.
    let mut invited = 0;
    while op
        .ask(lethe_proto::admin::AdminRequest::Invite {
            subject: Some(lethe_tests::world::id(50 + invited)),
        })
        .await
        .is_ok()
    {
        invited += 1;
        assert!(invited < 5000, "the disk is full");
    }
    let id = op.ask_to_forget(3, &[]).await.unwrap_or_else(|e| {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        panic!("the space that was set aside is used: {e}\n{said}")
    });
    assert!(op.lineage(3).await.is_err());
    assert!(!config.data_dir.join("reserve").exists());
    // It holds over a kill; with room again, retraining and the receipt follow.
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_file(disk.0.join("filler")).unwrap();
    (child, _) = world.spawn(binary, &config, &log);
    let op = op.reconnect(addr).await;
    assert!(op.lineage(3).await.is_err());
    op.deleted(id).await;
    op.receipt(id).await;
    op.replays_equal().await;
    fleet.abort();
    child.kill().unwrap();
    child.wait().unwrap();
}
