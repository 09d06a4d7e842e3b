//! What an app records.

use lethe_client::{EventId, Kind, LocalEvent};

/// What a person did with an item. What it counts as is for the catalogue to say (`[events]` in
/// `dataset.toml`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FfiEventKind {
    /// Gave it a rating: the event's value.
    Rating,
    /// Thumb up.
    Like,
    /// Thumb down.
    Dislike,
    /// Watched, read or listened: for as many seconds as the event's value says.
    View,
    /// Passed over.
    Skip,
    /// Bought.
    Purchase,
    /// Asked not to be shown again.
    Hide,
}

/// One event of the person on this device.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct FfiEvent {
    /// Item of the catalogue.
    pub item: String,
    /// What happened.
    pub kind: FfiEventKind,
    /// The rating, or the seconds of a view; else 0.
    pub value: f32,
    /// When, in seconds since 1970, UTC.
    pub time: i64,
}

/// An event of the history, with its name.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct FfiRecorded {
    /// Names the event on this device. Numbers are never used twice.
    pub id: u64,
    /// The event.
    pub event: FfiEvent,
}

impl From<FfiEventKind> for Kind {
    fn from(kind: FfiEventKind) -> Self {
        match kind {
            FfiEventKind::Rating => Self::Rating,
            FfiEventKind::Like => Self::Like,
            FfiEventKind::Dislike => Self::Dislike,
            FfiEventKind::View => Self::View,
            FfiEventKind::Skip => Self::Skip,
            FfiEventKind::Purchase => Self::Purchase,
            FfiEventKind::Hide => Self::Hide,
        }
    }
}

impl From<Kind> for FfiEventKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Rating => Self::Rating,
            Kind::Like => Self::Like,
            Kind::Dislike => Self::Dislike,
            Kind::View => Self::View,
            Kind::Skip => Self::Skip,
            Kind::Purchase => Self::Purchase,
            Kind::Hide => Self::Hide,
        }
    }
}

impl From<FfiEvent> for LocalEvent {
    fn from(event: FfiEvent) -> Self {
        Self {
            item: event.item,
            time: event.time,
            kind: event.kind.into(),
            value: event.value,
        }
    }
}

impl From<LocalEvent> for FfiEvent {
    fn from(event: LocalEvent) -> Self {
        Self {
            item: event.item,
            kind: event.kind.into(),
            value: event.value,
            time: event.time,
        }
    }
}

impl FfiRecorded {
    pub(crate) fn of(id: EventId, event: LocalEvent) -> Self {
        Self {
            id: id.number(),
            event: event.into(),
        }
    }
}
