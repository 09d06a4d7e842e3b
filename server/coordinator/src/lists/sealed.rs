//! Contributions that only a tally of its own can read, and tickets for them, on their way there.
//! Those that come together go together.

use lethe_proto::ids::Digest;
use lethe_proto::message::Refusal;
use lethe_proto::tally::{
    BringAnswer, Brought, SealedContribution, SealingTerms, TOGETHER, TOGETHER_BYTES, TallyReply,
    TallyRequest,
};
use lethe_tally::Handle;
use tokio::sync::oneshot;

use super::Lists;
#[cfg(test)]
use super::contribute::{Arriving, ByHand};
use super::contribute::{Contributions, tell};
use super::keeper::Keeper;
use super::party::{Party, QUICK};
use crate::CoordinatorError;
use crate::arrivals::Answer;
use crate::rounds::internal;

/// What a device asks of a tally of its own.
pub(super) enum Relayed {
    /// A ticket for the next contribution.
    Ticket {
        certificate: Digest,
        give: oneshot::Sender<SealingTerms>,
    },
    /// A contribution.
    Contribution {
        certificate: Digest,
        sealed: SealedContribution,
        /// What the tally tells the device, sealed.
        give: oneshot::Sender<Vec<u8>>,
    },
}

impl Relayed {
    /// It is a contribution.
    pub(super) fn brings(&self) -> bool {
        matches!(self, Self::Contribution { .. })
    }

    /// Whose device it is, by its certificate.
    pub(super) fn certificate(&self) -> &Digest {
        match self {
            Self::Ticket { certificate, .. } | Self::Contribution { certificate, .. } => {
                certificate
            }
        }
    }
}

/// For tests: what would come through the way in, made by hand.
#[cfg(test)]
impl Arriving {
    /// A device asks for a ticket.
    pub(crate) fn ticket(certificate: Digest, give: oneshot::Sender<SealingTerms>) -> ByHand {
        Self::relayed(Relayed::Ticket { certificate, give })
    }

    /// A device brings a contribution.
    pub(crate) fn sealed(
        certificate: Digest,
        sealed: SealedContribution,
        give: oneshot::Sender<Vec<u8>>,
    ) -> ByHand {
        Self::relayed(Relayed::Contribution {
            certificate,
            sealed,
            give,
        })
    }
}

struct Ticket {
    handle: Handle,
    give: oneshot::Sender<SealingTerms>,
    answer: Answer,
}

struct Contribution {
    handle: Handle,
    sealed: SealedContribution,
    give: oneshot::Sender<Vec<u8>>,
    answer: Answer,
}

/// What goes together.
#[derive(Default)]
pub(super) struct Batch {
    tickets: Vec<Ticket>,
    contributions: Vec<Contribution>,
}

impl Batch {
    /// Adds what its person may bring; who may not is told.
    pub(super) fn add(
        &mut self,
        relayed: Relayed,
        answer: Answer,
        may: Result<Handle, CoordinatorError>,
    ) {
        let handle = match may {
            Ok(handle) => handle,
            Err(why) => return tell(answer, Err(why)),
        };
        match relayed {
            Relayed::Ticket { give, .. } => self.tickets.push(Ticket {
                handle,
                give,
                answer,
            }),
            Relayed::Contribution { sealed, give, .. } => self.contributions.push(Contribution {
                handle,
                sealed,
                give,
                answer,
            }),
        }
    }

    /// The next contributions that one request carries.
    fn next(&mut self) -> Vec<Contribution> {
        let mut bytes = 0;
        let fits = |one: &&Contribution| {
            bytes += one.sealed.envelope.len();
            bytes <= TOGETHER_BYTES
        };
        let count = self.contributions.iter().take(TOGETHER).take_while(fits);
        // One alone is never too long: its message is bounded.
        let count = count.count().max(1).min(self.contributions.len());
        self.contributions.drain(..count).collect()
    }
}

/// Everybody who waits hears why it is not done.
fn refuse_all(answers: impl Iterator<Item = Answer>, why: &CoordinatorError) {
    for answer in answers {
        let code = match why.code() {
            Refusal::Internal => Refusal::Busy,
            other => other,
        };
        tell(answer, Err(CoordinatorError::refuse(code, why.to_string())));
    }
}

impl Contributions {
    /// What a device needs to seal a contribution.
    pub(crate) async fn ticket(
        &self,
        certificate: Digest,
    ) -> Result<SealingTerms, CoordinatorError> {
        let (give, given) = oneshot::channel();
        self.relay(Relayed::Ticket { certificate, give }).await?;
        given.await.map_err(|_| internal(&"no ticket came"))
    }

    /// Brings a sealed contribution; returns what the tally tells the device, sealed.
    pub(crate) async fn bring_sealed(
        &self,
        certificate: Digest,
        sealed: SealedContribution,
    ) -> Result<Vec<u8>, CoordinatorError> {
        let (give, given) = oneshot::channel();
        let relayed = Relayed::Contribution {
            certificate,
            sealed,
            give,
        };
        self.relay(relayed).await?;
        given.await.map_err(|_| internal(&"no answer came"))
    }
}

impl Lists {
    /// Sends what goes together. It waits for the tally for some seconds at most.
    pub(super) fn send(&self, mut batch: Batch) {
        let party = match &self.keeper {
            Keeper::Party(party) => party,
            Keeper::Embedded(_) => {
                let why = CoordinatorError::invalid(
                    "this coordinator has no tally of its own: contributions are not sealed",
                );
                let tickets = batch.tickets.into_iter().map(|t| t.answer);
                refuse_all(tickets, &why);
                let contributions = batch.contributions.into_iter().map(|c| c.answer);
                return refuse_all(contributions, &why);
            }
        };
        let mut tickets = std::mem::take(&mut batch.tickets);
        while !tickets.is_empty() {
            let count = tickets.len().min(TOGETHER);
            fetch_tickets(party, tickets.drain(..count).collect());
        }
        while !batch.contributions.is_empty() {
            bring(party, batch.next());
        }
    }
}

fn fetch_tickets(party: &Party, asked: Vec<Ticket>) {
    let handles = asked.iter().map(|t| t.handle.0).collect();
    let answered = party.ask(TallyRequest::Tickets { handles }, QUICK);
    let given = match (answered, party.terms()) {
        (Ok(TallyReply::Tickets(given)), Some(terms)) if given.len() == asked.len() => {
            given.into_iter().map(move |ticket| (ticket, terms.clone()))
        }
        (Err(why), _) => return refuse_all(asked.into_iter().map(|t| t.answer), &why),
        (Ok(_), _) => {
            let why = internal(&"the tally did not answer what it was asked");
            return refuse_all(asked.into_iter().map(|t| t.answer), &why);
        }
    };
    for (one, (ticket, terms)) in asked.into_iter().zip(given) {
        let terms = SealingTerms {
            key: terms.key,
            note: terms.note,
            handle: one.handle.0,
            ticket,
        };
        // Who has gone meanwhile does not hear it.
        let _ = one.give.send(terms);
        tell(one.answer, Ok(()));
    }
}

fn bring(party: &Party, brought: Vec<Contribution>) {
    let mut sealed = vec![];
    let mut waiting = vec![];
    for one in brought {
        sealed.push(Brought {
            handle: one.handle.0,
            sealed: one.sealed,
        });
        waiting.push((one.give, one.answer));
    }
    let answers = match party.ask(TallyRequest::Bring { sealed }, QUICK) {
        Ok(TallyReply::Answers(answers)) if answers.len() == waiting.len() => answers,
        Ok(_) => {
            let why = internal(&"the tally did not answer what it was asked");
            return refuse_all(waiting.into_iter().map(|w| w.1), &why);
        }
        Err(why) => return refuse_all(waiting.into_iter().map(|w| w.1), &why),
    };
    for ((give, answer), said) in waiting.into_iter().zip(answers) {
        match said {
            BringAnswer::Sealed(bytes) => {
                let _ = give.send(bytes);
                tell(answer, Ok(()));
            }
            BringAnswer::Unreadable => tell(
                answer,
                Err(CoordinatorError::invalid(
                    "the tally cannot open this contribution: ask for terms again, and seal it to \
                     the key that they name",
                )),
            ),
        }
    }
}
