//! What signals do to a program that has children and temporary files.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
#[cfg(unix)]
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
            let name = first.name;
            let _ = writeln!(std::io::stderr(), "{name}: ending");
            std::thread::spawn(move || {
                crate::children::end_all();
                crate::files::clear();
                std::process::exit(128 + first.number);
            });
            let second = signals.next().await;
            std::process::exit(128 + second.number);
        });
    });
    listening.recv().unwrap_or(Ok(()))
}

/// Elsewhere the system's way has to do.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn end_cleanly() -> std::io::Result<()> {
    let _ = std::io::stderr().flush();
    Ok(())
}

/// A signal that ends processes.
#[cfg(unix)]
#[derive(Clone, Copy)]
struct Ending {
    name: &'static str,
    number: i32,
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: match is_hangup_ignored() {
                true => None,
                false => Some(signal(SignalKind::hangup())?),
            },
        })
    }

    async fn next(&mut self) -> Ending {
        let hangup = async {
            match &mut self.hangup {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Ending { name: "SIGINT", number: 2 },
            _ = self.terminate.recv() => Ending { name: "SIGTERM", number: 15 },
            _ = hangup => Ending { name: "SIGHUP", number: 1 },
        }
    }
}

/// Whether this process was started so that it ignores SIGHUP (Linux; elsewhere it is not known).
pub fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok());
    mask.is_some_and(|m| m & 1 == 1)
}
