//! Versions of the catalogue: what each of them changed, and what they give together.
//!
//! Places never move: an item has the place that it got first. Tables, sums and commitments of
//! before go on naming the same items. A removed item keeps its place and has no title; a renamed
//! one has its new name at the old place, and its former names stay known.
//!
//! All messages about it are from minor version 5 on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec;
use crate::ids::{Digest, EpochNo};
use crate::limits::MAX_ID;

/// Longest title, in bytes.
pub const MAX_TITLE: usize = 1 << 10;
/// Longest tag, in bytes.
pub const MAX_TAG: usize = 128;
/// Most tags of an item.
pub const MAX_TAGS: usize = 64;
/// Most former names of an item.
pub const MAX_NAMES: usize = 32;
/// Most changes of all versions together.
pub const MAX_CHANGES: usize = 4_000_000;
/// Most bytes of all changes together, as [`CatalogueChange::size`] counts them.
pub const MAX_BYTES: usize = 256 << 20;
/// About how many bytes of changes or entries a message carries.
pub const PAGE_BYTES: usize = 512 << 10;

/// What is public about the item of a place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueEntry {
    /// Identifier.
    pub id: String,
    /// Title, without the year; none: the item was removed.
    pub title: Option<String>,
    /// Year, if known.
    pub year: Option<u16>,
    /// Genres or other tags.
    pub tags: Vec<String>,
    /// Identifiers that it had before, oldest first: what was recorded under them is about it.
    pub was: Vec<String>,
}

impl CatalogueEntry {
    /// Its identifier, and those that it had before.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let was = self.was.iter().map(String::as_str);
        std::iter::once(self.id.as_str()).chain(was)
    }

    /// About how many bytes it has in a message.
    pub fn size(&self) -> usize {
        let texts = self.names().map(str::len);
        let title = self.title.as_ref().map_or(0, String::len);
        let tags = self.tags.iter().map(|t| t.len() + 2);
        16 + title + texts.map(|n| n + 2).sum::<usize>() + tags.sum::<usize>()
    }

    /// Why it is outside its bounds; none: it is not.
    fn misfit(&self) -> Option<String> {
        let name = |n: &str| n.is_empty() || n.len() > MAX_ID;
        if let Some(bad) = self.names().find(|n| name(n)) {
            return Some(format!(
                "an identifier of {} bytes, expected 1 to {MAX_ID}",
                bad.len()
            ));
        }
        if self.was.len() > MAX_NAMES {
            let got = self.was.len();
            return Some(format!("{got} former names, at most {MAX_NAMES}"));
        }
        let title = self.title.as_deref().unwrap_or("-");
        if title.trim().is_empty() || title.len() > MAX_TITLE {
            let got = title.len();
            return Some(format!(
                "a title of {got} bytes, expected 1 to {MAX_TITLE} that are not all blank"
            ));
        }
        if self.tags.len() > MAX_TAGS || self.tags.iter().any(|t| t.len() > MAX_TAG) {
            return Some(format!(
                "{} tags, expected at most {MAX_TAGS} of at most {MAX_TAG} bytes",
                self.tags.len()
            ));
        }
        None
    }

    /// Whether this may follow `before` at the same place: an identifier changes only into the next
    /// one, and no former name is lost.
    fn follows(&self, before: &Self) -> bool {
        let known = before.was.len();
        match self.id == before.id && self.was.len() == known {
            true => self.was == before.was,
            false => {
                self.title.is_some()
                    && self.was.len() > known
                    && self.was[..known] == before.was[..]
                    && self.was[known] == before.id
            }
        }
    }
}

/// What a version changed at a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueChange {
    /// The version, from 1.
    pub version: u32,
    /// The place, from 0.
    pub place: u32,
    /// What is there from this version on.
    pub entry: CatalogueEntry,
}

impl CatalogueChange {
    /// About how many bytes it has in a message.
    pub fn size(&self) -> usize {
        10 + self.entry.size()
    }
}

/// Answer to [`crate::message::Request::Catalogue`]: a page of what the device lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueReply {
    /// Number of the newest version; 1: no other was ever applied, and nothing is sent.
    pub version: u32,
    /// The manifest of the newest version, signed with the log's key
    /// (`lethe_receipt::manifest`); empty for version 1.
    pub note: String,
    /// The changes begin with version 1: what the device has is no version of this catalogue.
    pub whole: bool,
    /// Changes that came in earlier pages of the same answer.
    pub at: u64,
    /// In the order of versions and places.
    pub changes: Vec<CatalogueChange>,
    /// There are more.
    pub more: bool,
    /// The version that each living epoch was founded with: its prompts have these titles.
    pub epochs: Vec<(EpochNo, u32)>,
}

/// Answer to [`crate::tally::TallyRequest::Catalogue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyCatalogue {
    /// The newest version that the tally has.
    pub version: u32,
    /// Its digest.
    pub digest: Digest,
    /// Changes of the next version that the tally was sent and has not applied yet.
    pub staged: u64,
}

/// Why changes are no version of a catalogue.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CatalogueError {
    /// The version is not the next one.
    #[error("changes of version {got}, expected {expected}: apply versions in their order")]
    Order {
        /// Version that was named.
        got: u32,
        /// The next version.
        expected: u32,
    },
    /// Nothing changes.
    #[error("version {0} changes nothing: there is no need for it")]
    Nothing(u32),
    /// A place is not where it has to be.
    #[error(
        "version {version} names place {place} after {before} places: expected ascending places, \
         new ones at the end"
    )]
    Place {
        /// The version.
        version: u32,
        /// The place.
        place: u32,
        /// Places that there are before it.
        before: u32,
    },
    /// An entry is outside its bounds, or does not follow the one before it.
    #[error("item {id:?} at place {place}: {why}")]
    Entry {
        /// Its identifier.
        id: String,
        /// Its place.
        place: u32,
        /// What is wrong.
        why: String,
    },
    /// Two items have one name.
    #[error(
        "item {name:?} is, or was, the name of place {taken}: give the item at place {place} \
         another identifier"
    )]
    Name {
        /// The name.
        name: String,
        /// Whose it is.
        taken: u32,
        /// Who wants it, too.
        place: u32,
    },
    /// All versions together are too much.
    #[error("{got} changes or bytes in all versions, at most {most}: begin a new data folder")]
    Full {
        /// How much it would be.
        got: usize,
        /// How much it may be.
        most: usize,
    },
    /// The result is not what was announced.
    #[error(
        "the changes give digest {got}, expected {expected}: they are not those of the version"
    )]
    Digest {
        /// What they give.
        got: Digest,
        /// What was announced.
        expected: Digest,
    },
}

/// Names a version: SHA-256 of the digest of the one before, its number, and its changes.
pub fn version_digest(before: &Digest, version: u32, changes: &[CatalogueChange]) -> Digest {
    let bytes: Vec<Vec<u8>> = changes
        .iter()
        // Strings and numbers do not fail to encode.
        .map(|c| codec::to_bytes(c).unwrap_or_default())
        .collect();
    let number = version.to_le_bytes();
    let head: [&[u8]; 3] = [b"lethe catalogue version", &before.0, &number];
    let parts: Vec<&[u8]> = head
        .into_iter()
        .chain(bytes.iter().map(Vec::as_slice))
        .collect();
    Digest::of(&parts)
}

/// All versions of a catalogue, as their changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    changes: Vec<CatalogueChange>,
    /// By version, from 1.
    digests: Vec<Digest>,
    /// Of the newest version, by place.
    entries: Vec<CatalogueEntry>,
    /// Places by name, former names among them.
    names: BTreeMap<String, u32>,
    bytes: usize,
}

impl Versions {
    /// Version 1: these items, in their order.
    ///
    /// # Errors
    /// [`CatalogueError`]: an item is outside its bounds, or is listed twice.
    pub fn founded(
        entries: impl IntoIterator<Item = CatalogueEntry>,
    ) -> Result<Self, CatalogueError> {
        let first = |(place, entry)| CatalogueChange {
            version: 1,
            place,
            entry,
        };
        let mut versions = Self::default();
        versions.apply((0..).zip(entries).map(first).collect())?;
        Ok(versions)
    }

    /// From all changes of all versions, as they were once applied.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn of(changes: Vec<CatalogueChange>) -> Result<Self, CatalogueError> {
        let mut versions = Self::default();
        versions.apply_all(changes)?;
        Ok(versions)
    }

    /// The number of the newest version; 0: there is none.
    pub fn newest(&self) -> u32 {
        self.digests.len() as u32
    }

    /// Names the newest version; zeros: there is none.
    pub fn digest(&self) -> Digest {
        self.digests.last().copied().unwrap_or_default()
    }

    /// Names a version.
    pub fn digest_of(&self, version: u32) -> Option<Digest> {
        let at = usize::try_from(version).ok()?.checked_sub(1)?;
        self.digests.get(at).copied()
    }

    /// The version of a digest.
    pub fn version_of(&self, digest: &Digest) -> Option<u32> {
        let at = self.digests.iter().position(|d| d == digest)?;
        Some(at as u32 + 1)
    }

    /// The newest version, by place.
    pub fn entries(&self) -> &[CatalogueEntry] {
        &self.entries
    }

    /// The place of the item that has, or had, this name.
    pub fn place(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    /// Every name that some item has or had.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// What changed after a version, in order.
    pub fn since(&self, version: u32) -> &[CatalogueChange] {
        let from = self.changes.partition_point(|c| c.version <= version);
        &self.changes[from..]
    }

    /// What a version changed.
    pub fn changes_of(&self, version: u32) -> &[CatalogueChange] {
        let from = self.changes.partition_point(|c| c.version < version);
        let to = self.changes.partition_point(|c| c.version <= version);
        &self.changes[from..to]
    }

    /// The catalogue of a version, by place.
    pub fn at(&self, version: u32) -> Vec<CatalogueEntry> {
        let mut out: Vec<CatalogueEntry> = vec![];
        let until = self.changes.iter().take_while(|c| c.version <= version);
        for change in until {
            let place = change.place as usize;
            match out.get_mut(place) {
                Some(entry) => *entry = change.entry.clone(),
                // Places were checked when they were applied: this is the next one.
                None => out.push(change.entry.clone()),
            }
        }
        out
    }

    /// Applies the next version.
    ///
    /// # Errors
    /// [`CatalogueError`]; nothing was changed.
    pub fn apply(&mut self, changes: Vec<CatalogueChange>) -> Result<(), CatalogueError> {
        let version = self.newest() + 1;
        self.check(version, &changes)?;
        self.digests
            .push(version_digest(&self.digest(), version, &changes));
        for change in &changes {
            self.bytes += change.size();
            let place = change.place as usize;
            for name in change.entry.names() {
                self.names.insert(name.to_owned(), change.place);
            }
            match self.entries.get_mut(place) {
                Some(entry) => *entry = change.entry.clone(),
                None => self.entries.push(change.entry.clone()),
            }
        }
        self.changes.extend(changes);
        Ok(())
    }

    /// Applies several versions, one after the other.
    ///
    /// # Errors
    /// [`CatalogueError`]; versions before the one that is refused were applied.
    pub fn apply_all(&mut self, changes: Vec<CatalogueChange>) -> Result<(), CatalogueError> {
        let mut rest = changes.into_iter().peekable();
        while let Some(version) = rest.peek().map(|c| c.version) {
            let mut own = vec![];
            while let Some(change) = rest.next_if(|c| c.version == version) {
                own.push(change);
            }
            self.apply(own)?;
        }
        Ok(())
    }

    fn check(&self, version: u32, changes: &[CatalogueChange]) -> Result<(), CatalogueError> {
        if let Some(other) = changes.iter().find(|c| c.version != version) {
            return Err(CatalogueError::Order {
                got: other.version,
                expected: version,
            });
        }
        // A catalogue may begin empty, and nothing else may change nothing.
        if changes.is_empty() && version > 1 {
            return Err(CatalogueError::Nothing(version));
        }
        let count = self.changes.len() + changes.len();
        let bytes = changes.iter().map(CatalogueChange::size).sum::<usize>() + self.bytes;
        for (got, most) in [(count, MAX_CHANGES), (bytes, MAX_BYTES)] {
            if got > most {
                return Err(CatalogueError::Full { got, most });
            }
        }
        let mut places = self.entries.len() as u32;
        let mut last = None;
        let mut fresh: BTreeMap<&str, u32> = BTreeMap::new();
        for change in changes {
            let place = change.place;
            if last.is_some_and(|last| place <= last) || place > places {
                return Err(CatalogueError::Place {
                    version,
                    place,
                    before: places,
                });
            }
            last = Some(place);
            self.check_entry(change)?;
            places = places.max(place + 1);
            for name in change.entry.names() {
                let taken = fresh.insert(name, place).or(self.place(name));
                if let Some(taken) = taken.filter(|taken| *taken != place) {
                    return Err(CatalogueError::Name {
                        name: name.to_owned(),
                        taken,
                        place,
                    });
                }
            }
        }
        Ok(())
    }

    fn check_entry(&self, change: &CatalogueChange) -> Result<(), CatalogueError> {
        let entry = &change.entry;
        let bad = |why: String| CatalogueError::Entry {
            id: entry.id.chars().take(MAX_ID).collect(),
            place: change.place,
            why,
        };
        // What a folder was founded with may have longer texts than what is applied later.
        let misfit = match change.version {
            1 => (entry.size() > PAGE_BYTES).then(|| "it has too many bytes".to_owned()),
            _ => entry.misfit(),
        };
        if let Some(why) = misfit {
            return Err(bad(why));
        }
        match self.entries.get(change.place as usize) {
            Some(before) if before == entry => Err(bad("nothing changes".into())),
            Some(before) if entry.follows(before) => Ok(()),
            Some(before) => Err(bad(format!(
                "it does not follow {:?}: an identifier changes into another one only with its \
                 former name kept",
                before.id
            ))),
            None if !entry.was.is_empty() || entry.title.is_none() => {
                Err(bad("a new item has a title and no former name".into()))
            }
            None => Ok(()),
        }
    }
}

/// What a version does to items, by place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// New items.
    pub added: Vec<String>,
    /// Items that are there again.
    pub restored: Vec<String>,
    /// Identifiers, old and new.
    pub renamed: Vec<(String, String)>,
    /// Items with another title or year: the label before and after.
    pub retitled: Vec<(String, String, String)>,
    /// Items with other tags.
    pub retagged: Vec<String>,
    /// Items that are there no longer.
    pub removed: Vec<String>,
}

impl Difference {
    /// What changes do to a catalogue, given by place.
    pub fn of(before: &[CatalogueEntry], changes: &[CatalogueChange]) -> Self {
        let mut out = Self::default();
        for CatalogueChange { place, entry, .. } in changes {
            let id = || entry.id.clone();
            let Some(old) = before.get(*place as usize) else {
                out.added.push(id());
                continue;
            };
            if old.id != entry.id {
                out.renamed.push((old.id.clone(), id()));
            }
            match (&old.title, &entry.title) {
                (None, None) => {}
                (None, Some(_)) => out.restored.push(id()),
                (Some(_), None) => out.removed.push(id()),
                (Some(_), Some(_)) => {
                    let label = |e: &CatalogueEntry| {
                        let title = e.title.clone().unwrap_or_default();
                        e.year.map_or(title.clone(), |y| format!("{title} ({y})"))
                    };
                    if label(old) != label(entry) {
                        out.retitled.push((id(), label(old), label(entry)));
                    }
                    if old.tags != entry.tags {
                        out.retagged.push(id());
                    }
                }
            }
        }
        out
    }

    /// Counts, for a line of the log.
    pub fn summary(&self) -> String {
        let all = [
            ("added", self.added.len()),
            ("restored", self.restored.len()),
            ("renamed", self.renamed.len()),
            ("retitled", self.retitled.len()),
            ("retagged", self.retagged.len()),
            ("removed", self.removed.len()),
        ];
        let some = all.iter().filter(|(_, n)| *n > 0);
        let words: Vec<String> = some.map(|(what, n)| format!("{n} {what}")).collect();
        words.join(", ")
    }
}

/// What leads from a catalogue, given by place, to `items`, which have no former names yet.
/// `renamed` has pairs of an identifier and the one that replaces it, in order; pairs that are so
/// already change nothing.
///
/// # Errors
/// [`CatalogueError::Entry`] for a pair that names no item of before, or an item that `items`
/// lacks; [`CatalogueError::Name`] for one whose new name is another item's.
pub fn difference(
    before: &[CatalogueEntry],
    version: u32,
    items: &[CatalogueEntry],
    renamed: &[(String, String)],
) -> Result<Vec<CatalogueChange>, CatalogueError> {
    let mut next = before.to_vec();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (place, entry) in before.iter().enumerate() {
        for name in entry.names() {
            places.insert(name.to_owned(), place);
        }
    }
    rename(&mut next, &mut places, items, renamed)?;
    let wanted: BTreeMap<&str, &CatalogueEntry> =
        items.iter().map(|item| (item.id.as_str(), item)).collect();
    for entry in &mut next {
        match wanted.get(entry.id.as_str()) {
            Some(item) => {
                let was = std::mem::take(&mut entry.was);
                *entry = CatalogueEntry {
                    was,
                    ..(*item).clone()
                };
            }
            // It keeps its name, so that what is recorded of it is known.
            None => {
                entry.title = None;
                entry.year = None;
                entry.tags.clear();
            }
        }
    }
    for item in items {
        match places.get(&item.id) {
            None => next.push(item.clone()),
            Some(place) if next[*place].id != item.id => {
                return Err(CatalogueError::Name {
                    name: item.id.clone(),
                    taken: *place as u32,
                    place: next.len() as u32,
                });
            }
            Some(_) => {}
        }
    }
    let changed = (0..).zip(next).filter(|(place, entry): &(u32, _)| {
        let old = before.get(*place as usize);
        old != Some(entry)
    });
    Ok(changed
        .map(|(place, entry)| CatalogueChange {
            version,
            place,
            entry,
        })
        .collect())
}

/// Gives items their new names.
fn rename(
    next: &mut [CatalogueEntry],
    places: &mut BTreeMap<String, usize>,
    items: &[CatalogueEntry],
    renamed: &[(String, String)],
) -> Result<(), CatalogueError> {
    for (old, new) in renamed {
        let bad = |why: &str| CatalogueError::Entry {
            id: old.clone(),
            place: places.get(old).map_or(u32::MAX, |p| *p as u32),
            why: format!("it cannot be renamed to {new:?}: {why}"),
        };
        let Some(place) = places.get(old).copied() else {
            return Err(bad("no item has, or had, this identifier"));
        };
        let entry = &mut next[place];
        // It was renamed by an earlier version, perhaps more than once.
        if entry.id != *old {
            match entry.names().any(|n| n == new) {
                true => continue,
                false => return Err(bad("it has another name already")),
            }
        }
        if let Some(taken) = places.get(new).filter(|taken| **taken != place) {
            return Err(CatalogueError::Name {
                name: new.clone(),
                taken: *taken as u32,
                place: place as u32,
            });
        }
        if old == new {
            continue;
        }
        let former = std::mem::replace(&mut entry.id, new.clone());
        entry.was.push(former);
        places.insert(new.clone(), place);
    }
    let listed = |id: &str| items.iter().any(|item| item.id == id);
    let lost = renamed.iter().find(|(old, new)| {
        let at = places.get(old.as_str());
        let own = at.is_some_and(|at| next[*at].id == *new);
        own && !listed(new)
    });
    match lost {
        None => Ok(()),
        Some((old, new)) => Err(CatalogueError::Entry {
            id: old.clone(),
            place: places.get(old).map_or(u32::MAX, |p| *p as u32),
            why: format!("it is renamed to {new:?}, which the folder does not list"),
        }),
    }
}

/// A page of these, from `from` on, of about [`PAGE_BYTES`] bytes and at least one.
pub fn page<T>(all: &[T], from: u64, size: impl Fn(&T) -> usize) -> &[T] {
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(all.len());
    let rest = &all[from..];
    let mut bytes = 0;
    let fits = rest.iter().take_while(|one| {
        let first = bytes == 0;
        bytes += size(one);
        first || bytes <= PAGE_BYTES
    });
    &rest[..fits.count()]
}

#[cfg(test)]
mod tests;
