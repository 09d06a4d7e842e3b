//! What somebody meets who starts at a shell: an invitation with a typing error, other names of an
//! option, commands in the wrong order, lists that wait for others.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use lethe_tests::world::World;

/// What a command gave.
struct Said {
    success: bool,
    out: String,
    err: String,
}

struct Shell {
    home: PathBuf,
    data: PathBuf,
}

fn run(mut command: Command) -> Said {
    let out = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = Said {
        success: out.status.success(),
        out: text(&out.stdout),
        err: text(&out.stderr),
    };
    // What people at a shell cannot call is not named.
    for name in ["Client", "Options", "::"] {
        assert!(!said.err.contains(name), "{}", said.err);
    }
    said
}

impl Shell {
    fn new(folder: &Path) -> Self {
        Self {
            home: folder.join("home"),
            data: folder.join("data"),
        }
    }

    fn lethe(&self, args: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lethe"));
        command.arg(args[0]).arg("--home").arg(&self.home);
        command.arg("--data").arg(&self.data).args(&args[1..]);
        run(command)
    }

    /// `lethe training-data`, with the folder named by this option.
    fn training_data(&self, option: &str, out: &Path) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lethe"));
        command.arg("training-data").arg(option).arg(&self.home);
        command.arg("--out").arg(out);
        run(command)
    }
}

fn refused(said: &Said, words: &str) {
    assert!(!said.success, "{}", said.out);
    assert!(said.err.contains(words), "{}", said.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn first_steps_at_a_shell() {
    let world = World::new(1_000);
    let mut config = world.config_with_lists("");
    config.lists.cell = 16;
    config.lists.changed = 8;
    let (_coordinator, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let shell = Shell::new(world.dir.path());
    let server = addr.to_string();
    let participate = ["participate", "--no-model", "--seconds", "2"];
    refused(&shell.lethe(&participate), "--server");
    let named = [&participate[..], &["--server", &server]].concat();
    refused(&shell.lethe(&named), "--invitation");

    // A file or a text; a wrong one takes no other's place.
    let file = world.dir.path().join("invitation");
    std::fs::write(&file, op.invite(0).await).unwrap();
    let file = file.to_string_lossy().into_owned();
    let record = ["record", "--item", "i0", "--invitation"];
    let said = shell.lethe(&[&record[..], &[&file]].concat());
    assert!(said.success, "{}", said.err);
    refused(
        &shell.lethe(&[&record[..], &["lethe1:typo"]].concat()),
        "does not parse",
    );
    refused(
        &shell.lethe(&[&record[..], &["leth1:typo"]].concat()),
        "its text begins with lethe1:",
    );

    // Before anything was joined there is nothing to hand to an auditor.
    let out = world.dir.path().join("person.json");
    for option in ["--home", "--folder"] {
        let early = shell.training_data(option, &out);
        refused(&early, "has not joined yet");
        refused(&early, "lethe participate");
    }
    assert!(!out.exists());

    // The good invitation is still there; alone, nobody counts yet.
    let said = shell.lethe(&named);
    assert!(said.success, "{}", said.err);
    assert!(said.err.contains("1 event(s) contributed"), "{}", said.err);
    assert!(said.err.contains("64 people"), "{}", said.err);
    let top = shell.lethe(&["top", "-n", "3"]);
    assert!(
        top.out.starts_with("there are no tables yet"),
        "{}",
        top.out
    );
    assert!(top.out.contains("64 people"), "{}", top.out);
    let said = shell.training_data("--folder", &out);
    assert!(said.success && out.exists(), "{}", said.err);
}
