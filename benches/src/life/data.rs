//! Seven months as they happened: events in the order of time, and a catalogue that grows.

use std::path::Path;

use anyhow::{Context, ensure};
use lethe_benches::lists::world::World;
use lethe_parts::content::Content;
use lethe_parts::event::{Event, Meaning};
use lethe_parts::history::day_of;
use lethe_recsys::data::{DataSpec, Item, TEXT_VECTORS, content_of, load_items};

/// Somebody meets something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Happened {
    pub(crate) person: u32,
    pub(crate) event: Event,
}

/// The data, in the order in which it came.
pub(crate) struct Months {
    pub(crate) spec: DataSpec,
    pub(crate) meaning: Meaning,
    pub(crate) people: usize,
    /// The day of the first event, since 1970.
    pub(crate) first_day: i32,
    pub(crate) days: i32,
    /// Oldest first; events of one second keep the order of the file.
    pub(crate) events: Vec<Happened>,
    /// In the order in which they came to exist.
    items: Vec<Item>,
    /// The day since the first on which each came to exist, ascending.
    exist: Vec<i32>,
    /// `[items][width]`.
    vectors: Option<Vec<f32>>,
}

impl Months {
    /// `vectors` are texts' vectors in the order of the catalogue's file.
    ///
    /// An item exists from the beginning if it is of an earlier year than the first event, and
    /// otherwise from the day on which somebody first met it: the file has years, not days.
    pub(crate) fn new(
        world: &World,
        spec: DataSpec,
        vectors: Option<&[f32]>,
    ) -> anyhow::Result<Self> {
        let mut events = vec![];
        for (person, history) in (0u32..).zip(&world.histories) {
            events.extend(history.iter().map(|e| Happened { person, event: *e }));
        }
        events.sort_by_key(|h| h.event.time);
        let first = events.first().context("the data has no event")?.event.time;
        let last = events.last().map_or(first, |h| h.event.time);
        let first_day = day_of(first);
        let mut met = vec![None; world.items()];
        for one in &events {
            let day = day_of(one.event.time) - first_day;
            met[one.event.item as usize].get_or_insert(day);
        }
        let year = year_of(first);
        let from = |item: usize| match world.data.items[item].year {
            Some(of) if of < year => Some(0),
            _ => met[item],
        };
        let mut order: Vec<(i32, usize)> = (0..world.items())
            .filter_map(|item| Some((from(item)?, item)))
            .collect();
        order.sort_unstable();
        let mut place = vec![0; world.items()];
        for (at, (_, item)) in (0u32..).zip(&order) {
            place[*item] = at;
        }
        for one in &mut events {
            one.event.item = place[one.event.item as usize];
        }
        let width = vectors.map_or(0, |v| v.len() / world.items().max(1));
        let row = |item: usize| vectors.map(|v| &v[item * width..(item + 1) * width]);
        let ordered = order.iter().filter_map(|o| row(o.1)).flatten().copied();
        Ok(Self {
            spec,
            meaning: world.meaning.clone(),
            people: world.histories.len(),
            first_day,
            days: day_of(last) - first_day + 1,
            items: order
                .iter()
                .map(|o| world.data.items[o.1].clone())
                .collect(),
            exist: order.iter().map(|o| o.0).collect(),
            vectors: vectors.is_some().then(|| ordered.collect()),
            events,
        })
    }

    /// Items that exist on a day since the first.
    pub(crate) fn items_on(&self, day: i32) -> usize {
        self.exist.partition_point(|d| *d <= day)
    }

    /// The first `count` items.
    pub(crate) fn items(&self, count: usize) -> &[Item] {
        &self.items[..count]
    }

    /// Identifier of an item.
    pub(crate) fn id(&self, item: u32) -> &str {
        &self.items[item as usize].id
    }

    /// An item's title as prompts show it.
    pub(crate) fn label(&self, item: u32) -> String {
        self.items[item as usize].label()
    }

    /// Identifiers of the first `count` items.
    pub(crate) fn ids(&self, count: usize) -> Vec<String> {
        self.items[..count].iter().map(|i| i.id.clone()).collect()
    }

    /// Writes a catalogue's folder with the first `count` items, as operators and apps have it.
    pub(crate) fn write_catalogue(&self, folder: &Path, count: usize) -> anyhow::Result<Content> {
        std::fs::create_dir_all(folder)?;
        let items = &self.items[..count];
        let of = &self.spec.items;
        let names = [
            Some(&of.item),
            Some(&of.title),
            of.year.as_ref(),
            of.tags.as_ref(),
        ];
        let delimiter = of.delimiter.to_string();
        let names: Vec<&str> = names.into_iter().flatten().map(String::as_str).collect();
        let mut text = names.join(&delimiter) + "\n";
        for item in items {
            let year = item.year.map(|y| y.to_string()).unwrap_or_default();
            let row = [&item.id, &item.title, &year, &item.tags.join(" ")];
            text += &(row.map(String::as_str).join(&delimiter) + "\n");
        }
        std::fs::write(folder.join(&of.file), text)?;
        std::fs::write(folder.join("dataset.toml"), toml::to_string(&self.spec)?)?;
        if let Some(vectors) = &self.vectors {
            let width = vectors.len() / self.items.len().max(1);
            let bytes = vectors[..count * width]
                .iter()
                .flat_map(|v| v.to_le_bytes());
            std::fs::write(folder.join(TEXT_VECTORS), bytes.collect::<Vec<u8>>())?;
        }
        let read = load_items(folder, &self.spec)?;
        ensure!(
            read == items,
            "a catalogue that was written reads differently"
        );
        Ok(content_of(folder, items)?)
    }
}

/// The year of a time, UTC.
fn year_of(time: i64) -> u16 {
    // Civil from days, proleptic Gregorian (Howard Hinnant, "chrono-Compatible Low-Level Date
    // Algorithms"): years begin in March there.
    let days = i64::from(day_of(time)) + 719_468;
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let january_or_february = i64::from(day_of_year >= 306);
    (days.div_euclid(146_097) * 400 + year_of_era + january_or_february) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn years_begin_in_january() {
        let years = [0, 874_724_710, 883_612_799, 883_612_800, 951_782_400].map(year_of);
        assert_eq!(years, [1970, 1997, 1997, 1998, 2000]);
    }
}
