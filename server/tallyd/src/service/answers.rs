//! Requests that need little: who leaves, what there is, what is served.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, TryLockError};

use aho_corasick::AhoCorasick;
use lethe_proto::ids::Digest;
use lethe_proto::tally::{
    HeldOf, HeldShown, TallyAudited, TallyDelta, TallyRefolded, TallyRefusal, TallyReply,
    TallyTables, TallyTerms,
};
use lethe_tally::{Handle, Leaver, Served};

use super::bring::check_count;
use super::work::aside;
use super::{
    Answer, Refused, Service, VOUCHES, alone, busy, failed, invalid, locked, refused, shared,
};

/// Digests of people in one answer: 256 KiB.
const PEOPLE: usize = 8_192;
/// How far the numbers of snapshots may be moved on by one `Open`: nobody makes so many between a
/// backup and its return, and numbers never run out.
const AHEAD: u64 = 1 << 20;

impl Service {
    pub(super) fn open_for(&self, items: &Digest, floor: u64, now: u64) -> Answer {
        if *items != self.catalogue().digest() {
            return Err(refused(
                TallyRefusal::OtherCatalogue,
                "the coordinator's catalogue is not the tally's: give both the same file",
            ));
        }
        self.tend(now)?;
        let ahead = locked(&self.evidence).number().saturating_add(AHEAD);
        if floor > ahead {
            return Err(invalid(format!(
                "snapshot {floor} was never published here, expected at most {ahead}: is this the \
                 tally of before?"
            )));
        }
        self.with_space(|| self.tally.skip_to(floor, now))?;
        locked(&self.evidence).raise(floor)?;
        self.keep_recalled()?;
        let note = shared(&self.sealing).note().map(str::to_owned);
        let note = note.ok_or_else(|| busy("no sealing key is there yet: ask again"))?;
        Ok(TallyReply::Opened(TallyTerms {
            key: self.key(),
            note,
            clip: self.lists.clip,
            refresh_s: self.lists.refresh_s,
            k: self.lists.k,
            state: self.state(),
        }))
    }

    pub(super) fn leave(&self, handles: &[[u8; 16]], now: u64) -> Answer {
        check_count(handles.len(), "handles")?;
        let handles: Vec<Handle> = handles.iter().map(|h| Handle(*h)).collect();
        let _alone = alone(&self.gate);
        {
            let mut tickets = locked(&self.tickets);
            handles.iter().for_each(|h| tickets.drop_all(h));
        }
        self.with_space(|| self.tally.leave(&handles, now))?;
        self.done()
    }

    pub(super) fn leave_older(&self, leavers: &[([u8; 16], u64)], now: u64) -> Answer {
        check_count(leavers.len(), "handles")?;
        let leaver = |l: &([u8; 16], u64)| Leaver {
            handle: Handle(l.0),
            before: l.1,
        };
        let leavers: Vec<Leaver> = leavers.iter().map(leaver).collect();
        let _alone = alone(&self.gate);
        {
            let mut tickets = locked(&self.tickets);
            leavers
                .iter()
                .for_each(|l| tickets.drop_until(&l.handle, l.before));
        }
        self.with_space(|| self.tally.leave_older(&leavers, now))?;
        self.done()
    }

    pub(super) fn forget_sums(
        &self,
        lineage: [u8; 8],
        leavers: &[([u8; 16], u64)],
        left: u64,
    ) -> Answer {
        check_count(leavers.len(), "handles")?;
        let gone: BTreeMap<[u8; 16], u64> = leavers.iter().copied().collect();
        let _alone = alone(&self.gate);
        locked(&self.sums).have_left(lineage, left);
        self.leave_sums(|handle, asked| gone.get(handle).is_some_and(|by| asked < *by))?;
        self.done()
    }

    pub(super) fn take_down(&self, items: &[u32], now: u64) -> Answer {
        check_count(items.len(), "items")?;
        let _alone = alone(&self.gate);
        self.with_space(|| self.tally.take_down(items, now))?;
        self.done()
    }

    /// What was recalled is known outside the data folder, too.
    fn done(&self) -> Answer {
        self.keep_recalled()?;
        Ok(TallyReply::Done(self.state()))
    }

    pub(super) fn held(&self, of: &[HeldOf], now: u64) -> Answer {
        check_count(of.len(), "questions")?;
        let items = of.iter().map(|o| match o {
            HeldOf::Handle(_) => 0,
            HeldOf::Items(items) => items.len(),
        });
        check_count(items.sum(), "items")?;
        let shown: Result<Vec<HeldShown>, Refused> =
            of.iter().map(|one| self.held_one(one, now)).collect();
        Ok(TallyReply::Held(shown?))
    }

    fn held_one(&self, of: &HeldOf, now: u64) -> Result<HeldShown, Refused> {
        let held = match of {
            HeldOf::Handle(handle) => self.tally.held(&Handle(*handle), now)?,
            HeldOf::Items(items) => {
                let known = self.tally.items() as u32;
                let items: Vec<u32> = items.iter().copied().filter(|i| *i < known).collect();
                self.tally.held_items(&items, now)?
            }
        };
        Ok(self.tally.told_held(&held)?)
    }

    pub(super) fn tables(&self, number: u64) -> Answer {
        let Served::Snapshot(snapshot) = self.tally.lists().served else {
            return Ok(TallyReply::Tables(None));
        };
        if snapshot.statement.number != number {
            return Ok(TallyReply::Tables(None));
        }
        // Nobody has a note that the log lacks.
        self.enter(&snapshot.note)?;
        let deltas = snapshot.deltas.iter();
        let smaller = deltas.filter(|d| d.1.len() < snapshot.bytes.len());
        let deltas = smaller.map(|d| TallyDelta {
            from: *d.0,
            bytes: d.1.clone(),
        });
        Ok(TallyReply::Tables(Some(TallyTables {
            note: snapshot.note.clone(),
            bytes: snapshot.bytes.to_vec(),
            deltas: deltas.collect(),
        })))
    }

    pub(super) fn status(&self, now: u64) -> Answer {
        Ok(TallyReply::Status(self.tally.told_status(now)?))
    }

    /// One at a time reads everything that there is.
    fn reads_all(&self) -> Result<MutexGuard<'_, ()>, Refused> {
        match self.reading.try_lock() {
            Ok(alone) => Ok(alone),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(busy(
                "another request reads all that there is: ask again when it is done",
            )),
        }
    }

    pub(super) fn refold(&self, now: u64) -> Answer {
        let _alone = self.reads_all()?;
        let Some(folded) = aside(|| self.tally.refold(now))? else {
            return Ok(TallyReply::Refolded(None));
        };
        // The sums have few people in them, in a small fleet: whoever knows all but one could try
        // out the last. Their own digest stays here.
        let salt: [u8; 32] = lethe_seal::random()?;
        let snapshot = self.state().served.map(|s| s.number);
        Ok(TallyReply::Refolded(Some(TallyRefolded {
            people: u64::from(folded.people),
            digest: Digest::of(&[b"lethe tally refold", &salt, &folded.digest.0]),
            stated: folded.stated,
            memory: folded.memory,
            folder: folded.folder,
            snapshot,
        })))
    }

    pub(super) fn search(&self, handles: &[[u8; 16]]) -> Answer {
        check_count(handles.len(), "handles")?;
        let _alone = self.reads_all()?;
        let hex: Vec<String> = handles.iter().map(|h| Handle(*h).hex()).collect();
        let raw = handles.iter().map(|h| &h[..]);
        let texts = raw.chain(hex.iter().map(String::as_bytes));
        let finder = AhoCorasick::new(texts).map_err(|e| failed(&e))?;
        let mut records = 0;
        let mut hits: BTreeMap<String, u64> = BTreeMap::new();
        let count = |bytes: &[u8]| finder.find_overlapping_iter(bytes).count() as u64;
        self.tally.each(|table, key, value| {
            records += 1;
            let n = count(key.as_bytes()) + count(value);
            if n > 0 {
                *hits.entry(table.to_owned()).or_default() += n;
            }
        })?;
        // Copied, so that nobody who leaves waits for the search.
        let rows: Vec<Vec<[u8; 16]>> = locked(&self.sums).handles().map(<[_]>::to_vec).collect();
        for row in &rows {
            records += 1;
            let n: u64 = row.iter().map(|handle| count(handle)).sum();
            if n > 0 {
                *hits.entry("tallyd-sums".to_owned()).or_default() += n;
            }
        }
        Ok(TallyReply::Searched {
            records,
            hits: hits.into_iter().collect(),
        })
    }

    fn check_audits(&self) -> Result<(), Refused> {
        match self.audits {
            true => Ok(()),
            false => Err(refused(
                TallyRefusal::Forbidden,
                "this tally takes no part in audits: its operator sets `audits` in its \
                 configuration",
            )),
        }
    }

    pub(super) fn audited(&self, now: u64) -> Answer {
        self.check_audits()?;
        // Settings, titles and tags may have changed since an earlier process made what is served.
        let own = locked(&self.publishing).last.is_some();
        let audited = match own {
            true => self.tally.audited(now)?,
            false => None,
        };
        let Some(audited) = audited else {
            return Ok(TallyReply::Audited(None));
        };
        let method = serde_json::to_string(&audited.method).map_err(|e| failed(&e))?;
        Ok(TallyReply::Audited(Some(TallyAudited {
            number: audited.number,
            note: audited.note,
            salt: audited.salt,
            method,
            content: Digest(audited.content),
            taken_down: audited.taken_down,
            people: audited.people as u64,
        })))
    }

    pub(super) fn audited_people(
        &self,
        number: u64,
        salt: &[u8; 32],
        from: u64,
        now: u64,
    ) -> Answer {
        self.check_audits()?;
        let _alone = self.reads_all()?;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let people = self.tally.audited_people(number, salt, from, PEOPLE, now)?;
        Ok(TallyReply::AuditedPeople(people))
    }

    pub(super) fn vouch(&self, handles: &[[u8; 16]], now: u64) -> Answer {
        check_count(handles.len(), "handles")?;
        if !locked(&self.vouches).takes_one(now) {
            return Err(busy(
                "statements are asked for faster than one a second: ask again",
            ));
        }
        let handles: Vec<Handle> = handles.iter().map(|h| Handle(*h)).collect();
        let note = self.with_space(|| {
            let note = self.tally.vouch(&handles, now)?;
            self.enter(&note).map(|()| note)
        })?;
        Ok(TallyReply::Vouched(note))
    }
}

impl super::Pace {
    /// One more each second, up to the most.
    fn takes_one(&mut self, now: u64) -> bool {
        let more = now.saturating_sub(self.at);
        self.left = self.left.saturating_add(more).min(VOUCHES);
        self.at = now;
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}
