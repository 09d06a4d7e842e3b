//! Items of a folder as entries of a catalogue's version, and back.

use std::path::Path;

use lethe_proto::catalogue::CatalogueEntry;

use crate::data::{DataError, Item};

/// File of renamed items in a data folder, with a header and two columns: `old,new`.
pub const RENAMED: &str = "renamed.csv";

/// Items as version 1 of a catalogue has them.
pub fn entries(items: &[Item]) -> Vec<CatalogueEntry> {
    let entry = |item: &Item| CatalogueEntry {
        id: item.id.clone(),
        title: Some(item.title.clone()),
        year: item.year,
        tags: item.tags.clone(),
        was: vec![],
    };
    items.iter().map(entry).collect()
}

/// The items of a version that were not removed, in the order of their places.
pub fn items_of(entries: &[CatalogueEntry]) -> Vec<Item> {
    let item = |entry: &CatalogueEntry| {
        Some(Item {
            id: entry.id.clone(),
            title: entry.title.clone()?,
            year: entry.year,
            tags: entry.tags.clone(),
        })
    };
    entries.iter().filter_map(item).collect()
}

/// Identifiers that were replaced, and by which, in the order of the file [`RENAMED`]; none where
/// there is no such file.
///
/// # Errors
/// [`DataError`]: the file cannot be read, or lacks a column or a value.
pub fn load_renamed(folder: &Path) -> Result<Vec<(String, String)>, DataError> {
    let path = folder.join(RENAMED);
    let io = |source: std::io::Error| DataError::Io {
        path: path.clone(),
        source,
    };
    let bytes = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(io(e)),
        Ok(bytes) => bytes,
    };
    let mut reader = csv::ReaderBuilder::new().from_reader(bytes.as_slice());
    let header = reader.headers().map_err(|e| io(e.into()))?.clone();
    let column = |name: &str| {
        let found = header.iter().position(|h| h.trim() == name);
        found.ok_or_else(|| DataError::Column {
            path: path.clone(),
            column: name.to_owned(),
            found: header.iter().map(str::to_owned).collect(),
        })
    };
    let old = column("old")?;
    let new = column("new")?;
    let mut out = vec![];
    for (at, row) in reader.records().enumerate() {
        let row = row.map_err(|e| io(e.into()))?;
        let value = |column: usize| row.get(column).map(str::trim).unwrap_or_default();
        if value(old).is_empty() || value(new).is_empty() {
            let first = crate::data::RowProblem {
                file: path.clone(),
                line: at as u64 + 2,
                why: "expected an identifier in both columns, old and new".into(),
            };
            return Err(DataError::Malformed { count: 1, first });
        }
        out.push((value(old).to_owned(), value(new).to_owned()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renamed_items_are_read_in_their_order() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert_eq!(load_renamed(dir.path()).expect("is not there"), []);
        let write = |text: &str| std::fs::write(dir.path().join(RENAMED), text).expect("writes");
        write("old,new\na,b\n b , c\n");
        let pair = |old: &str, new: &str| (old.to_owned(), new.to_owned());
        let read = load_renamed(dir.path()).expect("reads");
        assert_eq!(read, [pair("a", "b"), pair("b", "c")]);
        write("old,name\na,b\n");
        let column = load_renamed(dir.path()).expect_err("a column is missing");
        assert!(column.to_string().contains("\"new\""), "{column}");
        write("old,new\na,b\nc,\n");
        let value = load_renamed(dir.path()).expect_err("a value is missing");
        assert!(value.to_string().contains("renamed.csv:3"), "{value}");
    }

    #[test]
    fn items_come_back_as_they_were() {
        let item = Item {
            id: "a".into(),
            title: "Anna".into(),
            year: Some(1990),
            tags: vec!["x".into()],
        };
        let mut version = entries(&[item.clone(), item.clone()]);
        assert_eq!(items_of(&version), [item.clone(), item.clone()]);
        version[0].title = None;
        assert_eq!(items_of(&version), [item]);
    }
}
