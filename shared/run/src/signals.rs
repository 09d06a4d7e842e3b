//! What signals do to a program that has children and temporary files.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::ending::Signals;

/// Whether a signal has come.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Waits for the process's end, if a signal has come: what fails because children were ended is not
/// said, and does not decide the exit code.
pub fn settle() {
    while ENDING.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP end this process so that nothing is left: children are
/// told to end and waited for, temporary folders removed, files that are being written finished.
/// The exit code is 128 and the signal's number. A second signal ends it at once.
///
/// A SIGHUP that is ignored when the process starts (`nohup`) stays so.
///
/// # Errors
/// The system does not tell of signals.
pub fn end_cleanly() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (ready, listening) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime.block_on(async {
            let mut signals = match Signals::new() {
                Ok(signals) => signals,
                Err(e) => return drop(ready.send(Err(e))),
            };
            let _ = ready.send(Ok(()));
            let first = signals.next().await;
            ENDING.store(true, Ordering::Release);
            let _ = writeln!(std::io::stderr(), "{first}: ending");
            std::thread::spawn(move || {
                crate::children::end_all();
                crate::files::clear();
                std::process::exit(first.code());
            });
            let second = signals.next().await;
            std::process::exit(second.code());
        });
    });
    listening.recv().unwrap_or(Ok(()))
}
