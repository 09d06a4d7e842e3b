//! `lethe-admin import`: a CSV batch with a result code per row, executed with one plan.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::SubjectId;
use lethe_recsys::table::{Checked, Encoding, Format, Row, Table};
use serde::Serialize;

use super::forget::{Ask, Outcome, ask};
use crate::desk::Desk;
use crate::output::{Output, table, write_private};
use crate::when::parse_time;

/// Requests in one plan.
const BATCH: usize = 500;

/// Columns that a file may have.
const COLUMNS: [&str; 5] = ["request_id", "subject", "action", "items", "from"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// File with the columns request_id, subject, action (erase, erase-items, withdraw, restrict),
    /// items (separated by blanks), from (2026-11-23, 2026-11-23T10:30:00Z, or seconds since 1970).
    /// A file with no column but subject and request_id erases everything of every subject;
    /// otherwise every row needs an action.
    csv: PathBuf,
    /// Write the results here, as CSV with the columns request_id, subject, code, deletion,
    /// message.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Only say what would be accepted.
    #[arg(long)]
    dry_run: bool,
    /// Take items that are not in the catalogue (any more).
    #[arg(long)]
    yes: bool,
    /// All or nothing: carry out no row if one is not good.
    #[arg(long)]
    strict: bool,
}

/// Which column is where.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    places: Vec<&'static str>,
}

impl Header {
    /// What the columns are; one error for a file that has others, with what was found.
    fn parse(table: &Table) -> anyhow::Result<Self> {
        let names = table.header();
        let found: Vec<String> = names.iter().map(|n| format!("{n:?}")).collect();
        let mut found = format!("found {}", found.join(", "));
        if let Some(row) = table.first_row() {
            found += &format!("; the first row is {row:?}");
        }
        let mut places = vec![];
        for name in names {
            let known = COLUMNS.iter().find(|c| c.eq_ignore_ascii_case(name));
            let Some(known) = known else {
                let hint = table.hint("subject");
                bail!(
                    "column {name:?} is not known, so what it asks for would not be done: \
                     expected {}, separated by commas; {found}: {hint}",
                    COLUMNS.join(", ")
                );
            };
            ensure!(
                !places.contains(known),
                "column {known} is there twice; {found}"
            );
            places.push(*known);
        }
        ensure!(
            places.contains(&"subject"),
            "there is no column subject; {found}"
        );
        Ok(Self { places })
    }

    fn has(&self, column: &str) -> bool {
        self.places.contains(&column)
    }

    /// A row's field as it stands; empty where there is no such column.
    fn exactly<'a>(&self, row: &'a Row, column: &str) -> &'a str {
        let place = self.places.iter().position(|p| *p == column);
        place.map_or("", |i| row.field(i))
    }

    /// The same without blanks around it.
    fn field<'a>(&self, row: &'a Row, column: &str) -> &'a str {
        self.exactly(row, column).trim()
    }

    /// What a row asks for. What can be read in two ways is refused: erasing cannot be undone.
    fn request(&self, checked: &Checked) -> anyhow::Result<DeletionRequest> {
        let row = &checked.row;
        if let Some(fault) = &checked.fault {
            bail!(
                "{}. Several items are separated by blanks, and a field with a comma in it stands \
                 in quotation marks",
                fault.why
            );
        }
        // In quotation marks blanks are the subject's own.
        let subject = self.exactly(row, "subject");
        ensure!(!subject.trim().is_empty(), "no subject: it would be nobody");
        let subject = SubjectId::new(subject)?;
        let action = self.field(row, "action");
        let items: Vec<String> = self
            .field(row, "items")
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        let from = self.field(row, "from");
        let action = match action.to_ascii_lowercase().as_str() {
            "" if COLUMNS[2..].iter().any(|c| self.has(c)) => bail!(
                "no action: it would have been read as erase, everything of {subject}, for good. \
                 Write the action"
            ),
            "" => "erase".to_owned(),
            other => other.to_owned(),
        };
        let takes_items = action == "erase-items";
        let takes_time = action == "withdraw";
        ensure!(
            takes_items || items.is_empty(),
            "{action} with items: it would have been read as {action} without them. Write \
             erase-items to erase these items only, or leave them out"
        );
        ensure!(
            takes_time || from.is_empty(),
            "{action} with a time: it would have been read as {action} without it. Write withdraw \
             to erase what came after that time only, or leave it out"
        );
        Ok(match action.as_str() {
            "erase" => DeletionRequest::Erase { subject },
            "erase-items" => {
                ensure!(!items.is_empty(), "erase-items without items");
                DeletionRequest::EraseItems { subject, items }
            }
            "withdraw" => {
                ensure!(!from.is_empty(), "withdraw without a time in from");
                let from = parse_time(from).map_err(anyhow::Error::msg)?;
                DeletionRequest::Withdraw { subject, from }
            }
            "restrict" => DeletionRequest::Restrict { subject },
            other => bail!("action {other:?}: expected erase, erase-items, withdraw or restrict"),
        })
    }
}

/// What became of a row. Codes: `accepted`, `proposed` (others have to agree), `would-accept` (dry
/// run), `duplicate`, `invalid`, `refused`.
#[derive(Serialize)]
struct RowResult {
    request_id: String,
    subject: String,
    code: &'static str,
    deletion: Option<u64>,
    message: String,
}

/// A row that may be carried out, and where its result is.
struct Good {
    at: usize,
    request: DeletionRequest,
}

/// Reads and checks all rows, each alone with the coordinator too: a row that it refuses must not
/// hold up the others.
async fn check(args: &Args, desk: &Desk) -> anyhow::Result<(Vec<RowResult>, Vec<Good>)> {
    let name = || args.csv.display().to_string();
    let format = Format {
        // A name that is read otherwise than it was meant is somebody else's.
        encoding: Some(Encoding::Utf8),
        sep_line: true,
        ..Format::default()
    };
    let table = Table::open(&args.csv, &format)?;
    let header = Header::parse(&table).with_context(name)?;
    let mut results = vec![];
    let mut good = vec![];
    let mut seen = BTreeSet::new();
    for checked in table.all()? {
        let row = &checked.row;
        let mut r = RowResult {
            request_id: header.field(row, "request_id").to_owned(),
            subject: header.exactly(row, "subject").to_owned(),
            code: "invalid",
            deletion: None,
            message: String::new(),
        };
        match header.request(&checked) {
            Err(e) => r.message = format!("line {}: {e:#}", row.line),
            Ok(_) if !seen.insert(r.subject.clone()) => {
                r.code = "duplicate";
                r.message =
                    "the subject is in an earlier row; ask again when that one is done".into();
            }
            Ok(request) => {
                let dry = Ask::new(vec![request.clone()])
                    .dry_run()
                    .confirmed(args.yes);
                match ask(desk, dry).await {
                    Err(e) => {
                        r.code = "refused";
                        r.message = format!("{e:#}{}", blanks_of(&r.subject));
                    }
                    Ok(_) => {
                        r.code = "would-accept";
                        let at = results.len();
                        good.push(Good { at, request });
                    }
                }
            }
        }
        results.push(r);
    }
    Ok((results, good))
}

/// A subject in quotation marks may have blanks that nobody meant.
fn blanks_of(subject: &str) -> String {
    match subject.trim() == subject {
        true => String::new(),
        false => format!(
            ". The subject stands in quotation marks with blanks around it: write {:?} if they \
             are not its own",
            subject.trim()
        ),
    }
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let (mut results, good) = check(args, desk).await?;
    let bad = results.len() - good.len();
    if args.strict && bad > 0 && !args.dry_run {
        for r in results.iter_mut().filter(|r| r.code == "would-accept") {
            r.message = format!("not carried out: --strict, and {bad} row(s) are not good");
        }
    } else if !args.dry_run {
        for batch in good.chunks(BATCH) {
            let requests = batch.iter().map(|g| g.request.clone()).collect();
            match ask(desk, Ask::new(requests).confirmed(args.yes)).await? {
                Outcome::Planned(planned) => {
                    for (g, id) in batch.iter().zip(planned.ids) {
                        results[g.at].code = "accepted";
                        results[g.at].deletion = Some(id);
                    }
                }
                Outcome::Proposed(p) => {
                    for g in batch {
                        results[g.at].code = "proposed";
                        results[g.at].message =
                            format!("waits for other operators as proposal {}", p.id);
                    }
                }
            }
        }
    }
    if let Some(path) = &args.out {
        let mut writer = csv::Writer::from_writer(vec![]);
        results.iter().try_for_each(|r| writer.serialize(r))?;
        // It names people.
        write_private(path, &writer.into_inner()?)?;
    }
    let row = |r: &RowResult| {
        let id = r.deletion.map_or("-".to_owned(), |d| d.to_string());
        vec![
            r.request_id.clone(),
            r.subject.clone(),
            r.code.to_owned(),
            id,
            r.message.clone(),
        ]
    };
    let head = ["request", "subject", "code", "deletion", "message"];
    out.show(&table(&head, results.iter().map(row)), &results)?;
    let fine = |r: &RowResult| matches!(r.code, "accepted" | "proposed" | "would-accept");
    Ok(if results.iter().all(fine) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> anyhow::Result<Vec<Result<DeletionRequest, String>>> {
        let format = Format {
            encoding: Some(Encoding::Utf8),
            sep_line: true,
            ..Format::default()
        };
        let path = std::path::Path::new("rows.csv");
        let table = Table::of_bytes(path, text.as_bytes().to_vec(), &format)?;
        let header = Header::parse(&table)?;
        let request = |c: Checked| header.request(&c).map_err(|e| e.to_string());
        Ok(table.all()?.into_iter().map(request).collect())
    }

    /// The subjects that rows name.
    fn subjects(text: &str) -> Vec<String> {
        let all = rows(text).expect(text).into_iter();
        let name = |r: Result<DeletionRequest, String>| {
            let request = r.expect(text);
            request.subject().map_or("", |s| s.as_str()).to_owned()
        };
        all.map(name).collect()
    }

    #[test]
    fn subjects_are_read_as_they_stand() {
        let bom = "\u{FEFF}subject\r\nu4\r\n";
        assert_eq!(subjects(bom), ["u4"]);
        assert_eq!(subjects("request_id, subject\n1, u4 \n"), ["u4"]);
        assert_eq!(subjects("subject\n\"u4\"\n"), ["u4"]);
        assert_eq!(subjects("subject\n\"a, b\"\n"), ["a, b"]);
        assert_eq!(subjects("subject\n\"  padded  \"\n"), ["  padded  "]);
        assert_eq!(subjects("sep=;\nsubject;action\nu4;erase\n"), ["u4"]);
        assert_eq!(subjects("subject\ru4\ru5\r"), ["u4", "u5"]);
        for bad in ["subject\n\" \"\n", "subject\n\"u4\nu5\n"] {
            assert!(rows(bad).expect("a header")[0].is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_one_error_with_what_was_found() {
        for (text, says) in [
            ("", "is empty"),
            ("subject\n", "has a header and no rows"),
            ("u4\n", "found \"u4\""),
            ("u4\nu5\n", "the first row is \"u5\""),
            (
                "request_id;subject;action\n1;u4;erase\n",
                "separated by \";\"",
            ),
            ("request_id;subject;action\n1;u4;erase\n", "\"1;u4;erase\""),
            ("request_id\tsubject\n1\tu4\n", "separated by \"\\t\""),
            ("name,action\nu4,erase\n", "column \"name\" is not known"),
            (
                "action\nerase\n",
                "there is no column subject; found \"action\"",
            ),
        ] {
            let why = format!("{:#}", rows(text).expect_err(text));
            assert!(why.contains(says), "{text:?}: {why}");
        }
    }

    #[test]
    fn a_row_whose_action_is_unclear_is_refused_with_the_reading() {
        let subject = || SubjectId::new("a").expect("an id");
        let erase = Ok(DeletionRequest::Erase { subject: subject() });
        assert_eq!(
            rows("subject\na\n").expect("known"),
            std::slice::from_ref(&erase)
        );
        assert_eq!(
            rows("request_id,Subject,action\n1, a ,Erase\n").expect("known"),
            std::slice::from_ref(&erase)
        );
        for text in [
            "subject,items\na,5 6\n",
            "subject,items\na,\n",
            "subject,action\na,\n",
            "subject,from\na,2026-11-01\n",
            "subject,action,items\na,,5\n",
            "subject,action,items\na,erase,5\n",
            "subject,action,from\na,erase,2026-11-01\n",
            "subject,action,items,from\na,restrict,,2026-11-01\n",
            "subject,action,items,from\na,withdraw,5,2026-11-01\n",
            "subject,action,items,from\na,erase-items,5,2026-11-01\n",
        ] {
            let all = rows(text).expect("known columns");
            let why = all[0].as_ref().expect_err(text);
            assert!(why.contains("would have been read as"), "{text}: {why}");
        }
        // A row that does not fit its header: items after an unquoted comma, a field too few.
        for text in [
            "subject,action,items\na,erase-items,5,6\n",
            "subject,action,items\na\n",
        ] {
            assert!(rows(text).expect("known columns")[0].is_err(), "{text}");
        }
        for text in [
            "subject,item\na,5\n",
            "subject;action\na;erase\n",
            "action\nerase\n",
            "subject,subject\na,b\n",
            "a\n",
        ] {
            assert!(rows(text).is_err(), "{text}: a column that is not known");
        }
    }
}
