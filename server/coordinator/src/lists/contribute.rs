//! What devices contribute, on its way to the tally. Those that come together are written together.

use std::sync::Arc;

use lethe_parts::history::Interaction;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::lists::{self, Contributed, SharedEvent};
use lethe_proto::message::Refusal;
use lethe_proto::tally::HeldOf;
use lethe_tally::cells::Refused;
use lethe_tally::{Handle, Offer, TallyError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::Lists;
use super::keeper::Keeper;
use super::sealed::{Batch, Relayed};
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

/// What a device asks of the sums. One queue keeps the order in which a person's devices asked: a
/// contribution that was sent before a withdrawal is not taken after it.
pub(crate) struct Arriving {
    what: What,
    answer: Answer,
    _place: OwnedSemaphorePermit,
}

/// What came, and who waits for its answer.
#[cfg(any(test, feature = "simulation"))]
pub(crate) type ByHand = (Arriving, oneshot::Receiver<Result<(), CoordinatorError>>);

/// For tests and simulations: what would come through the way in, made by hand.
#[cfg(any(test, feature = "simulation"))]
impl Arriving {
    /// Leaves a request for a ticket, or a sealed contribution. The answer comes with it.
    #[cfg(test)]
    pub(super) fn relayed(relayed: Relayed) -> ByHand {
        Self::of(What::Sealed(relayed))
    }

    /// A person takes part no longer.
    pub(crate) fn withdrawal(subject: SubjectId) -> ByHand {
        Self::of(What::Withdrawal(subject))
    }

    /// A contribution, as [`Contributions::bring`] takes it.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn contribution(
        lists: &Lists,
        certificate: Digest,
        brought: &Contributed,
    ) -> Result<ByHand, CoordinatorError> {
        Ok(Self::of(What::Contribution(Checked {
            certificate,
            source: brought.source,
            whole: brought.whole,
            events: lists.read(&brought.events)?,
        })))
    }

    fn of(what: What) -> ByHand {
        let (answer, answered) = oneshot::channel();
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned();
        let arriving = Self {
            what,
            answer,
            _place: place.expect("nobody else has it"),
        };
        (arriving, answered)
    }
}

enum What {
    Contribution(Checked),
    /// One that only a tally of its own can read, or the ticket for it.
    Sealed(Relayed),
    /// A person takes part no longer.
    Withdrawal(SubjectId),
}

/// A contribution that was checked as far as the catalogue goes.
struct Checked {
    certificate: Digest,
    source: [u8; 16],
    whole: bool,
    events: Vec<Interaction>,
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
        let checked = Checked {
            certificate,
            source: brought.source,
            whole: brought.whole,
            events: lists.read(&brought.events)?,
        };
        self.put(What::Contribution(checked)).await
    }

    /// Destroys what a person has contributed; when this returns, that is durable.
    pub(crate) async fn withdraw(&self, subject: SubjectId) -> Result<(), CoordinatorError> {
        self.put(What::Withdrawal(subject)).await
    }

    /// Leaves a request for a ticket, or a sealed contribution, to be relayed. The answer comes
    /// with it.
    pub(super) async fn relay(&self, relayed: Relayed) -> Result<(), CoordinatorError> {
        self.put(What::Sealed(relayed)).await
    }

    async fn put(&self, what: What) -> Result<(), CoordinatorError> {
        let busy = |_| {
            CoordinatorError::refuse(
                Refusal::Busy,
                "too many contributions wait to be stored: try again",
            )
        };
        let place = self.places.clone().try_acquire_owned().map_err(busy)?;
        let (answer, answered) = oneshot::channel();
        self.way.put(Arriving {
            what,
            answer,
            _place: place,
        })?;
        let ended = |_| internal(&"the coordinator is shutting down");
        answered.await.map_err(ended)?
    }
}

/// A contribution that its person may bring, and who waits for the answer.
struct Taken {
    handle: Handle,
    checked: Checked,
    answer: Answer,
}

impl Taken {
    fn offer(&self) -> Offer<'_> {
        Offer {
            handle: self.handle,
            source: self.checked.source,
            whole: self.checked.whole,
            events: &self.checked.events,
        }
    }
}

/// Who has gone meanwhile does not hear it.
pub(super) fn tell(answer: Answer, result: Result<(), CoordinatorError>) {
    let _ = answer.send(result);
}

impl Lists {
    /// Events by place of their items.
    fn read(&self, events: &[SharedEvent]) -> Result<Vec<Interaction>, CoordinatorError> {
        if self.is_sealed() {
            return Err(CoordinatorError::invalid(
                "this coordinator takes contributions only if they are sealed to its tally: use a \
                 newer version of the app",
            ));
        }
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
        let catalogue = self.catalogue();
        let read = |(at, event): (usize, &SharedEvent)| {
            let item = catalogue.place(&event.item).ok_or_else(|| {
                let message = format!(
                    "event {at}: the coordinator's catalogue has no item {:?}: leave it out",
                    event.item
                );
                CoordinatorError::refuse(Refusal::NotFound, message)
            })?;
            let SharedEvent {
                day,
                half_stars,
                flags,
                ..
            } = *event;
            Ok(Interaction::of_flags(item, day, half_stars, flags))
        };
        events.iter().enumerate().map(read).collect()
    }

    /// Takes what has arrived together, in that order.
    pub(crate) fn take(&self, shell: &Shell, all: Vec<Arriving>) {
        let _shared = fatal::read(&self.gate);
        let now = shell.clock.now().unix_ms / 1000;
        let mut together = vec![];
        let mut relayed = Batch::default();
        for Arriving { what, answer, .. } in all {
            match what {
                What::Sealed(relay) => {
                    let may = match relay.brings() {
                        true => self.may_bring(shell, relay.certificate(), now),
                        false => self.may_seal(shell, relay.certificate()),
                    };
                    relayed.add(relay, answer, may);
                }
                What::Contribution(checked) => {
                    match self.may_bring(shell, &checked.certificate, now) {
                        Ok(handle) => together.push(Taken {
                            handle,
                            checked,
                            answer,
                        }),
                        Err(why) => tell(answer, Err(why)),
                    }
                }
                What::Withdrawal(subject) => {
                    self.store(std::mem::take(&mut together), now);
                    self.send(std::mem::take(&mut relayed));
                    tell(answer, self.leave(&subject, now));
                }
            }
        }
        self.store(together, now);
        self.send(relayed);
        self.look();
    }

    /// Whose device asks what to seal with: contributions, and masks of updates, which those send
    /// who have withdrawn from the lists, too.
    fn may_seal(&self, shell: &Shell, certificate: &Digest) -> Result<Handle, CoordinatorError> {
        let subject = shell.state().may_contribute(certificate)?;
        Ok(self.handle(&subject))
    }

    /// Whose the contribution is, if it may be brought now.
    fn may_bring(
        &self,
        shell: &Shell,
        certificate: &Digest,
        now: u64,
    ) -> Result<Handle, CoordinatorError> {
        let subject = shell.state().may_contribute(certificate)?;
        let handle = self.handle(&subject);
        let left = fatal::lock(&self.withdrawn).get(&handle).copied();
        let again = left.map_or(0, |left| left.saturating_add(self.config.refresh_s));
        if now < again {
            let message = format!(
                "this person withdrew a moment ago: contribute again in {} s",
                again - now
            );
            return Err(CoordinatorError::refuse(Refusal::Busy, message));
        }
        Ok(handle)
    }

    /// One write for all of these.
    fn store(&self, taken: Vec<Taken>, now: u64) {
        if taken.is_empty() {
            return;
        }
        let Keeper::Embedded(tally) = &self.keeper else {
            // `read` refuses them.
            return;
        };
        let offers: Vec<Offer<'_>> = taken.iter().map(Taken::offer).collect();
        let result = tally.contribute_all(&offers, now);
        drop(offers);
        match result {
            Ok(results) => {
                for (one, result) in taken.into_iter().zip(results) {
                    tell(one.answer, result.map_err(CoordinatorError::from));
                }
            }
            Err(e) => {
                let message = format!("the tally cannot store contributions: {e}; try again");
                tracing::error!("{message}");
                for one in taken {
                    let busy = CoordinatorError::refuse(Refusal::Busy, message.clone());
                    tell(one.answer, Err(busy));
                }
            }
        }
    }

    /// A person takes part no longer: what they contributed is destroyed.
    fn leave(&self, subject: &SubjectId, now: u64) -> Result<(), CoordinatorError> {
        let handle = self.handle(subject);
        let held = self.keeper.held(&[HeldOf::Handle(handle.0)], now)?;
        let shown = held.iter().any(|h| h.shown);
        let held = held.iter().any(|h| h.held);
        self.keeper.leave(handle, now)?;
        if let Keeper::Party(party) = &self.keeper {
            // Whatever it says: what they were in is not served any more.
            party.recall_shown(shown);
        }
        let mut withdrawn = fatal::lock(&self.withdrawn);
        let refresh_s = self.config.refresh_s;
        withdrawn.retain(|_, left| now < left.saturating_add(refresh_s));
        if held {
            // Each withdrawal dissolves a cell: who comes and goes by turns does so no faster than
            // people contribute.
            withdrawn.insert(handle, now);
        }
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
