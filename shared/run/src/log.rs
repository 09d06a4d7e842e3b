//! Lines on standard error: for people, or as JSON for machines.

use std::io::{IsTerminal, Write};

use tracing_subscriber::EnvFilter;

/// What is logged, as `tracing_subscriber` reads it.
pub const FILTER: &str = "LETHE_LOG";
/// How: `text` or `json`.
pub const FORMAT: &str = "LETHE_LOG_FORMAT";

/// Whether escape codes may be written to standard error: it is a terminal that knows them, and
/// nobody asked for none (`NO_COLOR`, <https://no-color.org>).
pub fn has_colours() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let dumb = set("TERM").is_none_or(|t| t == "dumb");
    std::io::stderr().is_terminal() && !dumb && set("NO_COLOR").is_none()
}

/// Begins to log to standard error. `default` is the filter where [`FILTER`] names none; with
/// `times` each line of text says when.
///
/// A filter or format that is not known is said, and the default taken: a typing error keeps no
/// server from starting.
pub fn begin(default: &str, times: bool) {
    let named = std::env::var(FILTER).ok().filter(|f| !f.is_empty());
    let filter = named.map_or(Ok(EnvFilter::new(default)), |f| EnvFilter::try_new(&f));
    let filter = filter.unwrap_or_else(|e| {
        complain(&format!(
            "{FILTER} is no filter ({e}): {default:?} is taken"
        ));
        EnvFilter::new(default)
    });
    let format = std::env::var(FORMAT).unwrap_or_default();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(has_colours());
    match (format.as_str(), times) {
        // Fields beside the message, so that programs find them.
        ("json", _) => lines.json().flatten_event(true).with_ansi(false).init(),
        (_, true) => lines.init(),
        (_, false) => lines.without_time().init(),
    }
    if !matches!(format.as_str(), "" | "text" | "json") {
        complain(&format!(
            "{FORMAT} is {format:?}, expected text or json: text is taken"
        ));
    }
}

fn complain(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}
