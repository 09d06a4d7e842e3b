//! The public catalogue: items, what is known of them, and what events with them count as.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use lethe_parts::content::{Content, Description};
use lethe_parts::event::{Event, EventTable, Kind, Meaning, Reading};
use lethe_proto::catalogue::Versions;
use lethe_proto::ids::Digest;
pub use lethe_recsys::data::TEXT_VECTORS;
use lethe_recsys::data::{DataSpec, Item, read_items, text_vectors};
use lethe_recsys::features::item_features;
use lethe_recsys::versions::{entries, items_of};

use crate::history::TrainingEvent;
use crate::lists::Views;
use crate::{ClientError, LocalEvent};

/// Items of a data folder. Several clients of one process share one.
#[derive(Debug)]
pub struct Catalogue {
    items: Vec<Item>,
    /// Positions by identifier, those that items had before among them.
    index: HashMap<String, u32>,
    /// Identifiers of items that have left, and that are known all the same.
    left: HashSet<String>,
    meaning: Meaning,
    content: Arc<Content>,
    /// As in the file, `[items][width]`.
    vectors: Option<Vec<f32>>,
    /// Of the partition; only training asks for them.
    features: OnceLock<Vec<Vec<f32>>>,
    /// Tables that clients with this catalogue have decoded.
    views: Views,
    /// Items of histories that it lacks, as far as they were named.
    missing: Mutex<BTreeSet<String>>,
    /// What the app ships, as version 1.
    first: OnceLock<Arc<Versions>>,
    /// Versions that clients of one process have made from this one, by the newest digest and the
    /// version.
    made: Mutex<Vec<Made>>,
}

/// A version that was made: the newest digest that is known, its number, and what it gave.
type Made = ((Digest, u32), Weak<Catalogue>);

/// Names of items.
#[derive(Default)]
struct Names {
    index: HashMap<String, u32>,
    left: HashSet<String>,
}

/// Items that are named in warnings at most.
const NAMED: usize = 1_000;

impl Catalogue {
    /// Loads the items of a data folder (`dataset.toml`, or one of the data sets that are known
    /// without), what events count as, and text vectors if [`TEXT_VECTORS`] is there. Interactions
    /// are not read. Rows that cannot be used are left out; a warning names the first of each kind.
    ///
    /// # Errors
    /// [`ClientError::Data`] for a folder that cannot be read; [`ClientError::Meaning`] for a table
    /// of events that makes no sense.
    pub fn load(folder: &Path) -> Result<Arc<Self>, ClientError> {
        Self::read(folder, false)
    }

    /// As [`Self::load`], for a catalogue in which every row can be used and nothing has to be
    /// guessed.
    ///
    /// # Errors
    /// As [`Self::load`], and for rows that would be left out.
    pub fn load_strict(folder: &Path) -> Result<Arc<Self>, ClientError> {
        Self::read(folder, true)
    }

    fn read(folder: &Path, strict: bool) -> Result<Arc<Self>, ClientError> {
        let spec = DataSpec::of_folder(folder)?;
        let read = read_items(folder, &spec, strict)?;
        if !read.reading.is_clean() {
            tracing::warn!("{}", read.reading);
        }
        let items = read.items;
        let meaning = meaning_of(&spec)?;
        let vectors = text_vectors(folder, items.len())?;
        Self::with(items, meaning, vectors)
    }

    /// A catalogue that the app has in memory; `vectors` as in [`TEXT_VECTORS`], if there are some.
    ///
    /// # Errors
    /// [`ClientError::TextVectors`] unless there is one vector of finite numbers for every item.
    pub fn new(
        items: Vec<Item>,
        table: &EventTable,
        vectors: Option<Vec<f32>>,
    ) -> Result<Arc<Self>, ClientError> {
        Self::with(items, Meaning::new(table)?, vectors)
    }

    fn with(
        items: Vec<Item>,
        meaning: Meaning,
        vectors: Option<Vec<f32>>,
    ) -> Result<Arc<Self>, ClientError> {
        let index = (0..).zip(&items).map(|(i, x)| (x.id.clone(), i)).collect();
        let names = Names {
            index,
            left: HashSet::new(),
        };
        Self::named(items, names, meaning, vectors).map(Arc::new)
    }

    fn named(
        items: Vec<Item>,
        names: Names,
        meaning: Meaning,
        vectors: Option<Vec<f32>>,
    ) -> Result<Self, ClientError> {
        let Names { index, left } = names;
        let described: Vec<Description> = items.iter().map(description).collect();
        let mut content = Content::new(&described);
        if let Some(vectors) = &vectors {
            content = content
                .with_text(vectors)
                .map_err(|e| ClientError::TextVectors {
                    path: TEXT_VECTORS.into(),
                    why: e.to_string(),
                })?;
        }
        Ok(Self {
            items,
            index,
            left,
            meaning,
            content: Arc::new(content),
            vectors,
            features: OnceLock::new(),
            views: Views::default(),
            missing: Mutex::default(),
            first: OnceLock::new(),
            made: Mutex::default(),
        })
    }

    /// What the app ships, as version 1 of a catalogue; without any, if it is none.
    pub(crate) fn as_version_one(&self) -> Arc<Versions> {
        let first = self.first.get_or_init(|| {
            let versions = Versions::founded(entries(&self.items));
            Arc::new(versions.unwrap_or_default())
        });
        first.clone()
    }

    /// The catalogue of a version, with what the app ships beside it: what events count as, and
    /// text vectors. Items are found by all names that they have or had in the newest version.
    /// Clients of one process share it.
    pub(crate) fn of_version(
        &self,
        versions: &Versions,
        version: u32,
    ) -> Result<Arc<Self>, ClientError> {
        let name = (versions.digest(), version);
        // Whoever comes second waits: making it twice would take as long.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|(_, catalogue)| catalogue.strong_count() > 0);
        let known = made.iter().find(|(known, _)| *known == name);
        if let Some(catalogue) = known.and_then(|(_, c)| c.upgrade()) {
            return Ok(catalogue);
        }
        let catalogue = Arc::new(self.make_version(versions, version)?);
        made.push((name, Arc::downgrade(&catalogue)));
        Ok(catalogue)
    }

    fn make_version(&self, versions: &Versions, version: u32) -> Result<Self, ClientError> {
        let entries = versions.at(version);
        let mut positions: Vec<Option<u32>> = vec![];
        let mut count = 0;
        for entry in &entries {
            positions.push(entry.title.is_some().then_some(count));
            count += u32::from(entry.title.is_some());
        }
        let mut names = Names::default();
        for name in versions.names() {
            let place = versions.place(name).map(|p| p as usize);
            match place.and_then(|p| positions.get(p).copied().flatten()) {
                Some(position) => drop(names.index.insert(name.to_owned(), position)),
                None => drop(names.left.insert(name.to_owned())),
            }
        }
        let vectors = self.vectors.as_ref().map(|own| {
            let width = own.len() / self.items.len().max(1);
            let listed = entries.iter().filter(|e| e.title.is_some());
            let rows = listed.map(|entry| {
                let position = entry.names().find_map(|name| self.find(name));
                let start = position.map(|p| p as usize * width);
                // An item that the app does not ship has none.
                start.map_or(vec![0.0; width], |s| own[s..s + width].to_vec())
            });
            rows.flatten().collect()
        });
        Self::named(items_of(&entries), names, self.meaning.clone(), vectors)
    }

    pub(crate) fn views(&self) -> &Views {
        &self.views
    }

    /// The items, in the order of their file.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// What events count as.
    pub fn meaning(&self) -> &Meaning {
        &self.meaning
    }

    /// The item of this identifier.
    pub fn item(&self, id: &str) -> Option<&Item> {
        self.index.get(id).map(|i| &self.items[*i as usize])
    }

    /// An event that counts as a like, or as a dislike, by the catalogue's table.
    pub fn thumb(&self, item: &str, liked: bool, time: i64) -> LocalEvent {
        let thumb = match liked {
            true => LocalEvent::liked(item, time),
            false => LocalEvent::disliked(item, time),
        };
        let value = if liked { f32::MAX } else { f32::MIN };
        let extreme = LocalEvent::rating(item, value, time);
        let others = Kind::ALL.map(|kind| LocalEvent {
            kind,
            ..extreme.clone()
        });
        let counts = |e: &LocalEvent| self.reading(e).liked == Some(liked);
        match counts(&thumb) {
            true => thumb,
            false => others.into_iter().find(counts).unwrap_or(thumb),
        }
    }

    /// What an event counts as.
    pub fn reading(&self, event: &LocalEvent) -> Reading {
        self.meaning.read(&Event {
            item: 0,
            time: event.time,
            kind: event.kind,
            value: event.value,
        })
    }

    pub(crate) fn position(&self, id: &str) -> Result<u32, ClientError> {
        let known = self.find(id);
        known.ok_or_else(|| ClientError::UnknownItem(id.to_owned()))
    }

    /// Whether an item of this identifier has left.
    pub(crate) fn has_left(&self, id: &str) -> bool {
        self.left.contains(id)
    }

    /// Refuses an item that never was in the catalogue. What has left may still be recorded: the
    /// history keeps it.
    pub(crate) fn had(&self, id: &str) -> Result<(), ClientError> {
        match self.index.contains_key(id) || self.has_left(id) {
            true => Ok(()),
            false => Err(ClientError::UnknownItem(id.to_owned())),
        }
    }

    /// How many events are about items that it does not have (any more).
    pub(crate) fn unknown<'a>(&self, events: impl Iterator<Item = &'a LocalEvent>) -> usize {
        events.filter(|e| self.find(&e.item).is_none()).count()
    }

    pub(crate) fn find(&self, id: &str) -> Option<u32> {
        self.index.get(id).copied()
    }

    /// By position: whether the item is one of these.
    pub(crate) fn places_of(&self, ids: &[String]) -> Vec<bool> {
        let mut out = vec![false; self.items.len()];
        for place in ids.iter().filter_map(|id| self.find(id)) {
            out[place as usize] = true;
        }
        out
    }

    /// Whether it has an item of a history. The item may have left since it was recorded: that is
    /// said once.
    pub(crate) fn knows(&self, id: &str) -> bool {
        if self.index.contains_key(id) {
            return true;
        }
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.len() < NAMED && missing.insert(id.to_owned()) {
            tracing::warn!(
                item = id,
                "an item of the history is not in the catalogue: it is left out of prompts"
            );
        }
        false
    }

    /// What was named so far.
    #[cfg(test)]
    pub(crate) fn missing(&self) -> Vec<String> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.iter().cloned().collect()
    }

    pub(crate) fn at(&self, position: u32) -> &Item {
        &self.items[position as usize]
    }

    pub(crate) fn content(&self) -> &Arc<Content> {
        &self.content
    }

    /// Features of the partition, centred.
    pub(crate) fn features(&self) -> &[Vec<f32>] {
        self.features.get_or_init(|| {
            let mut features = item_features(&self.items);
            lethe_learn::partition::centre(&mut features);
            features
        })
    }

    /// What the adapters see of a history: its likes and dislikes.
    pub(crate) fn training<'a>(
        &self,
        events: impl Iterator<Item = &'a LocalEvent>,
    ) -> Vec<TrainingEvent> {
        let thumb = |e: &LocalEvent| {
            Some(TrainingEvent {
                liked: self.reading(e).liked?,
                item: e.item.clone(),
                time: e.time,
            })
        };
        events.filter_map(thumb).collect()
    }

    /// The events as the recommender reads them, by position in the catalogue. Items that the
    /// catalogue does not have any more are left out.
    pub(crate) fn known<'a>(&self, events: impl Iterator<Item = &'a LocalEvent>) -> Vec<Event> {
        let known = |e: &LocalEvent| {
            Some(Event {
                item: self.find(&e.item)?,
                time: e.time,
                kind: e.kind,
                value: e.value,
            })
        };
        events.filter_map(known).collect()
    }

    /// Content in the order of `ids`; nothing is known of those that the catalogue lacks.
    pub(crate) fn content_of(&self, ids: &[String]) -> Arc<Content> {
        let own = self.items.iter().map(|i| &i.id);
        if own.eq(ids.iter()) {
            return self.content.clone();
        }
        let places: Vec<Option<u32>> = ids.iter().map(|id| self.find(id)).collect();
        let described: Vec<Description> = places
            .iter()
            .map(|p| p.map_or_else(Description::default, |p| description(self.at(p))))
            .collect();
        let content = Content::new(&described);
        let Some(vectors) = &self.vectors else {
            return Arc::new(content);
        };
        let width = vectors.len() / self.items.len().max(1);
        let mut ordered = vec![0.0; ids.len() * width];
        for (to, place) in ordered.chunks_mut(width.max(1)).zip(&places) {
            if let Some(place) = place {
                let start = *place as usize * width;
                to.copy_from_slice(&vectors[start..start + width]);
            }
        }
        // The numbers were checked when the catalogue was loaded.
        Arc::new(content.clone().with_text(&ordered).unwrap_or(content))
    }
}

fn description(item: &Item) -> Description {
    Description {
        title: item.title.clone(),
        year: item.year,
        tags: item.tags.clone(),
    }
}

/// Ends of the scales on which a folder without a table of events may rate. The first on which
/// `like_above` divides likes from dislikes is taken.
const SCALES: [[f32; 2]; 3] = [[1.0, 5.0], [1.0, 10.0], [0.0, 100.0]];

fn meaning_of(spec: &DataSpec) -> Result<Meaning, ClientError> {
    if let Some(table) = &spec.events {
        return Ok(Meaning::new(table)?);
    }
    let above = spec.interactions.like_above;
    let fits = |s: &&[f32; 2]| s[0] <= above && above < s[1];
    let scale = SCALES.iter().find(fits).unwrap_or(&SCALES[0]);
    Ok(Meaning::new(&EventTable {
        like: format!("rating > {above}, like"),
        dislike: format!("rating <= {above}, dislike"),
        rating_range: *scale,
        ..EventTable::default()
    })?)
}

#[cfg(test)]
mod tests {
    use lethe_recsys::data::DataError;

    use super::*;

    fn folder(events: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("tempdir");
        let spec = format!(
            "[interactions]\nfile = \"x\"\nuser = \"u\"\nitem = \"i\"\nrating = \"r\"\nlike_above \
             = 5.0\n[items]\nfile = \"items.csv\"\nitem = \"id\"\ntitle = \"title\"\n{events}"
        );
        std::fs::write(dir.path().join("dataset.toml"), spec).expect("writes");
        std::fs::write(dir.path().join("items.csv"), "id,title\na,A\nb,B\n").expect("writes");
        dir
    }

    #[test]
    fn the_folder_says_what_events_count_as() {
        let plain = Catalogue::load(folder("").path()).expect("loads");
        let reads = |c: &Catalogue, e: LocalEvent| c.reading(&e);
        assert_eq!(
            reads(&plain, LocalEvent::rating("a", 6.0, 1)).liked,
            Some(true)
        );
        assert_eq!(
            reads(&plain, LocalEvent::rating("a", 10.0, 1)).half_stars,
            Some(10)
        );
        assert_eq!(reads(&plain, LocalEvent::viewed("a", 9.0, 1)).liked, None);
        let table = "[events]\nseen = \"rating\"\nlike = \"rating > 3\"\ndislike = \"rating <= \
                     3\"\nstars = {}\n";
        let own = Catalogue::load(folder(table).path()).expect("loads");
        assert_eq!(reads(&own, LocalEvent::liked("a", 1)).liked, None);
        for liked in [true, false] {
            assert_eq!(reads(&own, own.thumb("a", liked, 1)).liked, Some(liked));
        }
    }

    #[test]
    fn text_vectors_of_another_length_are_refused() {
        let dir = folder("");
        let path = dir.path().join(TEXT_VECTORS);
        let bytes: Vec<u8> = [1.0f32, 0.0, 0.0, 1.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        std::fs::write(&path, &bytes).expect("writes");
        let c = Catalogue::load(dir.path()).expect("loads");
        assert_eq!(c.content().text_width(), 2);
        let ids = ["b".to_owned(), "new".to_owned(), "a".to_owned()];
        let turned = c.content_of(&ids);
        assert_eq!((turned.items(), turned.text_width()), (3, 2));
        for wrong in [0, 4, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..wrong]).expect("writes");
            let e = Catalogue::load(dir.path()).expect_err("another length");
            let refused = matches!(e, ClientError::Data(DataError::TextVectors { .. }));
            assert!(refused, "{wrong}: {e}");
        }
    }

    #[test]
    fn commitments_are_about_likes_and_dislikes_as_they_always_were() {
        let catalogue = Catalogue::load(folder("").path()).expect("loads");
        let events = [
            LocalEvent::liked("i1", 5),
            LocalEvent::viewed("i3", 40.0, 5),
            LocalEvent::skipped("i3", 5),
            LocalEvent::rating("i2", 5.0, -6),
        ];
        let training = catalogue.training(events.iter());
        assert_eq!(training.len(), 2, "a view and a skip are neither");
        // SHA-256 over "lethe-history", the salt and a row for each, computed elsewhere.
        assert_eq!(
            crate::history::commitment(&[7; 32], &training).hex(),
            "a89dd28be9eecd0e4599a1a44e2bf69c8b1650b0e082e2f1b678a74b9c7c983a"
        );
    }
}
