//! Delimited text into records, by bytes. Unlike RFC 4180 a quotation mark is not believed blindly:
//! what it opens must be closed before a separator or a line's end, or the record is at fault and
//! reading goes on with the next line. One stray mark costs one row, not all rows up to the next.

/// Most lines of a field in quotation marks: beyond them the mark was not closed.
const MOST_LINES: u64 = 1_000;

/// Longest field in quotation marks, in bytes.
const MOST_BYTES: usize = 1 << 20;

/// How a file is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Between fields.
    pub(crate) delimiter: u8,
    /// A field may stand in quotation marks.
    pub(crate) quotes: bool,
    /// Takes a quotation mark's meaning away.
    pub(crate) escape: Option<u8>,
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A quotation mark opens a field and nothing closes it.
    Open,
    /// Something follows the mark that closes a field, at this line.
    Stray(u64),
}

/// One record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    text: Vec<u8>,
    ends: Vec<usize>,
    quoted: Vec<bool>,
    /// 1-based line where it starts.
    pub(crate) line: u64,
    /// Where it starts and ends, without the last line's end.
    start: usize,
    end: usize,
    /// What is wrong with it.
    pub(crate) fault: Option<Fault>,
}

impl Record {
    /// How many fields it has.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// A field; empty where there is none.
    pub(crate) fn field(&self, index: usize) -> &[u8] {
        let start = match index.checked_sub(1) {
            None => 0,
            Some(before) => self.ends.get(before).copied().unwrap_or(0),
        };
        let end = self.ends.get(index).copied().unwrap_or(start);
        self.text.get(start..end).unwrap_or_default()
    }

    /// Whether a field stood in quotation marks.
    pub(crate) fn is_quoted(&self, index: usize) -> bool {
        self.quoted.get(index).copied().unwrap_or(false)
    }

    /// The first field with a line's end in it.
    pub(crate) fn broken(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len()).filter(|i| self.field(*i).contains(&b'\n'))
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.quoted.clear();
        self.fault = None;
    }

    fn close(&mut self, quoted: bool) {
        self.ends.push(self.text.len());
        self.quoted.push(quoted);
    }
}

/// Goes through a file.
#[derive(Clone, Debug)]
pub(crate) struct Splitter<'a> {
    bytes: &'a [u8],
    marks: Marks,
    at: usize,
    line: u64,
}

impl<'a> Splitter<'a> {
    /// From the first line of `bytes`, which has the number `line`.
    pub(crate) fn new(bytes: &'a [u8], marks: Marks, line: u64) -> Self {
        Self {
            bytes,
            marks,
            at: 0,
            line,
        }
    }

    /// Where the next record begins: bytes from the start.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// 1-based line where the next record begins.
    pub(crate) fn line(&self) -> u64 {
        self.line
    }

    /// The first line of a record, as it stands.
    pub(crate) fn line_of(&self, record: &Record) -> &'a [u8] {
        let rest = self.bytes.get(record.start..).unwrap_or_default();
        let line = rest.split(|b| matches!(b, b'\r' | b'\n')).next();
        line.unwrap_or_default()
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }

    /// Length of the line's end at a place: 0, 1 or 2 bytes.
    fn line_end(&self, at: usize) -> usize {
        match (self.byte(at), self.byte(at + 1)) {
            (Some(b'\r'), Some(b'\n')) => 2,
            (Some(b'\r' | b'\n'), _) => 1,
            _ => 0,
        }
    }

    /// Goes to the line after the one that a record starts in.
    pub(crate) fn resume_after(&mut self, record: &Record) {
        let mut at = record.start;
        while at < self.bytes.len() && self.line_end(at) == 0 {
            at += 1;
        }
        self.at = at + self.line_end(at);
        self.line = record.line + 1;
    }

    /// The lines of a record after its first, each as a record of its own.
    pub(crate) fn inner_lines(&self, record: &Record) -> impl Iterator<Item = Record> + '_ {
        let whole = self.bytes.get(record.start..record.end).unwrap_or_default();
        let lines = whole.split(|b| matches!(b, b'\r' | b'\n')).skip(1);
        lines.filter(|l| !l.is_empty()).map(|line| {
            let mut inner = Record::default();
            Splitter::new(line, self.marks, 1).next(&mut inner);
            inner
        })
    }

    /// Whether nothing but blanks stands before the next line's end. Where a blank separates
    /// fields, a line of blanks is one of empty fields.
    fn blank_line(&self) -> bool {
        let mut at = self.at;
        while self.byte(at) == Some(b' ') && self.marks.delimiter != b' ' {
            at += 1;
        }
        self.line_end(at) > 0 || at >= self.bytes.len()
    }

    fn skip_line(&mut self) {
        while self.at < self.bytes.len() && self.line_end(self.at) == 0 {
            self.at += 1;
        }
        self.at += self.line_end(self.at);
        self.line += 1;
    }

    /// Reads the next record; `false` at the end. Blank lines are none.
    pub(crate) fn next(&mut self, record: &mut Record) -> bool {
        while self.at < self.bytes.len() && self.blank_line() {
            self.skip_line();
        }
        record.clear();
        record.line = self.line;
        record.start = self.at;
        if self.at >= self.bytes.len() {
            return false;
        }
        loop {
            if let Err(fault) = self.field(record) {
                record.fault = Some(fault);
                self.resume_after(record);
                return true;
            }
            if self.byte(self.at) == Some(self.marks.delimiter) {
                self.at += 1;
                continue;
            }
            record.end = self.at;
            self.at += self.line_end(self.at);
            self.line += 1;
            return true;
        }
    }

    /// Whether a field ends here.
    fn ends(&self, at: usize) -> bool {
        at >= self.bytes.len()
            || self.byte(at) == Some(self.marks.delimiter)
            || self.line_end(at) > 0
    }

    fn skip_blanks(&self, mut at: usize) -> usize {
        let is_blank = |b: u8| (b == b' ' || b == b'\t') && b != self.marks.delimiter;
        while self.byte(at).is_some_and(is_blank) {
            at += 1;
        }
        at
    }

    fn field(&mut self, record: &mut Record) -> Result<(), Fault> {
        let first = self.skip_blanks(self.at);
        if self.marks.quotes && self.byte(first) == Some(b'"') {
            return self.quoted_field(first + 1, record);
        }
        let start = self.at;
        while !self.ends(self.at) {
            self.at += 1;
        }
        let text = self.bytes.get(start..self.at).unwrap_or_default();
        record.text.extend_from_slice(text);
        record.close(false);
        Ok(())
    }

    /// A field in quotation marks, from behind the first one.
    fn quoted_field(&mut self, start: usize, record: &mut Record) -> Result<(), Fault> {
        let mut at = start;
        let opened = self.line;
        while let Some(byte) = self.byte(at) {
            if self.line - opened > MOST_LINES || at - start > MOST_BYTES {
                return Err(Fault::Open);
            }
            let escaped = self.marks.escape == Some(byte);
            if escaped && self.byte(at + 1).is_some() && self.line_end(at + 1) == 0 {
                record.text.extend(self.byte(at + 1));
                at += 2;
                continue;
            }
            let end = self.line_end(at);
            if end > 0 {
                record.text.push(b'\n');
                self.line += 1;
                at += end;
                continue;
            }
            if byte != b'"' {
                record.text.push(byte);
                at += 1;
                continue;
            }
            if self.byte(at + 1) == Some(b'"') {
                record.text.push(b'"');
                at += 2;
                continue;
            }
            let after = self.skip_blanks(at + 1);
            if !self.ends(after) {
                return Err(Fault::Stray(self.line));
            }
            record.close(true);
            self.at = after;
            return Ok(());
        }
        Err(Fault::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMA: Marks = Marks {
        delimiter: b',',
        quotes: true,
        escape: None,
    };

    fn rows(text: &str, marks: Marks) -> Vec<(u64, Vec<String>, Option<Fault>)> {
        let mut splitter = Splitter::new(text.as_bytes(), marks, 1);
        let mut record = Record::default();
        let mut out = vec![];
        while splitter.next(&mut record) {
            let field = |i| String::from_utf8_lossy(record.field(i)).into_owned();
            let fields = (0..record.len()).map(field).collect();
            out.push((record.line, fields, record.fault));
        }
        out
    }

    fn fields(text: &str) -> Vec<Vec<String>> {
        rows(text, COMMA).into_iter().map(|r| r.1).collect()
    }

    #[test]
    fn lines_may_end_in_three_ways() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["a,b", "1,\"x \"\"y\"\", z\"", "", "2, \"q\" ", ""].join(end);
            let read = rows(&text, COMMA);
            let lines: Vec<u64> = read.iter().map(|r| r.0).collect();
            assert_eq!(lines, [1, 2, 4], "{end:?}");
            assert_eq!(read[1].1, ["1", "x \"y\", z"]);
            assert_eq!(read[2].1, ["2", "q"]);
        }
        assert_eq!(fields("a,\n,b"), [["a", ""], ["", "b"]]);
        assert_eq!(fields(""), Vec::<Vec<String>>::new());
    }

    #[test]
    fn a_stray_quotation_mark_costs_one_row() {
        let text = "30,\"7 inch Film,1980\n31,Plain,1981\n45,Plain 12\" Film,1995\n46,x,1\n";
        let read = rows(text, COMMA);
        assert_eq!(read.len(), 4);
        assert_eq!((read[0].0, read[0].2), (1, Some(Fault::Stray(3))));
        assert_eq!(read[2].1, ["45", "Plain 12\" Film", "1995"]);
        let open = rows("1,\"a,b\n2,c,d\n3,e,f\n", COMMA);
        assert_eq!(open[0].2, Some(Fault::Open));
        assert_eq!(open.len(), 3);
        let inside = rows("1,\"7\" Film,2\n2,b,c\n", COMMA);
        assert_eq!(inside[0].2, Some(Fault::Stray(1)));
        assert_eq!(inside[1].1, ["2", "b", "c"]);
    }

    #[test]
    fn lines_inside_of_a_record_can_be_looked_at() {
        let text = "1,\"a\n2,b\n3,c\",d\n4,e,f\n";
        let mut splitter = Splitter::new(text.as_bytes(), COMMA, 1);
        let mut record = Record::default();
        assert!(splitter.next(&mut record));
        assert_eq!(record.broken().collect::<Vec<_>>(), [1]);
        let counts: Vec<usize> = splitter.inner_lines(&record).map(|r| r.len()).collect();
        assert_eq!(counts, [2, 3]);
        splitter.resume_after(&record);
        assert!(splitter.next(&mut record));
        assert_eq!((record.line, record.field(1)), (2, &b"b"[..]));
    }

    #[test]
    fn many_open_marks_are_read_in_one_pass_each() {
        let text = "1,\"\"a\n".repeat(20_000) + &"1,\"a\n".repeat(20_000);
        let began = std::time::Instant::now();
        assert_eq!(rows(&text, COMMA).len(), 40_000);
        assert!(began.elapsed().as_secs() < 20);
    }
}
