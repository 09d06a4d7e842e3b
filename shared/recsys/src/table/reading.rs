//! What became of the rows of a file.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// Why a row was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// More or fewer columns than the header.
    Columns,
    /// A quotation mark that is not closed, or is followed by something.
    Quotes,
    /// A field with a line's end in it.
    LineEnds,
    /// A field that is longer than it may be.
    Long,
    /// Bytes that are no letters.
    Bytes,
    /// Characters that nobody sees.
    Control,
    /// A value that has to be there is not.
    Missing,
    /// An identifier that was there before.
    Duplicate,
    /// An item that is not in the catalogue.
    UnknownItem,
    /// A rating that is no number.
    Number,
    /// A time that is none.
    Time,
    /// A kind of event that is not known.
    Kind,
}

impl Reason {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Columns => "more or fewer columns than the header",
            Self::Quotes => "a quotation mark that is not closed, or not at a field's end",
            Self::LineEnds => "a field with a line's end in it",
            Self::Long => "a field that is too long",
            Self::Bytes => "bytes that are no letters",
            Self::Control => "characters that nobody sees",
            Self::Missing => "a value is missing",
            Self::Duplicate => "an identifier that is listed twice",
            Self::UnknownItem => "an item that is not in the catalogue",
            Self::Number => "a rating that is no number",
            Self::Time => "a time that is none",
            Self::Kind => "a kind of event that is not known",
        }
    }
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind of it.
    pub reason: Reason,
    /// Expected and found.
    pub why: String,
}

impl Fault {
    pub(crate) fn new(reason: Reason, why: String) -> Self {
        Self { reason, why }
    }
}

/// A row that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowProblem {
    /// The file.
    #[serde(serialize_with = "path")]
    pub file: PathBuf,
    /// 1-based line where the row starts.
    pub line: u64,
    /// Expected and found.
    pub why: String,
}

/// A path as text, whatever its bytes are.
fn path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl std::fmt::Display for RowProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.why)
    }
}

/// Rows that were left out for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Why.
    pub reason: Reason,
    /// How many.
    pub rows: u64,
    /// The first of them.
    pub first: RowProblem,
}

/// Something that is to be known of rows that were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// What, and what to declare so that it is no guess.
    pub what: String,
    /// How many rows or fields.
    pub times: u64,
    /// 1-based line of the first.
    pub line: u64,
}

/// What became of a file's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FileReading {
    /// The file.
    #[serde(serialize_with = "path")]
    pub file: PathBuf,
    /// Rows that it has, without the header and blank lines.
    pub rows: u64,
    /// Rows that were read.
    pub read: u64,
    /// Rows that were left out, by reason.
    pub left_out: Vec<LeftOut>,
    /// What was guessed: a setting of `dataset.toml` says it instead, and `--strict` wants it so.
    pub guesses: Vec<Remark>,
    /// What was read and is to be known.
    pub remarks: Vec<Remark>,
}

impl FileReading {
    pub(crate) fn of(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            ..Self::default()
        }
    }

    /// Rows that were left out.
    pub fn count_left_out(&self) -> u64 {
        self.left_out.iter().map(|l| l.rows).sum()
    }

    /// Whether every row was read, and nothing guessed.
    pub fn is_clean(&self) -> bool {
        self.left_out.is_empty() && self.guesses.is_empty()
    }

    /// The first row, by line, that was left out.
    pub fn first_left_out(&self) -> Option<&RowProblem> {
        self.left_out
            .iter()
            .map(|l| &l.first)
            .min_by_key(|p| p.line)
    }

    pub(crate) fn leave_out(&mut self, line: u64, fault: Fault) {
        let known = self.left_out.iter_mut().find(|l| l.reason == fault.reason);
        let first = RowProblem {
            file: self.file.clone(),
            line,
            why: fault.why,
        };
        match known {
            Some(known) => {
                known.rows += 1;
                if line < known.first.line {
                    known.first = first;
                }
            }
            None => self.left_out.push(LeftOut {
                reason: fault.reason,
                rows: 1,
                first,
            }),
        }
    }

    pub(crate) fn guess(&mut self, line: u64, what: &str) {
        note(&mut self.guesses, line, what);
    }

    pub(crate) fn remark(&mut self, line: u64, what: &str) {
        note(&mut self.remarks, line, what);
    }

    /// All that is to be said, a line for each; empty for a file of which nothing is.
    pub fn lines(&self) -> Vec<String> {
        let file = self.file.display();
        let mut out = vec![];
        if self.is_clean() && self.remarks.is_empty() {
            return out;
        }
        let mut head = format!("{file}: {} of {} rows are read", self.read, self.rows);
        if let Some(first) = self.first_left_out() {
            let rows = match self.count_left_out() {
                1 => "1 malformed row".to_owned(),
                n => format!("{n} malformed rows"),
            };
            head += &format!(", {rows} left out, the first: {first}");
        }
        out.push(head);
        // With one reason all is said.
        for l in self.left_out.iter().filter(|_| self.left_out.len() > 1) {
            let words = l.reason.words();
            out.push(format!("  {}: {words}; the first: {}", l.rows, l.first));
        }
        for remark in self.guesses.iter().chain(&self.remarks) {
            let Remark { what, times, line } = remark;
            out.push(format!("  {times}: {what}; the first: {file}:{line}"));
        }
        out
    }
}

fn note(all: &mut Vec<Remark>, line: u64, what: &str) {
    match all.iter_mut().find(|r| r.what == what) {
        Some(known) => known.times += 1,
        None => all.push(Remark {
            what: what.to_owned(),
            times: 1,
            line,
        }),
    }
}

impl std::fmt::Display for FileReading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}
