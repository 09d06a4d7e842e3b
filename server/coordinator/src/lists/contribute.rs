//! What devices contribute, on its way to the tally. Those that come together are written together.

use std::sync::Arc;

use lethe_parts::history::Interaction;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::lists::{self, Contributed, HIDDEN, LIKED, SEEN, SharedEvent};
use lethe_proto::message::Refusal;
use lethe_tally::cells::Refused;
use lethe_tally::{Handle, Offer, TallyError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::Lists;
use crate::CoordinatorError;
use crate::arrivals::Answer;
use crate::fatal;
use crate::group_commit::GroupCommit;
use crate::rounds::internal;
use crate::shell::Shell;

/// Most contributions in one write.
const TOGETHER: usize = 1_024;
/// Most contributions that wait; who comes then is told to come again.
const WAITING: usize = 8_192;

/// A contribution that was checked as far as the catalogue goes.
pub(crate) struct Arriving {
    pub(crate) certificate: Digest,
    source: [u8; 16],
    whole: bool,
    events: Vec<Interaction>,
    answer: Answer,
    _place: OwnedSemaphorePermit,
}

/// The way in.
pub(crate) struct Contributions {
    way: GroupCommit<Arriving>,
    places: Arc<Semaphore>,
}

impl Contributions {
    /// Starts the thread that stores.
    pub(crate) fn start(take: impl FnMut(Vec<Arriving>) + Send + 'static) -> std::io::Result<Self> {
        Ok(Self {
            way: GroupCommit::start("lethe-contributions", |_| 1, TOGETHER, take)?,
            places: Arc::new(Semaphore::new(WAITING)),
        })
    }

    /// A way that leads nowhere.
    pub(crate) fn closed() -> Self {
        Self {
            way: GroupCommit::closed(),
            places: Arc::new(Semaphore::new(0)),
        }
    }

    /// Brings a contribution; when this returns, it is durable or was refused.
    pub(crate) async fn bring(
        &self,
        lists: &Lists,
        certificate: Digest,
        brought: Contributed,
    ) -> Result<(), CoordinatorError> {
        let events = lists.read(&brought.events)?;
        let busy = |_| {
            CoordinatorError::refuse(
                Refusal::Busy,
                "too many contributions wait to be stored: try again",
            )
        };
        let place = self.places.clone().try_acquire_owned().map_err(busy)?;
        let (answer, answered) = oneshot::channel();
        self.way.put(Arriving {
            certificate,
            source: brought.source,
            whole: brought.whole,
            events,
            answer,
            _place: place,
        })?;
        let ended = |_| internal(&"the coordinator is shutting down");
        answered.await.map_err(ended)?
    }
}

fn offer(taken: &(Handle, Arriving)) -> Offer<'_> {
    let one = &taken.1;
    Offer {
        handle: taken.0,
        source: one.source,
        whole: one.whole,
        events: &one.events,
    }
}

impl Lists {
    /// Events by place of their items.
    fn read(&self, events: &[SharedEvent]) -> Result<Vec<Interaction>, CoordinatorError> {
        if !self.serves {
            return Err(CoordinatorError::invalid(
                "this coordinator takes no contributions: set `sums` in its configuration",
            ));
        }
        let most = self.config.clip as usize;
        if events.len() > most {
            return Err(CoordinatorError::invalid(format!(
                "{} events, expected at most {most}: contribute the newest",
                events.len()
            )));
        }
        lists::check(events).map_err(|e| CoordinatorError::invalid(e.to_string()))?;
        let read = |(at, event): (usize, &SharedEvent)| {
            let item = self.catalogue.place(&event.item).ok_or_else(|| {
                let message = format!(
                    "event {at}: the coordinator's catalogue has no item {:?}: leave it out",
                    event.item
                );
                CoordinatorError::refuse(Refusal::NotFound, message)
            })?;
            Ok(Interaction {
                item,
                day: event.day,
                seen: event.flags & SEEN > 0,
                half_stars: (event.half_stars > 0).then_some(event.half_stars),
                liked: event.flags & LIKED > 0,
                hidden: event.flags & HIDDEN > 0,
            })
        };
        events.iter().enumerate().map(read).collect()
    }

    /// Takes what has arrived together.
    pub(crate) fn take(&self, shell: &Shell, all: Vec<Arriving>) {
        let _shared = fatal::read(&self.gate);
        let mut answers = vec![];
        let mut taken = vec![];
        for one in all {
            let subject = shell.state().may_contribute(&one.certificate);
            match subject {
                Ok(subject) => taken.push((self.handle(&subject), one)),
                Err(why) => answers.push((one, Err(why.into()))),
            }
        }
        let now = shell.clock.now().unix_ms / 1000;
        let offers: Vec<Offer<'_>> = taken.iter().map(offer).collect();
        let result = self.tally.contribute_all(&offers, now);
        drop(offers);
        match result {
            Ok(results) => {
                let each = taken.into_iter().zip(results);
                answers.extend(each.map(|((_, one), r)| (one, r.map_err(CoordinatorError::from))));
            }
            Err(e) => {
                let message = format!("the tally cannot store contributions: {e}; try again");
                tracing::error!("{message}");
                answers.extend(taken.into_iter().map(|(_, one)| {
                    let busy = CoordinatorError::refuse(Refusal::Busy, message.clone());
                    (one, Err(busy))
                }));
            }
        }
        for (one, result) in answers {
            // Who has gone meanwhile does not hear it.
            let _ = one.answer.send(result);
        }
        self.look();
    }

    /// A person takes part no longer: what they contributed is destroyed.
    pub(crate) fn leave(&self, shell: &Shell, subject: &SubjectId) -> Result<(), CoordinatorError> {
        let _shared = fatal::read(&self.gate);
        let now = shell.clock.now().unix_ms / 1000;
        self.tally.leave(&[self.handle(subject)], now)?;
        self.look();
        Ok(())
    }
}

/// What somebody who contributes is told.
impl From<TallyError> for CoordinatorError {
    fn from(why: TallyError) -> Self {
        let code = match &why {
            TallyError::Refused(Refused::TooSoon { .. } | Refused::Full { .. }) => Refusal::Busy,
            TallyError::Refused(_) | TallyError::Bounds(_) => Refusal::Invalid,
            _ => return Self::Tally(why),
        };
        Self::refuse(code, why.to_string())
    }
}
