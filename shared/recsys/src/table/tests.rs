use std::path::Path;

use super::*;

const FILE: &str = "rows.csv";

/// What became of a file's rows, and those that were read.
fn read(
    text: &[u8],
    format: &Format,
    columns: &[&str],
) -> Result<(Vec<Row>, FileReading), DataError> {
    let table = Table::of_bytes(Path::new(FILE), text.to_vec(), format)?;
    let places = columns.iter().map(|c| table.column(c));
    let places: Vec<usize> = places.collect::<Result<_, _>>()?;
    let mut rows = vec![];
    let reading = table.each(&places, |row, _| {
        rows.push(row.clone());
        Ok(())
    })?;
    Ok((rows, reading))
}

fn problems(reading: &FileReading) -> Vec<(u64, Reason)> {
    let first = |l: &LeftOut| (l.first.line, l.reason);
    reading.left_out.iter().map(first).collect()
}

#[test]
fn rows_that_do_not_fit_their_header_are_left_out() {
    let text = b"id,title\n1,Heat\n2,Stone Prison, The\n3\n4,Last\n";
    let (rows, reading) = read(text, &Format::default(), &["id", "title"]).expect("reads");
    assert_eq!(rows.len(), 2);
    assert_eq!((reading.rows, reading.read), (4, 2));
    assert_eq!(problems(&reading), [(3, Reason::Columns)]);
    assert_eq!(reading.count_left_out(), 2);
    let said = reading.to_string();
    assert!(
        said.contains("rows.csv:3: 3 columns, the header has 2"),
        "{said}"
    );
}

#[test]
fn a_field_with_line_ends_swallows_no_rows() {
    // Both marks at the ends of fields: the record would have as many columns as it should.
    let text = b"id,title,year\n30,\"7 inch,1980\n31,b,1981\n45,12 inch\",1995\n46,d,1996\n";
    let (rows, reading) = read(text, &Format::default(), &["id", "title"]).expect("reads");
    let ids: Vec<&str> = rows.iter().map(|r| r.field(0)).collect();
    assert_eq!(ids, ["31", "45", "46"]);
    assert_eq!(problems(&reading), [(2, Reason::LineEnds)]);
    assert!(reading.to_string().contains("to line 4"), "{reading}");
    // Where nobody reads the column, and no line of it is a row, it is a text of several lines.
    let text = b"id,title,about\n1,a,\"long\nand longer\"\n2,b,\"x\n3,c,y\"\n";
    let (rows, reading) = read(text, &Format::default(), &["id", "title"]).expect("reads");
    let ids: Vec<&str> = rows.iter().map(|r| r.field(0)).collect();
    assert_eq!(ids, ["1", "3"]);
    assert_eq!(problems(&reading), [(4, Reason::LineEnds)]);
}

#[test]
fn blanks_around_separators_are_no_part_of_values() {
    let text = b"\xEF\xBB\xBF id , title \n 1 , Heat \n2, \"b, c\" \n3,\"  d \"\n";
    let (rows, reading) = read(text, &Format::default(), &["id", "title"]).expect("reads");
    assert!(reading.is_clean());
    let titles: Vec<&str> = rows.iter().map(|r| r.field(1)).collect();
    assert_eq!(
        titles,
        ["Heat", "b, c", "  d "],
        "what is quoted stays as it is"
    );
}

#[test]
fn letters_are_windows_1252_or_reported() {
    let text = b"id,title\n1,Baker\x92s\n2,Caf\xE9\n3,\x81x\n4,a\0b\n";
    let (rows, reading) = read(text, &Format::default(), &["id", "title"]).expect("reads");
    assert_eq!(rows[0].field(1), "Baker\u{2019}s");
    assert_eq!(rows[1].field(1), "Caf\u{e9}");
    assert_eq!(problems(&reading), [(4, Reason::Bytes)]);
    assert_eq!(reading.count_left_out(), 2);
    assert_eq!((reading.guesses[0].times, reading.guesses[0].line), (2, 2));
    let declared = Format {
        encoding: Some(Encoding::Windows1252),
        ..Format::default()
    };
    let (_, reading) = read(text, &declared, &["id", "title"]).expect("reads");
    assert!(reading.guesses.is_empty());
    let utf8 = Format {
        encoding: Some(Encoding::Utf8),
        ..Format::default()
    };
    let (rows, _) = read(text, &utf8, &["id", "title"]).expect("reads");
    assert!(rows.is_empty());
}

#[test]
fn quotation_marks_between_tabs_are_taken_off_or_declared() {
    let tabs = |quotes| Format {
        delimiter: '\t',
        quotes,
        ..Format::default()
    };
    let title = |text: &[u8], quotes| {
        let (rows, reading) = read(text, &tabs(quotes), &["id", "title"]).expect("reads");
        (rows[0].field(1).to_owned(), reading.guesses.len())
    };
    let quoted = b"id\ttitle\n1\t\"Plain Film, The\"\n2\tb\n";
    assert_eq!(title(quoted, None), ("Plain Film, The".into(), 1));
    assert_eq!(title(quoted, Some(true)), ("Plain Film, The".into(), 0));
    assert_eq!(
        title(quoted, Some(false)),
        ("\"Plain Film, The\"".into(), 0)
    );
    let texts = b"id\ttitle\n1\t\"Crocodile\" Dundee\n2\t\"b\"\n";
    assert_eq!(title(texts, None), ("\"Crocodile\" Dundee".into(), 1));
    assert_eq!(
        title(texts, Some(false)),
        ("\"Crocodile\" Dundee".into(), 0)
    );
    let none = b"id\ttitle\n1\t12\" Film\n";
    assert_eq!(title(none, None), ("12\" Film".into(), 0));
}

#[test]
fn files_that_are_none_say_so() {
    let error = |text: &[u8], column: &str| {
        let e = read(text, &Format::default(), &[column]).expect_err(column);
        e.to_string()
    };
    for (text, says) in [
        (&b""[..], "is empty"),
        (b"\n\n", "is empty"),
        (b"\xEF\xBB\xBF", "is empty"),
        (b"id,title\n", "has a header and no rows"),
        (b"id;title\n1;Heat\n", "separated by \";\""),
        (b"id\ttitle\n1\tHeat\n", "separated by \"\\t\""),
        (b"id|title\n1|Heat\n", "separated by \"|\""),
        (
            b"1,Heat\n2,Ran\n",
            "looks like a value: is the header missing?",
        ),
        (b"Id,title\n1,Heat\n", "is it \"Id\"?"),
        (b"id,id\n1,Heat\n", "is there twice"),
        (b"\"id,title\n1,Heat\n", "the header has a quotation mark"),
        (b"\x1F\x8B\x08\0", "gzip"),
        (b"\xFF\xFEi\0d\0", "UTF-16"),
    ] {
        let said = error(text, "id");
        assert!(said.contains(says) && said.contains(FILE), "{said}");
    }
}

#[test]
fn a_spreadsheets_first_line_names_the_separator() {
    let format = Format {
        sep_line: true,
        ..Format::default()
    };
    for text in [
        &b"sep=;\nid;title\n1;a,b\n"[..],
        b"\"sep=;\"\r\nid;title\r\n1;a,b\r\n",
    ] {
        let (rows, _) = read(text, &format, &["id", "title"]).expect("reads");
        assert_eq!((rows[0].line, rows[0].field(1)), (3, "a,b"));
    }
}

#[test]
fn separators_that_cannot_be_are_refused() {
    for (delimiter, escape) in [('"', None), ('\n', None), ('é', None), (',', Some(','))] {
        let format = Format {
            delimiter,
            escape,
            ..Format::default()
        };
        let e = read(b"id\n1\n", &format, &["id"]).expect_err("refused");
        assert!(matches!(e, DataError::Setting { .. }), "{e}");
    }
}
