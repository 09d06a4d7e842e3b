//! What changed since the snapshot before.

use crate::codec::{Reader, Writer};
use crate::snapshot::records::{Records, SECTIONS};
use crate::snapshot::{SnapshotError, digest, hex};
use crate::sums::MAX_ITEMS;

const MAGIC: &[u8] = b"lethe delta 1\n";

/// The records of `new` that differ from those of `old`, with the digests of both.
///
/// # Errors
/// [`SnapshotError::Damaged`] if either is not a snapshot.
pub fn delta(old: &[u8], new: &[u8]) -> Result<Vec<u8>, SnapshotError> {
    let before = Records::parse(old)?;
    let after = Records::parse(new)?;
    let mut out = Writer::default();
    out.bytes(MAGIC);
    out.bytes(&digest(old));
    out.bytes(&digest(new));
    out.number(after.header.len() as u64);
    out.bytes(&after.header);
    for (before, after) in before.sections.iter().zip(&after.sections) {
        let changed: Vec<usize> = (0..after.len())
            .filter(|i| before.get(*i) != Some(&after[*i]))
            .collect();
        out.number(after.len() as u64);
        out.number(changed.len() as u64);
        let mut next = 0;
        for item in changed {
            out.number((item - next) as u64);
            next = item + 1;
            out.number(after[item].len() as u64);
            out.bytes(&after[item]);
        }
    }
    Ok(out.into_bytes())
}

/// The new snapshot from the old one and a [`delta`].
///
/// # Errors
/// [`SnapshotError`]; what is returned always has the digest that the delta names.
pub fn apply(old: &[u8], delta: &[u8]) -> Result<Vec<u8>, SnapshotError> {
    let mut from = Reader::new(delta);
    if from.take(MAGIC.len())? != MAGIC {
        return Err(SnapshotError::Damaged("not a delta of this version".into()));
    }
    let base = from.take(32)?;
    let own = digest(old);
    if base != own {
        return Err(SnapshotError::OtherBase {
            wanted: hex(base),
            got: hex(&own),
        });
    }
    let wanted = from.take(32)?;
    let mut records = Records::parse(old)?;
    let length = from.count(1 << 20, "bytes of header")?;
    records.header = from.take(length)?.to_vec();
    for section in &mut records.sections {
        let items = from.count(MAX_ITEMS, "items")?;
        // New items have records in the delta, a byte each at least.
        if items > section.len() + delta.len() / SECTIONS.min(2) {
            return Err(SnapshotError::Damaged(format!("{items} items")));
        }
        section.resize(items, vec![]);
        let mut next = 0;
        for _ in 0..from.count(items, "changed records")? {
            let item = next + from.count(items, "(a gap)")?;
            let length = from.count(delta.len(), "bytes of a record")?;
            let record = from.take(length)?.to_vec();
            let place = section.get_mut(item);
            *place.ok_or_else(|| SnapshotError::Damaged(format!("item {item}")))? = record;
            next = item + 1;
        }
    }
    from.end()?;
    let new = records.to_bytes();
    let got = digest(&new);
    if wanted != got {
        return Err(SnapshotError::OtherResult {
            wanted: hex(wanted),
            got: hex(&got),
        });
    }
    Ok(new)
}
