//! What a week has come to, and what is on disk.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use lethe_proto::admin::DeletionPhase;
use lethe_receipt::receipt::verify;
use serde::Serialize;

use super::Year;

/// Bytes of all files, by what they are for.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Folder {
    /// The main database of the coordinator, and its copy: the ledger with receipts.
    pub ledger: u64,
    /// Databases of the shards of epochs that are alive: updates, checkpoints.
    pub shards: u64,
    /// The coordinator's keys.
    pub keys: u64,
    /// The tally's folder: contributions, sums, snapshots, its keys.
    pub tally: u64,
    /// The transparency log and its files for auditors. It only grows.
    pub log: u64,
    /// The journal of deletions. It only grows.
    pub journal: u64,
    /// Everything else: counts, locks, space that is set aside.
    pub other: u64,
}

impl Folder {
    /// All of it.
    pub fn all(&self) -> u64 {
        self.ledger + self.shards + self.keys + self.tally + self.log + self.journal + self.other
    }
}

/// What the coordinator's records hold, decrypted: bytes by table.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Records(
    /// Table and kind of record; how many, and bytes in all.
    pub BTreeMap<String, (u64, u64)>,
);

/// A week. Times on the processor's clock are in `exact_s` and nowhere else; bytes of files depend
/// on when the database engine writes.
#[derive(Clone, Debug, Serialize)]
pub struct Week {
    /// Days lived when it ended.
    pub day: u64,
    /// People with an app.
    pub people: usize,
    /// Epochs that were founded so far.
    pub epochs: u64,
    /// The epoch that is served; 0: none yet.
    pub serving: u64,
    /// Epochs whose keys are destroyed.
    pub retired: usize,
    /// Number of the newest release of adapters.
    pub releases: u64,
    /// Snapshots of lists in this week.
    pub snapshots: u64,
    /// People who count in lists.
    pub counting: usize,
    /// People whose contributions wait for a cell.
    pub waiting: usize,
    /// Version of the catalogue.
    pub catalogue: u32,
    /// Entries of the log.
    pub entries: u64,
    /// Requests of devices in this week that were not only polls.
    pub requests: u64,
    /// Updates of rounds.
    pub updates: u64,
    /// Joins of an epoch.
    pub joins: u64,
    /// Contributions to lists.
    pub contributions: u64,
    /// What people asked for, and how often.
    pub asked: BTreeMap<&'static str, u64>,
    /// Those who came back, were lifted, or contribute again.
    pub returned: u64,
    /// Real seconds from each request until what is served was free of the data.
    pub exact_s: Vec<f64>,
    /// Virtual seconds until everything was trained and released again, of those that came to their
    /// end.
    pub whole_s: Vec<f64>,
    /// Deletions that have not come to their end.
    pub open: usize,
    /// Receipts that were issued and verified so far.
    pub receipts: u64,
    /// On disk.
    pub folder: Folder,
}

/// Bytes of all files under a folder.
fn bytes(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map_or(0, |m| m.len());
    };
    entries.flatten().map(|e| bytes(&e.path())).sum()
}

impl Year {
    fn folder(&self) -> anyhow::Result<Folder> {
        let mut out = Folder::default();
        let data = &self.config.data_dir;
        for entry in std::fs::read_dir(data)? {
            let path = entry?.path();
            let n = bytes(&path);
            let part = match path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default()
            {
                "db" | "db-copy" => &mut out.ledger,
                "shards" => &mut out.shards,
                "tally" => &mut out.tally,
                _ => &mut out.other,
            };
            *part += n;
        }
        out.keys += bytes(&self.config.keys_dir());
        for entry in std::fs::read_dir(self.config.evidence())? {
            let path = entry?.path();
            let n = bytes(&path);
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            let part = match name {
                name if name.starts_with("journal") => &mut out.journal,
                "releases" | "snapshots" | "lock-evidence" => &mut out.other,
                _ => &mut out.log,
            };
            *part += n;
        }
        Ok(out)
    }

    /// What the coordinator's records hold now. It reads all of them.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn records(&self) -> anyhow::Result<Records> {
        let mut out = Records::default();
        self.shell.store().each(|_, table, key, value| {
            // Slices of one table are told apart by how their names begin.
            let kind = match (table, key.split_once('/')) {
                ("slices-public" | "slices-evidence", Some((kind, _))) => format!("{table} {kind}"),
                ("slices-public", None) => format!("{table} {key}"),
                _ => table.to_owned(),
            };
            let (count, bytes) = out.0.entry(kind).or_default();
            *count += 1;
            *bytes += value.len() as u64;
        })?;
        Ok(out)
    }

    /// Deletions that came to their end have a receipt that verifies.
    pub(super) fn check_receipts(&mut self) -> anyhow::Result<()> {
        let mut done = vec![];
        for id in &self.open {
            let (at, whole) = {
                let state = self.shell.state();
                let deletion = state.deletions().get(id).context("it is known")?;
                if deletion.phase != DeletionPhase::Done {
                    continue;
                }
                (deletion.receipt.clone(), deletion.retrained_after_ms)
            };
            let at = at.with_context(|| format!("deletion {id} has no receipt"))?;
            let content = self.shell.values().get(&at)?;
            let content = content.with_context(|| format!("the receipt of {id} is gone"))?;
            verify(&content, &self.log_key).with_context(|| format!("receipt {id}"))?;
            done.push(*id);
            self.count.whole_s.push(whole.unwrap_or(0) as f64 / 1000.0);
        }
        for id in done {
            self.open.remove(&id);
            self.receipts += 1;
        }
        Ok(())
    }

    /// Every receipt that was ever issued verifies. Returns how many there are.
    ///
    /// # Errors
    /// One does not, or is gone.
    pub fn verify_receipts(&self) -> anyhow::Result<usize> {
        let all: Vec<_> = {
            let state = self.shell.state();
            let all = state.deletions().values();
            all.filter_map(|d| d.receipt.clone()).collect()
        };
        for at in &all {
            let content = self.shell.values().get(at)?.context("a receipt is gone")?;
            verify(&content, &self.log_key)?;
        }
        Ok(all.len())
    }

    pub(super) fn figures(&self) -> anyhow::Result<Week> {
        let lists = self.shell.lists.as_ref().context("there are lists")?;
        let status = lists.status_known(&self.shell)?;
        let state = self.shell.state();
        let core = state.core();
        let ended = state.epochs().keys().filter(|no| state.ended(**no));
        let here = self.people.iter().filter(|p| p.is_there()).count();
        ensure!(
            self.day < 60 || core.serving.is_some(),
            "two months, and nothing was ever served"
        );
        Ok(Week {
            day: self.day,
            people: here,
            epochs: u64::from(core.numbers.epoch),
            serving: core.serving.map_or(0, |no| u64::from(no.0)),
            retired: ended.count(),
            releases: core.numbers.release,
            snapshots: self.count.snapshots,
            counting: status.counting as usize,
            waiting: status.waiting as usize,
            catalogue: self.shell.catalogue.newest().0,
            entries: core.log.entries,
            requests: self.count.requests,
            updates: self.count.updates,
            joins: self.count.joins,
            contributions: self.count.contributions,
            asked: self.count.asked.clone(),
            returned: self.count.returned,
            exact_s: self.count.exact_s.clone(),
            whole_s: self.count.whole_s.clone(),
            open: self.open.len(),
            receipts: self.receipts,
            folder: self.folder()?,
        })
    }
}
