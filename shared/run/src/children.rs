//! Processes that end with this one, also when a signal ends it.

use std::io::Read;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long a child may take to end when it is told to.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// All that run now.
static CHILDREN: Mutex<Vec<Weak<Mutex<Child>>>> = Mutex::new(vec![]);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process that ends when this is dropped, or when a signal ends this process.
#[derive(Debug)]
pub struct Running {
    child: Arc<Mutex<Child>>,
    id: u32,
}

impl Running {
    /// Starts a process.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> std::io::Result<Self> {
        // Under the lock: no child is started that a signal's handler does not see.
        let mut all = lock(&CHILDREN);
        let child = command.spawn()?;
        let id = child.id();
        let child = Arc::new(Mutex::new(child));
        all.retain(|c| c.strong_count() > 0);
        all.push(Arc::downgrade(&child));
        Ok(Self { child, id })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Takes its standard input, if that is a pipe and was not taken yet.
    pub fn take_stdin(&self) -> Option<ChildStdin> {
        lock(&self.child).stdin.take()
    }

    /// Takes its standard output, as above.
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        lock(&self.child).stdout.take()
    }

    /// How it ended; `None`: it runs.
    ///
    /// # Errors
    /// The system does not say.
    pub fn try_wait(&self) -> std::io::Result<Option<ExitStatus>> {
        lock(&self.child).try_wait()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The system does not say.
    pub fn wait(&self) -> std::io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(std::slice::from_ref(&self.child), false);
    }
}

/// Runs a process to its end, and returns what it said.
///
/// # Errors
/// It cannot be started, or its output not be read.
pub fn output(command: &mut Command) -> std::io::Result<Output> {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = Running::start(command)?;
    let err = lock(&running.child).stderr.take();
    let errors = std::thread::spawn(move || read(err));
    let stdout = read(running.take_stdout())?;
    let stderr = errors.join().unwrap_or_else(|_| Ok(vec![]))?;
    Ok(Output {
        status: running.wait()?,
        stdout,
        stderr,
    })
}

fn read(from: Option<impl Read>) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![];
    if let Some(mut from) = from {
        from.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Closes the inputs, which ends those that were started to end with their parent; with `tell` all
/// are told by a signal, too. Who does not end in time is killed.
fn end(children: &[Arc<Mutex<Child>>], tell: bool) {
    for child in children {
        let mut child = lock(child);
        child.stdin = None;
        if tell && matches!(child.try_wait(), Ok(None)) {
            terminate(&child);
        }
    }
    let began = Instant::now();
    let runs = |c: &Arc<Mutex<Child>>| matches!(lock(c).try_wait(), Ok(None));
    while children.iter().any(runs) && began.elapsed() < PATIENCE {
        std::thread::sleep(LOOK);
    }
    for child in children.iter().filter(|c| runs(c)) {
        let mut child = lock(child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Tells a process, or the group that it leads, to end.
#[cfg(unix)]
fn terminate(child: &Child) {
    use rustix::process::{Pid, Signal, getpgid, kill_process, kill_process_group};
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return;
    };
    let leads = getpgid(Some(pid)).is_ok_and(|group| group == pid);
    let _ = match leads {
        true => kill_process_group(pid, Signal::TERM),
        false => kill_process(pid, Signal::TERM),
    };
}

#[cfg(not(unix))]
fn terminate(child: &Child) {
    let _ = child.id();
}

/// Ends all of them: before this process ends. None is started after it.
pub(crate) fn end_all() {
    let all = lock(&CHILDREN);
    let running: Vec<Arc<Mutex<Child>>> = all.iter().filter_map(Weak::upgrade).collect();
    end(&running, true);
    // Held for ever: the process ends.
    std::mem::forget(all);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_child_ends_when_it_is_dropped() {
        let running = Running::start(Command::new("sleep").arg("60")).unwrap();
        let proc = format!("/proc/{}", running.id());
        let began = Instant::now();
        drop(running);
        assert!(began.elapsed() < Duration::from_secs(20));
        assert!(!std::path::Path::new(&proc).exists());
    }

    #[cfg(unix)]
    #[test]
    fn output_is_both_streams_and_the_status() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let out = output(&mut command).unwrap();
        assert_eq!(out.status.code(), Some(3));
        assert_eq!(out.stdout, b"out\n");
        assert_eq!(out.stderr, b"err\n");
    }
}
