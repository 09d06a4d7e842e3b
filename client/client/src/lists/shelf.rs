//! Lists without a device, for measurements over many people and days: what ranks is the code that
//! ranks on devices.

use std::sync::Arc;

use lethe_parts::event::Event;
use lethe_parts::tables::Tables;

use super::{Fallback, Input, Query, Ranked, View};
use crate::{Catalogue, ClientError};

/// Tables as a device with this catalogue has them, for any history.
#[derive(Clone, Debug)]
pub struct Shelf {
    catalogue: Arc<Catalogue>,
    tables: Result<Arc<View>, Fallback>,
}

/// What a device would show to one person at one moment.
#[derive(Debug)]
pub struct Shown {
    ranked: Ranked,
}

impl Shelf {
    /// Of a device that has got no tables yet.
    pub fn empty(catalogue: Arc<Catalogue>) -> Self {
        Self {
            catalogue,
            tables: Err(Fallback::NoSnapshot),
        }
    }

    /// Of a device with these tables, whose items have these identifiers, in this order. None: they
    /// are not so many.
    pub fn new(catalogue: Arc<Catalogue>, items: &[String], tables: Tables) -> Option<Self> {
        let view = View::of(tables, items, &catalogue)?;
        Some(Self {
            catalogue,
            tables: Ok(Arc::new(view)),
        })
    }

    /// Ranks for somebody with these events (items by position in the catalogue), at a time in
    /// seconds since 1970.
    ///
    /// # Errors
    /// [`ClientError::Internal`]: there is no randomness for the name of the list.
    pub fn show(&self, events: &[Event], at: i64) -> Result<Shown, ClientError> {
        let input = Input {
            catalogue: self.catalogue.clone(),
            tables: self.tables.clone(),
            events: events.to_vec(),
            at,
        };
        let ranked = input.rank(&Query::default())?;
        Ok(Shown { ranked })
    }
}

impl Shown {
    /// Where an item (by position in the catalogue) is in the list, from 0; none: the person has
    /// met it.
    pub fn place(&self, item: u32) -> Option<usize> {
        self.ranked.place(item)
    }

    /// Probabilities that the person likes these items; none where the tables say nothing of one.
    pub fn likes(&self, items: &[u32]) -> Vec<Option<f64>> {
        self.ranked.likes(items)
    }
}

#[cfg(test)]
mod tests {
    use lethe_parts::contribution::{Bounds, Contribution};
    use lethe_parts::event::{EventTable, Kind};
    use lethe_parts::history::Interaction;
    use lethe_parts::solve::{Settings, solve};
    use lethe_parts::sums::Sums;
    use lethe_recsys::data::Item;

    use super::*;

    fn item(id: &str) -> Item {
        Item {
            id: id.into(),
            title: id.into(),
            year: None,
            tags: vec![],
        }
    }

    fn rated(item: u32, value: f32) -> Event {
        Event {
            item,
            time: 86_400,
            kind: Kind::Rating,
            value,
        }
    }

    #[test]
    fn items_that_tables_lack_come_last_and_have_no_probability() {
        let items = ["a", "b", "c", "new"].map(item).to_vec();
        let table = EventTable::default();
        let catalogue = Catalogue::new(items, &table, None).expect("a catalogue");
        let names: Vec<String> = ["a", "b", "c"].map(String::from).into();
        let mut sums = Sums::new(3);
        let bounds = Bounds {
            items: 3,
            clip: 10,
            first_day: 0,
            last_day: 9,
        };
        for _ in 0..5 {
            let read = Interaction::read(&[rated(0, 5.0), rated(2, 5.0)], catalogue.meaning());
            let one = Contribution::new(&read, &bounds).expect("within bounds");
            sums.fold(&one).expect("folds");
        }
        let content = catalogue.content_of(&names);
        let tables = solve(&sums, &content, &Settings::default(), 2).expect("solves");
        assert!(Shelf::new(catalogue.clone(), &names[..2], tables.tables.clone()).is_none());
        let shelf = Shelf::new(catalogue.clone(), &names, tables.tables).expect("so many");
        let shown = shelf.show(&[rated(0, 5.0)], 3 * 86_400).expect("ranks");
        let places = [0, 1, 2, 3].map(|i| shown.place(i));
        assert_eq!(places, [None, Some(1), Some(0), Some(2)]);
        let likes = shown.likes(&[2, 3]);
        assert!(likes[0].is_some_and(|p| p > 0.5) && likes[1].is_none());
        let nothing = Shelf::empty(catalogue).show(&[], 0).expect("ranks");
        assert_eq!(nothing.likes(&[0]), [None]);
        assert_eq!(nothing.place(3), Some(3), "the catalogue's order");
    }
}
