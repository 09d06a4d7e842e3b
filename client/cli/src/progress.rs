//! Progress bars with time left, on a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of `len` steps named `name`.
pub(crate) fn bar(len: usize, name: &str) -> ProgressBar {
    let bar = ProgressBar::new(len as u64);
    // A bar moves the cursor: not on terminals that cannot.
    if !lethe_run::log::has_colours() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style =
        ProgressStyle::with_template("{prefix:>22} [{bar:32}] {pos}/{len} {msg} left {eta}");
    bar.set_style(
        style
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> "),
    );
    bar.set_prefix(name.to_owned());
    bar
}
