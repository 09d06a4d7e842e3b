//! Readers of people's files take any bytes. Fuzz targets, too: `cargo bolero test -p lethe-recsys
//! --test readers mutated_files_never_panic`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use lethe_recsys::data::{DataSpec, load_events, read_items};
use lethe_recsys::table::{Encoding, Format, Table};
use lethe_recsys::versions::load_renamed;

const CORPUS: [(&str, &[u8]); 7] = [
    ("items.csv", include_bytes!("corpus/items.csv")),
    ("items.tsv", include_bytes!("corpus/items.tsv")),
    ("ratings.csv", include_bytes!("corpus/ratings.csv")),
    ("events.csv", include_bytes!("corpus/events.csv")),
    ("deletions.csv", include_bytes!("corpus/deletions.csv")),
    ("renamed.csv", include_bytes!("corpus/renamed.csv")),
    ("dataset.toml", include_bytes!("corpus/dataset.toml")),
];

const SPEC: &str = r#"
    [interactions]
    file = "events"
    user = "user"
    item = "item"
    rating = "stars"
    timestamp = "when"
    like_above = 3
    [items]
    file = "items"
    item = "id"
    title = "title"
"#;

/// A change of a file: where, what comes there, and how many bytes of what was there go.
type Edit = (u16, u8, u8);

/// Bytes that mean something in these files come often.
const MARKS: &[u8] = b"\"\"\n\r,;\t\0\\\x80\x93\xff= ";

fn edited(valid: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for (at, what, gone) in edits.iter().take(32) {
        let at = usize::from(*at) % (bytes.len() + 1);
        let to = (at + usize::from(gone % 8)).min(bytes.len());
        let byte = match what % 2 {
            0 => MARKS[usize::from(*what / 2) % MARKS.len()],
            _ => *what,
        };
        bytes.splice(at..to, [byte]);
    }
    bytes
}

fn formats() -> impl Iterator<Item = Format> {
    let quotes = [None, Some(true), Some(false)];
    let delimiters = [',', ';', '\t'];
    let all = delimiters
        .into_iter()
        .flat_map(move |d| quotes.map(|q| (d, q)));
    all.map(|(delimiter, quotes)| Format {
        delimiter,
        quotes,
        escape: quotes.map(|_| '\\'),
        encoding: quotes.and_then(|q| q.then_some(Encoding::Windows1252)),
        sep_line: quotes.is_none(),
    })
}

/// What is read is bounded by what is there, and every row is accounted for.
fn check(bytes: &[u8], format: &Format) {
    let open = || Table::of_bytes(Path::new("file"), bytes.to_vec(), format);
    let Ok(table) = open() else {
        return;
    };
    let _ = table.first_row();
    let _ = table.separator_hint();
    let columns = table.header().len();
    assert!(columns <= bytes.len() + 1);
    if let Ok(all) = table.all() {
        let lines = bytes.iter().filter(|b| matches!(b, b'\n' | b'\r')).count();
        assert!(all.len() <= lines + 1, "a line is one row at most");
        let text: usize = all
            .iter()
            .flat_map(|c| &c.row.fields)
            .map(String::len)
            .sum();
        // A byte that is no UTF-8 has three as text.
        assert!(text <= 3 * bytes.len());
        let good = all.iter().filter(|c| c.fault.is_none());
        assert!(good.clone().all(|c| c.row.fields.len() == columns));
        let read: Vec<usize> = (0..columns).collect();
        let reading = open().unwrap().each(&read, |_, _| Ok(())).unwrap();
        assert_eq!(reading.rows, all.len() as u64);
        assert_eq!(reading.read, good.count() as u64);
        assert_eq!(reading.read + reading.count_left_out(), reading.rows);
        let _ = reading.to_string();
    }
}

#[test]
fn any_bytes_never_panic() {
    bolero::check!()
        .with_iterations(2_000)
        .for_each(|bytes: &[u8]| {
            formats().for_each(|format| check(bytes, &format));
            let _ = DataSpec::parse(Path::new("dataset.toml"), bytes);
        });
}

#[test]
fn mutated_files_never_panic() {
    bolero::check!()
        .with_iterations(2_000)
        .with_type::<(u8, Vec<Edit>)>()
        .for_each(|(which, edits)| {
            let (_, valid) = CORPUS[usize::from(*which) % CORPUS.len()];
            let bytes = edited(valid, edits);
            formats().for_each(|format| check(&bytes, &format));
            let _ = DataSpec::parse(Path::new("dataset.toml"), &bytes);
        });
}

#[test]
fn mutated_folders_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let spec = DataSpec::parse(Path::new("dataset.toml"), SPEC.as_bytes()).unwrap();
    bolero::check!()
        .with_iterations(500)
        .with_type::<(Vec<Edit>, Vec<Edit>)>()
        .for_each(|(of_items, of_events)| {
            let write = |name: &str, valid: &[u8], edits: &[Edit]| {
                std::fs::write(dir.path().join(name), edited(valid, edits)).unwrap();
            };
            write("items", CORPUS[0].1, of_items);
            write("events", CORPUS[2].1, of_events);
            write("renamed.csv", CORPUS[5].1, of_events);
            if let Ok(data) = load_events(dir.path(), &spec, false) {
                assert!(data.events.iter().all(|e| {
                    (e.item as usize) < data.items.len() && (e.user as usize) < data.users.len()
                }));
                assert!(data.events.iter().all(|e| e.rating.is_finite()));
                let clean = data.readings.iter().all(|r| r.is_clean());
                assert_eq!(load_events(dir.path(), &spec, true).is_ok(), clean);
            }
            let _ = read_items(dir.path(), &spec, true);
            let _ = load_renamed(dir.path());
        });
}

/// Where nothing is wrong, fields are those of the usual reader.
#[test]
fn good_files_are_read_as_others_read_them() {
    bolero::check!()
        .with_iterations(2_000)
        .with_type::<Vec<(String, String)>>()
        .for_each(|rows| {
            let clean = |s: &String| s.chars().filter(|c| !c.is_control()).collect::<String>();
            let mut writer = csv::WriterBuilder::new()
                .quote_style(csv::QuoteStyle::Always)
                .from_writer(vec![]);
            writer.write_record(["a", "b"]).unwrap();
            for (a, b) in rows {
                writer.write_record([clean(a), clean(b)]).unwrap();
            }
            let bytes = writer.into_inner().unwrap();
            let mut reader = csv::Reader::from_reader(&bytes[..]);
            let theirs: Vec<Vec<String>> = reader
                .records()
                .map(|r| r.unwrap().iter().map(str::to_owned).collect())
                .collect();
            let table = Table::of_bytes(Path::new("file"), bytes.clone(), &Format::default());
            let ours = table.unwrap().all().unwrap_or_default();
            let ours: Vec<Vec<String>> = ours
                .into_iter()
                .inspect(|c| assert_eq!(c.fault, None))
                .map(|c| c.row.fields)
                .collect();
            assert_eq!(ours, theirs);
        });
}
