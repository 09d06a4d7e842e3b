//! What goes wrong with the coordinator's machine: crashes, files that fail, older folders.

use std::path::{Path, PathBuf};

use super::disk::Fault;
use super::look::difference;
use super::world::{Event, Simulation};
use crate::evidence::failing;
use crate::fatal;

impl Simulation {
    pub(super) fn fault(&mut self, event: Event) {
        match event {
            Event::Fails(fault) => self.disk.fail(fault),
            Event::EvidenceFails(after, written) => {
                self.surprised |= written;
                failing::with(|f| f.next = Some((after, written)));
            }
            Event::Full(full) => self.fill(full),
            Event::KeysStay(before) => self.keys_stay(before),
            Event::KeysGo => self.keys_go(),
            Event::Snapshot => self.snapshot(),
            Event::Backup => self.back_up(),
            Event::Restore => self.restore(),
            Event::Damage(what, gone) => self.damage(what, gone),
            other => panic!("this is no fault: {other:?}"),
        }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.config.data_dir.clone()
    }

    /// The process dies. What it had in memory is gone.
    pub(super) fn crash(&mut self) {
        self.keys_go();
        self.waiting.clear();
        self.listed.queue.clear();
        self.lose_relayed();
        self.jobs.lock().unwrap().all.clear();
        self.queue.retain(|_, e| !{
            matches!(
                e,
                Event::JobEnds(_) | Event::Again(_) | Event::Written | Event::Stored
            )
        });
        let Some(shell) = self.shell.take() else {
            return;
        };
        self.count.one("crashes");
        let doubt = fatal::lock(&shell.writer).doubt;
        self.count.add("crashes in doubt", u64::from(doubt));
        let state = shell.state().clone();
        // Keys that are being destroyed may be gone, and what they sealed with them. And as long as
        // a folder that came back has no release as new as the floor, every start takes numbers.
        let newest = state.current_release().map_or(0, |(no, _)| no);
        let behind = state.core().numbers.release > newest;
        let knows = !doubt && !behind && state.core().executing.is_none();
        self.before = knows.then_some(state);
    }

    pub(super) fn start(&mut self) {
        if self.shell.is_some() {
            return;
        }
        self.disk.revive();
        failing::with(|f| f.next = None);
        self.started = self.now + self.leapt;
        self.set_clock();
        let fails = self.chance(2);
        if fails {
            let after = self.dice.below(4) as u32;
            let written = self.dice.below(2) == 0;
            match self.dice.below(3) {
                0 => {
                    self.surprised |= written;
                    failing::with(|f| f.next = Some((after / 2, written)));
                }
                _ => self.disk.fail(Fault {
                    after,
                    written,
                    dead: true,
                }),
            }
        }
        let full = failing::with(|f| f.full.is_some());
        let opened = self.open();
        if fails {
            self.disk.revive();
            failing::with(|f| f.next = None);
        }
        match opened {
            Ok(shell) => {
                let again = self.open_again(&shell);
                self.opened(shell);
                assert_eq!(
                    again,
                    None,
                    "{}: what was known is not read again",
                    self.story()
                );
            }
            Err(e) => {
                assert!(fails || full, "{}: does not start: {e}", self.story());
                self.count.one("failed starts");
                self.at(self.now + 300, Event::Start);
            }
        }
    }

    /// What was known when the process died, and what was read now, agree.
    fn open_again(&mut self, shell: &super::super::Shell) -> Option<lethe_ledger::SliceId> {
        let mut before = self.before.take().filter(|_| !self.surprised)?;
        self.count.one("compared");
        if !before.core().quarantined.is_empty() {
            // They are about the start before this one.
            lethe_ledger::apply(
                &mut before,
                &lethe_ledger::Event::ShardsLost { shards: vec![] },
            );
        }
        let differs = difference(&before, &shell.state())?;
        if differs == lethe_ledger::SliceId::Core {
            let now = shell.state().core().clone();
            self.note(format!("before: {:?}\nnow: {now:?}", before.core()));
        }
        Some(differs)
    }

    fn fill(&mut self, full: bool) {
        let reserve = self.data().join("reserve");
        let unless = full.then_some(reserve);
        self.disk.fill(unless.clone());
        failing::with(|f| f.full = unless);
        if let Some(shell) = self.shell.as_ref().filter(|_| !full) {
            shell.set_aside_space();
        }
    }

    /// Folders with keys: the coordinator's, and the tally's.
    fn keys(&self) -> Vec<PathBuf> {
        let keys = self.config.keys_dir();
        let all = [keys.join("tally"), keys];
        let has_ring = |k: &PathBuf| k.exists() && Self::keyring(k) > 0;
        all.into_iter().rev().filter(has_ring).collect()
    }

    /// Generation of the keys in a folder.
    fn keyring(keys: &Path) -> u64 {
        let all = std::fs::read_dir(keys).unwrap();
        let number = |e: std::io::Result<std::fs::DirEntry>| {
            let name = e.unwrap().file_name();
            name.to_str()?.strip_prefix("keyring-")?.parse::<u64>().ok()
        };
        all.filter_map(number).max().unwrap_or(0)
    }

    /// A folder is in the place of a file. Either the keyring without the keys cannot be written,
    /// or the old one cannot be removed: then the keys are gone, and it is not known for certain.
    fn keys_stay(&mut self, before: bool) {
        if self.shell.is_none() {
            return;
        }
        self.keys_go();
        let mut all = self.keys();
        let of_tally = all.len() > 1 && self.listed.dice.below(2) == 0;
        let keys = all.swap_remove(usize::from(of_tally));
        let now = Self::keyring(&keys);
        if before {
            std::fs::create_dir(keys.join(format!("master-{}", now + 1))).unwrap();
            return;
        }
        let added = keys.join(format!("added-{now}"));
        if added.exists() {
            std::fs::rename(&added, keys.join(format!("kept-{now}"))).unwrap();
        }
        std::fs::create_dir(added).unwrap();
    }

    /// The folders are away, and files that are still in use are where they were.
    pub(super) fn keys_go(&mut self) {
        for keys in self.keys() {
            Self::keys_go_in(&keys);
        }
    }

    fn keys_go_in(keys: &Path) {
        let newest = Self::keyring(keys);
        for entry in std::fs::read_dir(keys).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("tally") {
                std::fs::remove_dir(&path).unwrap();
            }
        }
        for entry in std::fs::read_dir(keys).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|n| n.strip_prefix("kept-")) else {
                continue;
            };
            if number.parse() == Ok(newest) {
                let back = keys.join(format!("added-{number}"));
                std::fs::rename(entry.path(), back).unwrap();
            } else {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }

    fn snapshot(&mut self) {
        let Some(shell) = self.shell.clone() else {
            return;
        };
        let mut writer = fatal::lock(&shell.writer);
        if !writer.doubt {
            let written = shell.snapshot(&mut writer);
            let what = written.map_or("failed snapshots", |()| "snapshots");
            self.count.one(what);
        }
    }

    /// Copies the data folder between two requests, as a machine's snapshot does.
    fn back_up(&mut self) {
        let doubt = self.shell.as_ref().map(|s| fatal::lock(&s.writer).doubt);
        if doubt != Some(false) {
            return;
        }
        self.keys_go();
        self.backup = Some(self.disk.back_up(&self.data()));
        self.listed.back_up();
    }

    /// The older data folder comes back, and the evidence stays.
    fn restore(&mut self) {
        let Some(backup) = self.backup.take() else {
            return;
        };
        self.crash();
        self.disk.restore(&self.data(), backup);
        self.count.one("restored");
        self.surprised = true;
        self.seen.forget();
        self.listed.restore();
        self.devices
            .iter_mut()
            .for_each(super::device::Device::join_again);
        self.at(self.now + 100, Event::Start);
    }

    fn damage(&mut self, what: &'static str, gone: bool) {
        let second = what.starts_with("shards/2-");
        if second && !self.has_second_epoch() {
            return;
        }
        self.crash();
        let shard = what.strip_prefix("shards/").map(|k| {
            let shard = k.rsplit('-').next().unwrap_or(k);
            shard.parse::<u16>().unwrap()
        });
        // A shard's database is lost with its folder.
        let lost = match shard {
            Some(_) if gone => self.data().join(what),
            Some(_) => self.data().join(what).join("db"),
            None => self.data().join(what),
        };
        self.disk.damage(&lost, gone);
        if let Some(shard) = shard {
            self.surprised = true;
            self.seen
                .acknowledged
                .retain(|(run, _)| run.shard.0 != shard);
            self.count.one("lost shards");
        } else {
            self.count.one("damaged copies");
        }
        self.at(self.now + 100, Event::Start);
    }
}
