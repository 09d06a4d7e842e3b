//! Reading a data folder.

use std::collections::HashMap;
use std::path::Path;

use lethe_parts::event::Kind;

use crate::data::{DataError, DataSpec, Dataset, Event, InteractionSpec, Item, ItemSpec};
use crate::table::{Fault, FileReading, Reason, Row, Table, values};

/// Loads the opinions of a data set: ratings, thumbs and purchases. The language model is asked
/// whether somebody likes an item; views, skips and hidden items do not answer that.
///
/// With `strict`, one malformed row is an error, and so is what had to be guessed; without it such
/// rows are left out and listed in [`Dataset::readings`].
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
            what: "interaction",
            why: "All rows are views, skips or hidden items: none says whether somebody likes an \
                  item"
                .into(),
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
    let lost = items_of(folder, &spec.items, &mut data)?;
    events_of(folder, &spec.interactions, &lost, &mut data)?;
    refuse(&data.readings, strict)?;
    if data.events.is_empty() {
        let reading = data.readings.pop().unwrap_or_default();
        return Err(nothing(&reading, "interaction"));
    }
    // Stable: ties in time keep the order of the file.
    data.events.sort_by_key(|e| e.time);
    Ok(data)
}

/// The public catalogue alone, and what became of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemsRead {
    /// The items, in file order.
    pub items: Vec<Item>,
    /// What became of the rows.
    pub reading: FileReading,
}

/// Loads the public catalogue alone; `strict` as in [`load`].
///
/// # Errors
/// [`DataError`] names the file and, where it has one, the line.
pub fn read_items(folder: &Path, spec: &DataSpec, strict: bool) -> Result<ItemsRead, DataError> {
    let mut data = Dataset::default();
    items_of(folder, &spec.items, &mut data)?;
    refuse(&data.readings, strict)?;
    Ok(ItemsRead {
        items: data.items,
        reading: data.readings.pop().unwrap_or_default(),
    })
}

/// The same for who has no place to say what became of the rows.
///
/// # Errors
/// As [`read_items`].
pub fn load_items(folder: &Path, spec: &DataSpec) -> Result<Vec<Item>, DataError> {
    Ok(read_items(folder, spec, false)?.items)
}

/// With `strict`, an error for readings that are not clean.
fn refuse(readings: &[FileReading], strict: bool) -> Result<(), DataError> {
    let unclean = readings.iter().filter(|r| strict && !r.is_clean());
    let said: Vec<String> = unclean.map(FileReading::to_string).collect();
    match said.is_empty() {
        true => Ok(()),
        false => Err(DataError::Malformed {
            said: said.join("\n"),
        }),
    }
}

fn nothing(reading: &FileReading, what: &'static str) -> DataError {
    DataError::Empty {
        path: reading.file.clone(),
        what,
        why: reading.to_string(),
    }
}

/// Rows of items that were left out: by identifier, in which line it stands.
type Lost = HashMap<String, u64>;

/// A title is far above the usual length: more than so many times the median, and so many letters.
const FAR_ABOVE: usize = 10;
const LONG_TITLE: usize = 250;

struct ItemColumns {
    id: usize,
    title: usize,
    year: Option<usize>,
    tags: Option<usize>,
}

fn items_of(folder: &Path, spec: &ItemSpec, data: &mut Dataset) -> Result<Lost, DataError> {
    let table = Table::open(&folder.join(&spec.file), &spec.format())?;
    let columns = ItemColumns {
        id: table.column(&spec.item)?,
        title: table.column(&spec.title)?,
        year: table.optional(spec.year.as_ref())?,
        tags: table.optional(spec.tags.as_ref())?,
    };
    let read: Vec<usize> = [
        Some(columns.id),
        Some(columns.title),
        columns.year,
        columns.tags,
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut seen: HashMap<String, u64> = HashMap::new();
    let mut lost = Lost::new();
    let mut lines = vec![];
    let items = &mut data.items;
    let mut reading = table.each(&read, |row, reading| {
        let id = values::identifier(row.field(columns.id), "item")?;
        if let Some(first) = seen.get(&id) {
            return Err(Fault::new(
                Reason::Duplicate,
                format!("item {id:?} is listed twice; the first, in line {first}, counts"),
            ));
        }
        match item(&id, row, &columns, reading) {
            Ok(item) => items.push(item),
            Err(fault) => {
                lost.insert(id, row.line);
                return Err(fault);
            }
        }
        seen.insert(id, row.line);
        lines.push(row.line);
        Ok(())
    })?;
    say_of_long_titles(items, &lines, &mut reading);
    if items.is_empty() {
        return Err(nothing(&reading, "item"));
    }
    data.readings.push(reading);
    Ok(lost)
}

fn item(
    id: &str,
    row: &Row,
    columns: &ItemColumns,
    reading: &mut FileReading,
) -> Result<Item, Fault> {
    let title = values::title(row.field(columns.title))?;
    let tags = columns.tags.map_or("", |t| row.field(t));
    let tags = values::tags(tags)?;
    let year = columns.year.map_or("", |y| row.field(y));
    let year = values::year(year).unwrap_or_else(|_| {
        reading.remark(row.line, "the year is no number: the item is without one");
        None
    });
    Ok(Item {
        id: id.to_owned(),
        title,
        year,
        tags,
    })
}

/// A title that has swallowed something is longer than others.
fn say_of_long_titles(items: &[Item], lines: &[u64], reading: &mut FileReading) {
    let length = |item: &Item| item.title.chars().count();
    let mut lengths: Vec<usize> = items.iter().map(length).collect();
    lengths.sort_unstable();
    let median = lengths.get(lengths.len() / 2).copied().unwrap_or(0);
    let most = LONG_TITLE.max(FAR_ABOVE * median);
    for (item, line) in items.iter().zip(lines) {
        if length(item) > most {
            let what = format!(
                "a title is far above the usual length ({median} letters): is a quotation mark or \
                 a separator missing?"
            );
            reading.guess(*line, &what);
        }
    }
}

struct EventColumns {
    user: usize,
    item: usize,
    rating: usize,
    time: Option<usize>,
    kind: Option<usize>,
}

fn events_of(
    folder: &Path,
    spec: &InteractionSpec,
    lost: &Lost,
    data: &mut Dataset,
) -> Result<(), DataError> {
    let table = Table::open(&folder.join(&spec.file), &spec.format())?;
    let columns = EventColumns {
        user: table.column(&spec.user)?,
        item: table.column(&spec.item)?,
        rating: table.column(&spec.rating)?,
        time: table.optional(spec.timestamp.as_ref())?,
        kind: table.optional(spec.kind.as_ref())?,
    };
    let read: Vec<usize> = [
        Some(columns.user),
        Some(columns.item),
        Some(columns.rating),
        columns.time,
        columns.kind,
    ]
    .into_iter()
    .flatten()
    .collect();
    let names = Names::new(&data.items, lost);
    let mut users: HashMap<String, u32> = HashMap::new();
    let known = &mut data.users;
    let events = &mut data.events;
    // The line of the first event, while all times have eight digits that make a date.
    let mut compact = None;
    let mut others = 0_u64;
    let mut reading = table.each(&read, |row, reading| {
        let user = values::identifier(row.field(columns.user), "user")?;
        let item = names.place(row.field(columns.item))?;
        let kind = columns
            .kind
            .map_or(Ok(Kind::Rating), |k| values::kind(row.field(k)))?;
        // Thumbs, skips and purchases need no number.
        let rating = match kind {
            Kind::Rating | Kind::View => values::number(row.field(columns.rating), "rating")?,
            _ => 0.0,
        };
        let time = columns
            .time
            .map(|t| values::time(row.field(t)))
            .transpose()?;
        if kind == Kind::Rating && spec.ignore_up_to.is_some_and(|n| rating <= n) {
            return Ok(());
        }
        let liked = match kind {
            Kind::Rating => rating > spec.like_above,
            other => matches!(other, Kind::Like | Kind::Purchase),
        };
        match time {
            Some(t) if t.compact => {
                compact.get_or_insert_with(|| {
                    (row.line, row.field(columns.time.unwrap_or(0)).to_owned())
                });
            }
            _ => others += 1,
        }
        if time.is_some_and(|t| t.scaled) {
            reading.remark(
                row.line,
                "times in milliseconds (or a smaller unit), as their size says",
            );
        }
        let user = *users.entry(user).or_insert_with_key(|name| {
            known.push(name.clone());
            known.len() as u32 - 1
        });
        events.push(Event {
            user,
            item,
            rating,
            time: time.map_or(0, |t| t.seconds),
            liked,
            kind,
        });
        Ok(())
    })?;
    if let (Some(first), 0) = (compact, others) {
        let (line, text) = first;
        let day = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
        let why = format!(
            "time {text:?} would be read as seconds since 1970, a day in August 1970: write \
             {}-{}-{}",
            day(0, 4),
            day(4, 6),
            day(6, 8)
        );
        for _ in 0..reading.read {
            reading.leave_out(line, Fault::new(Reason::Time, why.clone()));
        }
        reading.read = 0;
        events.clear();
        known.clear();
    }
    data.readings.push(reading);
    Ok(())
}

/// The items by name, and what a name that is none may have been.
struct Names<'a> {
    places: HashMap<&'a str, u32>,
    /// Names without capitals, leading zeros and a fraction of zero.
    alike: HashMap<String, &'a str>,
    lost: &'a Lost,
}

fn bare(name: &str) -> String {
    let name = name.to_lowercase();
    let whole = name.strip_suffix(".0").unwrap_or(&name);
    let rest = whole.trim_start_matches('0');
    if rest.is_empty() {
        "0".into()
    } else {
        rest.into()
    }
}

impl<'a> Names<'a> {
    fn new(items: &'a [Item], lost: &'a Lost) -> Self {
        let mut alike: HashMap<String, &'a str> = HashMap::new();
        for item in items {
            alike.entry(bare(&item.id)).or_insert(&item.id);
        }
        Self {
            places: (0..).zip(items).map(|(i, x)| (x.id.as_str(), i)).collect(),
            alike,
            lost,
        }
    }

    fn place(&self, name: &str) -> Result<u32, Fault> {
        let name = values::identifier(name, "item")?;
        if let Some(place) = self.places.get(name.as_str()) {
            return Ok(*place);
        }
        let mut why = format!("item {name:?} is not in the catalogue");
        if let Some(line) = self.lost.get(&name) {
            why += &format!(": its row there, line {line}, was left out");
        } else if let Some(other) = self.alike.get(&bare(&name)) {
            why += &format!(
                ", which has {other:?}: were leading zeros, capitals or a fraction lost or added \
                 (spreadsheets do that)?"
            );
        }
        Err(Fault::new(Reason::UnknownItem, why))
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
        let problems = &data.readings[1].left_out;
        let mut lines: Vec<u64> = problems.iter().map(|l| l.first.line).collect();
        lines.sort_unstable();
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
        let problems = &all.readings[1].left_out;
        assert_eq!(problems.len(), 1);
        assert!(problems[0].first.why.contains("loved"));
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

    /// A folder whose ratings have been changed in some way, and what became of them.
    fn read(ratings: &str) -> Result<Dataset, DataError> {
        let dir = folder(ratings);
        let spec = DataSpec::of_folder(dir.path()).expect("spec");
        load(dir.path(), &spec, false)
    }

    #[test]
    fn no_usable_interaction_says_how_many_rows_and_why() {
        for (rows, says) in [
            ("a,1,True,20\na,2,False,10\n", "like_above = 0.5"),
            ("a,01,5,20\na,2.0,3,10\n", "leading zeros"),
            ("a,1,\"4,5\",20\na,2,\"3,5\",10\n", "decimal comma"),
            (
                "a,1,5,01.11.2026\na,2,3,2026-11-01 10:00:00\n",
                "expected seconds",
            ),
            ("a,1,5,20261101\na,2,3,20261102\n", "write 2026-11-01"),
            ("NULL,1,5,20\n\\N,2,3,10\n", "the user is missing"),
            ("a,1,inf,20\na,2,NaN,10\n", "not finite"),
        ] {
            let e = read(&format!("who,what,stars,when\n{rows}")).expect_err(rows);
            let said = e.to_string();
            assert!(said.contains("no usable interaction"), "{said}");
            assert!(said.contains("0 of 2 rows are read, 2 malformed"), "{said}");
            assert!(
                said.contains(says) && said.contains("ratings.csv:2"),
                "{said}"
            );
        }
    }

    #[test]
    fn blanks_iso_times_and_milliseconds_are_read() {
        let rows = "a, 1 ,5,2026-11-01T10:30:00Z\n a,2, 3 ,1793529001000\n";
        let data = read(&format!("who, what,stars,when\n{rows}")).expect("reads");
        assert_eq!(data.users, ["a"]);
        let times: Vec<i64> = data.events.iter().map(|e| e.time).collect();
        assert_eq!(times, [1_793_529_000, 1_793_529_001]);
        assert!(data.readings[1].is_clean());
        assert_eq!(data.readings[1].remarks.len(), 1);
    }

    #[test]
    fn items_are_reported_with_their_line_and_strict_refuses_them() {
        let dir = folder("who,what,stars,when\na,1,5,20\na,3,5,21\n");
        let films = "id;name\n1;A\n2;B;C\n3;\n1;D\n4;\"open\n5;E\n\\N;F\n";
        std::fs::write(dir.path().join("films.csv"), films).expect("writes");
        let spec = DataSpec::of_folder(dir.path()).expect("spec");
        let read = read_items(dir.path(), &spec, false).expect("reads");
        let ids: Vec<&str> = read.items.iter().map(|i| i.id.as_str()).collect();
        assert_eq!(ids, ["1", "5"]);
        let said = read.reading.to_string();
        for line in ["films.csv:3", "films.csv:4", "films.csv:5", "films.csv:6"] {
            assert!(said.contains(line), "{line}: {said}");
        }
        assert!(said.contains("2 of 7 rows are read, 5 malformed"), "{said}");
        let e = read_items(dir.path(), &spec, true).expect_err("strict");
        assert!(e.to_string().contains("films.csv:3"), "{e}");
        // The rating of an item whose row was left out says so.
        let data = load(dir.path(), &spec, false).expect("reads");
        let why = &data.readings[1].left_out[0].first.why;
        assert!(why.contains("its row there, line 4, was left out"), "{why}");
        let json = serde_json::to_string(&data.readings).expect("JSON");
        assert!(json.contains("\"reason\":\"unknown-item\""), "{json}");
    }

    #[test]
    fn a_title_that_swallowed_something_is_said() {
        let dir = folder("who,what,stars,when\na,1,5,20\n");
        let long = "x".repeat(400);
        let films = format!("id;name\n1;{long}\n2;B\n3;C\n");
        std::fs::write(dir.path().join("films.csv"), films).expect("writes");
        let spec = DataSpec::of_folder(dir.path()).expect("spec");
        let read = read_items(dir.path(), &spec, false).expect("reads");
        assert_eq!(read.items.len(), 3, "prompts shorten it");
        assert!(read.reading.to_string().contains("far above the usual"));
        assert!(read_items(dir.path(), &spec, true).is_err());
    }

    #[test]
    fn descriptions_have_byte_order_marks_and_finite_numbers() {
        let path = Path::new("dataset.toml");
        let parse = |text: &[u8]| DataSpec::parse(path, text);
        let marked = [b"\xEF\xBB\xBF", SPEC.as_bytes()].concat();
        assert!(parse(&marked).is_ok());
        assert!(parse(b"\xFF\xFE[\0").is_err());
        assert!(parse(b"[items]\n# \xE9\n").is_err());
        let nan = SPEC.replace("like_above = 3", "like_above = nan");
        let e = parse(nan.as_bytes()).expect_err("no number");
        assert!(e.to_string().contains("like_above is NaN"), "{e}");
        let encoded = SPEC.replace(
            "delimiter = \";\"",
            "delimiter = \";\"\nencoding = \"latin-1\"",
        );
        assert!(parse(encoded.as_bytes()).is_ok());
        let dir = tempfile::tempdir().expect("a folder");
        let none = DataSpec::of_folder(dir.path()).expect_err("none");
        assert!(none.to_string().contains("has no dataset.toml"), "{none}");
    }
}
