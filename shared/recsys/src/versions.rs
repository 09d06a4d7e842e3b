//! Items of a folder as entries of a catalogue's version, and back.

use std::path::Path;

use lethe_proto::catalogue::CatalogueEntry;

use crate::data::{DataError, Item};
use crate::table::{Format, Table, values};

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
    if !path.exists() {
        return Ok(vec![]);
    }
    let table = Table::open(&path, &Format::default())?;
    let old = table.column("old")?;
    let new = table.column("new")?;
    let mut out = vec![];
    let read = table.each(&[old, new], |row, _| {
        let before = values::identifier(row.field(old), "identifier in column old")?;
        let after = values::identifier(row.field(new), "identifier in column new")?;
        out.push((before, after));
        Ok(())
    });
    match read {
        // A header alone renames nothing.
        Err(DataError::NoRows { .. }) => Ok(vec![]),
        Err(e) => Err(e),
        Ok(reading) if reading.is_clean() => Ok(out),
        Ok(reading) => Err(DataError::Malformed {
            said: reading.to_string(),
        }),
    }
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
