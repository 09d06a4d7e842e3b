//! When a process that serves is to end.

use std::fmt;

/// Why a process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGINT: somebody at the terminal.
    Interrupted,
    /// SIGTERM: a supervisor, usually.
    Terminated,
    /// SIGHUP: the terminal is gone.
    HungUp,
    /// Standard input was closed: the parent is gone.
    ParentGone,
}

impl Ending {
    /// What a process that is ended by it exits with: 128 and the signal's number. A parent that is
    /// gone counts as SIGTERM.
    pub fn code(self) -> i32 {
        match self {
            Self::HungUp => 129,
            Self::Interrupted => 130,
            Self::Terminated | Self::ParentGone => 143,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupted => "SIGINT",
            Self::Terminated => "SIGTERM",
            Self::HungUp => "SIGHUP",
            Self::ParentGone => "standard input was closed",
        })
    }
}

/// Listens for what ends a process: from [`Self::listen`] on no signal kills it unasked.
pub struct Endings(Signals);

impl fmt::Debug for Endings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Endings")
    }
}

impl Endings {
    /// Begins to listen, in a runtime of tokio's.
    ///
    /// A SIGHUP that is ignored when the process starts (`nohup`) stays so.
    ///
    /// # Errors
    /// The system does not tell of signals.
    pub fn listen() -> std::io::Result<Self> {
        Signals::new().map(Self)
    }

    /// Waits until the process is interrupted, terminated or hung up or, `with_parent`, until its
    /// standard input closes: a parent that ends leaves nothing running. From then on another
    /// signal ends the process at once.
    pub async fn first(mut self, with_parent: bool) -> Ending {
        let parent_gone = async {
            if !with_parent {
                return std::future::pending().await;
            }
            // A plain thread: tokio's standard input would keep the runtime from ending.
            let (send, receive) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                let _ = send.send(());
            });
            let _ = receive.await;
        };
        let why = tokio::select! {
            () = parent_gone => Ending::ParentGone,
            signal = self.0.next() => signal,
        };
        // A thread of its own: the runtime is about to end.
        std::thread::spawn(again);
        why
    }
}

/// Ends the process at the next signal.
fn again() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else {
        return;
    };
    let next = runtime.block_on(async { Some(Signals::new().ok()?.next().await) });
    if let Some(ending) = next {
        std::process::exit(ending.code());
    }
}

/// Signals that end processes.
#[cfg(unix)]
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Signals {
    pub(crate) fn new() -> std::io::Result<Self> {
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

    pub(crate) async fn next(&mut self) -> Ending {
        let hangup = async {
            match &mut self.hangup {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Ending::Interrupted,
            _ = self.terminate.recv() => Ending::Terminated,
            _ = hangup => Ending::HungUp,
        }
    }
}

/// Whether the process was started so that it ignores SIGHUP. Linux tells; elsewhere, and once a
/// handler is there, it is not ignored.
#[cfg(unix)]
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok());
    mask.is_some_and(|m| m & 1 == 1)
}

/// Elsewhere there is an interruption only.
#[cfg(not(unix))]
pub(crate) struct Signals;

#[cfg(not(unix))]
impl Signals {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    pub(crate) async fn next(&mut self) -> Ending {
        match tokio::signal::ctrl_c().await {
            Ok(()) => Ending::Interrupted,
            Err(_) => std::future::pending().await,
        }
    }
}
