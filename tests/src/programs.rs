//! Programs of other crates, for tests that start them by name: cargo builds a crate's own programs
//! for its tests, and no others.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs the program of this name with these arguments, as its own `main` does.
///
/// # Panics
/// For a program that is not known, or arguments that it is not started with by others.
pub fn run(name: &str, args: &[String]) -> ExitCode {
    let config = || {
        let at = args.iter().position(|a| a == "--config");
        let config = at.and_then(|i| args.get(i + 1)).map(PathBuf::from);
        config.expect("--config FILE")
    };
    let has = |word: &str| args.iter().any(|a| a == word);
    let done = match name {
        "lethe-server" => {
            lethe_run::log::begin("info", true);
            let start = lethe_coordinator::process::Start {
                with_parent: has("--with-parent"),
                strict: has("--strict"),
                // Wherever tests run, temporary folders are as good as any.
                accept_recoverable_keys: true,
            };
            let done = lethe_coordinator::process::run(&config(), start, None);
            done.map_err(|e| e.to_string())
        }
        "lethe-tally" => tally(&config(), &has).map_err(|e| e.to_string()),
        "lethe-admin" => {
            let all = std::iter::once(name.to_owned()).chain(args.iter().cloned());
            return lethe_admin::run(all.map(Into::into));
        }
        other => panic!("no program {other}"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "Error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn tally(config: &Path, has: &dyn Fn(&str) -> bool) -> Result<(), lethe_tallyd::TallydError> {
    use std::io::Write;
    lethe_run::log::begin("info", true);
    let mut config = lethe_tallyd::process::read_config(config)?;
    config.accept_recoverable_keys = true;
    if has("init") {
        let invitation = lethe_tallyd::process::init(&config)?;
        let _ = writeln!(std::io::stdout(), "{invitation}");
        return Ok(());
    }
    lethe_tallyd::process::serve(&config, has("--with-parent"))
}
