//! A data set as the histories and descriptions that `lethe-parts` takes.

use lethe_parts::content::Description;
use lethe_parts::event::Event;

use crate::data::{Dataset, Item};

/// The events of every user, oldest first; events at the same second keep the order of the file.
pub fn histories(data: &Dataset) -> Vec<Vec<Event>> {
    let mut out = vec![vec![]; data.users.len()];
    for event in &data.events {
        out[event.user as usize].push(Event {
            item: event.item,
            time: event.time,
            kind: event.kind,
            value: event.rating,
        });
    }
    out
}

/// What is public about every item.
pub fn descriptions(data: &Dataset) -> Vec<Description> {
    data.items.iter().map(description).collect()
}

fn description(item: &Item) -> Description {
    Description {
        title: item.title.clone(),
        year: item.year,
        tags: item.tags.clone(),
    }
}

/// What a sentence encoder is given of an item: `Fargo (1996), a Crime, Drama movie`.
pub fn sentence(item: &Item, noun: &str) -> String {
    let label = item.label();
    if item.tags.is_empty() {
        return format!("{label}, a {noun}");
    }
    format!("{label}, a {} {noun}", item.tags.join(", "))
}
