//! When a device works for others: what must hold, how much memory, and how to stop it.

use std::fmt;
use std::sync::Arc;

use lethe_model::ModelError;
use thiserror::Error;
use tokio::sync::watch;

/// What the device is doing, as the app knows it from the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Nobody uses it.
    pub idle: bool,
    /// It has power.
    pub charging: bool,
    /// Its network costs nothing.
    pub unmetered: bool,
    /// It is not hot (Android: below `THERMAL_STATUS_MODERATE`; iOS: `nominal` or `fair`).
    pub cool: bool,
}

impl Conditions {
    /// Everything holds.
    pub const ALL: Self = Self {
        idle: true,
        charging: true,
        unmetered: true,
        cool: true,
    };

    fn meets(self, required: Self) -> bool {
        let fine = |is: bool, must: bool| is || !must;
        fine(self.idle, required.idle)
            && fine(self.charging, required.charging)
            && fine(self.unmetered, required.unmetered)
            && fine(self.cool, required.cool)
    }
}

/// Why training stopped before its end.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Stopped {
    /// The app's conditions do not hold any more.
    #[error("the conditions under which this device trains do not hold: {0:?}")]
    Conditions(Conditions),
    /// [`Canceller::cancel`] was called, or the future was dropped.
    #[error("training was cancelled")]
    Cancelled,
}

type Ask = Arc<dyn Fn() -> Conditions + Send + Sync>;

/// What must hold while a client trains.
#[derive(Clone)]
pub(crate) struct Guard {
    required: Conditions,
    now: Ask,
    /// How often it was cancelled.
    cancelled: watch::Sender<u64>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({:?})", self.required)
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self::new(Conditions::ALL, Arc::new(|| Conditions::ALL))
    }
}

impl Guard {
    pub(crate) fn new(required: Conditions, now: Ask) -> Self {
        Self {
            required,
            now,
            cancelled: watch::Sender::new(0),
        }
    }

    /// The same conditions for another client: it is cancelled by itself.
    pub(crate) fn for_another(&self) -> Self {
        Self::new(self.required, self.now.clone())
    }

    /// Whether a task may be taken now.
    pub(crate) fn allows(&self) -> Result<(), Stopped> {
        let now = (self.now)();
        if now.meets(self.required) {
            Ok(())
        } else {
            Err(Stopped::Conditions(now))
        }
    }

    /// What the device is doing now.
    pub(crate) fn now(&self) -> Conditions {
        (self.now)()
    }

    /// Watches one task from here on.
    pub(crate) fn watch(&self) -> Watch {
        let cancelled = self.cancelled.subscribe();
        let at = *cancelled.borrow();
        Watch {
            guard: self.clone(),
            cancelled,
            at,
        }
    }

    pub(crate) fn canceller(&self) -> Canceller {
        Canceller(self.cancelled.clone())
    }
}

/// One task under its guard.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    guard: Guard,
    cancelled: watch::Receiver<u64>,
    at: u64,
}

impl Watch {
    /// Asked before every pass.
    pub(crate) fn check(&self) -> Result<(), Stopped> {
        if *self.cancelled.borrow() != self.at {
            return Err(Stopped::Cancelled);
        }
        self.guard.allows()
    }

    /// The same, as the engine's passes report errors.
    pub(crate) fn pass(&self) -> Result<(), ModelError> {
        self.check().map_err(|e| ModelError::Middle(Box::new(e)))
    }

    /// Ends when the task is cancelled.
    pub(crate) async fn ended(&self) -> Stopped {
        let (mut cancelled, at) = (self.cancelled.clone(), self.at);
        // The sender lives as long as the guard that this holds.
        let _ = cancelled.wait_for(|n| *n != at).await;
        Stopped::Cancelled
    }

    /// Cancels the task when dropped: work on another thread must not go on when nobody waits for
    /// it.
    pub(crate) fn until_dropped(&self) -> impl Drop + use<> {
        struct OnDrop(Canceller);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.cancel();
            }
        }
        OnDrop(self.guard.canceller())
    }
}

/// Stops a client's training from anywhere; the client stays usable.
#[derive(Clone, Debug)]
pub struct Canceller(watch::Sender<u64>);

impl Canceller {
    /// Stops what is being trained now, at the next pass or message. The coordinator is told that
    /// nobody needs to wait.
    pub fn cancel(&self) {
        self.0.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_required_counts() {
        let cold_phone = Conditions {
            idle: false,
            charging: false,
            ..Conditions::ALL
        };
        assert!(!cold_phone.meets(Conditions::ALL));
        assert!(cold_phone.meets(Conditions {
            idle: false,
            charging: false,
            ..Conditions::ALL
        }));
    }

    #[test]
    fn a_cancel_ends_what_began_before_it() {
        let guard = Guard::default();
        let early = guard.watch();
        assert_eq!(early.check(), Ok(()));
        guard.canceller().cancel();
        assert_eq!(early.check(), Err(Stopped::Cancelled));
        assert_eq!(
            guard.watch().check(),
            Ok(()),
            "the next task is another one"
        );
        drop(early.until_dropped());
    }
}
