//! A data set as the histories and descriptions that `lethe-parts` takes.

use std::path::Path;

use lethe_parts::content::{Content, Description};
use lethe_parts::event::Event;

use crate::data::{DataError, Dataset, Item};

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

/// File of text vectors in a data folder: 32-bit floats, little-endian, `[items][width]`, in the
/// order of the catalogue.
pub const TEXT_VECTORS: &str = "text-vectors.f32";

/// The most bytes of that file.
const MOST_BYTES: u64 = 4 << 30;

/// What is public about the items of a data folder, with text vectors where the folder has them.
///
/// # Errors
/// As [`text_vectors`].
pub fn content_of(folder: &Path, items: &[Item]) -> Result<Content, DataError> {
    let content = Content::new(&items.iter().map(description).collect::<Vec<_>>());
    let Some(vectors) = text_vectors(folder, items.len())? else {
        return Ok(content);
    };
    content
        .with_text(&vectors)
        .map_err(|_| misfit(folder, &vectors, items.len()))
}

fn misfit(folder: &Path, vectors: &[f32], items: usize) -> DataError {
    DataError::TextVectors {
        path: folder.join(TEXT_VECTORS),
        got: 4 * vectors.len(),
        items,
    }
}

/// The text vectors of a data folder, `[items][width]`; none: it has no file [`TEXT_VECTORS`].
///
/// # Errors
/// [`DataError`]: the file cannot be read, or does not fit so many items.
pub fn text_vectors(folder: &Path, items: usize) -> Result<Option<Vec<f32>>, DataError> {
    let path = folder.join(TEXT_VECTORS);
    let io = |source| DataError::Io {
        path: path.clone(),
        source,
    };
    let bytes = match std::fs::metadata(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
        Ok(meta) if meta.len() > MOST_BYTES => vec![],
        Ok(_) => std::fs::read(&path).map_err(io)?,
    };
    let bad = || DataError::TextVectors {
        path: path.clone(),
        got: bytes.len(),
        items,
    };
    let row = 4 * items.max(1);
    if bytes.is_empty() || !bytes.len().is_multiple_of(row) {
        return Err(bad());
    }
    let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let vectors: Vec<f32> = bytes.chunks_exact(4).map(number).collect();
    if !vectors.iter().all(|v| v.is_finite()) {
        return Err(bad());
    }
    Ok(Some(vectors))
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
