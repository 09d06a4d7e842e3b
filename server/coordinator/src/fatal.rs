//! The end of the process, when going on would be worse: a supervisor starts it again, and it goes
//! on from the store, which holds all that was acknowledged.

use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Exit code of a process that ended itself (`EX_SOFTWARE` of sysexits.h).
pub(crate) const EXIT: i32 = 70;

/// Ends the process. No core dump is written: it would hold keys.
pub(crate) fn broken(what: &str) -> ! {
    tracing::error!("{what}: this process ends; start it again, it goes on from the store");
    std::process::exit(EXIT)
}

/// Runs a thread's work; a panic ends the process.
pub(crate) fn guarded(what: &'static str, work: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
        broken(&format!("a panic in {what}"));
    }
}

/// Locks, or ends the process: a panic under the lock has left what it guards half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|_| broken("a panic left the coordinator's state half changed"))
}

/// Locks with others, or ends the process.
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read()
        .unwrap_or_else(|_| broken("a panic left the coordinator's state half changed"))
}

/// Locks alone, or ends the process.
pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write()
        .unwrap_or_else(|_| broken("a panic left the coordinator's state half changed"))
}

/// Ends the process when a background task panics.
pub(crate) fn watch(what: &'static str, task: tokio::task::JoinHandle<()>) {
    tokio::spawn(async move {
        if task.await.is_err_and(|e| e.is_panic()) {
            broken(&format!("a panic in {what}"));
        }
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    /// Which fault the process of this test is to have.
    const FAULT: &str = "LETHE_TEST_FAULT";

    fn has_fault(name: &str) -> bool {
        std::env::var_os(FAULT).is_some_and(|f| f == name)
    }

    /// Runs a test of this file again, in a process of its own, with a fault.
    fn process_with(fault: &str, test: &str) -> Option<i32> {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let output = again
            .args(["--exact", &format!("fatal::tests::{test}")])
            .env(FAULT, fault)
            .output();
        output.unwrap().status.code()
    }

    #[test]
    fn a_poisoned_lock_ends_the_process() {
        if has_fault("lock") {
            let state = Mutex::new(0);
            let panics = || {
                let _guard = lock(&state);
                panic!("under the lock");
            };
            std::thread::scope(|s| drop(s.spawn(panics).join()));
            drop(lock(&state));
            return;
        }
        let test = "a_poisoned_lock_ends_the_process";
        assert_eq!(process_with("lock", test), Some(EXIT));
    }

    #[test]
    fn a_panic_in_a_timer_or_a_thread_ends_the_process() {
        let wait = std::time::Duration::from_secs(5);
        if has_fault("timer") {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                watch("the timer", tokio::spawn(async { panic!("in the timer") }));
                tokio::time::sleep(wait).await;
            });
            return;
        }
        if has_fault("thread") {
            let work = || guarded("a thread", || panic!("in the thread"));
            let _ = std::thread::spawn(work).join();
            return;
        }
        let test = "a_panic_in_a_timer_or_a_thread_ends_the_process";
        for fault in ["timer", "thread"] {
            assert_eq!(process_with(fault, test), Some(EXIT), "{fault}");
        }
    }
}
