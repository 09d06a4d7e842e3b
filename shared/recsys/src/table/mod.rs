//! Delimited text files as people have them: rows by their columns, and what became of each.
//!
//! A row is read as its author meant it, or it is left out and reported with its line
//! ([`FileReading`]). Files of privacy teams (`lethe-admin import`) and data folders are read by
//! the same rules.

mod reading;
mod split;
mod text;
pub(crate) mod values;

use std::path::{Path, PathBuf};

pub use reading::{Fault, FileReading, LeftOut, Reason, Remark, RowProblem};
use split::{Marks, Record, Splitter};
pub use text::Encoding;
pub(crate) use text::spec_text;

use crate::data::DataError;

/// Separators that people use, in the order in which they are suggested.
const SEPARATORS: [(u8, &str); 5] = [
    (b';', "\";\""),
    (b'\t', "\"\\t\" (tabs)"),
    (b'|', "\"|\""),
    (b':', "\":\""),
    (b',', "\",\""),
];

/// What is known of a file before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Between columns; an ASCII character.
    pub delimiter: char,
    /// Whether fields may stand in quotation marks. `None`: they may, but in a file with tabs only
    /// if all its marks fit.
    pub quotes: Option<bool>,
    /// Takes a quotation mark's meaning away, where the file does not double it.
    pub escape: Option<char>,
    /// How letters are written down. `None`: UTF-8, and Windows-1252 what is none.
    pub encoding: Option<Encoding>,
    /// A first line `sep=;`, as spreadsheets write it, names the separator.
    pub sep_line: bool,
}

impl Default for Format {
    fn default() -> Self {
        Self {
            delimiter: ',',
            quotes: None,
            escape: None,
            encoding: None,
            sep_line: false,
        }
    }
}

/// One row, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// 1-based line where it starts.
    pub line: u64,
    /// Its fields, as many as the header has; without the blanks around those that do not stand in
    /// quotation marks.
    pub fields: Vec<String>,
}

impl Row {
    /// A field; empty where there is none.
    pub fn field(&self, column: usize) -> &str {
        self.fields.get(column).map_or("", String::as_str)
    }
}

/// A row, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The row, as far as it can be read.
    pub row: Row,
    /// What is wrong; none: nothing.
    pub fault: Option<Fault>,
}

/// A file that was opened, with its header.
#[derive(Debug)]
pub struct Table {
    bytes: Vec<u8>,
    marks: Marks,
    encoding: Option<Encoding>,
    header: Vec<String>,
    /// Where the first row is, and its line.
    start: usize,
    line: u64,
    reading: FileReading,
}

impl Table {
    /// Reads a file and its header.
    ///
    /// # Errors
    /// [`DataError`]: it cannot be read, is no text, is empty, or has a header that is none.
    pub fn open(path: &Path, format: &Format) -> Result<Self, DataError> {
        let bytes = std::fs::read(path).map_err(|source| DataError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::of_bytes(path, bytes, format)
    }

    /// The same of a file's bytes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of_bytes(path: &Path, mut bytes: Vec<u8>, format: &Format) -> Result<Self, DataError> {
        let not_text = |what: &'static str| DataError::NotText {
            path: path.to_owned(),
            what,
        };
        if let Some(what) = text::other_kind(&bytes) {
            return Err(not_text(what));
        }
        let mark = bytes.len() - text::without_bom(&bytes).len();
        bytes.drain(..mark);
        let mut marks = marks(path, format)?;
        let mut start = 0;
        let mut line = 1;
        if let Some(sep) = sep_line(&bytes).filter(|_| format.sep_line) {
            marks.delimiter = sep.delimiter;
            start = sep.length;
            line = 2;
        }
        let mut table = Self {
            bytes,
            marks,
            encoding: format.encoding,
            header: vec![],
            start,
            line,
            reading: FileReading::of(path),
        };
        if format.quotes.is_none() && marks.delimiter == b'\t' {
            table.decide_on_quotes();
        }
        table.read_header()?;
        Ok(table)
    }

    fn splitter(&self) -> Splitter<'_> {
        let bytes = self.bytes.get(self.start..).unwrap_or_default();
        Splitter::new(bytes, self.marks, self.line)
    }

    /// Files with tabs have quotation marks around fields, or they have them in texts; the marks
    /// themselves tell.
    fn decide_on_quotes(&mut self) {
        let plain = Marks {
            quotes: false,
            ..self.marks
        };
        let first = self.leading_mark(plain);
        self.marks = plain;
        let Some(line) = first else {
            return;
        };
        let quoted = Marks {
            quotes: true,
            ..plain
        };
        if self.all_fit(quoted) {
            self.marks = quoted;
            self.reading.guess(
                line,
                "fields stand in quotation marks, which are taken off: write quotes = true in \
                 dataset.toml (or false to keep them)",
            );
        } else {
            self.reading.guess(
                line,
                "some fields begin with a quotation mark, and not all marks fit, so all are kept: \
                 write quotes = false in dataset.toml (or true to take them off)",
            );
        }
    }

    /// Line of the first field that begins with a quotation mark.
    fn leading_mark(&self, marks: Marks) -> Option<u64> {
        let mut splitter = Splitter::new(self.bytes.get(self.start..)?, marks, self.line);
        let mut record = Record::default();
        while splitter.next(&mut record) {
            let mut fields = (0..record.len()).map(|i| record.field(i));
            if fields.any(|f| f.trim_ascii_start().starts_with(b"\"")) {
                return Some(record.line);
            }
        }
        None
    }

    /// Whether every quotation mark that opens a field is closed at its end, on the same line.
    fn all_fit(&self, marks: Marks) -> bool {
        let bytes = self.bytes.get(self.start..).unwrap_or_default();
        let mut splitter = Splitter::new(bytes, marks, self.line);
        let mut record = Record::default();
        while splitter.next(&mut record) {
            if record.fault.is_some() || record.broken().next().is_some() {
                return false;
            }
        }
        true
    }

    fn read_header(&mut self) -> Result<(), DataError> {
        let path = self.reading.file.clone();
        let mut splitter = self.splitter();
        let mut record = Record::default();
        if !splitter.next(&mut record) {
            return Err(DataError::NoRows {
                path,
                what: "is empty: expected a header and rows",
            });
        }
        if record.fault.is_some() || record.broken().next().is_some() {
            let why = "the header has a quotation mark that is not closed".into();
            let line = record.line;
            return Err(DataError::Header { path, line, why });
        }
        let field = |i: usize| text::decode(record.field(i), self.encoding);
        let read: Result<Vec<(String, bool)>, String> = (0..record.len()).map(field).collect();
        let line = record.line;
        let read = read.map_err(|why| DataError::Header { path, line, why })?;
        let next_line = splitter.line();
        let start = self.start + splitter.at();
        self.header = read.into_iter().map(|f| f.0.trim().to_owned()).collect();
        self.start = start;
        self.line = next_line;
        Ok(())
    }

    /// The columns' names.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// The first row as it stands, for errors.
    pub fn first_row(&self) -> Option<String> {
        let mut splitter = self.splitter();
        let mut record = Record::default();
        splitter.next(&mut record).then(|| {
            let shown = String::from_utf8_lossy(splitter.line_of(&record)).into_owned();
            values::head(&shown)
        })
    }

    /// Where a column is.
    ///
    /// # Errors
    /// [`DataError::Column`]: there is none of that name, or there are two.
    pub fn column(&self, name: &str) -> Result<usize, DataError> {
        let name = name.trim();
        let mut found = (0..).zip(&self.header).filter(|(_, h)| *h == name);
        match (found.next(), found.next()) {
            (Some((at, _)), None) => Ok(at),
            (Some(_), Some(_)) => Err(self.missing(name, "is there twice".into())),
            (None, _) => Err(self.missing(name, self.hint(name))),
        }
    }

    /// Where a column is that need not be there.
    ///
    /// # Errors
    /// As [`Self::column`], for one that is named.
    pub fn optional(&self, name: Option<&String>) -> Result<Option<usize>, DataError> {
        name.map(|n| self.column(n)).transpose()
    }

    fn missing(&self, column: &str, hint: String) -> DataError {
        DataError::Column {
            path: self.reading.file.clone(),
            column: column.to_owned(),
            found: self.header.clone(),
            hint,
        }
    }

    /// Why a column may be missing.
    pub fn hint(&self, column: &str) -> String {
        if let Some(hint) = self.separator_hint() {
            return hint;
        }
        let same = |h: &&String| h.eq_ignore_ascii_case(column);
        if let Some(h) = self.header.iter().find(same) {
            return format!("is it {h:?}? Capitals count");
        }
        let is_value = |h: &&String| !h.is_empty() && h.parse::<f64>().is_ok();
        match self.header.iter().find(is_value) {
            Some(h) => format!("{h:?} looks like a value: is the header missing?"),
            None => "is the header missing, or is it called otherwise?".into(),
        }
    }

    /// Which separator a header of one column seems to have.
    pub fn separator_hint(&self) -> Option<String> {
        let [only] = &self.header[..] else {
            return None;
        };
        let inside = |s: &&(u8, &str)| s.0 != self.marks.delimiter && only.contains(s.0 as char);
        let (_, name) = SEPARATORS.iter().find(inside)?;
        Some(format!("columns seem to be separated by {name}"))
    }

    /// Goes through all rows. `read` are the columns that are used: a field of another column may
    /// have line ends in it. Returns what became of the rows.
    ///
    /// # Errors
    /// [`DataError::NoRows`] for a file with a header and no rows.
    pub fn each(
        self,
        read: &[usize],
        mut row: impl FnMut(&Row, &mut FileReading) -> Result<(), Fault>,
    ) -> Result<FileReading, DataError> {
        self.walk(read, |_, checked, reading| row(&checked?, reading))
    }

    /// All rows in their order, those at fault as far as they can be read.
    ///
    /// # Errors
    /// As [`Self::each`].
    pub fn all(self) -> Result<Vec<Checked>, DataError> {
        let read: Vec<usize> = (0..self.header.len()).collect();
        let mut out = vec![];
        self.walk(&read, |record, checked, _| {
            let fault = checked.as_ref().err().cloned();
            let shown = |i: usize| String::from_utf8_lossy(record.field(i)).trim().to_owned();
            out.push(Checked {
                row: checked.unwrap_or_else(|_| Row {
                    line: record.line,
                    fields: (0..record.len()).map(shown).collect(),
                }),
                fault,
            });
            Ok(())
        })?;
        Ok(out)
    }

    fn walk(
        mut self,
        read: &[usize],
        mut row: impl FnMut(&Record, Result<Row, Fault>, &mut FileReading) -> Result<(), Fault>,
    ) -> Result<FileReading, DataError> {
        let mut reading = std::mem::take(&mut self.reading);
        let mut splitter = self.splitter();
        let mut record = Record::default();
        while splitter.next(&mut record) {
            reading.rows += 1;
            let checked = self.check(&splitter, &record, read);
            if checked.is_err() {
                splitter.resume_after(&record);
            }
            let checked = checked.and_then(|()| self.row(&record, read, &mut reading));
            match row(&record, checked, &mut reading) {
                Ok(()) => reading.read += 1,
                Err(fault) => reading.leave_out(record.line, fault),
            }
        }
        if reading.rows == 0 {
            return Err(DataError::NoRows {
                path: reading.file,
                what: "has a header and no rows",
            });
        }
        Ok(reading)
    }

    /// Whether a record is what its author meant.
    fn check(&self, splitter: &Splitter<'_>, record: &Record, read: &[usize]) -> Result<(), Fault> {
        let expected = self.header.len();
        match record.fault {
            Some(split::Fault::Open) => {
                return Err(Fault::new(
                    Reason::Quotes,
                    "a field begins with a quotation mark that is not closed: close it, or double \
                     it and put the field in quotation marks"
                        .into(),
                ));
            }
            Some(split::Fault::Stray(line)) => {
                let place = match line == record.line {
                    true => String::new(),
                    false => format!(" in line {line}"),
                };
                return Err(Fault::new(
                    Reason::Quotes,
                    format!(
                        "a field begins with a quotation mark, and the next one{place} is not at \
                         a field's end: double marks that belong to the text"
                    ),
                ));
            }
            None => {}
        }
        for field in record.broken() {
            let ends = record.field(field).iter().filter(|b| **b == b'\n').count() as u64;
            let is_row = |inner: Record| inner.fault.is_none() && inner.len() == expected;
            if read.contains(&field) || splitter.inner_lines(record).any(is_row) {
                let name = self.header.get(field).map_or("", String::as_str);
                let to = record.line + ends;
                return Err(Fault::new(
                    Reason::LineEnds,
                    format!(
                        "column {name:?} goes on to line {to}: is a quotation mark at its start \
                         not closed?"
                    ),
                ));
            }
        }
        let got = record.len();
        if got != expected {
            let more = match got > expected {
                true => ": put a field with the separator in it in quotation marks",
                false => "",
            };
            return Err(Fault::new(
                Reason::Columns,
                format!("{got} columns, the header has {expected}{more}"),
            ));
        }
        Ok(())
    }

    fn row(
        &self,
        record: &Record,
        read: &[usize],
        reading: &mut FileReading,
    ) -> Result<Row, Fault> {
        let mut fields = Vec::with_capacity(record.len());
        for at in 0..record.len() {
            if !read.contains(&at) {
                fields.push(String::new());
                continue;
            }
            let bytes = record.field(at);
            if bytes.contains(&0) {
                let name = self.header.get(at).map_or("", String::as_str);
                let why = format!("column {name:?} has a byte 0 in it: is the file damaged?");
                return Err(Fault::new(Reason::Bytes, why));
            }
            let (text, guessed) =
                text::decode(bytes, self.encoding).map_err(|why| Fault::new(Reason::Bytes, why))?;
            if guessed {
                reading.guess(
                    record.line,
                    "bytes that are no UTF-8 are read as Windows-1252: write encoding = \
                     \"windows-1252\" in dataset.toml, or save the file as UTF-8",
                );
            }
            fields.push(match record.is_quoted(at) {
                true => text,
                false => text.trim().to_owned(),
            });
        }
        Ok(Row {
            line: record.line,
            fields,
        })
    }
}

/// A first line `sep=;`.
struct SepLine {
    delimiter: u8,
    length: usize,
}

fn sep_line(bytes: &[u8]) -> Option<SepLine> {
    let end = bytes.iter().position(|b| matches!(b, b'\r' | b'\n'))?;
    let line = bytes.get(..end)?;
    let line = line.strip_prefix(b"\"").unwrap_or(line);
    let line = line.strip_suffix(b"\"").unwrap_or(line);
    let &[b's' | b'S', b'e' | b'E', b'p' | b'P', b'=', delimiter] = line else {
        return None;
    };
    let both = bytes.get(end..end + 2) == Some(b"\r\n");
    Some(SepLine {
        delimiter,
        length: end + if both { 2 } else { 1 },
    })
}

fn marks(path: &Path, format: &Format) -> Result<Marks, DataError> {
    let bad = |key, got: char, expected| DataError::Setting {
        path: PathBuf::from(path),
        key,
        got: format!("{got:?}"),
        expected,
    };
    let ascii = |c: char| u8::try_from(c).ok().filter(u8::is_ascii);
    let usable = |b: &u8| !matches!(b, b'"' | b'\r' | b'\n' | 0);
    let delimiter = ascii(format.delimiter).filter(usable).ok_or_else(|| {
        bad(
            "delimiter",
            format.delimiter,
            "one ASCII character, such as \",\", \";\" or \"\\t\"",
        )
    })?;
    let escape = match format.escape {
        None => None,
        Some(c) => {
            let byte = ascii(c).filter(usable).filter(|b| *b != delimiter);
            let expected = "one ASCII character that is not the delimiter, such as '\\'";
            Some(byte.ok_or_else(|| bad("escape", c, expected))?)
        }
    };
    Ok(Marks {
        delimiter,
        quotes: format.quotes.unwrap_or(true),
        escape,
    })
}

#[cfg(test)]
mod tests;
