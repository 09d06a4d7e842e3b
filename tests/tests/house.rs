//! The rules of the house: dependencies, names that must not leak, pure crates, unsafe code, size
//! of files, length of lines, parameters.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Files with this extension at or below `places`, with their text; what a build wrote is left out.
fn files(places: &[&str], extension: &str) -> Vec<(String, String)> {
    let mut out = vec![];
    let mut stack: Vec<PathBuf> = places.iter().map(|d| root().join(d)).collect();
    while let Some(p) = stack.pop() {
        if p.is_dir() {
            if !p.ends_with("target") {
                stack.extend(std::fs::read_dir(&p).unwrap().map(|e| e.unwrap().path()));
            }
        } else if p.extension().is_some_and(|x| x == extension) {
            let name = p
                .strip_prefix(root())
                .unwrap()
                .to_string_lossy()
                .into_owned();
            out.push((name, std::fs::read_to_string(&p).unwrap()));
        }
    }
    out.sort();
    out
}

/// Rust sources below the members' `src`, without the test and bench crates.
fn sources() -> Vec<(String, String)> {
    let out = files(&["shared", "server", "client"], "rs");
    assert!(out.len() > 50, "the sources were not found");
    out
}

/// All Rust sources.
fn all_sources() -> Vec<(String, String)> {
    let mut out = sources();
    out.extend(files(&["tests", "benches", "mobile"], "rs"));
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
            "server/tally/src/cells",
        ]
        .iter()
        .any(|p| file.starts_with(p))
            && !file.contains("/bin/")
            // A simulation says how long it took.
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
        | "lethe-scan" | "lethe-run" | "lethe-gpu" => 0,
        "lethe-plan" | "lethe-model" | "lethe-dsr" | "lethe-unlearn" | "lethe-parts" => 1,
        // Depends on nothing here: it reads a library that was built.
        "lethe-bindgen" => 0,
        "lethe-recsys" | "lethe-transport" | "lethe-recipe" | "lethe-store" | "lethe-ledger" => 2,
        "lethe-tally" => 3,
        "lethe-coordinator" | "lethe-tallyd" | "lethe-witness" | "lethe-client"
        | "lethe-puppet" => 4,
        "lethe-admin" | "lethe-cli" | "lethe-ffi" => 5,
        "lethe-tests" | "lethe-benches" => 6,
        other => panic!("{other} has no layer: add it here and to docs/ARCHITECTURE.md"),
    };
    let server = [
        "lethe-coordinator",
        "lethe-store",
        "lethe-tally",
        "lethe-tallyd",
        "lethe-witness",
        "lethe-plan",
        "lethe-ledger",
        "lethe-dsr",
        "lethe-scan",
        "lethe-admin",
    ];
    let client = ["lethe-client", "lethe-puppet", "lethe-cli", "lethe-ffi"];
    for (name, deps) in dependencies() {
        for d in deps.iter().filter(|d| d.starts_with("lethe-")) {
            assert!(
                layer(d) <= layer(&name),
                "{name} depends on {d}, which is above it"
            );
            let across =
                |a: &[&str], b: &[&str]| a.contains(&name.as_str()) && b.contains(&d.as_str());
            // Two parties: what the one knows, the other does not.
            let parties = [
                "lethe-coordinator",
                "lethe-ledger",
                "lethe-plan",
                "lethe-admin",
            ];
            assert!(
                name != "lethe-tallyd" || !parties.contains(&d.as_str()),
                "{name} depends on {d}, which is the coordinator's"
            );
            assert!(
                !across(&server, &client) && !across(&client, &server),
                "{name} depends on {d}: client and server"
            );
        }
    }
}

/// What an app embeds, and the coordinator, are built without candle: it is a feature.
#[test]
fn clients_and_coordinators_are_built_without_candle() {
    for package in ["lethe-client", "lethe-coordinator"] {
        let out = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--package", package])
            .args(["--edges", "normal", "--prefix", "none"])
            .current_dir(root())
            .output()
            .unwrap();
        let tree = String::from_utf8_lossy(&out.stdout);
        let why = String::from_utf8_lossy(&out.stderr);
        assert!(tree.contains("lethe-model"), "no tree of {package}: {why}");
        assert!(!tree.contains("candle"), "{package} depends on candle");
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
        ("wgpu", "shared/gpu/"),
        ("gemm::gemm", "shared/model/src/kernels/gemm.rs"),
        ("bincode", "shared/proto/src/codec.rs"),
        ("hpke", "shared/seal/src/envelope.rs"),
        ("ml_dsa", "shared/receipt/src/mldsa.rs"),
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

/// Whether a line is too long for a terminal, or for two files side by side.
fn is_long(line: &str) -> bool {
    line.chars().count() > 100
}

/// Lines of prose; tables, code and links cannot be wrapped.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    (1..).zip(text.lines()).filter(move |(_, l)| {
        let fence = l.trim_start().starts_with("```");
        fenced ^= fence;
        let link = l.contains("](") || l.contains("://");
        !fenced && !fence && !l.starts_with('|') && !link
    })
}

#[test]
fn lines_are_at_most_100_columns() {
    let mut long = vec![];
    for (file, text) in all_sources() {
        let lines = (1..).zip(text.lines()).filter(|(_, l)| is_long(l));
        long.extend(lines.map(|(n, _)| format!("{file}:{n}")));
    }
    for (file, text) in files(&["docs", "README.md"], "md") {
        let lines = prose(&text).filter(|(_, l)| is_long(l));
        long.extend(lines.map(|(n, _)| format!("{file}:{n}")));
    }
    assert!(
        long.is_empty(),
        "wrap these lines at 100 columns:\n{}",
        long.join("\n")
    );
}

/// How many characters the comment, string or character takes that begins here; 0: none does.
fn no_code(rest: &[char]) -> usize {
    let is = |i: usize, c: char| rest.get(i) == Some(&c);
    let hashes = rest.iter().skip(1).take_while(|c| **c == '#').count();
    let end = match rest[0] {
        '/' if is(1, '/') => rest.iter().position(|c| *c == '\n'),
        '/' if is(1, '*') => end_of_block(rest),
        '"' => end_of_string(rest),
        'r' if is(1 + hashes, '"') => {
            let close: Vec<char> = format!("\"{}", "#".repeat(hashes)).chars().collect();
            let open = 2 + hashes;
            let at = rest[open..].windows(close.len()).position(|w| w == close);
            at.map(|at| open + at + close.len())
        }
        // A lifetime has no second quote.
        '\'' if is(1, '\\') => (3..rest.len()).find(|i| is(*i, '\'')).map(|i| i + 1),
        '\'' if is(2, '\'') => Some(3),
        _ => Some(0),
    };
    end.unwrap_or(rest.len())
}

/// Comments lie inside each other.
fn end_of_block(rest: &[char]) -> Option<usize> {
    let (mut depth, mut i) = (0, 0);
    while i + 1 < rest.len() {
        match (rest[i], rest[i + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return Some(i);
        }
    }
    None
}

fn end_of_string(rest: &[char]) -> Option<usize> {
    let mut i = 1;
    while *rest.get(i)? != '"' {
        i += if rest[i] == '\\' { 2 } else { 1 };
    }
    Some(i + 1)
}

/// `text` with blanks in place of comments, strings and characters; line breaks stay.
fn bare(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let n = no_code(&chars[at..]);
        if n == 0 {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        let blank = |c: &char| if *c == '\n' { '\n' } else { ' ' };
        out.extend(chars[at..at + n].iter().map(blank));
        at += n;
    }
    out
}

/// The parameters of the function whose signature begins here.
fn parameters(signature: &str) -> Vec<String> {
    let (mut out, mut current) = (vec![], String::new());
    let mut listed = false;
    // Brackets that are open inside the list, and angle brackets in all.
    let (mut depth, mut angle, mut before) = (0, 0, ' ');
    for c in signature.chars() {
        match c {
            '<' => angle += 1,
            '>' if before != '-' => angle -= 1,
            _ => {}
        }
        before = c;
        if !listed {
            match c {
                // What stands in angle brackets here are generics: `Fn(usize)` is no list.
                '(' if angle == 0 => listed = true,
                '{' | ';' => break,
                _ => {}
            }
            continue;
        }
        match c {
            ')' if depth == 0 => break,
            ',' if depth == 0 && angle == 0 => {
                out.push(std::mem::take(&mut current));
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        current.push(c);
    }
    out.push(current);
    out
}

/// Whether the pattern of a parameter is a tuple.
fn is_tuple(parameter: &str) -> bool {
    let mut rest = parameter.trim_start();
    while let Some(attribute) = rest.strip_prefix("#[") {
        rest = attribute
            .split_once(']')
            .map_or("", |(_, r)| r.trim_start());
    }
    rest.trim_start_matches('&').starts_with('(')
}

/// The lines on which functions begin that take a tuple apart among their parameters.
fn taken_apart(text: &str) -> Vec<usize> {
    let bare = bare(text);
    let mut out = vec![];
    for (at, _) in bare.match_indices("fn ") {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        if !bare[..at].ends_with(word) && parameters(&bare[at..]).iter().any(|p| is_tuple(p)) {
            out.push(bare[..at].matches('\n').count() + 1);
        }
    }
    out
}

#[test]
fn no_function_takes_a_tuple_apart() {
    let found = r###"
        /// A `fn f((a, b): (u8, u8))` in a comment, and the string's end: "
        const QUOTES: (&str, char) = (r#"a " quote"#, '"');
        pub(crate) async fn over_lines<F: Fn(u8, u8) -> u8>(
            &self,
            rest: [u8; 2], // , and a comment
            (a, b): (&'static str, F),
        ) -> Result<(), Error> {}
        fn in_one(x: u8, &(a, b): &(u8, u8)) {}
        fn $name(#[allow(unused)] (a, b): (u8, u8)) {}
    "###;
    assert_eq!(taken_apart(found), [4, 9, 10]);
    let fine = r###"
        // fn comment((a, b): (u8, u8)) {}
        /* fn block((a, b): (u8, u8)) {} /* inside */ fn still((a, b): (u8, u8)) {} */
        const TEXT: &str = "fn string((a, b): (u8, u8)) {} \" fn more((a, b): (u8, u8)) {}";
        fn plain<'a, F>(pair: (u8, u8), map: HashMap<u8, (u8, u8)>, f: F) -> (u8, u8)
        where
            F: Fn((u8, u8)) -> u8,
        {
            pairs.map(|(a, b)| a + b).fold(0, |sum: u8, (a, b): (u8, u8)| sum + a + b);
            call(fn_like, (a, b), '"', (c, d));
        }
        fn takes(f: impl Fn(u8, (u8, u8)) -> u8, g: fn(u8, (u8, u8)), h: [(u8, u8); 2]);
    "###;
    assert_eq!(taken_apart(fine), [0; 0]);
    let mut functions = vec![];
    for (file, text) in all_sources() {
        functions.extend(taken_apart(&text).iter().map(|n| format!("{file}:{n}")));
    }
    assert!(
        functions.is_empty(),
        "give each value a parameter of its own, or name them in a struct:\n{}",
        functions.join("\n")
    );
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
    let text = std::fs::read_to_string(root().join("docs/samples/tally.toml")).unwrap();
    let config = lethe_tallyd::config::Config::parse(&text).unwrap();
    let defaults = lethe_tally::settings::ListsConfig::default();
    assert_eq!((config.lists, config.audits), (defaults, false));
    assert!(
        lethe_tallyd::config::Config::parse(&text.replace("clip =", "clips =")).is_err(),
        "unknown keys"
    );
}
