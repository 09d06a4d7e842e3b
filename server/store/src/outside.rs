//! Large values in files beside a database, which holds where they are (after WiscKey; Lu et al.,
//! FAST 2016).
//!
//! Thousands of updates wait for the end of a round. In the database they would be in memory until
//! then and be written several times over; here they are appended once to a segment file, and read
//! when they are asked for. A value is durable before the database refers to it: what a crash
//! leaves without a reference is removed when the segment is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{Record, Storage, StoreError, Write};

/// Values of so many bytes are kept outside.
const LARGE: usize = 4 << 10;
/// A segment that has so many bytes is not continued.
const SEGMENT: u64 = 64 << 20;
/// A segment of which no more than one byte in so many is still referred to is sparse.
const SPARSE: u64 = 2;
/// Bytes that nothing refers to before sparse segments are emptied, and as many as are referred to:
/// what waits for the end of a round goes by itself. A value that has so many is in a segment of
/// its own, which goes with it: one that is written anew every day would fill a segment with those
/// of before.
const WASTE: u64 = 4 << 20;
/// A segment with more than [`WASTE`], of which no more than one byte in so many is referred to, is
/// not continued.
const ENDS: u64 = 2;
/// However much is referred to, no more than this is wasted before sparse segments are emptied.
const MOST_WASTE: u64 = 4 * SEGMENT;
/// What a key has at its end under which the database says where its value is. No key of a caller
/// ends so.
const REFERENCE: &[u8] = b"\0outside";

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    segment: u64,
    offset: u64,
    len: u64,
}

impl Place {
    fn to_bytes(self) -> Vec<u8> {
        [self.segment, self.offset, self.len]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect()
    }

    /// `None` for what cannot be a place; sums of those that can do not overflow.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 24] = bytes.try_into().ok()?;
        let n = |at: usize| {
            bytes[at..at + 8]
                .try_into()
                .map(u64::from_le_bytes)
                .ok()
                .filter(|n| n >> 40 == 0)
        };
        Some(Self {
            segment: n(0)?,
            offset: n(8)?,
            len: n(16)?,
        })
    }
}

/// Where a key's value is from now on; `None`: not outside.
type Change = (Vec<u8>, Option<Place>);

/// Bytes of a segment.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    all: u64,
    /// Those that the database refers to.
    live: u64,
}

/// Where the next value would be, if a segment is open, and the number of the next segment.
struct End {
    open: Option<(u64, u64)>,
    next: u64,
}

/// The segment that is written to.
#[derive(Debug)]
struct Current {
    number: u64,
    file: File,
    len: u64,
}

/// A database whose large values are outside. Who reads needs `places` for a moment; who writes
/// holds `log` until the write is durable.
#[derive(Debug)]
pub(crate) struct Outside<S> {
    inner: S,
    folder: PathBuf,
    places: RwLock<BTreeMap<Vec<u8>, Place>>,
    log: Mutex<Log>,
}

/// What only who writes needs.
#[derive(Debug)]
struct Log {
    segments: BTreeMap<u64, Size>,
    current: Option<Current>,
    /// Number of the next segment.
    next: u64,
    /// Segments that nothing refers to, to be removed after the next write: until then, a database
    /// that was opened may be an older one.
    orphans: BTreeSet<u64>,
    /// Sparse segments that hold a value which cannot be read.
    stuck: BTreeSet<u64>,
    /// [`WASTE`].
    waste: u64,
    /// A write failed: the database may refer to other places than are known here.
    doubt: bool,
}

fn reference(key: &[u8]) -> Vec<u8> {
    [key, REFERENCE].concat()
}

impl<S: Storage> Outside<S> {
    /// `inner` refers to values in `folder`, which is made when there is the first.
    pub(crate) fn open(inner: S, folder: &Path) -> Result<Self, StoreError> {
        let this = Self {
            inner,
            folder: folder.to_owned(),
            places: RwLock::default(),
            log: Mutex::new(Log {
                segments: BTreeMap::new(),
                current: None,
                next: 0,
                orphans: BTreeSet::new(),
                stuck: BTreeSet::new(),
                waste: WASTE,
                doubt: false,
            }),
        };
        this.load(&mut this.log())?;
        Ok(this)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self) -> RwLockReadGuard<'_, BTreeMap<Vec<u8>, Place>> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn places_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<Vec<u8>, Place>> {
        self.places.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.folder.join(format!("{segment}.values"))
    }

    fn corrupt(&self, why: impl Into<String>) -> StoreError {
        StoreError::Corrupt {
            name: self.folder.display().to_string(),
            why: why.into(),
        }
    }

    /// Reads where everything is.
    fn load(&self, log: &mut Log) -> Result<(), StoreError> {
        let mut places = BTreeMap::new();
        log.segments.clear();
        log.current = None;
        for (key, value) in self.inner.scan()? {
            if let Some(key) = key.strip_suffix(REFERENCE) {
                let place = Place::from_bytes(&value)
                    .ok_or_else(|| self.corrupt("a reference is damaged"))?;
                places.insert(key.to_vec(), place);
                log.segments.entry(place.segment).or_default().live += place.len;
            }
        }
        log.orphans.clear();
        for (number, len) in self.on_disk()? {
            log.next = log.next.max(number.saturating_add(1));
            match log.segments.get_mut(&number) {
                Some(size) => size.all = len,
                None => drop(log.orphans.insert(number)),
            }
        }
        let known = log.segments.keys().next_back().map_or(0, |n| n + 1);
        log.next = log.next.max(known);
        log.doubt = false;
        *self.places_mut() = places;
        Ok(())
    }

    /// Numbers and lengths of the segments that are there.
    fn on_disk(&self) -> Result<Vec<(u64, u64)>, StoreError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(vec![]),
            other => other.map_err(StoreError::io(&self.folder))?,
        };
        let mut out = vec![];
        for entry in entries {
            let entry = entry.map_err(StoreError::io(&self.folder))?;
            let len = entry
                .metadata()
                .map_err(StoreError::io(&self.folder))?
                .len();
            let number = entry
                .file_name()
                .to_str()
                .and_then(|n| n.strip_suffix(".values")?.parse::<u64>().ok());
            out.extend(number.map(|n| (n, len)));
        }
        Ok(out)
    }

    /// Removes segments that nothing refers to; one that cannot be removed now is tried again after
    /// the next write.
    fn sweep(&self, log: &mut Log) {
        let dead: Vec<u64> = log
            .segments
            .iter()
            .filter(|(_, s)| s.live == 0)
            .map(|(n, _)| *n)
            .collect();
        for number in dead {
            log.segments.remove(&number);
            log.stuck.remove(&number);
            log.orphans.insert(number);
            log.current.take_if(|c| c.number == number);
        }
        let writing = log.current.as_ref().map(|c| c.number);
        let kept = |n: &u64| {
            let path = self.path(*n);
            Some(*n) == writing
                || fs::remove_file(path).is_err_and(|e| e.kind() != ErrorKind::NotFound)
        };
        let orphans = log.orphans.iter().copied();
        let orphans = orphans.filter(|n| !log.segments.contains_key(n));
        log.orphans = orphans.filter(kept).collect();
    }

    fn read(&self, place: Place) -> Result<Vec<u8>, StoreError> {
        let path = self.path(place.segment);
        let read = || {
            let mut file = File::open(&path)?;
            // Never more memory than there is file, whatever the reference says.
            if place.offset.saturating_add(place.len) > file.metadata()?.len() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            file.seek(SeekFrom::Start(place.offset))?;
            let mut value = vec![0; place.len as usize];
            file.read_exact(&mut value).map(|()| value)
        };
        read().map_err(|e| match e.kind() {
            ErrorKind::NotFound | ErrorKind::UnexpectedEof => {
                self.corrupt(format!("a value is lost: {e}"))
            }
            _ => StoreError::io(&path)(e),
        })
    }

    /// A new segment, whose name is durable.
    fn create(&self, number: u64) -> Result<File, StoreError> {
        let path = self.path(number);
        let create = || {
            if !self.folder.is_dir() {
                fs::create_dir_all(&self.folder)?;
                if let Some(parent) = self.folder.parent().filter(|_| cfg!(unix)) {
                    File::open(parent)?.sync_all()?;
                }
            }
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&path)?;
            // The name of a new file is durable with its folder.
            if cfg!(unix) {
                File::open(&self.folder)?.sync_all()?;
            }
            Ok(file)
        };
        create().map_err(StoreError::io(&path))
    }

    /// The segment to write to.
    fn writable<'a>(&self, log: &'a mut Log) -> Result<&'a mut Current, StoreError> {
        if log.current.as_ref().is_some_and(|c| c.len >= SEGMENT) {
            // It may hold values of the write that goes on in the next.
            self.sync(log)?;
            log.current = None;
        }
        if log.current.is_none() {
            // A file that was made and is not durable is not made again: the number is used up.
            let number = log.next;
            log.next += 1;
            let file = self.create(number)?;
            log.orphans.remove(&number);
            log.current = Some(Current {
                number,
                file,
                len: 0,
            });
        }
        log.current
            .as_mut()
            .ok_or_else(|| StoreError::Backend("no segment is open".into()))
    }

    fn append(&self, log: &mut Log, value: &[u8]) -> Result<Place, StoreError> {
        if value.len() as u64 > log.waste {
            return self.append_alone(log, value);
        }
        let at = self.writable(log)?;
        let place = Place {
            segment: at.number,
            offset: at.len,
            len: value.len() as u64,
        };
        if let Err(e) = at.file.write_all(value) {
            // Where its end is now is not known: it is not continued.
            log.current = None;
            return Err(StoreError::io(&self.path(place.segment))(e));
        }
        at.len += place.len;
        Ok(place)
    }

    /// In a segment of its own; durable when this returns.
    fn append_alone(&self, log: &mut Log, value: &[u8]) -> Result<Place, StoreError> {
        let number = log.next;
        log.next += 1;
        let mut file = self.create(number)?;
        log.orphans.remove(&number);
        let written = file.write_all(value).and_then(|()| file.sync_data());
        written.map_err(StoreError::io(&self.path(number)))?;
        Ok(Place {
            segment: number,
            offset: 0,
            len: value.len() as u64,
        })
    }

    /// What was appended is durable.
    fn sync(&self, log: &mut Log) -> Result<(), StoreError> {
        let Some(current) = &log.current else {
            return Ok(());
        };
        let synced = current.file.sync_data();
        synced
            .map_err(StoreError::io(&self.path(current.number)))
            .inspect_err(|_| log.current = None)
    }

    fn end(log: &Log) -> End {
        End {
            open: log.current.as_ref().map(|c| (c.number, c.len)),
            next: log.next,
        }
    }

    /// Cuts what was appended after an [`Self::end`], and nothing else. What cannot be cut now is
    /// left over until its segment goes.
    fn take_back(&self, log: &mut Log, end: End) {
        log.current = None;
        if let Some((number, len)) = end.open {
            let _ = OpenOptions::new()
                .write(true)
                .open(self.path(number))
                .and_then(|f| f.set_len(len));
        }
        for number in end.next..log.next {
            let _ = fs::remove_file(self.path(number));
        }
    }

    /// A segment that is written to and is half waste ends: what is left goes, or is moved.
    fn end_wasted(log: &mut Log) {
        let Log {
            segments,
            current,
            waste,
            ..
        } = log;
        current.take_if(|c| {
            let live = segments.get(&c.number).map_or(0, |s| s.live);
            c.len > *waste && live * ENDS <= c.len
        });
    }

    /// A segment that is hardly referred to any more, when all have wasted much.
    fn sparse(log: &Log) -> Option<u64> {
        let live: u64 = log.segments.values().map(|s| s.live).sum();
        let all: u64 = log.segments.values().map(|s| s.all).sum();
        if all.saturating_sub(live) < log.waste.max(live.min(MOST_WASTE)) {
            return None;
        }
        let current = log.current.as_ref().map(|c| c.number);
        let sparse = |(n, s): &(&u64, &Size)| {
            Some(**n) != current && !log.stuck.contains(n) && s.live * SPARSE <= s.all
        };
        log.segments.iter().find(sparse).map(|(n, _)| *n)
    }

    /// Moves what is left of a sparse segment to the one that is written to.
    fn compact(&self, log: &mut Log) -> Result<(), StoreError> {
        let Some(segment) = Self::sparse(log) else {
            return Ok(());
        };
        let left: Vec<(Vec<u8>, Place)> = self
            .places()
            .iter()
            .filter(|(_, p)| p.segment == segment)
            .map(|(k, p)| (k.clone(), *p))
            .collect();
        let (mut inner, mut changed) = (vec![], vec![]);
        for (key, place) in left {
            // One that cannot be read stays where it is, and who asks for it is told.
            let value = match self.read(place) {
                Ok(value) => value,
                Err(e) => {
                    log.stuck.insert(segment);
                    return Err(e);
                }
            };
            let place = self.append(log, &value)?;
            inner.push((reference(&key), Some(place.to_bytes())));
            changed.push((key, Some(place)));
        }
        self.commit(log, &inner, changed)
    }

    /// Makes what was appended durable, then what refers to it.
    fn commit(
        &self,
        log: &mut Log,
        inner: &[Write],
        changed: Vec<Change>,
    ) -> Result<(), StoreError> {
        if changed.iter().any(|(_, place)| place.is_some()) {
            self.sync(log)?;
        }
        log.doubt = true;
        self.inner.apply(inner)?;
        log.doubt = false;
        self.settled(log, changed);
        Ok(())
    }

    /// Takes note of what the database refers to now.
    fn settled(&self, log: &mut Log, changed: Vec<Change>) {
        let mut places = self.places_mut();
        for (key, place) in changed {
            let old = match place {
                Some(p) => places.insert(key, p),
                None => places.remove(&key),
            };
            if let Some(new) = place {
                let size = log.segments.entry(new.segment).or_default();
                (size.all, size.live) = (size.all.max(new.offset + new.len), size.live + new.len);
            }
            if let Some(size) =
                old.and_then(|o| log.segments.get_mut(&o.segment).map(|s| (s, o.len)))
            {
                size.0.live -= size.1;
            }
        }
        // From here on nobody looks for a value in what is swept.
        drop(places);
        self.sweep(log);
    }

    /// Appends large values and refers to them.
    fn write(&self, log: &mut Log, writes: &[Write]) -> Result<(), StoreError> {
        // The last write of a key counts.
        let mut last: BTreeMap<&[u8], Option<&[u8]>> = BTreeMap::new();
        for (key, value) in writes {
            if key.ends_with(REFERENCE) {
                return Err(StoreError::Backend(
                    "a key ends as only references do".into(),
                ));
            }
            last.insert(key, value.as_deref());
        }
        let (mut inner, mut changed): (Vec<Write>, Vec<Change>) = (vec![], vec![]);
        for (key, value) in last {
            let outside = value
                .filter(|v| v.len() >= LARGE)
                .map(|v| self.append(log, v))
                .transpose()?;
            let inside = value.filter(|_| outside.is_none()).map(<[u8]>::to_vec);
            inner.push((key.to_vec(), inside));
            if outside.is_some() || self.places().contains_key(key) {
                inner.push((reference(key), outside.map(Place::to_bytes)));
                changed.push((key.to_vec(), outside));
            }
        }
        self.commit(log, &inner, changed)
    }
}

impl<S: Storage> Storage for Outside<S> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            let place = self.places().get(key).copied();
            let Some(place) = place else {
                return self.inner.get(key);
            };
            match self.read(place) {
                // It was removed, or moved to another segment, after its place was looked up.
                Err(_) if self.places().get(key) != Some(&place) => {}
                read => return read.map(Some),
            }
        }
    }

    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        let log = &mut self.log();
        if log.doubt {
            self.inner.recover()?;
            self.load(log)?;
        }
        let start = Self::end(log);
        if let Err(e) = self.write(log, writes) {
            if !log.doubt {
                // The database has not heard of it: what was appended is taken back, so that a full
                // disk does not stay full.
                self.take_back(log, start);
            }
            return Err(e);
        }
        // What was asked for is done. A segment that cannot be emptied now (no space, say) will be
        // later.
        Self::end_wasted(log);
        let start = Self::end(log);
        if self.compact(log).is_err() && !log.doubt {
            self.take_back(log, start);
        }
        Ok(())
    }

    fn recover(&self) -> Result<(), StoreError> {
        let log = &mut self.log();
        self.inner.recover()?;
        self.load(log)
    }

    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        let inside = self
            .inner
            .scan()?
            .into_iter()
            .filter(|(k, _)| !k.ends_with(REFERENCE))
            .map(Ok);
        let places = self.places();
        let outside = places.iter().map(|(k, p)| Ok((k.clone(), self.read(*p)?)));
        let mut all = inside
            .chain(outside)
            .collect::<Result<Vec<Record>, StoreError>>()?;
        all.sort_unstable();
        Ok(all)
    }
}

#[cfg(test)]
mod tests;
