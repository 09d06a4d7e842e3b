//! Which logs are trusted, and how many witnesses must have signed a head: policy files as C2SP
//! tlog-policy has them.

use thiserror::Error;

use crate::merkle::Hash;
use crate::note::{Algorithm, Head, NoteError, SignedNote, VerifierKey};
use crate::succession::Succession;
use crate::witness::time_of;

/// Longest policy file that is read, in bytes: the most lines, with ML-DSA-44 keys.
pub const MAX_POLICY: usize = 512 << 10;
/// Most logs, most witnesses, and most groups of a policy.
pub const MOST: usize = 64;

/// Why a policy file is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("policy file, line {line}: {why}")]
pub struct PolicyError {
    /// The line, from 1; 0: the file as a whole.
    pub line: usize,
    /// What was expected.
    pub why: String,
}

/// Why a checkpoint is not accepted under a policy.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Unaccepted {
    /// It does not read, or no log of the policy has signed it.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// No log of the policy has signed it.
    #[error("no log of the policy has signed the checkpoint")]
    Log,
    /// Too few witnesses have.
    #[error(
        "{signed} of the policy's {of} witnesses have signed the checkpoint: the quorum `{quorum}` \
         is not reached"
    )]
    Quorum {
        /// Witnesses that have signed.
        signed: usize,
        /// Witnesses of the policy.
        of: usize,
        /// Name of the quorum.
        quorum: String,
    },
}

/// A log of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyLog {
    /// Its key.
    pub key: VerifierKey,
    /// Where it can be reached.
    pub url: Option<String>,
}

/// A witness of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyWitness {
    /// What the policy calls it; any bytes.
    pub name: Vec<u8>,
    /// Its key.
    pub key: VerifierKey,
    /// Its submission prefix.
    pub url: Option<String>,
}

/// A group of witnesses, or of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    name: Vec<u8>,
    /// So many of the members have to have signed.
    needs: usize,
    members: Vec<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Witness(usize),
    Group(usize),
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Logs: any of them may have signed a checkpoint.
    pub logs: Vec<PolicyLog>,
    /// Witnesses.
    pub witnesses: Vec<PolicyWitness>,
    /// Each names groups before it only.
    groups: Vec<Group>,
    /// None: no witness is needed.
    quorum: Option<Member>,
}

impl Policy {
    /// Accepts the other keys of its logs, too, as these exchanges say. Up to which head each
    /// counts, [`Succession::verify`] and [`Succession::open_checkpoint`] check.
    pub fn follow(&mut self, succession: &Succession) {
        let mut more = vec![];
        for log in &self.logs {
            for (key, _) in succession.keys(&log.key) {
                more.push(PolicyLog {
                    key,
                    url: log.url.clone(),
                });
            }
        }
        for log in more {
            if !self.logs.iter().any(|known| known.key == log.key) {
                self.logs.push(log);
            }
        }
    }
}

/// A checkpoint that a policy accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Entries.
    pub size: u64,
    /// Root.
    pub root: Hash,
    /// Key of the log.
    pub log: VerifierKey,
    /// Witnesses that have signed, by their names in the policy, and when, in seconds since 1970.
    pub witnessed: Vec<(String, u64)>,
    /// Witnesses of the policy.
    pub of: usize,
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// [`PolicyError`] names the line.
    pub fn parse(file: &[u8]) -> Result<Self, PolicyError> {
        let whole = |why: &str| PolicyError {
            line: 0,
            why: why.to_owned(),
        };
        if file.len() > MAX_POLICY {
            return Err(whole("it is too long"));
        }
        let Some(lines) = file.strip_suffix(b"\n") else {
            return Err(whole("its last line does not end with a line feed"));
        };
        let mut reading = Reading::default();
        for (at, line) in lines.split(|b| *b == b'\n').enumerate() {
            let read = reading.line(line);
            read.map_err(|why| PolicyError { line: at + 1, why })?;
        }
        let quorum = reading.quorum.ok_or_else(|| whole("no quorum line"))?;
        Ok(Self {
            logs: reading.logs,
            witnesses: reading.witnesses,
            groups: reading.groups,
            quorum,
        })
    }

    /// Checks a checkpoint: a log of the policy has signed it, and enough witnesses have.
    ///
    /// # Errors
    /// [`Unaccepted`]. A signature of a witness that the policy names and that does not verify is
    /// an error, also if there are enough others.
    pub fn check(&self, checkpoint: &str) -> Result<Accepted, Unaccepted> {
        let note = SignedNote::parse(checkpoint)?;
        let head = Head::parse(note.text)?;
        let of_origin = |l: &&PolicyLog| l.key.name() == head.origin && note.of(&l.key).is_some();
        let log = self.logs.iter().find(of_origin).ok_or(Unaccepted::Log)?;
        note.verify(&log.key)?;
        let mut times: Vec<Option<u64>> = vec![];
        for witness in &self.witnesses {
            times.push(match note.of(&witness.key) {
                None => None,
                Some(_) => Some(time_of(&note, &witness.key)?),
            });
        }
        let named = self.witnesses.iter().zip(&times);
        let witnessed: Vec<(String, u64)> = named
            .filter_map(|(w, time)| Some((shown(&w.name), (*time)?)))
            .collect();
        if let Some(quorum) = self.quorum
            && !self.reached(quorum, &times)
        {
            return Err(Unaccepted::Quorum {
                signed: witnessed.len(),
                of: self.witnesses.len(),
                quorum: shown(self.name_of(quorum)),
            });
        }
        Ok(Accepted {
            size: head.size,
            root: head.root,
            log: log.key.clone(),
            witnessed,
            of: self.witnesses.len(),
        })
    }

    /// Groups name earlier ones only, and each at most once: this ends.
    fn reached(&self, member: Member, times: &[Option<u64>]) -> bool {
        match member {
            Member::Witness(at) => times.get(at).copied().flatten().is_some(),
            Member::Group(at) => self.groups.get(at).is_some_and(|group| {
                let signed = group.members.iter().filter(|m| self.reached(**m, times));
                signed.count() >= group.needs
            }),
        }
    }

    fn name_of(&self, member: Member) -> &[u8] {
        let name = match member {
            Member::Witness(at) => self.witnesses.get(at).map(|w| &w.name),
            Member::Group(at) => self.groups.get(at).map(|g| &g.name),
        };
        name.map_or(&[], Vec::as_slice)
    }
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[derive(Default)]
struct Reading {
    logs: Vec<PolicyLog>,
    witnesses: Vec<PolicyWitness>,
    groups: Vec<Group>,
    quorum: Option<Option<Member>>,
    /// Members of some group already.
    placed: Vec<Member>,
}

impl Reading {
    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        let allowed = |b: &u8| *b == b'\t' || (*b >= 0x20 && *b != 0x7f);
        if !line.iter().all(allowed) {
            return Err("a control character (lines end with a line feed alone)".into());
        }
        let blank = |b: &u8| *b == b' ' || *b == b'\t';
        let items: Vec<&[u8]> = line.split(blank).filter(|i| !i.is_empty()).collect();
        let Some((first, rest)) = items.split_first() else {
            return Ok(());
        };
        match *first {
            comment if comment.first() == Some(&b'#') => Ok(()),
            b"log" => self.log(rest),
            b"witness" => self.witness(rest),
            b"group" => self.group(rest),
            b"quorum" => self.quorum(rest),
            other => Err(format!(
                "`{}` begins no line: expected log, witness, group or quorum",
                shown(other)
            )),
        }
    }

    fn log(&mut self, items: &[&[u8]]) -> Result<(), String> {
        let (vkey, url) = match items {
            [vkey] => (vkey, None),
            [vkey, url] => (vkey, Some(text(url, "URL")?)),
            _ => return Err("expected log VKEY [URL]".into()),
        };
        let key = key(vkey)?;
        if key.algorithm() != Algorithm::Ed25519 {
            return Err("a log's key is of type 0x01 (Ed25519) here".into());
        }
        if self.logs.iter().any(|l| l.key.public() == key.public()) {
            return Err("another line has this log's key".into());
        }
        room(self.logs.len(), "logs")?;
        self.logs.push(PolicyLog { key, url });
        Ok(())
    }

    fn witness(&mut self, items: &[&[u8]]) -> Result<(), String> {
        let (name, vkey, url) = match items {
            [name, vkey] => (name, vkey, None),
            [name, vkey, url] => (name, vkey, Some(text(url, "URL")?)),
            _ => return Err("expected witness NAME VKEY [URL]".into()),
        };
        self.is_new(name)?;
        let key = key(vkey)?;
        if key.algorithm() == Algorithm::Ed25519 {
            return Err("a witness's key is of type 0x04 (Ed25519) or 0x06 (ML-DSA-44)".into());
        }
        let mut known = self.witnesses.iter();
        if known.any(|w| w.key.public() == key.public()) {
            return Err("another line has this witness's key".into());
        }
        room(self.witnesses.len(), "witnesses")?;
        self.witnesses.push(PolicyWitness {
            name: name.to_vec(),
            key,
            url,
        });
        Ok(())
    }

    fn group(&mut self, items: &[&[u8]]) -> Result<(), String> {
        let [name, needs, members @ ..] = items else {
            return Err("expected group NAME all|any|K NAME...".into());
        };
        self.is_new(name)?;
        if members.is_empty() {
            return Err("a group has a member at least".into());
        }
        let mut found = vec![];
        for member in members {
            let one = self.find(member)?;
            if self.placed.contains(&one) || found.contains(&one) {
                return Err(format!("{} is a member of a group already", shown(member)));
            }
            found.push(one);
        }
        let needs = match *needs {
            b"all" => found.len(),
            b"any" => 1,
            number => std::str::from_utf8(number)
                .ok()
                .and_then(crate::note::decimal)
                .and_then(|k| usize::try_from(k).ok())
                .filter(|k| (1..=found.len()).contains(k))
                .ok_or_else(|| format!("expected all, any, or 1 to {}", found.len()))?,
        };
        room(self.groups.len(), "groups")?;
        self.placed.extend(&found);
        self.groups.push(Group {
            name: name.to_vec(),
            needs,
            members: found,
        });
        Ok(())
    }

    fn quorum(&mut self, items: &[&[u8]]) -> Result<(), String> {
        let [name] = items else {
            return Err("expected quorum NAME".into());
        };
        if self.quorum.is_some() {
            return Err("there is a quorum line already".into());
        }
        self.quorum = Some(match *name {
            b"none" => None,
            name => Some(self.find(name)?),
        });
        Ok(())
    }

    fn find(&self, name: &[u8]) -> Result<Member, String> {
        let witness = self.witnesses.iter().position(|w| w.name == name);
        let group = || self.groups.iter().position(|g| g.name == name);
        let member = witness
            .map(Member::Witness)
            .or_else(|| group().map(Member::Group));
        member.ok_or_else(|| format!("no line before this one defines {}", shown(name)))
    }

    fn is_new(&self, name: &[u8]) -> Result<(), String> {
        if name == b"none" {
            return Err("`none` is no name".into());
        }
        match self.find(name) {
            Ok(_) => Err(format!("{} is defined already", shown(name))),
            Err(_) => Ok(()),
        }
    }
}

fn text(bytes: &[u8], what: &str) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| format!("the {what} is not UTF-8"))
}

fn key(bytes: &[u8]) -> Result<VerifierKey, String> {
    let text = text(bytes, "key")?;
    VerifierKey::parse(&text)
        .map_err(|_| "a key is not NAME+ID+BASE64, as C2SP signed-note has it".into())
}

fn room(have: usize, what: &str) -> Result<(), String> {
    match have < MOST {
        true => Ok(()),
        false => Err(format!("more than {MOST} {what}")),
    }
}

#[cfg(test)]
mod tests;
