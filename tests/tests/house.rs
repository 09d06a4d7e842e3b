//! The rules of the house: dependencies, names that must not leak, pure crates, unsafe code, size
//! of files.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Package -> its normal dependencies.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let workspace: toml::Table = std::fs::read_to_string(root().join("Cargo.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let members = workspace["workspace"]["members"].as_array().unwrap();
    members
        .iter()
        .map(|m| {
            let path = root().join(m.as_str().unwrap()).join("Cargo.toml");
            let manifest: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
            let names = manifest
                .get("dependencies")
                .and_then(|d| d.as_table())
                .map(|d| d.keys().cloned().collect());
            (
                manifest["package"]["name"].as_str().unwrap().to_owned(),
                names.unwrap_or_default(),
            )
        })
        .collect()
}

/// What a package depends on, over the packages of this workspace too: a pure crate is not pure if
/// a crate that it uses is not.
fn closure<'a>(deps: &'a BTreeMap<String, Vec<String>>, package: &str) -> BTreeSet<&'a str> {
    let mut out = BTreeSet::new();
    let mut stack: Vec<&str> = deps[package].iter().map(String::as_str).collect();
    while let Some(next) = stack.pop() {
        if out.insert(next) {
            stack.extend(deps.get(next).into_iter().flatten().map(String::as_str));
        }
    }
    out
}

/// Rust sources below the members' `src`, without the test and bench crates.
fn sources() -> Vec<(String, String)> {
    let mut out = vec![];
    let mut stack: Vec<PathBuf> = ["shared", "server", "client"]
        .iter()
        .map(|d| root().join(d))
        .collect();
    while let Some(p) = stack.pop() {
        if p.is_dir() {
            stack.extend(std::fs::read_dir(&p).unwrap().map(|e| e.unwrap().path()));
        } else if p.extension().is_some_and(|x| x == "rs") {
            let name = p
                .strip_prefix(root())
                .unwrap()
                .to_string_lossy()
                .into_owned();
            out.push((name, std::fs::read_to_string(&p).unwrap()));
        }
    }
    out.sort();
    assert!(out.len() > 50, "the sources were not found");
    out
}

fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|l| !l.trim_start().starts_with("//"))
}

#[test]
fn pure_crates_have_no_runtime_storage_or_engine() {
    let deps = dependencies();
    for pure in [
        "lethe-proto",
        "lethe-learn",
        "lethe-receipt",
        "lethe-plan",
        "lethe-dsr",
        "lethe-unlearn",
        "lethe-parts",
        "lethe-ledger",
    ] {
        for banned in [
            "tokio",
            "quinn",
            "sled",
            "candle-core",
            "candle-nn",
            "rustls",
        ] {
            assert!(
                !closure(&deps, pure).contains(banned),
                "{pure} depends on {banned}"
            );
        }
    }
    for (file, text) in sources() {
        let pure = [
            "shared/proto",
            "shared/learn",
            "shared/receipt",
            "shared/parts",
            "server/plan",
            "server/ledger",
        ]
        .iter()
        .any(|p| file.starts_with(p))
            && !file.contains("/bin/")
            // What measures how long decisions take has to look at a clock.
            && !file.contains("/tests/");
        for banned in [
            "SystemTime::now",
            "Instant::now",
            "SystemRandom",
            "thread_rng",
            "from_os_rng",
        ] {
            assert!(
                !pure || !code(&text).any(|l| l.contains(banned)),
                "{file} reads {banned}: pass it as an argument"
            );
        }
    }
}

#[test]
fn arrows_point_down() {
    let layer = |name: &str| match name {
        "lethe-learn" | "lethe-proto" | "lethe-receipt" | "lethe-seal" | "lethe-assets"
        | "lethe-scan" => 0,
        "lethe-plan" | "lethe-model" | "lethe-dsr" | "lethe-unlearn" | "lethe-parts" => 1,
        "lethe-recsys" | "lethe-transport" | "lethe-recipe" | "lethe-store" | "lethe-ledger" => 2,
        "lethe-coordinator" | "lethe-client" | "lethe-puppet" => 3,
        "lethe-admin" | "lethe-cli" => 4,
        "lethe-tests" | "lethe-benches" => 5,
        other => panic!("{other} has no layer: add it here and to docs/ARCHITECTURE.md"),
    };
    let server = [
        "lethe-coordinator",
        "lethe-store",
        "lethe-plan",
        "lethe-ledger",
        "lethe-dsr",
        "lethe-scan",
        "lethe-admin",
    ];
    let client = ["lethe-client", "lethe-puppet", "lethe-cli"];
    for (name, deps) in dependencies() {
        for d in deps.iter().filter(|d| d.starts_with("lethe-")) {
            assert!(
                layer(d) <= layer(&name),
                "{name} depends on {d}, which is above it"
            );
            let across =
                |a: &[&str], b: &[&str]| a.contains(&name.as_str()) && b.contains(&d.as_str());
            assert!(
                !across(&server, &client) && !across(&client, &server),
                "{name} depends on {d}: client and server"
            );
        }
    }
}

#[test]
fn libraries_are_named_in_one_place() {
    let owners = [
        ("quinn", "shared/transport/"),
        ("rustls", "shared/transport/"),
        ("sled", "server/store/src/sled_backend.rs"),
        ("candle_core", "shared/model/"),
        ("candle_nn", "shared/model/"),
        ("gemm::gemm", "shared/model/src/kernels/gemm.rs"),
        ("bincode", "shared/proto/src/codec.rs"),
    ];
    for (file, text) in sources() {
        for (library, owner) in owners {
            let names = |l: &str| {
                l.contains(&format!("{library}::")) || l.contains(&format!("use {library};"))
            };
            let line = code(&text).find(|l| names(l));
            assert!(
                file.starts_with(owner) || line.is_none(),
                "{file} names {library}: {}",
                line.unwrap_or("")
            );
        }
    }
}

#[test]
fn unsafe_code_is_measured_kernels_only() {
    for (file, text) in sources() {
        let found = code(&text).any(|l| {
            l.contains("unsafe {") || l.contains("unsafe fn") || l.contains("unsafe impl")
        });
        assert!(
            !found || file.starts_with("shared/model/src/kernels/"),
            "{file} has unsafe code"
        );
    }
}

#[test]
fn files_are_small() {
    let mut lengths: Vec<(usize, String)> = sources()
        .into_iter()
        .map(|(f, t)| (t.lines().count(), f))
        .collect();
    lengths.sort();
    let (longest, file) = lengths.last().unwrap();
    assert!(*longest <= 800, "{file} has {longest} lines: split it");
    let median = lengths[lengths.len() / 2].0;
    assert!(median <= 300, "the median file has {median} lines");
}

#[test]
fn sample_configurations_parse() {
    let text = std::fs::read_to_string(root().join("docs/samples/server.toml")).unwrap();
    let config = lethe_coordinator::config::ServerConfig::parse(&text).unwrap();
    let recipe =
        lethe_recipe::Recipe::from_toml(&toml::to_string(&config.recipe).unwrap()).unwrap();
    assert_eq!((recipe.slices, recipe.cohort), (4, 32));
    assert!(
        lethe_coordinator::config::ServerConfig::parse(&text.replace("tapes", "tape")).is_err(),
        "unknown keys"
    );
}
