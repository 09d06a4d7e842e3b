//! What devices ask of the lists, made by the real way in: its thread hands it over here, and the
//! simulation says when it is taken.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::task::{Context, Poll, Waker};

use lethe_parts::content::Content;
use lethe_proto::catalogue::Versions;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::lists::{Contributed, LIKED, SEEN, SharedEvent};
use lethe_recsys::histories::content_of;
use lethe_recsys::versions::entries;
use lethe_store::Storage;
use lethe_store::keys::Keys;
use lethe_store::memory::MemoryStorage;

use super::begin::{items, lists_config};
use super::disk::folder;
use super::world::BEGIN;
use crate::CoordinatorError;
use crate::durable::ListsFoundation;
use crate::lists::{Arriving, Catalogue, Contributions, Lists, Opening};

/// Histories that a device may contribute.
pub(super) const CONTENTS: usize = 8;
/// Made at once of what is needed again and again: the way in waits a few milliseconds for others,
/// whatever comes.
const AHEAD: usize = 8;

type Answer = Pin<Box<dyn Future<Output = Result<(), CoordinatorError>>>>;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    /// The history of this number, from the person's device of this number.
    Contribution {
        certificate: Digest,
        source: usize,
        content: usize,
    },
    Withdrawal(SubjectId),
}

/// What is on its way, and whoever waits for its answer.
pub(super) struct Coming {
    pub(super) arriving: Arriving,
    pub(super) answer: Waits,
}

/// Who waits for the answer.
pub(super) struct Waits(Answer);

impl Waits {
    /// The answer; none: there is none yet.
    pub(super) fn heard(&mut self) -> Option<Result<(), CoordinatorError>> {
        let mut context = Context::from_waker(Waker::noop());
        match self.0.as_mut().poll(&mut context) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }
}

/// The way in, of lists that nobody else uses.
struct WayIn {
    of: Arc<(Lists, Contributions)>,
    arrived: Receiver<Vec<Arriving>>,
    ready: BTreeMap<Asked, Vec<Coming>>,
}

thread_local! {
    static WAY_IN: RefCell<Option<WayIn>> = const { RefCell::new(None) };
}

/// Sends it in. `usual`: other seeds send the same.
pub(super) fn send(asked: &Asked, usual: bool) -> Coming {
    WAY_IN.with_borrow_mut(|way| {
        let way = way.get_or_insert_with(WayIn::new);
        loop {
            if let Some(coming) = way.ready.get_mut(asked).and_then(Vec::pop) {
                return coming;
            }
            way.make(asked, if usual { AHEAD } else { 1 });
        }
    })
}

/// What only one seed sends is of no use to the next.
pub(super) fn forget(asked: impl Fn(&Asked) -> bool) {
    WAY_IN.with_borrow_mut(|way| {
        if let Some(way) = way {
            way.ready.retain(|a, _| !asked(a));
        }
    });
}

pub(super) fn contributed(source: usize, content: usize) -> Contributed {
    let event = |at: usize| SharedEvent {
        item: ((content + 3 * at) % 8).to_string(),
        day: (BEGIN / 86_400_000) as i32 - 8 + at as i32,
        half_stars: (2 + (content + at) % 9) as u8,
        flags: SEEN | LIKED,
    };
    Contributed {
        source: [source as u8; 16],
        whole: !content.is_multiple_of(3),
        // Another device of a person may have fewer than what stands.
        events: (0..2 + content % 4).map(event).collect(),
    }
}

impl Asked {
    fn send(self, of: Arc<(Lists, Contributions)>) -> Waits {
        Waits(Box::pin(async move {
            let (lists, way) = &*of;
            match self {
                Self::Withdrawal(subject) => way.withdraw(subject).await,
                Self::Contribution {
                    certificate,
                    source,
                    content,
                } => {
                    let brought = contributed(source, content);
                    way.bring(lists, certificate, brought).await
                }
            }
        }))
    }

    /// The other histories of the same device.
    fn all(&self) -> Vec<Self> {
        match self {
            Self::Withdrawal(_) => vec![self.clone()],
            Self::Contribution {
                certificate,
                source,
                ..
            } => (0..CONTENTS)
                .map(|content| Self::Contribution {
                    certificate: *certificate,
                    source: *source,
                    content,
                })
                .collect(),
        }
    }
}

impl WayIn {
    fn new() -> Self {
        let folder = folder();
        let versions = Arc::new(Versions::founded(entries(&items())).unwrap());
        let catalogue = Catalogue::of_entries(versions.entries());
        let engine = |_: &Path| Ok(Box::new(MemoryStorage::default()) as Box<dyn Storage>);
        let content: Content = content_of(folder.path(), &items()).unwrap();
        let lists = Lists::open(Opening {
            engine: &engine,
            data_dir: &folder.path().join("data"),
            keys: &Keys::in_folder(&folder.path().join("keys")),
            evidence: folder.path(),
            config: lists_config(false, false),
            serves: true,
            release_hours: 1,
            masks: false,
            line: None,
            foundation: ListsFoundation {
                handles: [0; 32],
                items: 8,
                catalogue: catalogue.digest(),
            },
            versions,
            content: Arc::new(content),
            now: BEGIN / 1000,
            seed: None,
        });
        let (send, arrived) = channel();
        // Nobody receives any more when the test has ended.
        let way = Contributions::start(move |all| drop(send.send(all))).unwrap();
        Self {
            of: Arc::new((lists.unwrap(), way)),
            arrived,
            ready: BTreeMap::new(),
        }
    }

    /// Makes some of these, and of what the same device may send.
    fn make(&mut self, asked: &Asked, ahead: usize) {
        let mut sent = vec![];
        for one in asked.all() {
            for _ in 0..ahead {
                let mut answer = one.clone().send(self.of.clone());
                assert!(answer.heard().is_none(), "it is on its way");
                sent.push((one.clone(), answer));
            }
        }
        let mut sent = sent.into_iter();
        while sent.len() > 0 {
            for arriving in self.arrived.recv().unwrap() {
                let (asked, answer) = sent.next().unwrap();
                let coming = Coming { arriving, answer };
                self.ready.entry(asked).or_default().push(coming);
            }
        }
    }
}
