//! Items by identifier and by place: the sums and tables know items by their place.

use std::collections::HashMap;

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
