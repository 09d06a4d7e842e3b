//! What the tally keeps: contributions, each sealed under the key of its handle, the rows of the
//! cells, and what is derived from people under a key of their generation.
//!
//! A change of the cells is one batch. Keys are destroyed after it is durable, and when the folder
//! is opened: handles whose member is gone, and the generation before, are what a crash may have
//! left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lethe_learn::seed::Seed;
use lethe_parts::noise::Drawn;
use lethe_store::StoreError;
use lethe_store::keys::Folders;
use lethe_store::sealed::{Batch, Engine, KeyName, SealedStore};

use crate::cells::{CellSettings, Fold, Row, RowId, State};
use crate::error::TallyError;
use crate::ids::{CellNo, Handle, Number, Version};

pub(crate) mod content;
mod format2;
mod format3;
mod format4;
mod tables;

use tables::{
    CellRow, ClearedRow, ContributionRow, CoreRow, DERIVED, Format, LastHead, LastRow, MemberRow,
    NoiseRow, PersonRow, PublishedRow, SnapshotRow, SourcesRow, SumsHead, SumsRow,
    contribution_key, derived, key_of, numbered,
};
pub(crate) use tables::{Salt, Secrets, Source};

/// 2: what was recalled, who contributed from where and since when, what was published last.
/// 3: which recalled snapshot showed a member last.
/// 4: what noise has cost, and what it was drawn from.
/// 5: what each of several devices of a handle has brought last.
const FORMAT: u32 = 5;
/// Signed notes that are kept: those of years of daily snapshots and of thousands of deletions, in
/// some 6 MB. Who audits further back keeps what was published.
const NOTES: u64 = 10_000;
/// Bytes of a piece of the sums.
const PIECE: usize = 32 << 20;
/// The most pieces: 32 GiB.
const MOST_PIECES: u32 = 1_024;

/// The tally's folder.
pub(crate) struct Vault {
    store: SealedStore,
}

/// A contribution that comes with a change.
pub(crate) struct Brought {
    pub(crate) handle: Handle,
    pub(crate) version: Version,
    pub(crate) content: Vec<u8>,
}

/// One version of a handle's contribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VersionOf {
    pub(crate) handle: Handle,
    pub(crate) version: Version,
}

/// A published snapshot, as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) number: u64,
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) note: String,
    /// Of the digest of the sums in the note.
    pub(crate) salt: Salt,
    /// The noise that is in it.
    pub(crate) drawn: Option<Drawn>,
}

/// The fold that was published last, and how people counted then.
#[derive(Clone)]
pub(crate) struct Last {
    pub(crate) fold: Fold,
    pub(crate) settings: CellSettings,
}

impl Last {
    /// What the next fold is checked for. Somebody may have changed the settings meanwhile: cells
    /// that were opened, and what was renewed, under smaller ones is no fault.
    pub(crate) fn lint_settings(&self, now: &CellSettings) -> CellSettings {
        let sizes = self.fold.cells.values().map(|c| c.len() as u32);
        let least = sizes.chain([now.least, self.settings.least]).min();
        let least = least.unwrap_or(now.least);
        CellSettings {
            least,
            changed: now.changed.min(self.settings.changed).min(least),
            ..*now
        }
    }
}

/// Cells that are new or have changed, and those that are gone.
fn last_rows(mut batch: Batch, before: Option<&Last>, after: &Last) -> Result<Batch, StoreError> {
    let public = KeyName::public();
    let nothing = BTreeMap::new();
    let before = before.map_or(&nothing, |l| &l.fold.cells);
    for (cell, members) in &after.fold.cells {
        if before.get(cell) != Some(members) {
            let row = LastRow(members.clone());
            batch = batch.put(&public, &numbered(cell.0), &row)?;
        }
    }
    let is_gone = |cell: &&CellNo| !after.fold.cells.contains_key(*cell);
    for cell in before.keys().filter(is_gone) {
        batch = batch.delete::<LastRow>(&numbered(cell.0));
    }
    batch.put(&public, "", &LastHead(after.settings))
}

impl Vault {
    /// Opens or founds a folder. What a crash has left of those who are gone is destroyed. A new
    /// folder's secrets follow from `seed`, if there is one.
    pub(crate) fn open(
        engine: &Engine,
        folders: impl Into<Folders>,
        seed: Option<&Seed>,
    ) -> Result<Self, TallyError> {
        let store = SealedStore::open(engine, folders, &[DERIVED.into()])?;
        for lost in store.quarantined() {
            tracing::error!(
                why = lost.why,
                "what was derived is damaged: it is made again"
            );
        }
        store.quarantine_handled()?;
        let vault = Self { store };
        match vault.store.get::<Format>("")? {
            None => vault.found(seed)?,
            Some(Format { number: FORMAT }) => {}
            Some(Format { number: 4 }) => format4::migrate(&vault.store)?,
            Some(Format { number: 3 }) => {
                format3::migrate(&vault.store)?;
                format4::migrate(&vault.store)?;
            }
            Some(Format { number: 2 }) => {
                format2::migrate(&vault.store)?;
                format3::migrate(&vault.store)?;
                format4::migrate(&vault.store)?;
            }
            Some(Format { number }) => {
                return Err(TallyError::Format {
                    got: number,
                    expected: FORMAT,
                });
            }
        }
        Ok(vault)
    }

    fn found(&self, seed: Option<&Seed>) -> Result<(), TallyError> {
        let secrets = match seed {
            None => Secrets {
                draw: Seed(lethe_seal::random()?),
                signer: lethe_seal::random()?,
            },
            Some(seed) => Secrets {
                draw: seed.derive("draw", &[]),
                signer: seed.derive("signer", &[]).0,
            },
        };
        let public = KeyName::public();
        let format = Format { number: FORMAT };
        let batch = Batch::new().put(&public, "", &secrets)?;
        Ok(self.store.write(batch.put(&public, "", &format)?)?)
    }

    /// Shows every record, decrypted.
    pub(crate) fn each(&self, mut visit: impl FnMut(&str, &str, &[u8])) -> Result<(), TallyError> {
        let see = |_, table: &str, key: &str, value: &[u8]| visit(table, key, value);
        Ok(self.store.each(see)?)
    }

    /// Writes all keys under a fresh master key, and destroys the one before.
    pub(crate) fn rotate_master(&self) -> Result<(), TallyError> {
        Ok(self.store.rotate_master()?)
    }

    /// What only the tally knows.
    pub(crate) fn secrets(&self) -> Result<Secrets, TallyError> {
        let secrets = self.store.get::<Secrets>("")?;
        secrets.ok_or(TallyError::Lacks {
            what: "its secrets",
        })
    }

    /// The state, as its rows give it; a write in doubt is settled first. Keys of handles that the
    /// state does not know, and of the generation before, are destroyed.
    pub(crate) fn read(&self, settings: CellSettings) -> Result<State, TallyError> {
        self.store.recover()?;
        let mut rows = vec![];
        rows.extend(self.store.get::<CoreRow>("")?.map(|r| Row::Core(r.0)));
        let cleared = self.store.get::<ClearedRow>("")?;
        rows.extend(cleared.map(|r| Row::Cleared(r.0.into_iter().collect())));
        for (key, row) in self.store.all::<MemberRow>()? {
            rows.push(Row::Member(Number(parse(&key)?), row.0));
        }
        for (key, row) in self.store.all::<CellRow>()? {
            rows.push(Row::Cell(CellNo(parse(&key)?), row.0));
        }
        for (_, row) in self.store.all::<PersonRow>()? {
            rows.push(Row::Person(row.handle, row.person));
        }
        let state = State::of_rows(settings, rows);
        let generation = state.core().generation;
        let mut gone: Vec<KeyName> = generation.checked_sub(1).map(derived).into_iter().collect();
        let is_gone = |h: &&Handle| !state.people().contains_key(*h);
        gone.extend(self.handles().iter().filter(is_gone).map(key_of));
        if self.store.existing(&gone) > 0 {
            self.store.destroy(&gone)?;
        }
        Ok(state)
    }

    /// Handles that something is sealed for.
    fn handles(&self) -> BTreeSet<Handle> {
        let keys = self.store.keys::<ContributionRow>();
        let handles = keys.iter().filter_map(|key| handle(key.split_once('/')?.0));
        handles.collect()
    }

    /// Writes rows that have changed, what came with the change, and removes versions that nothing
    /// needs any more: all of it, or nothing.
    pub(crate) fn write(
        &self,
        state: &State,
        changed: &BTreeSet<RowId>,
        brought: &[Brought],
        sources: &BTreeMap<Handle, Vec<Source>>,
        dropped: &BTreeSet<VersionOf>,
    ) -> Result<(), TallyError> {
        let batch = rows(Batch::new(), state, changed)?;
        let mut batch = versions(batch, brought, dropped)?;
        for (handle, sources) in sources {
            let row = SourcesRow {
                sources: sources.clone(),
            };
            batch = batch.put_required(&key_of(handle), &handle.hex(), &row)?;
        }
        Ok(self.store.write(batch)?)
    }

    /// What each device of a handle has brought last; none: it has had one device so far, and its
    /// newest version is what that has brought.
    pub(crate) fn sources(&self, handle: &Handle) -> Result<Option<Vec<Source>>, TallyError> {
        let row = self.store.get::<SourcesRow>(&handle.hex())?;
        Ok(row.map(|r| r.sources))
    }

    /// Destroys the keys of handles, and of what was derived in a generation. From then on nobody
    /// can read what they sealed. After an error it may be repeated.
    pub(crate) fn destroy(
        &self,
        handles: &[Handle],
        generation: Option<u64>,
    ) -> Result<(), TallyError> {
        let mut names: Vec<KeyName> = handles.iter().map(key_of).collect();
        names.extend(generation.map(derived));
        if !names.is_empty() {
            self.store.destroy(&names)?;
        }
        Ok(())
    }

    /// A version of a contribution.
    pub(crate) fn contribution(&self, of: &VersionOf) -> Result<content::Content, TallyError> {
        let bytes = self.sealed(of)?.ok_or(TallyError::Lacks {
            what: "a contribution that counts",
        })?;
        Ok(content::from_bytes(&bytes)?)
    }

    /// Its bytes; none: it is not there.
    pub(crate) fn sealed(&self, of: &VersionOf) -> Result<Option<Vec<u8>>, TallyError> {
        let key = contribution_key(&of.handle, of.version);
        let row = self.store.get::<ContributionRow>(&key)?;
        Ok(row.map(|r| r.content))
    }

    /// Writes a snapshot with the change that publishes it, and removes older ones but `keep`.
    pub(crate) fn publish(
        &self,
        state: &State,
        changed: &BTreeSet<RowId>,
        snapshot: &Kept,
        keep: &[u64],
        before: Option<&Last>,
        last: &Last,
    ) -> Result<(), TallyError> {
        let batch = rows(Batch::new(), state, changed)?;
        let mut batch = last_rows(batch, before, last)?;
        let key = numbered(snapshot.number);
        let row = SnapshotRow {
            bytes: snapshot.bytes.to_vec(),
            note: snapshot.note.clone(),
            salt: snapshot.salt,
        };
        let published = PublishedRow {
            note: snapshot.note.clone(),
        };
        batch = batch.put(&derived(state.core().generation), &key, &row)?;
        // With the generation's key it goes, as the sums do that it hides.
        if let Some(drawn) = snapshot.drawn {
            let row = NoiseRow(drawn);
            batch = batch.put(&derived(state.core().generation), &key, &row)?;
        }
        batch = batch.put(&KeyName::public(), &key, &published)?;
        if let Some(old) = snapshot.number.checked_sub(NOTES) {
            batch = batch.delete::<PublishedRow>(&numbered(old));
        }
        let kept: Vec<String> = keep.iter().map(|n| numbered(*n)).collect();
        for old in self.store.keys::<SnapshotRow>() {
            if old != key && !kept.contains(&old) {
                batch = batch.delete::<SnapshotRow>(&old);
            }
        }
        for old in self.store.keys::<NoiseRow>() {
            if old != key && !kept.contains(&old) {
                batch = batch.delete::<NoiseRow>(&old);
            }
        }
        Ok(self.store.write(batch)?)
    }

    /// The fold that was published last; none: none was.
    pub(crate) fn last(&self, newest: u64) -> Result<Option<Last>, TallyError> {
        let Some(LastHead(settings)) = self.store.get("")? else {
            return Ok(None);
        };
        let mut cells = BTreeMap::new();
        for (key, row) in self.store.all::<LastRow>()? {
            cells.insert(CellNo(parse(&key)?), row.0);
        }
        let fold = Fold {
            number: newest,
            cells,
        };
        Ok(Some(Last { fold, settings }))
    }

    /// The snapshots that are kept, up to `newest`, in the order of their numbers.
    pub(crate) fn snapshots(&self, newest: u64) -> Result<Vec<Kept>, TallyError> {
        let mut out = vec![];
        for (key, row) in self.store.all::<SnapshotRow>()? {
            let number = parse(&key)?;
            // One above was written when the crash came, and never published.
            if number <= newest {
                let drawn = self.store.get::<NoiseRow>(&key)?.map(|r| r.0);
                out.push(Kept {
                    number,
                    bytes: Arc::new(row.bytes),
                    note: row.note,
                    salt: row.salt,
                    drawn,
                });
            }
        }
        Ok(out)
    }

    /// The signed texts of what was published, in order; the newest [`NOTES`].
    pub(crate) fn published(&self) -> Result<Vec<String>, TallyError> {
        let all = self.store.all::<PublishedRow>()?;
        Ok(all.into_iter().map(|(_, row)| row.note).collect())
    }

    /// The signed text of one.
    pub(crate) fn note(&self, number: u64) -> Result<Option<String>, TallyError> {
        let row = self.store.get::<PublishedRow>(&numbered(number))?;
        Ok(row.map(|row| row.note))
    }

    /// Keeps sums in the place of those before. The generation's key must exist: a snapshot was
    /// published in it. [`StoreError::NoKey`]: it was recalled meanwhile, and nothing is kept.
    pub(crate) fn keep_sums(
        &self,
        generation: u64,
        basis: [u8; 32],
        bytes: &[u8],
    ) -> Result<(), TallyError> {
        let owner = derived(generation);
        let head = SumsHead {
            basis,
            digest: lethe_parts::snapshot::digest(bytes),
            pieces: bytes.len().div_ceil(PIECE) as u32,
        };
        // A piece a write: memory is bounded, and the head, which comes last, tells whole sums from
        // pieces of several.
        let mut batch = Batch::new().delete::<SumsHead>("");
        for key in self.store.keys::<SumsRow>() {
            batch = batch.delete::<SumsRow>(&key);
        }
        for (at, piece) in bytes.chunks(PIECE).enumerate() {
            let row = SumsRow {
                bytes: piece.to_vec(),
            };
            let batch_with = batch.put_required(&owner, &format!("{at:08}"), &row)?;
            self.store.write(batch_with)?;
            batch = Batch::new();
        }
        Ok(self.store.write(batch.put_required(&owner, "", &head)?)?)
    }

    /// The sums that are kept, if they are of this basis and whole.
    pub(crate) fn sums(&self, basis: [u8; 32]) -> Result<Option<Vec<u8>>, TallyError> {
        // Nobody reads the folder again when writing sums has failed: what became of it is settled
        // here.
        self.store.recover()?;
        let head = self.store.get::<SumsHead>("")?;
        let Some(head) = head.filter(|h| h.basis == basis && h.pieces <= MOST_PIECES) else {
            return Ok(None);
        };
        let mut bytes = vec![];
        for at in 0..head.pieces {
            let piece = self.store.get::<SumsRow>(&format!("{at:08}"))?;
            let Some(piece) = piece else { return Ok(None) };
            bytes.extend_from_slice(&piece.bytes);
        }
        let whole = lethe_parts::snapshot::digest(&bytes) == head.digest;
        Ok(whole.then_some(bytes))
    }
}

/// Rows that have changed.
fn rows(mut batch: Batch, state: &State, changed: &BTreeSet<RowId>) -> Result<Batch, StoreError> {
    let public = KeyName::public();
    for id in changed {
        batch = match (id, state.row(id)) {
            (_, Some(Row::Core(core))) => batch.put(&public, "", &CoreRow(core))?,
            (_, Some(Row::Cleared(items))) => {
                batch.put(&public, "", &ClearedRow(items.into_iter().collect()))?
            }
            (_, Some(Row::Member(number, member))) => {
                batch.put(&public, &numbered(number.0), &MemberRow(member))?
            }
            (_, Some(Row::Cell(no, cell))) => {
                batch.put(&public, &numbered(no.0), &CellRow(cell))?
            }
            (_, Some(Row::Person(handle, person))) => {
                let row = PersonRow { handle, person };
                batch.put(&key_of(&handle), &handle.hex(), &row)?
            }
            (RowId::Member(number), None) => batch.delete::<MemberRow>(&numbered(number.0)),
            (RowId::Cell(no), None) => batch.delete::<CellRow>(&numbered(no.0)),
            (RowId::Person(handle), None) => batch.delete::<PersonRow>(&handle.hex()),
            (RowId::Core | RowId::Cleared, None) => batch,
        };
    }
    Ok(batch)
}

fn versions(
    mut batch: Batch,
    brought: &[Brought],
    dropped: &BTreeSet<VersionOf>,
) -> Result<Batch, StoreError> {
    for one in brought {
        let row = ContributionRow {
            content: one.content.clone(),
        };
        let key = contribution_key(&one.handle, one.version);
        // The person's row of the same batch makes the key, where it is new.
        batch = batch.put_required(&key_of(&one.handle), &key, &row)?;
    }
    for old in dropped {
        batch = batch.delete::<ContributionRow>(&contribution_key(&old.handle, old.version));
    }
    Ok(batch)
}

fn parse(key: &str) -> Result<u64, StoreError> {
    u64::from_str_radix(key, 16).map_err(|_| StoreError::Corrupt {
        name: "the tally's folder".into(),
        why: "a record has no number".into(),
    })
}

fn handle(hex: &str) -> Option<Handle> {
    let number = u128::from_str_radix(hex, 16).ok()?;
    (hex.len() == 32).then_some(Handle(number.to_be_bytes()))
}
