//! Items by identifier and by place: the sums and tables know items by their place.

use std::collections::HashMap;

use lethe_proto::ids::Digest;
use lethe_proto::lists::items_digest;
use lethe_recsys::data::Item;

use crate::CoordinatorError;

/// The items of the tables, in their order.
#[derive(Debug)]
pub(crate) struct Catalogue {
    ids: Vec<String>,
    places: HashMap<String, u32>,
    digest: Digest,
}

impl Catalogue {
    /// The items in the order of the catalogue's file.
    pub(crate) fn new(items: &[Item]) -> Self {
        let ids: Vec<String> = items.iter().map(|i| i.id.clone()).collect();
        let places = ids.iter().zip(0..).map(|(id, at)| (id.clone(), at));
        Self {
            places: places.collect(),
            digest: items_digest(ids.iter().map(String::as_str)),
            ids,
        }
    }

    /// All identifiers.
    pub(crate) fn ids(&self) -> &[String] {
        &self.ids
    }

    /// Names all of them, in their order.
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// Where an item is in the tables.
    pub(crate) fn place(&self, id: &str) -> Option<u32> {
        self.places.get(id).copied()
    }

    /// Refuses a catalogue in which items of before are gone, or lie elsewhere: what people
    /// contributed names them by their place. New items may follow.
    ///
    /// # Errors
    /// [`CoordinatorError::OtherCatalogue`].
    pub(crate) fn follows(&self, count: usize, digest: Digest) -> Result<(), CoordinatorError> {
        let first = self.ids.iter().take(count).map(String::as_str);
        if count <= self.ids.len() && items_digest(first) == digest {
            return Ok(());
        }
        Err(CoordinatorError::OtherCatalogue {
            got: self.ids.len(),
            expected: count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(ids: &[&str]) -> Catalogue {
        let item = |id: &&str| Item {
            id: (*id).into(),
            title: String::new(),
            year: None,
            tags: vec![],
        };
        Catalogue::new(&ids.iter().map(item).collect::<Vec<_>>())
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
            assert!(matches!(
                refused,
                Err(CoordinatorError::OtherCatalogue { expected: 2, .. })
            ));
        }
    }
}
