//! What errors of the client library say on the command line. Their own texts are for app
//! developers, and name functions; people at a shell need commands and options.

use lethe_client::{ClientError, Lacks, Needs, TrainsFrom};

/// An error with its causes, on one line.
pub(crate) fn said(e: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in e.chain() {
        let part = match cause.downcast_ref::<ClientError>() {
            Some(e) => of(e),
            None => cause.to_string(),
        };
        // Some texts have their cause in them.
        if text.contains(&part) {
            continue;
        }
        if !text.is_empty() {
            text += ": ";
        }
        text += &part;
    }
    text
}

/// What a client could not do, and what to do at a shell.
pub(crate) fn of(e: &ClientError) -> String {
    match e {
        ClientError::Deleted => "the coordinator does not know this device any more: its person \
                                 was deleted, or its certificate was withdrawn. If the person has \
                                 left, run `lethe erase`; if not, give a fresh --invitation (the \
                                 history stays)"
            .into(),
        ClientError::CertificateExpired(cause) => format!(
            "{cause}. `lethe top` and `lethe record` go on; give the fresh one with --invitation \
             (the history stays)"
        ),
        ClientError::NoServer => {
            "no coordinator is named: give its address with --server ADDRESS".into()
        }
        ClientError::NoModel => "this needs the language model: leave out --no-model; `lethe \
                                 top` needs none"
            .into(),
        ClientError::NotJoined => "this device has not joined yet: nothing is trained on its \
                                   history, and no log has a commitment to it. Run `lethe \
                                   participate` first"
            .into(),
        ClientError::NoRelease => {
            "the coordinator serves no release yet: use `lethe top` until it does".into()
        }
        ClientError::NoLists => "this coordinator serves no tables for lists: `lethe top` goes by \
                                 the catalogue's content alone; its operator may switch sums on"
            .into(),
        ClientError::NotEnrolled => "not enrolled: give an --invitation once (printed by \
                                     `lethe-admin invite`); `lethe top` and `lethe record` work \
                                     without"
            .into(),
        ClientError::InUse { folder } => format!(
            "{} is in use by another process: wait until it ends, or give another --home",
            folder.display()
        ),
        ClientError::Damaged { path, at } => format!(
            "{} is damaged at byte {at}: put a backup of the file in its place, or begin anew \
             with `lethe erase`, which destroys everything in the folder",
            path.display()
        ),
        ClientError::ConsentWithdrawn { from } => format!(
            "consent is withdrawn from {from} (seconds since 1970) on: nothing later is recorded \
             until the person consents again, in the app"
        ),
        ClientError::OtherOptions { wanted, loaded } => format!(
            "the coordinator's recipe has {wanted:?}, the model was loaded with {loaded:?}: give \
             the coordinator's recipe with --recipe FILE"
        ),
        other => other.to_string(),
    }
}

/// Characters of a title that are shown.
const TITLE: usize = 200;

/// A title as a terminal may have it: what would move its cursor, change its colours or turn the
/// direction of its text is replaced, and a title that is very long is cut.
pub(crate) fn title(title: &str) -> String {
    let plain = |c: char| match c {
        c if c.is_control() => '\u{fffd}',
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c => c,
    };
    let mut shown: String = title.chars().take(TITLE).map(plain).collect();
    if title.chars().nth(TITLE).is_some() {
        shown += "...";
    }
    shown
}

/// From when on a person's data trains.
pub(crate) fn of_training(trains: TrainsFrom) -> String {
    match trains {
        TrainsFrom::Now { epoch } => format!("training: this person's data is in {epoch}"),
        TrainsFrom::WithEpoch {
            epoch,
            at_latest: None,
        } => format!("training: with {epoch}, which begins when enough people have joined"),
        TrainsFrom::WithEpoch {
            epoch,
            at_latest: Some(at),
        } => format!(
            "training: with {epoch}, which begins at {at} (seconds since 1970) at the latest"
        ),
        TrainsFrom::NextEpoch { at: None } => {
            "training: from the next epoch on, which the operator starts; lists go on".into()
        }
        TrainsFrom::NextEpoch { at: Some(at) } => format!(
            "training: from the next epoch on, which begins to be joined at {at} (seconds since \
             1970); lists go on"
        ),
        TrainsFrom::Restricted => "training: not, this person's data is restricted".into(),
        TrainsFrom::NoSamples => "training: nothing yet, the history is too short".into(),
    }
}

/// What a device lacks for the newest epoch.
pub(crate) fn of_needs(needs: &Needs) -> String {
    let epoch = needs.epoch;
    match (&needs.lacks, &needs.options) {
        (Lacks::Recipe, _) | (_, None) => format!(
            "epoch {epoch} has a recipe of a newer version: update this program; lists go on"
        ),
        (Lacks::Model, _) => format!(
            "epoch {epoch} uses base model {}: give it with --model; lists go on",
            needs.model
        ),
        (Lacks::Layers | Lacks::Arithmetic, Some(options)) => format!(
            "epoch {epoch} needs the model loaded with {options:?}: give the epoch's recipe with \
             --recipe FILE; lists go on"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_09_a_title_neither_fills_a_terminal_nor_commands_it() {
        assert_eq!(title("Heat (1995)"), "Heat (1995)");
        assert_eq!(title("red \u{1b}[31m\n"), "red \u{fffd}[31m\u{fffd}");
        assert_eq!(title("a\u{202e}b\u{2066}"), "a\u{fffd}b\u{fffd}");
        let long = title(&"very long ".repeat(10_000));
        assert_eq!(long.chars().count(), TITLE + 3);
        assert_eq!(title(&"\u{301}".repeat(9)).chars().count(), 9);
    }

    #[test]
    fn a_shell_reads_no_names_of_functions() {
        let errors = [
            ClientError::Deleted,
            ClientError::NoServer,
            ClientError::NoModel,
            ClientError::NotJoined,
            ClientError::NoRelease,
            ClientError::NoLists,
            ClientError::NotEnrolled,
            ClientError::InUse {
                folder: "home".into(),
            },
            ClientError::Damaged {
                path: "home/history".into(),
                at: 7,
            },
            ClientError::ConsentWithdrawn { from: 7 },
        ];
        for e in errors {
            let text = of(&e);
            let names = ["Client", "Options", "::"].map(|n| text.contains(n));
            assert_eq!(names, [false; 3], "{text}");
        }
    }

    #[test]
    fn a_cause_is_said_once_and_context_stays() {
        let cause = anyhow::Error::from(ClientError::NoServer).context("the job");
        let text = said(&cause);
        assert!(text.starts_with("the job: no coordinator"), "{text}");
        assert!(text.ends_with("--server ADDRESS"), "{text}");
        let bare = anyhow::anyhow!("inner").context("outer has inner in it");
        assert_eq!(said(&bare), "outer has inner in it");
    }
}
