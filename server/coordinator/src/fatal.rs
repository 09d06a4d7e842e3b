//! The end of the process, when going on would be worse: a supervisor starts it again, and it goes
//! on from the store, which holds all that was acknowledged.

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
