//! A data set as the recommender sees it: histories in an order, contents, splits.

use std::path::{Path, PathBuf};

use anyhow::Context;
use lethe_parts::content::Content;
use lethe_parts::contribution::{Bounds, Contribution, MAX_CLIP};
use lethe_parts::event::{Event, Meaning};
use lethe_parts::history::{History, Interaction};
use lethe_parts::sums::Sums;
use lethe_recsys::data::{DataSpec, Dataset, FileReading, load_events};
use lethe_recsys::histories::{descriptions, histories, sentence};
use ring::digest::{SHA256, digest};

use crate::lab::eprint_line;

/// A data set, with the order of each person's events.
pub struct World {
    /// Its name in tables.
    pub name: String,
    /// Everything that was loaded.
    pub data: Dataset,
    /// What its events count as.
    pub meaning: Meaning,
    /// What is public about items.
    pub content: Content,
    /// A history for each person, oldest first.
    pub histories: Vec<Vec<Event>>,
}

impl World {
    /// Loads a folder. `noun` is what its items are called in texts; without an encoder there are
    /// no text vectors.
    ///
    /// # Errors
    /// Files that cannot be read, or an encoder that does not run.
    pub fn open(
        name: &str,
        folder: &Path,
        noun: &str,
        encoder: Option<&Path>,
    ) -> anyhow::Result<Self> {
        Self::open_with(name, folder, noun, encoder, false)
    }

    /// The same; with `strict`, malformed rows are an error.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        name: &str,
        folder: &Path,
        noun: &str,
        encoder: Option<&Path>,
        strict: bool,
    ) -> anyhow::Result<Self> {
        let spec = DataSpec::of_folder(folder)?;
        let data = load_events(folder, &spec, strict).context("loading the data")?;
        for line in data.readings.iter().flat_map(FileReading::lines) {
            eprint_line(&line);
        }
        Self::new(name, data, &spec, noun, encoder)
    }

    /// Book-Crossing, people and books with at least `least` ratings of each other, in a seeded
    /// order: the file has no times.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn books(
        folder: &Path,
        least: usize,
        seed: u64,
        encoder: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let spec = DataSpec::of_folder(folder)?;
        let mut data = load_events(folder, &spec, false).context("loading the books")?;
        dense_core(&mut data, least);
        data.order_by_seed(&lethe_learn::seed::Seed::from_u64(seed).derive("books", &[]));
        let name = format!("book-crossing-{least}");
        Self::new(&name, data, &spec, "book", encoder)
    }

    fn new(
        name: &str,
        data: Dataset,
        spec: &DataSpec,
        noun: &str,
        encoder: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let mut content = Content::new(&descriptions(&data));
        if let Some(encoder) = encoder {
            let texts: Vec<String> = data.items.iter().map(|i| sentence(i, noun)).collect();
            content = content.with_text(&vectors(&texts, encoder)?)?;
        }
        Ok(Self {
            name: name.to_owned(),
            meaning: spec.meaning(&data)?,
            histories: histories(&data),
            content,
            data,
        })
    }

    /// Puts events at the same second into another order: 0 is that of the file, others are by a
    /// hash of number, person and item. `benches/recommend/peers.py` has the same orders.
    pub fn set_order(&mut self, order: u64) {
        self.histories = histories(&self.data);
        if order == 0 {
            return;
        }
        for (user, history) in self.histories.iter_mut().enumerate() {
            let user = &self.data.users[user];
            history.sort_by_cached_key(|event| {
                let item = &self.data.items[event.item as usize].id;
                let text = format!("order {order} {user} {item}");
                let hash = digest(&SHA256, text.as_bytes());
                (event.time, hash.as_ref()[..8].to_vec())
            });
        }
    }

    /// What a sum may hold in a measurement without clip.
    pub fn bounds(&self, clip: usize) -> Bounds {
        Bounds {
            items: self.data.items.len(),
            clip: clip.min(MAX_CLIP),
            first_day: i32::MIN,
            last_day: i32::MAX,
        }
    }

    /// One contribution per person: the newest `clip` of what `cut` leaves of their events.
    ///
    /// # Errors
    /// Events outside the bounds.
    pub fn contributions(
        &self,
        clip: usize,
        cut: impl Fn(usize, &[Event]) -> Vec<Event>,
    ) -> anyhow::Result<Vec<Contribution>> {
        let bounds = self.bounds(clip);
        let mut out = vec![];
        for (user, history) in self.histories.iter().enumerate() {
            let read = Interaction::read(&cut(user, history), &self.meaning);
            out.push(Contribution::newest(&read, &bounds)?);
        }
        Ok(out)
    }

    /// The history of events.
    pub fn history(&self, events: &[Event]) -> History {
        History::of_events(events, &self.meaning)
    }

    /// Items of the catalogue.
    pub fn items(&self) -> usize {
        self.data.items.len()
    }
}

/// Everybody's contributions added up.
///
/// # Errors
/// Contributions over another catalogue.
pub fn sum(items: usize, all: &[Contribution]) -> anyhow::Result<Sums> {
    let mut sums = Sums::new(items);
    sums.fold_all(all)?;
    Ok(sums)
}

/// Leaves people and items with at least `least` events among those that are left.
fn dense_core(data: &mut Dataset, least: usize) {
    loop {
        let mut of_users = vec![0; data.users.len()];
        let mut of_items = vec![0; data.items.len()];
        for event in &data.events {
            of_users[event.user as usize] += 1;
            of_items[event.item as usize] += 1;
        }
        let before = data.events.len();
        data.events
            .retain(|e| of_users[e.user as usize] >= least && of_items[e.item as usize] >= least);
        if data.events.len() == before {
            break;
        }
    }
    let users = renumber(data.users.len(), data.events.iter().map(|e| e.user));
    let items = renumber(data.items.len(), data.events.iter().map(|e| e.item));
    for event in &mut data.events {
        event.user = users[event.user as usize].unwrap_or_default();
        event.item = items[event.item as usize].unwrap_or_default();
    }
    let mut at = 0..;
    data.users
        .retain(|_| at.next().is_some_and(|i: usize| users[i].is_some()));
    let mut at = 0..;
    data.items
        .retain(|_| at.next().is_some_and(|i: usize| items[i].is_some()));
}

/// New numbers of what is used, in the old order.
fn renumber(count: usize, used: impl Iterator<Item = u32>) -> Vec<Option<u32>> {
    let mut is_used = vec![false; count];
    used.for_each(|i| is_used[i as usize] = true);
    let mut next = 0;
    is_used
        .into_iter()
        .map(|used| {
            used.then(|| {
                next += 1;
                next - 1
            })
        })
        .collect()
}

/// The texts' vectors, from the cache folder if they were computed before.
///
/// # Errors
/// An encoder that does not run, or a cache folder that cannot be written.
pub fn vectors(texts: &[String], encoder: &Path) -> anyhow::Result<Vec<f32>> {
    let name = digest(&SHA256, texts.join("\n").as_bytes());
    let name: String = name.as_ref()[..8]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let path: PathBuf = encoder.join(format!("vectors-{name}.f32"));
    if let Ok(bytes) = std::fs::read(&path) {
        let numbers = bytes.chunks_exact(4);
        return Ok(numbers
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect());
    }
    let vectors = lethe_model::encoder::Encoder::open(encoder)?.encode(texts)?;
    let bytes: Vec<u8> = vectors.iter().flat_map(|v| v.to_le_bytes()).collect();
    let half = path.with_extension("part");
    std::fs::write(&half, bytes)?;
    std::fs::rename(&half, &path)?;
    Ok(vectors)
}
