//! A run that would train or measure nothing is an error, not a success with figures that are no
//! numbers.
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::Command;

use lethe_tests::files::write_data;

#[test]
fn training_without_a_sample_is_an_error_that_says_how_many_events_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    lethe_tests::tiny::write_model(&at("model")).unwrap();
    write_data(&at("data"), 5, 10);
    let train = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lethe"));
        command.arg("train-central").arg("--model").arg(at("model"));
        command.arg("--data").arg(at("data"));
        command.arg("--save").arg(at("adapter"));
        command.arg("--json").arg(at("figures.json")).args(more);
        let out = command.output().unwrap();
        let err = String::from_utf8_lossy(&out.stderr).into_owned();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &err;
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        (out.status.success(), err)
    };
    let (success, err) = train(&[]);
    assert!(!success, "nothing was trained");
    assert!(err.contains("needs more than 10 events"), "{err}");
    assert!(err.contains("0 of 5 people"), "{err}");
    assert!(!at("adapter").exists() && !at("figures.json").exists());
    // With enough events it is a run; with none asked for it is none.
    write_data(&at("data"), 5, 40);
    assert!(!train(&["--samples", "0"]).0);
    let (success, err) = train(&["--samples", "4", "--test", "4", "--split", "per-user"]);
    assert!(success, "{err}");
    let figures = std::fs::read_to_string(at("figures.json")).unwrap();
    assert!(figures.contains("\"samples\": 4"), "{figures}");
}
