//! Where the coordinator's keys lie, in words.

use std::fmt::Write;

use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::disks::{KeyDisk, KeyFate};

use crate::desk::{Desk, unexpected};

/// Where keys lie; empty: an older coordinator does not know the question.
pub(crate) async fn of(desk: &Desk) -> Vec<KeyDisk> {
    ask(desk).await.unwrap_or_default()
}

async fn ask(desk: &Desk) -> anyhow::Result<Vec<KeyDisk>> {
    match desk.ask(AdminRequest::KeyDisks).await? {
        AdminReply::KeyDisks(disks) => Ok(disks),
        other => unexpected(&other),
    }
}

/// A line for each, a line break before it.
pub(crate) fn describe(disks: &[KeyDisk]) -> String {
    let mut text = String::new();
    for disk in disks {
        let _ = match disk.fate {
            KeyFate::Gone => write!(text, "\ndestroyed keys are gone: {}", disk.text),
            _ => write!(text, "\n{}", doubt(disk)),
        };
    }
    text
}

/// What a forecast and a receipt do not show by themselves: a line for each doubt.
pub(crate) fn doubts(disks: &[KeyDisk]) -> Vec<String> {
    let doubtful = disks.iter().filter(|d| d.fate != KeyFate::Gone);
    doubtful.map(doubt).collect()
}

fn doubt(disk: &KeyDisk) -> String {
    match disk.fate {
        KeyFate::Recoverable => format!(
            "WHAT IS DELETED CAN BE RECOVERED from the server's disk for a time, as its operator \
             has accepted: {}",
            disk.text
        ),
        _ => format!(
            "whether destroyed keys are gone is not known: {}",
            disk.text
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(kind: &str, fate: KeyFate) -> KeyDisk {
        KeyDisk {
            kind: kind.into(),
            fate,
            text: format!("the keys in /data lie on {kind}"),
        }
    }

    #[test]
    fn a_disk_that_keeps_keys_is_said_loudly_and_one_that_does_not_raises_no_doubt() {
        let gone = disk("ext4", KeyFate::Gone);
        let kept = disk("btrfs", KeyFate::Recoverable);
        let unknown = disk("nfs4", KeyFate::Unknown);
        assert!(doubts(std::slice::from_ref(&gone)).is_empty());
        let text = describe(&[gone, kept.clone(), unknown.clone()]);
        assert!(text.contains("destroyed keys are gone: the keys in /data lie on ext4"));
        assert!(text.contains("CAN BE RECOVERED"), "{text}");
        assert_eq!(doubts(&[kept, unknown]).len(), 2);
    }
}
