//! A signal ends a program and everything that it has started: no process and no temporary folder
//! is left. This test has no harness: the programs that the demo starts are this one, too.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

fn main() -> std::process::ExitCode {
    let program = std::env::args().next().unwrap_or_default();
    let name = std::path::Path::new(&program)
        .file_name()
        .unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    if name.starts_with("lethe-") {
        let args: Vec<String> = std::env::args().skip(1).collect();
        return lethe_tests::programs::run(&name, &args);
    }
    #[cfg(unix)]
    unix::all();
    std::process::ExitCode::SUCCESS
}

#[cfg(unix)]
mod unix {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    const PATIENCE: Duration = Duration::from_secs(90);

    pub(crate) fn all() {
        // `cargo test NAME` of another test: nothing of that name is here.
        let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
        let tests: [(&str, fn()); 5] = [
            ("sigterm_leaves_nothing_of_a_demo", || demo("TERM", 143)),
            ("sighup_leaves_nothing_of_a_demo", || demo("HUP", 129)),
            ("a_signal_reaches_the_processes_of_a_bench", bench),
            (
                "a_server_says_why_it_stops_and_writes_no_escape_codes",
                server,
            ),
            ("logs_are_json_on_request", json),
        ];
        for (name, test) in tests {
            if filter.as_ref().is_none_or(|f| name.contains(f.as_str())) {
                test();
                println!("test {name} ... ok");
            }
        }
    }

    /// `lethe` and the programs beside it.
    fn programs(folder: &Path) -> PathBuf {
        let bin = folder.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let put = |from: &Path, name: &str| {
            let to = bin.join(name);
            if std::fs::hard_link(from, &to).is_err() {
                std::fs::copy(from, &to).unwrap();
            }
        };
        put(Path::new(env!("CARGO_BIN_EXE_lethe")), "lethe");
        let own = std::env::current_exe().unwrap();
        for name in ["lethe-server", "lethe-tally", "lethe-admin"] {
            put(&own, name);
        }
        bin
    }

    /// Parents of all processes.
    fn parents() -> BTreeMap<u32, u32> {
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let parent = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let mut fields = stat.rsplit(')').next()?.split_whitespace();
            let state = fields.next()?;
            let parent = fields.next()?.parse().ok()?;
            (state != "Z").then_some((pid, parent))
        };
        pids.filter_map(parent).collect()
    }

    fn descendants(of: u32) -> Vec<u32> {
        let parents = parents();
        let is_below = |pid: &u32| {
            let mut at = *pid;
            while let Some(parent) = parents.get(&at).copied().filter(|p| *p > 1) {
                if parent == of {
                    return true;
                }
                at = parent;
            }
            false
        };
        parents.keys().copied().filter(is_below).collect()
    }

    fn until(what: &str, mut ready: impl FnMut() -> bool) {
        let began = Instant::now();
        while !ready() {
            assert!(began.elapsed() < PATIENCE, "waiting for: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A program that no signal is kept from: what runs these tests may ignore some (`nohup`, a
    /// shell's background), and a child would then do so, too.
    fn hearing(program: &Path) -> Command {
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP,INT,TERM").arg(program);
        command
    }

    fn signal(child: &Child, name: &str) {
        let pid = child.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status();
        assert!(sent.unwrap().success());
    }

    fn ended(mut child: Child) -> (Option<i32>, String) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut said = String::new();
        if let Some(mut err) = child.stderr.take() {
            err.read_to_string(&mut said).unwrap();
        }
        (status.code(), said)
    }

    fn is_left(pids: &[u32]) -> bool {
        let now = parents();
        pids.iter().any(|p| now.contains_key(p))
    }

    fn demo(name: &str, code: i32) {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = |name: &str| dir.path().join(name);
        lethe_tests::tiny::write_model(&at("model")).unwrap();
        lethe_tests::files::write_data(&at("data"), 6, 60);
        std::fs::create_dir(at("tmp")).unwrap();
        let recipe = "shards = 1\nanchors = 1\nsplit = { k_in = 1, k_out = 1 }\ncohort = 2\n";
        std::fs::write(at("recipe.toml"), recipe).unwrap();
        let mut command = hearing(&programs(dir.path()).join("lethe"));
        command.args(["demo", "--quick", "--clients", "3", "--tests", "1"]);
        // More than it comes to before the signal, on any machine.
        command.args(["--rounds", "10000"]);
        command
            .arg("--model")
            .arg(at("model"))
            .arg("--data")
            .arg(at("data"));
        command
            .arg("--home")
            .arg(at("home"))
            .arg("--recipe")
            .arg(at("recipe.toml"));
        command
            .env("TMPDIR", at("tmp"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let id = child.id();
        // A coordinator, a tally and the fleet.
        until("three processes of the demo", || {
            let fleet = at("home/pplr/fleet.json").exists();
            fleet && descendants(id).len() >= 3
        });
        let below = descendants(id);
        signal(&child, name);
        let (status, said) = ended(child);
        assert_eq!(status, Some(code), "{said}");
        assert!(said.contains(&format!("SIG{name}: ending")), "{said}");
        assert!(!is_left(&below), "{:?} run on", below);
        assert_eq!(std::fs::read_dir(at("tmp")).unwrap().count(), 0);
    }

    fn bench() {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let bin = programs(dir.path());
        let tmp = dir.path().join("tmp");
        std::fs::create_dir(&tmp).unwrap();
        // A program that has a process of its own and a temporary folder.
        let script = "#!/bin/sh\nmktemp -d > /dev/null\nsleep 300 &\nwait\n";
        let program = bin.join("bench-forget");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = hearing(&bin.join("lethe"));
        command.args(["bench", "forget"]).env("TMPDIR", &tmp);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let id = child.id();
        until("the bench and its process", || descendants(id).len() >= 2);
        let below = descendants(id);
        assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 1);
        signal(&child, "INT");
        let (status, said) = ended(child);
        assert_eq!(status, Some(130), "{said}");
        assert!(!is_left(&below), "{:?} run on", below);
        assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0);
    }

    /// A coordinator that listens, with what changes its log.
    fn listening(dir: &Path, more: &[(&str, &str)]) -> Child {
        let at = |name: &str| dir.join(name);
        lethe_tests::tiny::write_model(&at("model")).unwrap();
        lethe_tests::files::write_data(&at("data"), 6, 60);
        let config = format!(
            "listen = \"127.0.0.1:0\"\ndata_dir = {:?}\nmodel = {:?}\ncatalogue = {:?}\n\
             reserve_mib = 0\n[recipe]\nsplit = {{ k_in = 1, k_out = 1 }}\n",
            at("server"),
            at("model"),
            at("data")
        );
        std::fs::write(at("server.toml"), config).unwrap();
        let mut command = hearing(&programs(dir).join("lethe-server"));
        command.arg("--config").arg(at("server.toml"));
        command.env_remove("NO_COLOR").envs(more.iter().copied());
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        until("an address", || at("server/address").exists());
        child
    }

    fn server() {
        for name in ["HUP", "TERM", "INT"] {
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let child = listening(dir.path(), &[("TERM", "xterm")]);
            // Another one on the same folder is named as such, in its first line.
            let mut second = Command::new(dir.path().join("bin/lethe-server"));
            let second = second.arg("--config").arg(dir.path().join("server.toml"));
            let second = second.output().unwrap();
            let said = String::from_utf8_lossy(&second.stderr).into_owned();
            assert!(!second.status.success());
            let first = said.lines().next().unwrap_or_default();
            assert!(first.contains("another coordinator uses"), "{said}");
            operate(dir.path());
            signal(&child, name);
            let (status, said) = ended(child);
            assert_eq!(status, Some(0), "{said}");
            for line in ["an operator has enrolled", "a deletion is accepted"] {
                assert!(said.contains(line), "{line}: {said}");
            }
            assert!(!said.contains("somebody-7"), "a log names nobody: {said}");
            let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
            assert!(
                said.contains("lethe-server starts") && said.contains(&version),
                "{said}"
            );
            let why = format!("lethe-server stops why=SIG{name}");
            assert!(said.contains(&why), "{said}");
            assert!(
                !said.contains('\u{1b}'),
                "no terminal, no escape codes: {said:?}"
            );
        }
    }

    /// An operator enrols, and asks for a deletion.
    fn operate(dir: &Path) {
        let server = std::fs::read_to_string(dir.join("server/address")).unwrap();
        let invitation = dir.join("server/admin-invitation");
        let admin = |args: &[&str]| {
            let mut command = Command::new(dir.join("bin/lethe-admin"));
            command.arg("--home").arg(dir.join("admin")).args(args);
            let out = command.output().unwrap();
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success(), "{args:?}: {said}");
        };
        let invitation = invitation.to_string_lossy();
        admin(&["enrol", "--server", &server, "--invitation", &invitation]);
        admin(&["invite", "--subject", "somebody-7"]);
        admin(&["forget", "--subject", "somebody-7"]);
    }

    fn json() {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let child = listening(dir.path(), &[("LETHE_LOG_FORMAT", "json")]);
        signal(&child, "TERM");
        let (_, said) = ended(child);
        let lines = said.lines().map(serde_json::from_str::<serde_json::Value>);
        let lines: Vec<serde_json::Value> = lines.collect::<Result<_, _>>().expect(&said);
        let stops = lines.iter().find(|l| l["message"] == "lethe-server stops");
        assert_eq!(stops.expect(&said)["why"], "SIGTERM");
        assert!(
            lines
                .iter()
                .all(|l| l["level"].is_string() && l["timestamp"].is_string())
        );
    }
}
