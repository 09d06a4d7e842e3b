//! Reading delimited text.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lethe_parts::event::Kind;

use crate::data::{
    DataError, DataSpec, Dataset, Event, InteractionSpec, Item, ItemSpec, RowProblem,
};

/// Loads the opinions of a data set: ratings, thumbs and purchases. The language model is asked
/// whether somebody likes an item; views, skips and hidden items do not answer that.
///
/// With `strict`, one malformed row is an error, without it such rows are left out and listed in
/// [`Dataset::problems`].
///
/// # Errors
/// [`DataError`] names the file and, where it has one, the line.
pub fn load(folder: &Path, spec: &DataSpec, strict: bool) -> Result<Dataset, DataError> {
    let mut data = load_events(folder, spec, strict)?;
    data.events
        .retain(|e| !matches!(e.kind, Kind::View | Kind::Skip | Kind::Hide));
    if data.events.is_empty() {
        return Err(DataError::Empty {
            path: folder.join(&spec.interactions.file),
        });
    }
    Ok(data)
}

/// As [`load`], with events of every kind: what the recommender's sums are made of.
///
/// # Errors
/// As [`load`].
pub fn load_events(folder: &Path, spec: &DataSpec, strict: bool) -> Result<Dataset, DataError> {
    let mut data = Dataset::default();
    read_items(folder, &spec.items, &mut data)?;
    read_events(folder, &spec.interactions, &mut data)?;
    if let (true, Some(first)) = (strict, data.problems.first()) {
        return Err(DataError::Malformed {
            count: data.problems.len(),
            first: first.clone(),
        });
    }
    if data.events.is_empty() {
        return Err(DataError::Empty {
            path: folder.join(&spec.interactions.file),
        });
    }
    // Stable: ties in time keep the order of the file.
    data.events.sort_by_key(|e| e.time);
    Ok(data)
}

/// Loads the public catalogue alone.
pub fn load_items(folder: &Path, spec: &DataSpec) -> Result<Vec<Item>, DataError> {
    let mut data = Dataset::default();
    read_items(folder, &spec.items, &mut data)?;
    Ok(data.items)
}

struct Table {
    path: PathBuf,
    reader: csv::Reader<std::io::Cursor<Vec<u8>>>,
    header: Vec<String>,
}

impl Table {
    fn open(path: PathBuf, delimiter: char, escape: Option<char>) -> Result<Self, DataError> {
        let bytes = std::fs::read(&path).map_err(|source| DataError::Io {
            path: path.clone(),
            source,
        })?;
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(u8::try_from(delimiter).unwrap_or(b','))
            .flexible(true)
            .quoting(delimiter != '\t')
            .escape(escape.and_then(|c| u8::try_from(c).ok()))
            .from_reader(std::io::Cursor::new(bytes));
        let header = reader.byte_headers().map_err(|e| DataError::Io {
            path: path.clone(),
            source: e.into(),
        })?;
        let header = header.iter().map(|h| text(h).trim().to_owned()).collect();
        Ok(Self {
            path,
            reader,
            header,
        })
    }

    fn column(&self, name: &str) -> Result<usize, DataError> {
        self.header
            .iter()
            .position(|h| h == name)
            .ok_or_else(|| DataError::Column {
                path: self.path.clone(),
                column: name.to_owned(),
                found: self.header.clone(),
            })
    }

    fn optional(&self, name: Option<&String>) -> Result<Option<usize>, DataError> {
        name.map(|n| self.column(n)).transpose()
    }

    fn each(
        mut self,
        problems: &mut Vec<RowProblem>,
        mut row: impl FnMut(&[String]) -> Result<(), String>,
    ) {
        let mut record = csv::ByteRecord::new();
        loop {
            let line = self.reader.position().line();
            let outcome = match self.reader.read_byte_record(&mut record) {
                Ok(false) => return,
                Ok(true) if record.len() < self.header.len() => Err(format!(
                    "{} columns, expected {}",
                    record.len(),
                    self.header.len()
                )),
                Ok(true) => row(&record.iter().map(text).collect::<Vec<_>>()),
                Err(e) => Err(e.to_string()),
            };
            if let Err(why) = outcome {
                let line = record.position().map_or(line, csv::Position::line);
                problems.push(RowProblem {
                    file: self.path.clone(),
                    line,
                    why,
                });
            }
        }
    }
}

/// UTF-8, else Latin-1 (which every byte sequence is).
fn text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(
        |_| bytes.iter().map(|b| char::from(*b)).collect(),
        str::to_owned,
    )
}

fn read_items(folder: &Path, spec: &ItemSpec, data: &mut Dataset) -> Result<(), DataError> {
    let table = Table::open(folder.join(&spec.file), spec.delimiter, spec.escape)?;
    let (id, title) = (table.column(&spec.item)?, table.column(&spec.title)?);
    let (year, tags) = (
        table.optional(spec.year.as_ref())?,
        table.optional(spec.tags.as_ref())?,
    );
    let mut seen: HashMap<String, ()> = HashMap::new();
    let items = &mut data.items;
    table.each(&mut data.problems, |row| {
        if row[id].is_empty() || row[title].trim().is_empty() {
            return Err("an item without identifier or title".into());
        }
        if seen.insert(row[id].clone(), ()).is_some() {
            return Err(format!(
                "item {:?} is listed twice; the first counts",
                row[id]
            ));
        }
        let tags = tags.map_or(vec![], |t| {
            row[t]
                .split([' ', '|'])
                .filter(|t| !t.is_empty())
                .map(str::to_owned)
                .collect()
        });
        let year = year
            .and_then(|y| row[y].trim().parse::<f64>().ok())
            .map(|y| y as u16)
            .filter(|y| *y > 0);
        items.push(Item {
            id: row[id].clone(),
            title: row[title].trim().to_owned(),
            year,
            tags,
        });
        Ok(())
    });
    Ok(())
}

fn read_events(folder: &Path, spec: &InteractionSpec, data: &mut Dataset) -> Result<(), DataError> {
    let table = Table::open(folder.join(&spec.file), spec.delimiter, spec.escape)?;
    let (user, item, rating) = (
        table.column(&spec.user)?,
        table.column(&spec.item)?,
        table.column(&spec.rating)?,
    );
    let time = table.optional(spec.timestamp.as_ref())?;
    let kind = table.optional(spec.kind.as_ref())?;
    let index: HashMap<String, u32> = data
        .items
        .iter()
        .enumerate()
        .map(|(i, x)| (x.id.clone(), i as u32))
        .collect();
    let mut users: HashMap<String, u32> = HashMap::new();
    let (names, events) = (&mut data.users, &mut data.events);
    table.each(&mut data.problems, |row| {
        let item = *index
            .get(&row[item])
            .ok_or_else(|| format!("item {:?} is not in the catalogue", row[item]))?;
        let kind = kind.map_or(Ok(Kind::Rating), |k| kind_of(&row[k]))?;
        // Thumbs, skips and purchases need no number.
        let rating: f32 = match kind {
            Kind::Rating | Kind::View => number(&row[rating], "rating")?,
            _ => 0.0,
        };
        if kind == Kind::Rating && spec.ignore_up_to.is_some_and(|n| rating <= n) {
            return Ok(());
        }
        let liked = match kind {
            Kind::Rating => rating > spec.like_above,
            other => matches!(other, Kind::Like | Kind::Purchase),
        };
        let time = time.map_or(Ok(0.0), |t| number::<f64>(&row[t], "timestamp"))? as i64;
        if row[user].is_empty() {
            return Err("an interaction without a user".into());
        }
        let user = *users.entry(row[user].clone()).or_insert_with(|| {
            names.push(row[user].clone());
            names.len() as u32 - 1
        });
        events.push(Event {
            user,
            item,
            rating,
            time,
            liked,
            kind,
        });
        Ok(())
    });
    Ok(())
}

fn kind_of(name: &str) -> Result<Kind, String> {
    let name = name.trim().to_lowercase();
    let found = Kind::ALL.into_iter().find(|k| k.name() == name);
    found.ok_or_else(|| {
        let known = Kind::ALL.map(Kind::name).join(", ");
        format!("kind {name:?}, expected one of {known}")
    })
}

fn number<T: std::str::FromStr + Into<f64> + Copy>(s: &str, what: &str) -> Result<T, String> {
    let n: T = s
        .trim()
        .parse()
        .map_err(|_| format!("{what} {s:?} is not a number"))?;
    if n.into().is_finite() {
        Ok(n)
    } else {
        Err(format!("{what} {s:?} is not finite"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"
        [interactions]
        file = "ratings.csv"
        user = "who"
        item = "what"
        rating = "stars"
        timestamp = "when"
        like_above = 3
        [items]
        file = "films.csv"
        delimiter = ";"
        item = "id"
        title = "name"
    "#;

    fn folder(ratings: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("dataset.toml"), SPEC).expect("writes");
        std::fs::write(
            dir.path().join("films.csv"),
            b"id;name\n1;Am\xe9lie\n2;\"Heat; a film\"\n",
        )
        .expect("writes");
        std::fs::write(dir.path().join("ratings.csv"), ratings).expect("writes");
        dir
    }

    #[test]
    fn reports_malformed_rows_with_file_and_line() {
        let dir = folder("who,what,stars,when\na,1,5,20\na,2,nan,10\nb,9,1,5\nb,2,1\na,2,3,10\n");
        let spec = DataSpec::of_folder(dir.path()).expect("spec");
        let data = load(dir.path(), &spec, false).expect("loads");
        let lines: Vec<u64> = data.problems.iter().map(|p| p.line).collect();
        assert_eq!(lines, [3, 4, 5]);
        assert_eq!(data.items[0].title, "Amélie");
        assert_eq!(data.items[1].title, "Heat; a film");
        assert_eq!(
            data.events
                .iter()
                .map(|e| (e.item, e.liked))
                .collect::<Vec<_>>(),
            [(1, false), (0, true)]
        );
        let e = load(dir.path(), &spec, true).expect_err("strict");
        assert!(e.to_string().contains("ratings.csv:3"), "{e}");
    }

    #[test]
    fn events_have_kinds_and_opinions_are_some_of_them() {
        let dir = folder(
            "who,what,stars,when,how\na,1,5,1,rating\na,2,40,2,view\na,1,,3,like\na,2,,4,HIDE\n\
             a,2,1,5,loved\n",
        );
        let text = SPEC.replace("like_above = 3", "like_above = 3\nkind = \"how\"");
        let events = "[events]\nseen = \"view >= 30, rating, like\"\nlike = \"like\"\n";
        let text = format!("{text}\n{events}");
        std::fs::write(dir.path().join("dataset.toml"), text).expect("writes");
        let spec = DataSpec::of_folder(dir.path()).expect("spec");
        let all = load_events(dir.path(), &spec, false).expect("loads");
        let kinds: Vec<Kind> = all.events.iter().map(|e| e.kind).collect();
        assert_eq!(kinds, [Kind::Rating, Kind::View, Kind::Like, Kind::Hide]);
        assert_eq!(all.problems.len(), 1);
        assert!(all.problems[0].why.contains("loved"));
        let histories = crate::histories::histories(&all);
        let meaning = spec.meaning(&all).expect("a valid table");
        let history = lethe_parts::history::History::of_events(&histories[0], &meaning);
        assert_eq!(history.seen(), [0, 1, 0]);
        assert_eq!(history.met(), [0, 1]);
        let opinions = load(dir.path(), &spec, false).expect("loads");
        assert_eq!(opinions.events.len(), 2);
    }

    #[test]
    fn escapes_and_ratings_without_an_opinion() {
        let dir = folder("who,what,stars,when\na,1,0,20\na,2,4,10\n");
        let text = SPEC
            .replace("like_above = 3", "like_above = 3\nignore_up_to = 0")
            .replace("item = \"id\"", "item = \"id\"\nescape = '\\'");
        std::fs::write(dir.path().join("dataset.toml"), text).expect("writes");
        std::fs::write(
            dir.path().join("films.csv"),
            "id;name\n1;\"The \\\"Heat\\\"; a film\"\n2;B\n",
        )
        .expect("writes");
        let mut data = load(
            dir.path(),
            &DataSpec::of_folder(dir.path()).expect("spec"),
            true,
        )
        .expect("nothing is malformed");
        assert_eq!(
            (data.items[0].title.as_str(), data.events.len()),
            ("The \"Heat\"; a film", 1)
        );
        let before = data.events.clone();
        data.order_by_seed(&lethe_learn::seed::Seed::from_u64(1));
        assert_eq!(data.events[0].item, before[0].item);
    }

    #[test]
    fn a_missing_column_and_an_unknown_key_are_named() {
        let dir = folder("who,what,points,when\n");
        let spec = DataSpec::of_folder(dir.path()).expect("spec");
        let missing = load(dir.path(), &spec, false);
        assert!(matches!(missing, Err(DataError::Column { column, .. }) if column == "stars"));
        std::fs::write(
            dir.path().join("dataset.toml"),
            SPEC.replace("like_above", "like_over"),
        )
        .expect("writes");
        assert!(matches!(
            DataSpec::of_folder(dir.path()),
            Err(DataError::Spec { .. })
        ));
    }
}
