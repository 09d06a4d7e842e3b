//! A data set in memory, and the description of a user's own one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lethe_learn::seed::Seed;
use lethe_parts::event::{EventTable, Kind, Meaning, TableError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::spelling::hint;

pub use crate::histories::{TEXT_VECTORS, content_of, text_vectors};
pub use crate::load::{ItemsRead, load, load_events, load_items, read_items};
use crate::table::{Encoding, Format, spec_text};
pub use crate::table::{FileReading, LeftOut, Reason, Remark, RowProblem};

/// An item of the public catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Identifier; titles may repeat, identifiers may not.
    pub id: String,
    /// Title, without the year.
    pub title: String,
    /// Year, if known.
    pub year: Option<u16>,
    /// Genres or other tags.
    pub tags: Vec<String>,
}

impl Item {
    /// Title as prompts show it: `Fargo (1996)`.
    pub fn label(&self) -> String {
        match self.year {
            Some(y) => format!("{} ({y})", self.title),
            None => self.title.clone(),
        }
    }
}

/// One rating.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Index into [`Dataset::users`].
    pub user: u32,
    /// Index into [`Dataset::items`].
    pub item: u32,
    /// Rating as given; dwell time of a view.
    pub rating: f32,
    /// Seconds since the epoch (or any order, if the data has no times).
    pub time: i64,
    /// It counts as a like.
    pub liked: bool,
    /// What happened; data sets of ratings hold nothing else.
    pub kind: Kind,
}

/// Interactions in chronological order (time, then order in the file) and the catalogue.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// User identifiers.
    pub users: Vec<String>,
    /// The catalogue, in file order.
    pub items: Vec<Item>,
    /// All events, in chronological order.
    pub events: Vec<Event>,
    /// What became of the rows of each file.
    pub readings: Vec<FileReading>,
}

impl Dataset {
    /// Index of every item by identifier.
    pub fn item_index(&self) -> HashMap<&str, u32> {
        self.items
            .iter()
            .enumerate()
            .map(|(i, x)| (x.id.as_str(), i as u32))
            .collect()
    }

    /// For data without times: puts each user's events into a seeded order. What a user's order is
    /// does not depend on others.
    pub fn order_by_seed(&mut self, seed: &Seed) {
        let key = |e: &Event| {
            let names = [
                self.users[e.user as usize].as_bytes(),
                self.items[e.item as usize].id.as_bytes(),
            ];
            seed.rank("order", &names.join(&0))
        };
        let mut keyed: Vec<(u64, Event)> = self.events.iter().map(|e| (key(e), *e)).collect();
        keyed.sort_by_key(|(k, _)| *k);
        self.events = (0..)
            .zip(keyed)
            .map(|(time, (_, e))| Event { time, ..e })
            .collect();
    }
}

/// Why a data set could not be loaded.
#[derive(Debug, Error)]
pub enum DataError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The description is not valid TOML or has unknown keys.
    #[error("{path}: {source}{}\nsee docs/guide.md for the keys", hint(.source))]
    Spec {
        /// The description.
        path: PathBuf,
        /// The cause.
        source: Box<toml::de::Error>,
    },
    /// A named column does not exist.
    #[error("{path}: no column {column:?}; the file has {found:?}: {hint}")]
    Column {
        /// The file.
        path: PathBuf,
        /// The column asked for.
        column: String,
        /// The columns of the file.
        found: Vec<String>,
        /// Why it may be missing.
        hint: String,
    },
    /// `strict` was asked for, and rows are malformed or something had to be guessed.
    #[error("{said}\nmend this, or leave out --strict: malformed rows are left out then")]
    Malformed {
        /// What, with the first line of each kind.
        said: String,
    },
    /// The file of text vectors does not fit the catalogue.
    #[error(
        "{path}: {got} bytes are no vectors of {items} items (4 bytes a number, as many numbers \
         for each item, none infinite): encode the catalogue again with `lethe encode`"
    )]
    TextVectors {
        /// The file.
        path: PathBuf,
        /// Its length.
        got: usize,
        /// Items of the catalogue.
        items: usize,
    },
    /// No usable row is left.
    #[error("{path}: no usable {what}. {why}")]
    Empty {
        /// The file.
        path: PathBuf,
        /// Of what: `interaction` or `item`.
        what: &'static str,
        /// What became of its rows.
        why: String,
    },
    /// A file that is no text.
    #[error("{path} is {what}")]
    NotText {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        what: &'static str,
    },
    /// A file without rows.
    #[error("{path} {what}")]
    NoRows {
        /// The file.
        path: PathBuf,
        /// What it has.
        what: &'static str,
    },
    /// A header that is none.
    #[error("{path}:{line}: {why}")]
    Header {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        line: u64,
        /// What is wrong.
        why: String,
    },
    /// A setting of the description that cannot be.
    #[error("{path}: {key} is {got}, expected {expected}")]
    Setting {
        /// The file that it is about.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        got: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A folder without a description.
    #[error(
        "{folder} has no dataset.toml: expected one that names the files and their columns (see \
         docs/guide.md), or MovieLens-100K or Book-Crossing as `lethe fetch` gets them"
    )]
    NoSpec {
        /// The folder.
        folder: PathBuf,
    },
}

/// `dataset.toml`: where the interactions and items of a folder are, and how their columns are
/// named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// The ratings.
    pub interactions: InteractionSpec,
    /// The catalogue.
    pub items: ItemSpec,
    /// What events count as. Without it every row is a rating, the scale is that of the file, and a
    /// rating above `like_above` is a like.
    #[serde(default)]
    pub events: Option<EventTable>,
}

/// The file of ratings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InteractionSpec {
    /// File name inside the folder.
    pub file: String,
    /// Column separator, one character.
    #[serde(default = "comma")]
    pub delimiter: char,
    /// Column of the user's identifier.
    pub user: String,
    /// Column of the item's identifier.
    pub item: String,
    /// Column of the rating, or of the dwell time in seconds where `kind` says that it is a view.
    pub rating: String,
    /// Column of the kind of event, if there is one: rating, like, dislike, view, skip, purchase,
    /// hide.
    #[serde(default)]
    pub kind: Option<String>,
    /// Column of the time; without one the order in the file counts.
    pub timestamp: Option<String>,
    /// A rating above this is a like.
    pub like_above: f32,
    /// Ratings up to this say nothing and are left out (Book-Crossing's 0: seen, not rated).
    #[serde(default)]
    pub ignore_up_to: Option<f32>,
    /// Character that takes a quotation mark's meaning away, where the file does not double it.
    #[serde(default)]
    pub escape: Option<char>,
    /// Whether fields may stand in quotation marks. Absent: they may, but in a file with tabs only
    /// if all its marks fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quotes: Option<bool>,
    /// How letters are written down. Absent: UTF-8, and Windows-1252 what is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
}

/// The file of items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemSpec {
    /// File name inside the folder.
    pub file: String,
    /// Column separator, one character.
    #[serde(default = "comma")]
    pub delimiter: char,
    /// Column of the identifier.
    pub item: String,
    /// Column of the title.
    pub title: String,
    /// Column of the year, if there is one.
    pub year: Option<String>,
    /// Column of tags separated by spaces or `|`, if there is one.
    pub tags: Option<String>,
    /// Character that takes a quotation mark's meaning away, where the file does not double it.
    #[serde(default)]
    pub escape: Option<char>,
    /// Whether fields may stand in quotation marks. Absent: they may, but in a file with tabs only
    /// if all its marks fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quotes: Option<bool>,
    /// How letters are written down. Absent: UTF-8, and Windows-1252 what is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
}

fn comma() -> char {
    ','
}

impl InteractionSpec {
    /// How its file is divided.
    pub fn format(&self) -> Format {
        Format {
            delimiter: self.delimiter,
            quotes: self.quotes,
            escape: self.escape,
            encoding: self.encoding,
            sep_line: false,
        }
    }
}

impl ItemSpec {
    /// How its file is divided.
    pub fn format(&self) -> Format {
        Format {
            delimiter: self.delimiter,
            quotes: self.quotes,
            escape: self.escape,
            encoding: self.encoding,
            sep_line: false,
        }
    }
}

impl DataSpec {
    /// MovieLens-100K in RecBole's format: like = rating > 3.
    pub fn movielens() -> Self {
        Self {
            interactions: InteractionSpec {
                file: "ml-100k.inter".into(),
                delimiter: '\t',
                user: "user_id:token".into(),
                item: "item_id:token".into(),
                rating: "rating:float".into(),
                kind: None,
                timestamp: Some("timestamp:float".into()),
                like_above: 3.0,
                ignore_up_to: None,
                escape: None,
                quotes: Some(false),
                encoding: None,
            },
            items: ItemSpec {
                file: "ml-100k.item".into(),
                delimiter: '\t',
                item: "item_id:token".into(),
                title: "movie_title:token_seq".into(),
                year: Some("release_year:token".into()),
                tags: Some("class:token_seq".into()),
                escape: None,
                quotes: Some(false),
                encoding: None,
            },
            events: None,
        }
    }

    /// Book-Crossing: explicit ratings of 1 to 10, like = rating > 5; the file has no times.
    pub fn book_crossing() -> Self {
        Self {
            interactions: InteractionSpec {
                file: "BX-Book-Ratings.csv".into(),
                delimiter: ';',
                user: "User-ID".into(),
                item: "ISBN".into(),
                rating: "Book-Rating".into(),
                kind: None,
                timestamp: None,
                like_above: 5.0,
                ignore_up_to: Some(0.0),
                escape: Some('\\'),
                quotes: None,
                encoding: None,
            },
            items: ItemSpec {
                file: "BX-Books.csv".into(),
                delimiter: ';',
                item: "ISBN".into(),
                title: "Book-Title".into(),
                year: None,
                tags: None,
                escape: Some('\\'),
                quotes: None,
                encoding: None,
            },
            events: None,
        }
    }

    /// What events count as.
    ///
    /// # Errors
    /// [`TableError`] if the table's conditions cannot be read.
    pub fn meaning(&self, data: &Dataset) -> Result<Meaning, TableError> {
        if let Some(table) = &self.events {
            return Meaning::new(table);
        }
        let ratings = data.events.iter().map(|e| e.rating);
        let low = ratings.clone().fold(f32::INFINITY, f32::min);
        let high = ratings.fold(f32::NEG_INFINITY, f32::max);
        let above = self.interactions.like_above;
        let range = if low < high {
            [low, high]
        } else {
            EventTable::default().rating_range
        };
        Meaning::new(&EventTable {
            like: format!("rating > {above}, like"),
            dislike: format!("rating <= {above}, dislike"),
            rating_range: range,
            ..EventTable::default()
        })
    }

    /// Reads `dataset.toml` of `folder`; a folder without one must be MovieLens-100K in RecBole's
    /// format, or Book-Crossing.
    pub fn of_folder(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join("dataset.toml");
        if !path.exists() && folder.join("ml-100k.inter").exists() {
            return Ok(Self::movielens());
        }
        if !path.exists() && folder.join("BX-Book-Ratings.csv").exists() {
            return Ok(Self::book_crossing());
        }
        if !path.exists() && folder.is_dir() {
            return Err(DataError::NoSpec {
                folder: folder.to_owned(),
            });
        }
        let bytes = std::fs::read(&path).map_err(|source| DataError::Io {
            path: path.clone(),
            source,
        })?;
        Self::parse(&path, &bytes)
    }

    /// A description from the bytes of its file.
    ///
    /// # Errors
    /// [`DataError`]: no TOML in UTF-8, keys that are not known, or values that cannot be.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, DataError> {
        let text = spec_text(bytes).map_err(|what| DataError::NotText {
            path: path.to_owned(),
            what,
        })?;
        let spec: Self = toml::from_str(text).map_err(|e| DataError::Spec {
            path: path.to_owned(),
            source: Box::new(e),
        })?;
        let finite = |key, value: f32| match value.is_finite() {
            true => Ok(()),
            false => Err(DataError::Setting {
                path: path.to_owned(),
                key,
                got: value.to_string(),
                expected: "a finite number",
            }),
        };
        finite("like_above", spec.interactions.like_above)?;
        finite(
            "ignore_up_to",
            spec.interactions.ignore_up_to.unwrap_or(0.0),
        )?;
        Ok(spec)
    }
}
