//! `lethe-admin import`: a CSV batch with a result code per row, executed with one plan.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::SubjectId;
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
}

/// Which column is where.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    places: Vec<&'static str>,
}

impl Header {
    fn parse(names: &csv::StringRecord) -> anyhow::Result<Self> {
        let found: Vec<String> = names.iter().map(|n| format!("{:?}", n.trim())).collect();
        let found = found.join(", ");
        let mut places = vec![];
        for name in names {
            let known = COLUMNS.iter().find(|c| c.eq_ignore_ascii_case(name.trim()));
            let Some(known) = known else {
                bail!(
                    "column {:?} is not known, so what it asks for would not be done: expected \
                     {}, separated by commas; found {found}",
                    name.trim(),
                    COLUMNS.join(", ")
                );
            };
            ensure!(!places.contains(known), "column {known} is there twice");
            places.push(*known);
        }
        ensure!(
            places.contains(&"subject"),
            "there is no column subject; found {found}"
        );
        Ok(Self { places })
    }

    fn has(&self, column: &str) -> bool {
        self.places.contains(&column)
    }

    /// A row's field; empty where there is no such column.
    fn field<'a>(&self, row: &'a csv::StringRecord, column: &str) -> &'a str {
        let place = self.places.iter().position(|p| *p == column);
        place.and_then(|i| row.get(i)).unwrap_or_default().trim()
    }

    /// What a row asks for. What can be read in two ways is refused: erasing cannot be undone.
    fn request(&self, row: &csv::StringRecord) -> anyhow::Result<DeletionRequest> {
        let (got, expected) = (row.len(), self.places.len());
        ensure!(
            got == expected,
            "{got} fields, the header has {expected}: separate several items by blanks, and put \
             a field with a comma in quotes"
        );
        let subject = SubjectId::new(self.field(row, "subject"))?;
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
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .from_path(&args.csv)
        .with_context(name)?;
    let header = Header::parse(reader.headers().with_context(name)?).with_context(name)?;
    let (mut results, mut good) = (vec![], vec![]);
    let mut seen = BTreeSet::new();
    for row in reader.records() {
        let mut r = RowResult {
            request_id: String::new(),
            subject: String::new(),
            code: "invalid",
            deletion: None,
            message: String::new(),
        };
        match row {
            Err(e) => r.message = e.to_string(),
            Ok(row) => {
                r.request_id = header.field(&row, "request_id").to_owned();
                r.subject = header.field(&row, "subject").to_owned();
                match header.request(&row) {
                    Err(e) => r.message = format!("{e:#}"),
                    Ok(_) if !seen.insert(r.subject.clone()) => {
                        r.code = "duplicate";
                        r.message =
                            "the subject is in an earlier row; ask again when that one is done"
                                .into();
                    }
                    Ok(request) => {
                        let dry = Ask::new(vec![request.clone()])
                            .dry_run()
                            .confirmed(args.yes);
                        match ask(desk, dry).await {
                            Err(e) => {
                                r.code = "refused";
                                r.message = format!("{e:#}");
                            }
                            Ok(_) => {
                                r.code = "would-accept";
                                let at = results.len();
                                good.push(Good { at, request });
                            }
                        }
                    }
                }
            }
        }
        results.push(r);
    }
    ensure!(
        !results.is_empty(),
        "{} has a header and no row: nothing was asked for",
        name()
    );
    Ok((results, good))
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let (mut results, good) = check(args, desk).await?;
    if !args.dry_run {
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
        let mut reader = csv::ReaderBuilder::new()
            .flexible(true)
            .from_reader(text.as_bytes());
        let header = Header::parse(reader.headers()?)?;
        let request = |r: csv::Result<csv::StringRecord>| {
            header
                .request(&r.expect("reads"))
                .map_err(|e| e.to_string())
        };
        Ok(reader.records().map(request).collect())
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
