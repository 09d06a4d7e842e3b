//! What a process that holds keys asks of the system.

use std::io;

/// No core dump of this process is written, and no other process of the same user may read its
/// memory: keys that are destroyed would be in a file otherwise, or could be read before. It does
/// not reach what the system swaps out, or keeps when it hibernates.
///
/// # Errors
/// The system refuses.
#[cfg(unix)]
pub fn no_dumps() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}

/// Nothing is known to be asked of this system.
///
/// # Errors
/// Never.
#[cfg(not(unix))]
pub fn no_dumps() -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};

    #[test]
    fn m6_no_core_is_dumped_and_nobody_else_reads_the_memory() {
        super::no_dumps().expect("the system agrees");
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
        let now = dumpable_behavior().expect("can be asked");
        assert_eq!(now, DumpableBehavior::NotDumpable);
        super::no_dumps().expect("may be repeated");
    }
}
