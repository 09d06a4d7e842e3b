//! The keys that open envelopes: the newest, and the one before it for one day more.

use std::collections::BTreeMap;

use lethe_receipt::note::Signer;
use lethe_receipt::sealing::SealingStatement;
use lethe_seal::envelope::{Opened, SecretKey};
use zeroize::Zeroize;

use crate::TallydError;
use crate::office::{Office, SealingRow};

/// Seconds for which a key opens envelopes after the next one is there.
const OVERLAP_S: u64 = 86_400;
/// Seconds for which contributions may be sealed to a key.
const LIFE_S: u64 = 400 * 86_400;

struct Key {
    secret: SecretKey,
    row: SealingRow,
}

impl Drop for Key {
    fn drop(&mut self) {
        self.row.seed.zeroize();
    }
}

impl Key {
    fn of(row: SealingRow) -> Self {
        Self {
            secret: SecretKey::from_seed(&row.seed),
            row,
        }
    }

    fn opens(&self, now: u64) -> bool {
        self.row.ends.is_none_or(|ends| now < ends)
    }
}

/// Sealing keys by number; the newest is the last.
pub(crate) struct Sealing(BTreeMap<u64, Key>);

impl Sealing {
    /// Reads the keys of a folder.
    pub(crate) fn open(office: &Office) -> Result<Self, TallydError> {
        let rows = office.sealing()?.into_iter();
        Ok(Self(
            rows.map(|(number, row)| (number, Key::of(row))).collect(),
        ))
    }

    /// Signed statements of all keys, the oldest first.
    pub(crate) fn notes(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(|k| k.row.note.as_str())
    }

    /// The signed statement of the newest key.
    pub(crate) fn note(&self) -> Option<&str> {
        self.0.last_key_value().map(|(_, k)| k.row.note.as_str())
    }

    /// Opens an envelope; none: it is for another key, bound to something else, or damaged.
    pub(crate) fn open_envelope(
        &self,
        info: &[u8],
        aad: &[u8],
        envelope: &[u8],
        answer: &[u8],
        now: u64,
    ) -> Option<Opened> {
        let keys = self.0.values().rev().filter(|k| k.opens(now));
        let mut opened = keys.filter_map(|k| k.secret.open(info, aad, envelope, answer));
        opened.next()
    }

    /// Whether the newest key is to be replaced: there is none, or a third of its life is left.
    pub(crate) fn is_due(&self, now: u64) -> bool {
        let newest = self.0.last_key_value();
        newest.is_none_or(|(_, k)| now.saturating_add(LIFE_S / 3) > k.row.until)
    }

    /// Makes the next key. The one before opens envelopes for one day more.
    pub(crate) fn rotate(
        &mut self,
        office: &Office,
        signer: &Signer,
        now: u64,
    ) -> Result<(), TallydError> {
        let number = self.0.last_key_value().map_or(1, |(n, _)| n + 1);
        let seed = lethe_seal::random()?;
        let statement = SealingStatement {
            key: SecretKey::from_seed(&seed).public().0,
            from: now,
            until: now.saturating_add(LIFE_S),
        };
        let new = SealingRow {
            seed,
            from: statement.from,
            until: statement.until,
            ends: None,
            note: statement.sign(signer)?,
        };
        let mut rows = BTreeMap::new();
        for (number, key) in &self.0 {
            let ends = now.saturating_add(OVERLAP_S);
            let ends = key.row.ends.map_or(ends, |before| before.min(ends));
            let row = SealingRow {
                ends: Some(ends),
                ..key.row.clone()
            };
            rows.insert(*number, row);
        }
        rows.insert(number, new);
        if let Err(e) = office.keep_sealing(&rows) {
            // It may be written all the same.
            if let Ok(found) = Self::open(office) {
                *self = found;
            }
            return Err(e.into());
        }
        self.0 = rows.into_iter().map(|(n, row)| (n, Key::of(row))).collect();
        Ok(())
    }

    /// Destroys keys whose time is over.
    pub(crate) fn expire(&mut self, office: &Office, now: u64) -> Result<(), TallydError> {
        let over = self.0.iter().filter(|(_, k)| !k.opens(now));
        let over: Vec<u64> = over.map(|(n, _)| *n).collect();
        if !over.is_empty() {
            office.destroy_sealing(&over)?;
            self.0.retain(|n, _| !over.contains(n));
            tracing::info!(
                keys = over.len(),
                "sealing keys were destroyed: their time is over"
            );
        }
        Ok(())
    }
}
