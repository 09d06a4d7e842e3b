//! Items by identifier and by place: the sums and tables know items by their place.

use std::collections::HashMap;

use lethe_parts::content::{Content, Description};
use lethe_proto::catalogue::CatalogueEntry;
use lethe_proto::ids::Digest;
use lethe_proto::lists::items_digest;
use thiserror::Error;

/// The catalogue is not the one that people contributed for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "the catalogue has {got} items, and its first {expected} are not those that people \
     contributed for: add new items at the end, keep the others and their order, or take items \
     down with `lethe-admin takedown`"
)]
pub struct OtherCatalogue {
    /// Items of the catalogue.
    pub got: usize,
    /// Items that people contributed for.
    pub expected: usize,
}

/// The items of the tables, in their order.
#[derive(Debug)]
pub struct Catalogue {
    ids: Vec<String>,
    places: HashMap<String, u32>,
    digest: Digest,
}

impl Catalogue {
    /// The identifiers of the items, in the order of the catalogue's file.
    pub fn new<'a>(ids: impl IntoIterator<Item = &'a str>) -> Self {
        let ids: Vec<String> = ids.into_iter().map(str::to_owned).collect();
        let places = ids.iter().zip(0..).map(|(id, at)| (id.clone(), at));
        Self {
            places: places.collect(),
            digest: items_digest(ids.iter().map(String::as_str)),
            ids,
        }
    }

    /// The items of a version of the catalogue, by place. What is said of an item under a name that
    /// it had before is about it.
    pub fn of_entries(entries: &[CatalogueEntry]) -> Self {
        let mut catalogue = Self::new(entries.iter().map(|e| e.id.as_str()));
        for (place, entry) in (0..).zip(entries) {
            let was = entry.was.iter().map(|name| (name.clone(), place));
            catalogue.places.extend(was);
        }
        catalogue
    }

    /// All identifiers.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    /// Names all of them, in their order.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Where an item is in the tables.
    pub fn place(&self, id: &str) -> Option<u32> {
        self.places.get(id).copied()
    }

    /// Refuses a catalogue in which items of before are gone, or lie elsewhere: what people
    /// contributed names them by their place. New items may follow.
    ///
    /// # Errors
    /// [`OtherCatalogue`].
    pub fn follows(&self, count: usize, digest: Digest) -> Result<(), OtherCatalogue> {
        let first = self.ids.iter().take(count).map(String::as_str);
        if count <= self.ids.len() && items_digest(first) == digest {
            return Ok(());
        }
        Err(OtherCatalogue {
            got: self.ids.len(),
            expected: count,
        })
    }
}

/// Text vectors of the items of a folder, by their identifiers. Versions of the catalogue carry
/// none: an item that the folder lacks has none.
#[derive(Clone, Debug)]
pub struct TextVectors {
    width: usize,
    rows: HashMap<String, Vec<f32>>,
}

impl TextVectors {
    /// From `[items][width]` numbers, in the order of the identifiers.
    pub fn new<'a>(ids: impl ExactSizeIterator<Item = &'a str>, vectors: &[f32]) -> Self {
        let width = vectors.len() / ids.len().max(1);
        let rows = ids.zip(vectors.chunks(width.max(1)));
        Self {
            width,
            rows: rows
                .map(|(id, row)| (id.to_owned(), row.to_vec()))
                .collect(),
        }
    }

    fn of(&self, entry: &CatalogueEntry) -> Option<&Vec<f32>> {
        entry.names().find_map(|name| self.rows.get(name))
    }
}

/// What is public about the items of a version, by place. Nothing is of those that were removed.
pub fn content_of_entries(entries: &[CatalogueEntry], vectors: Option<&TextVectors>) -> Content {
    let described = |entry: &CatalogueEntry| Description {
        title: entry.title.clone().unwrap_or_default(),
        year: entry.year,
        tags: entry.tags.clone(),
    };
    let described: Vec<Description> = entries.iter().map(described).collect();
    let content = Content::new(&described);
    let Some(vectors) = vectors else {
        return content;
    };
    let mut all = vec![0.0; entries.len() * vectors.width];
    for (to, entry) in all.chunks_mut(vectors.width.max(1)).zip(entries) {
        let listed = entry.title.is_some();
        if let Some(row) = vectors
            .of(entry)
            .filter(|row| listed && row.len() == to.len())
        {
            to.copy_from_slice(row);
        }
    }
    // The numbers were checked when the folder was read.
    content.clone().with_text(&all).unwrap_or(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(ids: &[&str]) -> Catalogue {
        Catalogue::new(ids.iter().copied())
    }

    #[test]
    fn a_catalogue_may_grow_and_nothing_else() {
        let old = catalogue(&["a", "b"]);
        assert_eq!((old.place("b"), old.place("c")), (Some(1), None));
        let follows = |ids: &[&str]| catalogue(ids).follows(2, old.digest());
        assert!(follows(&["a", "b"]).is_ok());
        assert!(follows(&["a", "b", "c"]).is_ok());
        for other in [&["a"][..], &["b", "a"], &["c", "a", "b"], &[]] {
            let refused = follows(other);
            assert!(matches!(refused, Err(OtherCatalogue { expected: 2, .. })));
        }
    }
}
