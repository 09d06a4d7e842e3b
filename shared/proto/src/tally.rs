//! Messages between the coordinator and a tally of its own, and what a device and that tally say to
//! each other through the coordinator. `docs/two-parties.md` has the design.
//!
//! All of them are from minor version 3 on.

use serde::{Deserialize, Serialize};

use crate::catalogue::{CatalogueChange, TallyCatalogue};
use crate::codec::{self, CodecError};
use crate::ids::Digest;
use crate::lists::Contributed;
use crate::masked::{MasksAsked, MasksSummed};

/// Name of the first use of the sealing key, in every envelope's `info`.
pub const CONTRIBUTION: &[u8] = b"lethe contribution 1";

/// Exporter context of the key that seals the tally's answer (RFC 9180, section 9.8).
pub const ANSWER: &[u8] = b"lethe contribution answer 1";

/// Contributions are padded to a multiple of this, in bytes: their lengths say little.
pub const PADDED: usize = 2 << 10;

/// Length of every [`Confided`] before it is sealed, in bytes.
pub const CONFIDED: usize = 256;

/// The longest envelope: one of the most events that any tally allows.
pub const MAX_ENVELOPE: usize = 1 << 20;

/// Most contributions, tickets or handles of one request to the tally.
pub const TOGETHER: usize = 1_024;

/// About how many bytes of envelopes one request to the tally carries at most.
pub const TOGETHER_BYTES: usize = 8 << 20;

/// What a device needs to seal a contribution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealingTerms {
    /// Key that verifies the note (verifier key text): the one that signs snapshots, too.
    pub key: String,
    /// The tally's signed statement of its sealing key (`lethe_receipt::sealing`).
    pub note: String,
    /// What the tally knows the person by. It says nothing about the person, and stays the same.
    pub handle: [u8; 16],
    /// Single-use, for this handle, for some minutes: an envelope that is sent again opens nothing.
    pub ticket: [u8; 32],
}

/// A contribution that only the tally can read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedContribution {
    /// As in [`SealingTerms`].
    pub ticket: [u8; 32],
    /// HPKE envelope of a padded [`Contributed`] ([`padded`]), bound to [`bound_to`].
    #[serde(with = "serde_bytes")]
    pub envelope: Vec<u8>,
}

/// What an envelope is bound to (its additional data): it opens nowhere else.
pub fn bound_to(handle: &[u8; 16], ticket: &[u8; 32]) -> Vec<u8> {
    [&handle[..], &ticket[..]].concat()
}

/// A contribution as it is sealed: its length, its bytes, and zeros up to a multiple of [`PADDED`].
///
/// # Errors
/// [`CodecError::TooLong`]: more than [`MAX_ENVELOPE`] bytes.
pub fn padded(body: &Contributed) -> Result<Vec<u8>, CodecError> {
    let bytes = codec::to_bytes(body)?;
    pad(&bytes, (4 + bytes.len()).next_multiple_of(PADDED))
}

/// Reads [`padded`].
///
/// # Errors
/// [`CodecError::Malformed`] for other bytes.
pub fn unpadded(bytes: &[u8]) -> Result<Contributed, CodecError> {
    codec::from_bytes(strip(bytes)?, MAX_ENVELOPE)
}

/// What the tally tells a device; sealed, so that the coordinator does not read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Confided {
    /// It is stored. It waits, or counts from the next snapshots on.
    Taken,
    /// Another device of the person has brought more, which stands. Tallies of before say so; now
    /// what both brought is merged.
    Smaller,
    /// Too soon after the one before.
    TooSoon {
        /// Seconds to wait.
        wait_s: u64,
    },
    /// As many people contribute as may.
    Full,
    /// The ticket is used, too old, or of another handle: ask for terms again.
    Stale,
    /// It is outside its bounds; what was expected, and what was got.
    Invalid(String),
    /// The tally cannot store now: try again later.
    Busy,
}

impl Confided {
    /// Always [`CONFIDED`] bytes: a longer reason is cut.
    ///
    /// # Errors
    /// [`CodecError`], for nothing that this type holds.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        let cut = match self {
            Self::Invalid(why) => Self::Invalid(cut(why, CONFIDED - 16).to_owned()),
            other => other.clone(),
        };
        pad(&codec::to_bytes(&cut)?, CONFIDED)
    }

    /// Reads [`Self::to_bytes`].
    ///
    /// # Errors
    /// [`CodecError::Malformed`] for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::from_bytes(strip(bytes)?, CONFIDED)
    }
}

fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn pad(bytes: &[u8], to: usize) -> Result<Vec<u8>, CodecError> {
    let allowed = MAX_ENVELOPE - PADDED;
    if bytes.len() > allowed || 4 + bytes.len() > to {
        return Err(CodecError::Malformed(format!(
            "{} bytes to seal, at most {}",
            bytes.len(),
            allowed.min(to.saturating_sub(4))
        )));
    }
    let mut out = (bytes.len() as u32).to_le_bytes().to_vec();
    out.extend_from_slice(bytes);
    out.resize(to, 0);
    Ok(out)
}

fn strip(bytes: &[u8]) -> Result<&[u8], CodecError> {
    let bad = || CodecError::Malformed("what was sealed is not padded as it should be".into());
    let (head, rest) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
    let length = u32::from_le_bytes(*head) as usize;
    let (own, zeros) = rest.split_at_checked(length).ok_or_else(bad)?;
    // One content has one form.
    match zeros.iter().all(|b| *b == 0) {
        true => Ok(own),
        false => Err(bad()),
    }
}

/// What a coordinator asks of its tally. Names of people are in none of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TallyRequest {
    /// First request of a connection.
    Open {
        /// [`crate::lists::items_digest`] of the coordinator's catalogue: both must have the same.
        items: Digest,
        /// The highest number of a snapshot that this coordinator knows of, or one more if that one
        /// is recalled: the tally publishes none below it.
        floor: u64,
    },
    /// A single-use ticket for each of these handles, at most [`TOGETHER`].
    Tickets {
        /// Whose.
        handles: Vec<[u8; 16]>,
    },
    /// Contributions that devices sealed, at most [`TOGETHER`].
    Bring {
        /// In the order in which they came.
        sealed: Vec<Brought>,
    },
    /// These leave; at most [`TOGETHER`]. It may be repeated.
    Leave {
        /// Who.
        handles: Vec<[u8; 16]>,
    },
    /// These leave where their membership began at or before a time: a record of deletions says so.
    LeaveOlder {
        /// Who, and when, in seconds since 1970; at most [`TOGETHER`].
        leavers: Vec<([u8; 16], u64)>,
    },
    /// Items are cleared for good.
    TakeDown {
        /// Their places, at most [`TOGETHER`].
        items: Vec<u32>,
    },
    /// What the tally has of these; at most [`TOGETHER`].
    Held {
        /// Handles, or items.
        of: Vec<HeldOf>,
    },
    /// Opens cells, and publishes if that is due. It may take minutes in a large fleet.
    Work,
    /// What is served and recalled now.
    State,
    /// The tables that are served.
    Tables {
        /// The number that the coordinator wants; another one is answered with nothing.
        number: u64,
    },
    /// How the tally is.
    Status,
    /// Folds everybody who counts again.
    Refold,
    /// Searches what the tally has, decrypted, for handles.
    Search {
        /// At most [`TOGETHER`].
        handles: Vec<[u8; 16]>,
    },
    /// For an auditor, with the tally's consent (`audits` in its configuration): what was signed,
    /// and how.
    Audited,
    /// For an auditor: digests of who counts.
    AuditedPeople {
        /// The snapshot that it is about.
        number: u64,
        /// Salts the digests.
        salt: [u8; 32],
        /// The first of them.
        from: u64,
    },
    /// A signed statement of what the tally has of these handles now; at most [`TOGETHER`].
    Vouch {
        /// Whose.
        handles: Vec<[u8; 16]>,
    },
    /// The sum of the masks of a round's updates. It may be repeated. From minor version 4 on.
    Masks(MasksAsked),
    /// These have left by a deletion: nothing is kept of the sums that they were in. At most
    /// [`TOGETHER`]; it may be repeated. From minor version 4 on.
    LeaveSums {
        /// As in [`MasksAsked`].
        lineage: [u8; 8],
        /// Who, and the number of the deletion: sums that were asked for after it are about
        /// somebody who has come back.
        leavers: Vec<([u8; 16], u64)>,
        /// The highest number of a deletion so far: no sum is made any more that was asked for
        /// before it.
        left: u64,
    },
    /// Versions of the catalogue that the tally lacks; also before `Open`, which names the newest.
    /// It may be repeated. From minor version 5 on.
    Catalogue {
        /// Changes of the version after the newest that the tally has, which were sent before.
        at: u64,
        /// More of them; none: what the tally has is asked for.
        changes: Vec<CatalogueChange>,
        /// The digest of the version that these end; none: there are more.
        ends: Option<Digest>,
    },
}

/// A sealed contribution, with what the coordinator adds: whose it is, for the tally.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brought {
    /// Whose.
    pub handle: [u8; 16],
    /// What came.
    pub sealed: SealedContribution,
}

/// Whom or what [`TallyRequest::Held`] asks about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeldOf {
    /// A handle.
    Handle([u8; 16]),
    /// Items by place; at most [`TOGETHER`].
    Items(Vec<u32>),
}

/// What the tally answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TallyReply {
    /// Answer to [`TallyRequest::Open`].
    Opened(TallyTerms),
    /// Answer to [`TallyRequest::Tickets`], in the same order.
    Tickets(Vec<[u8; 32]>),
    /// Answer to [`TallyRequest::Bring`], in the same order.
    Answers(Vec<BringAnswer>),
    /// Done, and durable.
    Done(TallyState),
    /// Answer to [`TallyRequest::Held`], in the same order.
    Held(Vec<HeldShown>),
    /// Answer to [`TallyRequest::Work`] and [`TallyRequest::State`].
    State(TallyState),
    /// Answer to [`TallyRequest::Tables`].
    Tables(Option<TallyTables>),
    /// Answer to [`TallyRequest::Status`].
    Status(TallyStatus),
    /// Answer to [`TallyRequest::Refold`]; none: the sums changed meanwhile.
    Refolded(Option<TallyRefolded>),
    /// Answer to [`TallyRequest::Search`].
    Searched {
        /// Records that were read.
        records: u64,
        /// Hits by name of a table.
        hits: Vec<(String, u64)>,
    },
    /// Answer to [`TallyRequest::Audited`]; none: nothing is served that can be audited.
    Audited(Option<TallyAudited>),
    /// Answer to [`TallyRequest::AuditedPeople`]; none: another snapshot is served now.
    AuditedPeople(Option<Vec<Digest>>),
    /// Answer to [`TallyRequest::Vouch`]: a signed note (`lethe_receipt::vouch`).
    Vouched(String),
    /// It is not done. Nothing changed, or the same may be asked again.
    Refused {
        /// A stable code.
        code: TallyRefusal,
        /// Expected, got, and what to do.
        message: String,
    },
    /// Answer to [`TallyRequest::Masks`].
    Masks(MasksSummed),
    /// Answer to [`TallyRequest::Catalogue`].
    Catalogue(TallyCatalogue),
}

/// Why the tally does not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TallyRefusal {
    /// The request makes no sense: too many, or outside its bounds.
    Invalid,
    /// [`TallyRequest::Open`] comes first.
    NotOpen,
    /// The catalogues differ.
    OtherCatalogue,
    /// Its configuration does not allow it.
    Forbidden,
    /// Try again later.
    Busy,
    /// The tally failed.
    Internal,
}

/// What holds between the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyTerms {
    /// Key that verifies snapshots (verifier key text).
    pub key: String,
    /// As in [`SealingTerms`].
    pub note: String,
    /// The most events of a contribution.
    pub clip: u32,
    /// Seconds between two contributions of a handle.
    pub refresh_s: u64,
    /// People who must share a pair of items for it to count, k.
    pub k: u64,
    /// What is served.
    pub state: TallyState,
}

/// What is served and recalled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyState {
    /// The snapshot that is served.
    pub served: Option<SnapshotHead>,
    /// The highest number of a snapshot that was ever recalled; 0: none was.
    pub recalled: u64,
}

/// A snapshot, without its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// Its number.
    pub number: u64,
    /// SHA-256 of its tables.
    pub digest: Digest,
    /// Length of its tables, in bytes.
    pub bytes: u64,
    /// People who count in it.
    pub people: u64,
}

/// What came of a sealed contribution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BringAnswer {
    /// A sealed [`Confided`].
    Sealed(#[serde(with = "serde_bytes")] Vec<u8>),
    /// It cannot be opened: it is for another key, of another ticket, or damaged.
    Unreadable,
}

/// What the tally has of somebody, or of items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldShown {
    /// It has something.
    pub held: bool,
    /// Members of the cell; 0: it waits, or these are items.
    pub cell: u64,
    /// The newest snapshot has it in it, recalled or not.
    pub shown: bool,
    /// If not: the snapshot that had it in it last, and when that was recalled, in seconds since
    /// 1970.
    pub was_shown: Option<WasShownIn>,
}

/// A snapshot that was recalled for somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasShownIn {
    /// Its number.
    pub number: u64,
    /// SHA-256 of its tables; zeros: nobody knows any more.
    pub digest: Digest,
    /// People who counted in it.
    pub people: u64,
    /// When it was recalled, in seconds since 1970.
    pub at: u64,
}

/// The tables of a snapshot, for devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyTables {
    /// The signed note.
    pub note: String,
    /// The snapshot.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// What leads to it from earlier ones.
    pub deltas: Vec<TallyDelta>,
}

/// What leads from an earlier snapshot to the one that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyDelta {
    /// Number of the earlier one.
    pub from: u64,
    /// The difference.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// How the tally is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyStatus {
    /// People who contribute.
    pub people: u64,
    /// People who count.
    pub counting: u64,
    /// People who wait for a cell.
    pub waiting: u64,
    /// Cells.
    pub cells: u64,
    /// Cells that were published and are out.
    pub cells_out: u64,
    /// For how many seconds what was published is out.
    pub out_s: Option<u64>,
    /// Members of the next cell, n.
    pub n: u64,
    /// Members of the smallest cell.
    pub smallest: Option<u64>,
    /// Members of a cell who change together, m.
    pub m: u64,
    /// People who must share a pair, k.
    pub k: u64,
    /// Items that were taken down.
    pub taken_down: u64,
    /// What its settings give away; empty: nothing to say.
    pub gives_away: String,
    /// How the budget of the noise stands, in words; empty: there is no noise.
    pub noise: String,
    /// What is served.
    pub state: TallyState,
}

/// What folding everybody again gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyRefolded {
    /// People who count.
    pub people: u64,
    /// SHA-256 of a salt that is not told and of the sums: the sums' own digest stays in the tally.
    pub digest: Digest,
    /// Whether what is served was solved from these sums; none: nothing is served, or who counts
    /// has changed since.
    pub stated: Option<bool>,
    /// Whether the sums in memory have the same bytes.
    pub memory: Option<bool>,
    /// Whether the sums in the folder have the same bytes.
    pub folder: Option<bool>,
    /// The snapshot that is served.
    pub snapshot: Option<u64>,
}

/// What an auditor needs besides people's exports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyAudited {
    /// The snapshot.
    pub number: u64,
    /// The signed note.
    pub note: String,
    /// Salt of the sums' digest in it.
    pub salt: [u8; 32],
    /// How tables are solved and packed, JSON.
    pub method: String,
    /// Digest of what is public about items.
    pub content: Digest,
    /// Places of items that were taken down.
    pub taken_down: Vec<u32>,
    /// People who count in it.
    pub people: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lists::{SEEN, SharedEvent};

    fn body(events: usize) -> Contributed {
        let event = |n: usize| SharedEvent {
            item: format!("item-{n}"),
            day: 19_000,
            half_stars: 0,
            flags: SEEN,
        };
        Contributed {
            source: [1; 16],
            whole: true,
            events: (0..events).map(event).collect(),
        }
    }

    #[test]
    fn contributions_are_padded_and_read_again() {
        for events in [0, 1, 200] {
            let body = body(events);
            let bytes = padded(&body).expect("pads");
            assert_eq!(bytes.len() % PADDED, 0);
            assert_eq!(unpadded(&bytes), Ok(body));
        }
        // Histories of about one length have one length.
        assert_eq!(padded(&body(1)).expect("pads").len(), PADDED);
        assert_eq!(padded(&body(60)).expect("pads").len(), PADDED);
    }

    #[test]
    fn other_padding_is_refused() {
        let mut bytes = padded(&body(3)).expect("pads");
        if let Some(last) = bytes.last_mut() {
            *last = 1;
        }
        assert!(unpadded(&bytes).is_err());
        assert!(unpadded(&[]).is_err());
        assert!(unpadded(&[9, 0, 0, 0, 1]).is_err());
        let long = body(MAX_ENVELOPE / 8);
        assert!(padded(&long).is_err());
    }

    #[test]
    fn all_answers_have_one_length() {
        let all = [
            Confided::Taken,
            Confided::Smaller,
            Confided::TooSoon { wait_s: u64::MAX },
            Confided::Full,
            Confided::Stale,
            Confided::Busy,
            Confided::Invalid("ü".repeat(1_000)),
        ];
        for one in all {
            let bytes = one.to_bytes().expect("encodes");
            assert_eq!(bytes.len(), CONFIDED);
            let read = Confided::from_bytes(&bytes).expect("decodes");
            match one {
                Confided::Invalid(why) => {
                    let Confided::Invalid(cut) = read else {
                        panic!("another answer");
                    };
                    assert!(why.starts_with(&cut) && cut.len() > 200);
                }
                other => assert_eq!(read, other),
            }
        }
    }
}
