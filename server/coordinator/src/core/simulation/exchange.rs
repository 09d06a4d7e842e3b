//! What the listener does with a request, as in `coordinator.rs`, without sessions and sockets.

use lethe_model::lora::Adapter;
use lethe_proto::ids::SubjectId;
use lethe_proto::message::{Reply, Request, Task};
use tokio::sync::oneshot;

use crate::CoordinatorError;
use crate::arrivals::Arrived;
use crate::core::updates::{Sent, store_updates};
use crate::core::{Core, Work};
use crate::records::Update;

/// The answer to a device.
pub(super) fn answer(
    core: &mut Core,
    subject: &SubjectId,
    request: Request,
    now: u64,
) -> Result<Reply, CoordinatorError> {
    match request {
        Request::Join {
            anchor,
            samples,
            commitment,
        } => {
            let (shard, commitment) = core.join(subject, anchor, samples, commitment)?;
            Ok(Reply::Joined { shard, commitment })
        }
        Request::Poll => {
            let task = match core.next_work(subject, now)? {
                Some(Work::Task(task)) => task,
                Some(Work::Train(start, _)) => Task::Train(start),
                None => Task::Wait,
            };
            let recalled = core.recalled;
            Ok(Reply::Task { task, recalled })
        }
        Request::Orders { task, seen } => core.orders(subject, task, seen).map(Reply::Orders),
        Request::Update {
            round,
            delta,
            loss,
            samples,
        } => {
            if core.holds(round, subject) {
                return Ok(Reply::Ack);
            }
            core.expects(round, subject, now)?;
            let (recipe, whole) = (core.recipe.clone(), core.whole());
            let sent = Sent {
                device: delta,
                middle: middle(core),
                loss,
                samples,
                joined: core.joined_samples(subject),
            };
            let update = Update::checked(&recipe, &whole, round, sent)?;
            let contribution = update.contribution(&recipe, &whole)?;
            let (answer, _) = oneshot::channel();
            let arrived = Arrived {
                round,
                subject: subject.clone(),
                update,
                contribution,
                answer,
                place: None,
            };
            let admitted = core.admit_updates(vec![arrived], now);
            let mut answers = admitted.answers;
            if !admitted.taken.is_empty() {
                let stored = store_updates(&admitted.store, &admitted.taken);
                answers.extend(core.updates_stored(admitted.taken, stored, now));
            }
            answers
                .into_iter()
                .next()
                .map_or(Ok(()), |(_, a)| a)
                .map(|()| Reply::Ack)
        }
        Request::Decline { round, .. } => {
            core.declined(round, subject, now);
            Ok(Reply::Ack)
        }
        Request::Errors { release, rows } => core
            .take_errors(subject, release, rows)
            .map(|()| Reply::Ack),
        Request::Erased { task, outcome } => {
            core.erased(subject, task, &outcome).map(|()| Reply::Ack)
        }
        other => panic!("devices do not send {other:?}"),
    }
}

/// The middle part of every update: that of a session without passes.
pub(super) fn middle(core: &Core) -> Vec<f32> {
    let whole = Adapter::from_data(&core.shape, vec![0.0; core.shape.len()]).expect("fits");
    whole
        .select(|l| !core.whole().on_device(&core.recipe, l))
        .data
}

/// A request in a few words.
pub(super) fn kind(request: &Request) -> String {
    match request {
        Request::Update { round, .. } => format!("update {round:?}"),
        Request::Join { .. } => "join".into(),
        Request::Errors { release, .. } => format!("errors of {release}"),
        other => format!("{other:?}"),
    }
}

/// An answer in a few words.
pub(super) fn brief(reply: &Reply) -> String {
    match reply {
        Reply::Task {
            task: Task::Train(s),
            ..
        } => format!("train {:?}", s.round),
        // Salts and proofs are drawn at random.
        Reply::Orders(o) => format!("{} orders", o.orders.len()),
        Reply::Refused { code, message } => format!("refused {code:?}: {message}"),
        Reply::Joined { shard, .. } => format!("joined {shard:?}"),
        other => format!("{other:?}"),
    }
}
