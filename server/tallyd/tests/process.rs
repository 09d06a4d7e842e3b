//! The program: its commands, exit codes, and end.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lethe_transport::identity::Invitation;

struct World {
    dir: tempfile::TempDir,
    config: PathBuf,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(config: &Path, verb: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lethe-tally"));
    command.arg(verb).arg("--config").arg(config);
    command
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = dir.path().join("catalogue");
        std::fs::create_dir(&catalogue).unwrap();
        let spec = "[interactions]\nfile = \"none.csv\"\nuser = \"u\"\nitem = \"i\"\nrating = \
                    \"r\"\nlike_above = 3.0\n[items]\nfile = \"items.csv\"\nitem = \"id\"\ntitle \
                    = \"title\"\ntags = \"tags\"\n";
        std::fs::write(catalogue.join("dataset.toml"), spec).unwrap();
        let rows: String = (0..12).map(|i| format!("i{i},F{i},Drama\n")).collect();
        std::fs::write(
            catalogue.join("items.csv"),
            format!("id,title,tags\n{rows}"),
        )
        .unwrap();
        let config = dir.path().join("tally.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\ndata_dir = {:?}\ncatalogue = {catalogue:?}\nreserve_mib = \
             1\n",
            dir.path().join("data")
        );
        std::fs::write(&config, text).unwrap();
        Self { dir, config }
    }

    fn run(&self, verb: &str) -> Output {
        program(&self.config, verb).output().unwrap()
    }

    fn text(&self, verb: &str) -> String {
        let output = self.run(verb);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{verb}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn serve(&self) -> Running {
        let address = self.dir.path().join("data").join("address");
        let _ = std::fs::remove_file(&address);
        let mut command = program(&self.config, "serve");
        let running = Running(command.stderr(Stdio::null()).spawn().unwrap());
        let began = Instant::now();
        while !address.exists() {
            assert!(began.elapsed() < Duration::from_secs(30), "it listens");
            std::thread::sleep(Duration::from_millis(50));
        }
        running
    }
}

fn end(mut running: Running) -> Option<i32> {
    let pid = running.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    running.0.wait().unwrap().code()
}

#[test]
fn the_program_makes_a_folder_serves_answers_commands_and_ends() {
    let world = World::new();
    for verb in ["serve", "status", "invite", "rotate"] {
        let output = world.run(verb);
        assert_eq!(output.status.code(), Some(1), "{verb}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("lethe-tally init"), "{said}");
    }
    let first = Invitation::parse(&world.text("init")).unwrap();
    let again = world.run("init");
    assert_eq!(again.status.code(), Some(1));
    assert!(
        String::from_utf8(again.stderr)
            .unwrap()
            .contains("holds a tally already")
    );
    // In the folder, and through the process that has it.
    let status = world.text("status");
    assert!(status.contains("log: 1 entries"), "{status}");
    let running = world.serve();
    assert_eq!(world.text("status"), status);
    assert!(world.text("rotate").contains("sealing key"));
    assert!(world.text("status").contains("log: 2 entries"));
    let second = Invitation::parse(&world.text("invite")).unwrap();
    assert_ne!(first.secret, second.secret);
    assert_eq!(first.authority().unwrap(), second.authority().unwrap());
    let other = world.run("serve");
    assert_eq!(other.status.code(), Some(1));
    assert!(
        String::from_utf8(other.stderr)
            .unwrap()
            .contains("another process uses")
    );
    assert_eq!(end(running), Some(0));
    assert!(world.text("status").contains("log: 2 entries"));
}

#[test]
fn a_configuration_that_is_wrong_is_said_with_its_code() {
    let world = World::new();
    let text = std::fs::read_to_string(&world.config).unwrap();
    std::fs::write(&world.config, format!("{text}clip = 3\n")).unwrap();
    let output = world.run("status");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("clip"));
    assert_eq!(
        program(Path::new("/nowhere.toml"), "status")
            .output()
            .unwrap()
            .status
            .code(),
        Some(2)
    );
}
