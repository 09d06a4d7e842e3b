//! One person's client on the command line, with neither a model nor a server.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

/// Standard output, standard error, and whether it succeeded.
fn lethe(folder: &Path, args: &[&str]) -> (String, String, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lethe"));
    command.arg(args[0]).arg("--home").arg(folder.join("home"));
    if args[0] != "erase" {
        command.arg("--data").arg(folder.join("data"));
    }
    let out = command.args(&args[1..]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&out.stdout), text(&out.stderr), out.status.success())
}

#[test]
fn recording_lists_and_erasing_work_alone() {
    let dir = tempfile::tempdir().unwrap();
    lethe_tests::tiny::write_catalogue(&dir.path().join("data")).unwrap();
    let run = |args: &[&str]| lethe(dir.path(), args);
    // Nobody listens there.
    let away = ["--server", "127.0.0.1:9"];
    let recorded = run(&["record", "--item", "i0", away[0], away[1]]);
    assert!(recorded.2, "{}", recorded.1);
    assert!(run(&["record", "--item", "i3", "--rating", "4.5"]).2);
    let unknown = run(&["record", "--item", "nope"]);
    assert!(
        !unknown.2 && unknown.1.contains("catalogue"),
        "{}",
        unknown.1
    );
    let (out, err, fine) = run(&["top", "-n", "3"]);
    assert!(fine, "{err}");
    assert!(out.starts_with("there are no tables yet"), "{out}");
    assert_eq!(out.lines().count(), 4, "{out}");
    assert!(!out.contains("  i0 ") && !out.contains("  i3 "), "{out}");
    let (out, ..) = run(&["top", "--tag", "comedy", "--json"]);
    let page: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(page["items"].as_array().unwrap().len(), 10, "{out}");
    assert!(run(&["top", "--similar", "i1"]).2);
    let needs = run(&["recommend"]);
    assert!(!needs.2 && needs.1.contains("--server"), "{}", needs.1);
    let needs = run(&["participate", "--no-model", "--seconds", "1"]);
    assert!(!needs.2 && needs.1.contains("address"), "{}", needs.1);
    assert!(dir.path().join("home/history").exists());
    let (out, err, fine) = run(&["erase"]);
    assert!(fine && out.contains("nothing"), "{err}");
    let left = std::fs::read_dir(dir.path().join("home")).unwrap().count();
    assert_eq!(left, 0);
}
