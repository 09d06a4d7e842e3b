//! The tables that a device holds.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use lethe_parts::content::Content;
use lethe_parts::snapshot;
use lethe_parts::tables::Tables;
use lethe_proto::ids::Digest;
use lethe_proto::lists::items_digest;
use serde::{Deserialize, Serialize};

use crate::Catalogue;

/// The sealed file `snapshot`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) number: u64,
    /// The signed note.
    pub(crate) note: String,
    /// Identifiers in the order of the tables.
    pub(crate) items: Vec<String>,
    /// When it was got, in seconds since 1970.
    pub(crate) got: i64,
    #[serde(with = "serde_bytes")]
    pub(crate) bytes: Vec<u8>,
}

/// Tables, and where their items are in the device's catalogue.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) tables: Tables,
    /// In the order of the tables.
    pub(crate) content: Arc<Content>,
    /// By item of the tables: the catalogue's position.
    pub(crate) of_table: Vec<Option<u32>>,
    /// By position in the catalogue: the tables' item.
    pub(crate) of_catalogue: Vec<Option<u32>>,
}

impl View {
    fn new(held: &Held, catalogue: &Catalogue) -> Option<Self> {
        Self::of(snapshot::decode(&held.bytes).ok()?, &held.items, catalogue)
    }

    /// Of tables, whose items have these identifiers; none: they are not so many.
    pub(super) fn of(tables: Tables, items: &[String], catalogue: &Catalogue) -> Option<Self> {
        if tables.items() != items.len() {
            return None;
        }
        let of_table: Vec<Option<u32>> = items.iter().map(|id| catalogue.find(id)).collect();
        let mut of_catalogue = vec![None; catalogue.items().len()];
        for (item, place) in (0..).zip(&of_table) {
            if let Some(place) = place {
                of_catalogue[*place as usize] = Some(item);
            }
        }
        Some(Self {
            content: catalogue.content_of(items),
            tables,
            of_table,
            of_catalogue,
        })
    }
}

/// Decoded tables that clients of one process share: they hold the same snapshot.
#[derive(Debug, Default)]
pub(crate) struct Views(Mutex<Vec<(Digest, Weak<View>)>>);

impl Views {
    /// The view of a snapshot, decoded unless somebody has it already.
    fn of(&self, held: &Held, catalogue: &Catalogue) -> Option<Arc<View>> {
        let items = items_digest(held.items.iter().map(String::as_str));
        let name = Digest::of(&[&snapshot::digest(&held.bytes), &items.0]);
        // Whoever comes second waits: decoding twice would take as long.
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        views.retain(|(_, view)| view.strong_count() > 0);
        let known = views.iter().find(|(digest, _)| *digest == name);
        if let Some(view) = known.and_then(|(_, view)| view.upgrade()) {
            return Some(view);
        }
        let view = Arc::new(View::new(held, catalogue)?);
        views.push((name, Arc::downgrade(&view)));
        Some(view)
    }
}

/// A snapshot that is decoded when it is first needed, by whoever needs it.
pub(crate) struct Lazy {
    pub(crate) held: Held,
    catalogue: Arc<Catalogue>,
    view: OnceLock<Option<Arc<View>>>,
}

impl fmt::Debug for Lazy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshot {}", self.held.number)
    }
}

impl Lazy {
    pub(crate) fn new(held: Held, catalogue: Arc<Catalogue>) -> Self {
        Self {
            held,
            catalogue,
            view: OnceLock::new(),
        }
    }

    /// The tables; `None` if they do not fit what is held.
    pub(crate) fn view(&self) -> Option<Arc<View>> {
        let view = self.view.get_or_init(|| {
            let view = self.catalogue.views().of(&self.held, &self.catalogue);
            if view.is_none() {
                tracing::warn!("{self:?} does not decode: it is fetched again");
            }
            view
        });
        view.clone()
    }
}
