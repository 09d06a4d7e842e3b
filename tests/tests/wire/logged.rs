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
