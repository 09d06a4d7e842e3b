//! The messages about what the log holds, from minor version 6 on.

use lethe_proto::message::{Proven, ServedPart};

use super::*;

pub(super) fn requests() -> Vec<Request> {
    let ask = |of| Request::Logged { of, seen: 300 };
    vec![
        ask(ServedPart::Release(7)),
        ask(ServedPart::Snapshot(70_000)),
        ask(ServedPart::Catalogue(2)),
    ]
}

pub(super) fn replies() -> Vec<Reply> {
    vec![Reply::Logged(Proven {
        statement: "{}".into(),
        index: 300,
        proof: vec![[5; 32]],
        checkpoint: "c".into(),
        consistency: vec![[6; 32]],
    })]
}

/// Which keys the log has had, from minor version 7 on.
pub(super) fn key_requests() -> Vec<Request> {
    vec![Request::LogKeys, Request::Admin(AdminRequest::LogKeys)]
}

pub(super) fn key_replies() -> Vec<Reply> {
    let notes = || vec!["note".to_owned()];
    vec![
        Reply::LogKeys(notes()),
        Reply::Admin(AdminReply::LogKeys(notes())),
    ]
}
