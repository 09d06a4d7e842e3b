//! The messages about versions of the catalogue, from minor version 5 on.

use lethe_proto::admin::{CataloguePage, CatalogueStatus, CatalogueVersionState};
use lethe_proto::catalogue::{CatalogueChange, CatalogueEntry, CatalogueReply, TallyCatalogue};

use super::*;

fn entry() -> CatalogueEntry {
    CatalogueEntry {
        id: "i1".into(),
        title: Some("Fargo".into()),
        year: Some(1996),
        tags: vec!["Crime".into()],
        was: vec!["i0".into()],
    }
}

fn change() -> CatalogueChange {
    CatalogueChange {
        version: 2,
        place: 300,
        entry: entry(),
    }
}

pub(super) fn requests() -> Vec<Request> {
    let admin = Request::Admin;
    let gone = CatalogueEntry {
        title: None,
        ..CatalogueEntry::default()
    };
    vec![
        Request::Catalogue {
            have: Digest([1; 32]),
            at: 300,
        },
        admin(AdminRequest::Catalogue { from: 300 }),
        admin(AdminRequest::CatalogueChange {
            before: Digest([1; 32]),
            at: 300,
            changes: vec![
                change(),
                CatalogueChange {
                    entry: gone,
                    ..change()
                },
            ],
            ends: Some(Digest([2; 32])),
        }),
        admin(AdminRequest::CatalogueStatus),
        Request::Tally(TallyRequest::Catalogue {
            at: 300,
            changes: vec![change()],
            ends: None,
        }),
    ]
}

pub(super) fn replies() -> Vec<Reply> {
    let version = CatalogueVersionState {
        number: 2,
        digest: Digest([2; 32]),
        before: Digest([1; 32]),
        places: 300,
        at: 1_700_000_000,
        index: Some(7),
    };
    vec![
        Reply::Catalogue(CatalogueReply {
            version: 2,
            note: "n".into(),
            whole: true,
            at: 300,
            changes: vec![change()],
            more: true,
            epochs: vec![(EpochNo(5), 1)],
        }),
        Reply::Admin(AdminReply::Catalogue(CataloguePage {
            version: 2,
            digest: Digest([2; 32]),
            entries: vec![entry()],
            more: true,
        })),
        Reply::Admin(AdminReply::CatalogueApplied { version: 2 }),
        Reply::Admin(AdminReply::CatalogueStatus(CatalogueStatus {
            versions: vec![version],
            items: 299,
            removed: 1,
            epochs: vec![(EpochNo(5), 1)],
        })),
        Reply::Tally(TallyReply::Catalogue(TallyCatalogue {
            version: 2,
            digest: Digest([2; 32]),
            staged: 300,
        })),
    ]
}
