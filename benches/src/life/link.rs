//! The way to the server: a process that is asked, killed and started again. Tests have the server
//! in their own process.

use std::io::{BufReader, BufWriter};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use lethe_benches::cpu_seconds_of;

use super::server::{Answer, Answered, Asked, Place, Server, receive, send};

/// The server, where it is, and what it has cost.
pub(crate) struct Link {
    pub(crate) place: Place,
    to: To,
    /// Processor seconds of processes that have ended.
    spent: f64,
    pub(crate) starts: u32,
    pub(crate) kills: u32,
    /// Kills that came before the answer.
    pub(crate) cut: u32,
}

enum To {
    Process(Process),
    /// In this process; none: between two lives.
    Here(Option<Box<Server>>),
}

struct Process {
    child: Child,
    to: Option<BufWriter<ChildStdin>>,
    from: BufReader<ChildStdout>,
}

impl Process {
    fn start(place: &Place) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let mut child = Command::new(program)
            .arg("--serve")
            .arg(serde_json::to_string(place)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the server")?;
        let to = child.stdin.take().context("a pipe")?;
        let from = child.stdout.take().context("a pipe")?;
        let mut process = Self {
            child,
            to: Some(BufWriter::new(to)),
            from: BufReader::new(from),
        };
        process.read()?.context("the server did not start")?;
        Ok(process)
    }

    fn ask(&mut self, asked: &Asked) -> anyhow::Result<()> {
        let to = self.to.as_mut().context("the server was told to end")?;
        send(to, asked, &[])
    }

    /// None: it is gone.
    fn read(&mut self) -> anyhow::Result<Option<Answered>> {
        let Some(message) = receive(&mut self.from)? else {
            return Ok(None);
        };
        let answer: Answer = serde_json::from_slice(&message.head)?;
        Ok(Some(Answered {
            answer,
            snapshot: message.body,
        }))
    }

    fn cpu(&self) -> f64 {
        cpu_seconds_of(&self.child.id().to_string()).unwrap_or(0.0)
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.to = None;
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Whatever went wrong, nothing of it stays.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Link {
    /// Starts a server; `apart`: in a process of its own.
    pub(crate) fn new(place: Place, apart: bool) -> anyhow::Result<Self> {
        let to = match apart {
            true => To::Process(Process::start(&place)?),
            false => To::Here(Some(Box::new(Server::open(&place)?))),
        };
        Ok(Self {
            place,
            to,
            spent: 0.0,
            starts: 1,
            kills: 0,
            cut: 0,
        })
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask(&mut self, asked: &Asked) -> anyhow::Result<Answered> {
        let answered = match &mut self.to {
            To::Here(server) => server.as_ref().map(|s| s.answer(asked)),
            To::Process(process) => {
                process.ask(asked)?;
                process.read()?
            }
        };
        let answered = answered.context("the server is gone")?;
        match &answered.answer.error {
            None => Ok(answered),
            Some(why) => bail!("{:?}: {why}", asked.ask),
        }
    }

    /// Asks, kills the process after a while, starts it again, and asks again: what a device or an
    /// operator does who has got no answer.
    pub(crate) fn ask_and_kill(
        &mut self,
        asked: &Asked,
        after: Duration,
    ) -> anyhow::Result<Answered> {
        self.place.now = asked.now;
        self.kills += 1;
        match &mut self.to {
            To::Here(server) => {
                self.cut += 1;
                *server = None;
                *server = Some(Box::new(Server::open(&self.place)?));
            }
            To::Process(process) => {
                process.ask(asked)?;
                std::thread::sleep(after);
                self.spent += process.cpu();
                process.child.kill()?;
                process.child.wait()?;
                self.cut += u32::from(process.read()?.is_none());
                *process = Process::start(&self.place)?;
            }
        }
        self.starts += 1;
        self.ask(asked)
    }

    /// Ends the process in order, and starts it with what `place` says now.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        // The folder has one owner: the next opens it when this one is gone.
        let before = std::mem::replace(&mut self.to, To::Here(None));
        let apart = match before {
            To::Here(server) => {
                drop(server);
                false
            }
            To::Process(process) => {
                self.spent += process.cpu();
                process.end()?;
                true
            }
        };
        self.to = match apart {
            true => To::Process(Process::start(&self.place)?),
            false => To::Here(Some(Box::new(Server::open(&self.place)?))),
        };
        self.starts += 1;
        Ok(())
    }

    /// Processor seconds of the server so far; 0 in a test.
    pub(crate) fn cpu(&self) -> f64 {
        match &self.to {
            To::Here(_) => 0.0,
            To::Process(process) => self.spent + process.cpu(),
        }
    }

    /// Memory that the process holds now, in bytes; 0 in a test, and where the system does not
    /// tell.
    pub(crate) fn memory(&self) -> u64 {
        let To::Process(process) = &self.to else {
            return 0;
        };
        let status = format!("/proc/{}/status", process.child.id());
        let text = std::fs::read_to_string(status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }
}
