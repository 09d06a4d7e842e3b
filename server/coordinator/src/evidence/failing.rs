//! Evidence files that cannot be written, for tests. A fault is of the thread that writes.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use lethe_store::StoreError;
use lethe_store::head::Floor;
use lethe_store::logfile::LogFile;

/// How the next files fail.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failing {
    /// Writes that still work, and whether the one that fails is in the file all the same: whoever
    /// opens the file again finds it, and the next write of whoever has it open is in its place.
    pub(crate) next: Option<(u32, bool)>,
    /// As long as this file holds space, there is none for others.
    pub(crate) full: Option<PathBuf>,
    /// Writes that have failed.
    pub(crate) failed: u64,
}

thread_local! {
    static FAILING: RefCell<Failing> = RefCell::default();
}

/// Changes what fails on this thread.
pub(crate) fn with<T>(change: impl FnOnce(&mut Failing) -> T) -> T {
    FAILING.with_borrow_mut(change)
}

/// Whether a write fails now; and if so, whether it is there.
fn fails() -> Option<bool> {
    with(|f| {
        let no_space = f.full.as_ref().is_some_and(|path| path.exists());
        let fails = match f.next {
            _ if no_space => Some(false),
            Some((0, written)) => {
                f.next = None;
                Some(written)
            }
            Some((after, written)) => {
                f.next = Some((after - 1, written));
                None
            }
            None => None,
        };
        f.failed += u64::from(fails.is_some());
        fails
    })
}

fn failed() -> StoreError {
    StoreError::Backend("a simulated file cannot be written".into())
}

/// Before an entry is appended to a file.
pub(super) fn append(path: &Path, entry: &[u8]) -> Result<(), StoreError> {
    let Some(written) = fails() else {
        return Ok(());
    };
    if written {
        LogFile::open(path)?.append(entry)?;
    }
    Err(failed())
}

/// Before a floor is raised.
pub(super) fn set(path: &Path, number: u64) -> Result<(), StoreError> {
    let Some(written) = fails() else {
        return Ok(());
    };
    if written {
        Floor::open(path)?.0.set(number)?;
    }
    Err(failed())
}
