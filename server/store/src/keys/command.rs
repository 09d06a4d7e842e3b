//! Secrets behind a command: a vault, a hardware token, the system's keyring.
//!
//! `get NAME` prints the secret in base64 (one line), or ends with code 3: there is none. `put
//! NAME` reads it from standard input, in base64. `destroy NAME` destroys it. `list` prints names,
//! one a line. Code 0 is success, everything else a failure. Nothing secret is on a command line.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::{KeySource, LONGEST, check_name};
use crate::StoreError;

/// Longest wait for one call.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(5);
/// How long its output may stay open after its end.
const LEFT: Duration = Duration::from_secs(5);
/// Longest output, in bytes: a secret in base64, or names.
const MOST: u64 = 1 << 20;
/// Code with which `get` says that there is no such secret.
const NONE: i32 = 3;
/// The longest complaint that is repeated, in characters.
const COMPLAINT: usize = 300;

/// The command.
#[derive(Debug)]
pub(super) struct Command {
    program: String,
    arguments: Vec<String>,
}

/// How a call ended.
struct Ended {
    code: Option<i32>,
    out: Zeroizing<Vec<u8>>,
    complaint: String,
}

impl Command {
    pub(super) fn new(command: &[String]) -> Result<Self, StoreError> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(StoreError::Keys {
                place: "the table [keys]".into(),
                why: "command is empty".into(),
            });
        };
        Ok(Self {
            program: program.clone(),
            arguments: arguments.to_vec(),
        })
    }

    fn failed(&self, call: &[&str], why: impl std::fmt::Display) -> StoreError {
        StoreError::Keys {
            place: format!("the command {}", self.program),
            why: format!("`{}`: {why}", call.join(" ")),
        }
    }

    fn call(&self, call: &[&str], input: Option<&[u8]>) -> Result<Ended, StoreError> {
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.arguments).args(call);
        command.stdin(match input {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| self.failed(call, e))?;
        let given = input.map(|bytes| Zeroizing::new(bytes.to_vec()));
        let stdin = child.stdin.take();
        std::thread::spawn(move || {
            if let Some((mut to, bytes)) = stdin.zip(given) {
                // Whoever does not read it to its end says so with its code.
                let _ = to.write_all(&bytes);
            }
        });
        let out = reads(child.stdout.take());
        let complaint = reads(child.stderr.take());
        let code = self.wait(&mut child, call)?;
        // A process that the program has left behind may hold its output open.
        let late = |_| self.failed(call, "its output is still open, though it has ended");
        let out = out.recv_timeout(LEFT).map_err(late)?;
        let complaint = complaint.recv_timeout(LEFT).map_err(late)?;
        if out.len() as u64 > MOST {
            return Err(self.failed(call, format!("more than {MOST} bytes of output")));
        }
        let complaint = String::from_utf8_lossy(&complaint);
        let shown = complaint.trim().chars().filter(|c| !c.is_control());
        Ok(Ended {
            code,
            out,
            complaint: shown.take(COMPLAINT).collect(),
        })
    }

    fn wait(&self, child: &mut Child, call: &[&str]) -> Result<Option<i32>, StoreError> {
        let began = Instant::now();
        loop {
            match child.try_wait().map_err(|e| self.failed(call, e))? {
                Some(status) => return Ok(status.code()),
                None if began.elapsed() > PATIENCE => {
                    let _ = child.kill();
                    let _ = child.wait();
                    let why = format!("no end within {} s", PATIENCE.as_secs());
                    return Err(self.failed(call, why));
                }
                None => std::thread::sleep(LOOK),
            }
        }
    }

    /// The output of a call that has to succeed.
    fn done(&self, call: &[&str], input: Option<&[u8]>) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let ended = self.call(call, input)?;
        match ended.code {
            Some(0) => Ok(ended.out),
            code => Err(self.failed(call, ending(code, &ended.complaint))),
        }
    }
}

fn ending(code: Option<i32>, complaint: &str) -> String {
    let code = code.map_or("a signal".into(), |c| format!("code {c}"));
    match complaint {
        "" => format!("it ended with {code}"),
        said => format!("it ended with {code}: {said}"),
    }
}

/// Reads to the end, or to one byte more than may be.
fn reads(from: Option<impl Read + Send + 'static>) -> Receiver<Zeroizing<Vec<u8>>> {
    let (done, read) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Zeroizing::new(Vec::with_capacity(64 << 10));
        if let Some(from) = from {
            let _ = from.take(MOST + 1).read_to_end(&mut bytes);
        }
        let _ = done.send(bytes);
    });
    read
}

impl KeySource for Command {
    fn get(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let call = ["get", name];
        let ended = self.call(&call, None)?;
        match ended.code {
            Some(0) => {}
            Some(NONE) => return Ok(None),
            code => return Err(self.failed(&call, ending(code, &ended.complaint))),
        }
        let text = ended.out.trim_ascii();
        let secret = STANDARD.decode(text).map(Zeroizing::new);
        let secret = secret.map_err(|_| {
            self.failed(&call, "expected the secret in base64 on one line of output")
        })?;
        if secret.is_empty() || secret.len() > LONGEST {
            let why = format!("{} bytes, expected 1 to {LONGEST}", secret.len());
            return Err(self.failed(&call, why));
        }
        Ok(Some(secret))
    }

    fn put(&self, name: &str, secret: &[u8]) -> Result<(), StoreError> {
        let mut text = Zeroizing::new(String::with_capacity(secret.len() * 4 / 3 + 8));
        STANDARD.encode_string(secret, &mut text);
        text.push('\n');
        self.done(&["put", name], Some(text.as_bytes()))?;
        // What is not kept cannot be made again: nothing is sealed under it before that is known.
        match self.get(name)? {
            Some(kept) if *kept == secret => Ok(()),
            _ => Err(self.failed(&["put", name], "`get` gives another secret, or none")),
        }
    }

    fn destroy(&self, name: &str) -> Result<(), StoreError> {
        self.done(&["destroy", name], None)?;
        match self.get(name)? {
            None => Ok(()),
            Some(_) => Err(self.failed(&["destroy", name], "`get` still gives the secret")),
        }
    }

    fn list(&self) -> Result<Vec<String>, StoreError> {
        let out = self.done(&["list"], None)?;
        let text = std::str::from_utf8(&out).unwrap_or_default();
        let names = text
            .lines()
            .map(str::trim)
            .filter(|n| check_name(n).is_ok());
        Ok(names.map(str::to_owned).collect())
    }
}
