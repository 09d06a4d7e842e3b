//! Contributions that devices sealed, and tickets for them.

use lethe_parts::history::Interaction;
use lethe_proto::codec::{self, TALLY};
use lethe_proto::lists::{self, SharedEvent};
use lethe_proto::tally::{
    ANSWER, BringAnswer, Brought, CONTRIBUTION, Confided, MAX_ENVELOPE, TOGETHER, TallyReply,
    bound_to, unpadded,
};
use lethe_seal::envelope::AnswerKey;
use lethe_tally::cells;
use lethe_tally::{Allowed, Handle, Offer, TallyError};
use rayon::prelude::*;

use super::{Answer, Refused, Service, busy, failed, invalid, locked, shared};

/// An envelope that was opened.
struct Opened {
    handle: Handle,
    ticket: [u8; 32],
    answer: AnswerKey,
    body: Result<Body, Confided>,
}

/// A contribution that was checked as far as the catalogue goes.
struct Body {
    source: [u8; 16],
    whole: bool,
    events: Vec<Interaction>,
}

/// How many may come in one request.
pub(super) fn check_count(got: usize, what: &str) -> Result<(), Refused> {
    match got <= TOGETHER {
        true => Ok(()),
        false => Err(invalid(format!(
            "{got} {what}, expected at most {TOGETHER}: ask in parts"
        ))),
    }
}

/// What a device is told of what became of its contribution.
fn told(result: Result<(), TallyError>) -> Confided {
    use cells::Refused as Cells;
    match result {
        Ok(()) => Confided::Taken,
        Err(TallyError::Refused(Cells::TooSoon { wait_s, .. })) => Confided::TooSoon { wait_s },
        Err(TallyError::Refused(Cells::Full { .. })) => Confided::Full,
        Err(why @ (TallyError::Refused(_) | TallyError::Bounds(_))) => {
            Confided::Invalid(why.to_string())
        }
        Err(why) => {
            tracing::error!("a contribution is not stored: {why}");
            Confided::Busy
        }
    }
}

impl Service {
    pub(super) fn draw_tickets(&self, handles: &[[u8; 16]], now: u64) -> Answer {
        check_count(handles.len(), "handles")?;
        let handles: Vec<Handle> = handles.iter().map(|h| Handle(*h)).collect();
        match locked(&self.tickets).draw(&handles, now)? {
            Some(tickets) => Ok(TallyReply::Tickets(tickets)),
            None => Err(busy(
                "as many handles have tickets as people may contribute: ask again in some minutes",
            )),
        }
    }

    pub(super) fn bring(&self, all: &[Brought], now: u64) -> Answer {
        check_count(all.len(), "contributions")?;
        let bytes: usize = all.iter().map(|b| b.sealed.envelope.len()).sum();
        let most = codec::limit(TALLY).unwrap_or(0);
        if bytes > most {
            return Err(invalid(format!(
                "{bytes} bytes of envelopes, expected at most {most}: bring fewer together"
            )));
        }
        let opened: Vec<Option<Opened>> = all.par_iter().map(|b| self.read(b, now)).collect();
        let answered = self.take(opened, now);
        let answers: Result<Vec<BringAnswer>, Refused> = answered.into_iter().collect();
        Ok(TallyReply::Answers(answers?))
    }

    /// Opens an envelope and checks what is in it; none: it does not open.
    fn read(&self, brought: &Brought, now: u64) -> Option<Opened> {
        let sealed = &brought.sealed;
        if sealed.envelope.len() > MAX_ENVELOPE {
            return None;
        }
        let aad = bound_to(&brought.handle, &sealed.ticket);
        let opened = {
            let keys = shared(&self.sealing);
            keys.open_envelope(CONTRIBUTION, &aad, &sealed.envelope, ANSWER, now)?
        };
        Some(Opened {
            handle: Handle(brought.handle),
            ticket: sealed.ticket,
            answer: opened.answer,
            body: self.body(&opened.plain).map_err(Confided::Invalid),
        })
    }

    fn body(&self, plain: &[u8]) -> Result<Body, String> {
        let body = unpadded(plain).map_err(|e| e.to_string())?;
        let most = self.lists.clip as usize;
        if body.events.len() > most {
            return Err(format!(
                "{} events, expected at most {most}: contribute the newest",
                body.events.len()
            ));
        }
        lists::check(&body.events).map_err(|e| e.to_string())?;
        let catalogue = self.catalogue();
        let placed = |(at, event): (usize, &SharedEvent)| {
            let item = catalogue.place(&event.item).ok_or_else(|| {
                format!("event {at}: the tally's catalogue has no such item: leave it out")
            })?;
            let SharedEvent {
                day,
                half_stars,
                flags,
                ..
            } = *event;
            Ok(Interaction::of_flags(item, day, half_stars, flags))
        };
        let events: Result<Vec<Interaction>, String> =
            body.events.iter().enumerate().map(placed).collect();
        Ok(Body {
            source: body.source,
            whole: body.whole,
            events: events?,
        })
    }

    /// Spends tickets, and stores what may be stored, in one write.
    fn take(&self, all: Vec<Option<Opened>>, now: u64) -> Vec<Result<BringAnswer, Refused>> {
        let said: Vec<Option<Confided>> = {
            // Nobody leaves between the spending of a ticket and the writing.
            let _nobody_leaves = shared(&self.gate);
            let spent = self.spend(&all, now);
            let offers = offers(&all, &spent);
            let mut results = self.store(&offers, now).into_iter();
            let said = spent.into_iter().map(|spent| match spent? {
                Ok(_) => results.next(),
                Err(why) => Some(why),
            });
            said.collect()
        };
        let answers = all.into_iter().zip(said).map(|(opened, said)| {
            let (Some(opened), Some(said)) = (opened, said) else {
                return Ok(BringAnswer::Unreadable);
            };
            let bytes = said.to_bytes().map_err(|e| failed(&e))?;
            let sealed = opened.answer.seal(&bytes)?;
            Ok(BringAnswer::Sealed(sealed))
        });
        answers.collect()
    }

    /// When the ticket of each was drawn, or why it is not stored; none: it was not opened.
    fn spend(&self, all: &[Option<Opened>], now: u64) -> Vec<Option<Spent>> {
        let mut tickets = locked(&self.tickets);
        let mut spend = |one: &Opened| {
            let drawn = tickets.spend(&one.handle, &one.ticket, now);
            let drawn = drawn.ok_or(Confided::Stale)?;
            one.body.as_ref().map_err(Clone::clone)?;
            Ok(drawn)
        };
        all.iter().map(|one| Some(spend(one.as_ref()?))).collect()
    }

    fn store(&self, offers: &[Allowed<'_>], now: u64) -> Vec<Confided> {
        if offers.is_empty() {
            return vec![];
        }
        match self.tally.contribute_allowed(offers, now) {
            Ok(results) => results.into_iter().map(told).collect(),
            Err(why) => {
                tracing::error!("{} contributions are not stored: {why}", offers.len());
                vec![Confided::Busy; offers.len()]
            }
        }
    }
}

/// When a ticket that was spent was drawn, or why its contribution is not stored.
type Spent = Result<u64, Confided>;

/// What may be stored, in the order in which it came.
fn offers<'a>(all: &'a [Option<Opened>], spent: &[Option<Spent>]) -> Vec<Allowed<'a>> {
    let offer = |(one, spent): (&'a Option<Opened>, &Option<Spent>)| {
        let one = one.as_ref()?;
        let body = one.body.as_ref().ok()?;
        let offer = Offer {
            handle: one.handle,
            source: body.source,
            whole: body.whole,
            events: &body.events,
        };
        // What comes when nobody waits for it any more is of when it was allowed.
        let at = *spent.as_ref()?.as_ref().ok()?;
        Some(Allowed { offer, at })
    };
    all.iter().zip(spent).filter_map(offer).collect()
}
