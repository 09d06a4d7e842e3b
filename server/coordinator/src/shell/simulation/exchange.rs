//! What the listener does with a request, as in `handlers.rs`, without sessions and sockets.

use lethe_ledger::{Command, Work};
use lethe_model::lora::Adapter;
use lethe_proto::epochs::{Awaited, JoinedEpoch};
use lethe_proto::ids::Digest;
use lethe_proto::lists::{ListState, Watched};
use lethe_proto::message::{
    Refusal, ReleaseInfo, Reply, Request, Role, RoundStart, ServedAdapter, Task,
};
use lethe_proto::packed::Packed;
use tokio::sync::oneshot::{self, Receiver};

use super::super::{Kit, Shell, fresh};
use super::masked;
use crate::CoordinatorError;
use crate::arrivals::{Arrived, Fetch};
use crate::content::Update;
use crate::rounds::Sent;

/// What became of something that is written together with others.
type Written = Receiver<Result<(), CoordinatorError>>;

/// The answer to a device.
pub(super) enum Answer {
    Now(Reply),
    /// It waits until what came with others is stored.
    Stores(Box<Arrived>, Written),
    /// It waits until it is written down who holds the release, which has these parts.
    Fetches(Fetch, Vec<ServedAdapter>, Written),
}

/// Answers a device.
pub(super) fn answer(shell: &Shell, device: Digest, request: Request) -> Answer {
    let answered = match request {
        Request::Update { .. } => return update(shell, device, request),
        Request::Release { have, .. } => return release(shell, device, have),
        other => at_once(shell, device, other),
    };
    Answer::Now(answered.unwrap_or_else(CoordinatorError::reply))
}

fn at_once(shell: &Shell, device: Digest, request: Request) -> Result<Reply, CoordinatorError> {
    let command = match request {
        Request::Await { .. } => return poll(shell, device),
        Request::Orders { task, seen } => {
            let evidence = shell.evidence();
            let orders = evidence.orders(&shell.state(), &device, task, seen)?;
            return Ok(Reply::Orders(orders));
        }
        Request::Hello { .. } => Command::Hello { device },
        Request::JoinEpoch {
            epoch,
            anchor,
            samples,
            commitment,
        } => {
            let command = Command::Join {
                device,
                epoch,
                anchor,
                samples,
                commitment,
                fresh: fresh()?,
            };
            shell.execute(command, vec![])?;
            let state = shell.state();
            let (shard, commitment) = state.joined(&device, epoch, commitment)?;
            let who = state.holder(&device).ok_or_else(unknown)?;
            return Ok(Reply::JoinedEpoch(JoinedEpoch {
                shard,
                commitment,
                trains: state.trains_from(&who.subject),
            }));
        }
        Request::Decline { round, .. } => Command::Decline { device, round },
        Request::Erased { task, outcome } => Command::Erased {
            device,
            task,
            outcome,
        },
        Request::Errors { release, rows } => {
            let Some(Role::Subject(subject)) = shell.state().role(&device) else {
                return Err(unknown());
            };
            let values = shell.merge_rows(&subject, &rows)?;
            let command = Command::Errors {
                device,
                release,
                rows,
                values: values.iter().map(|(s, v)| (*s, v.at.clone())).collect(),
            };
            let values = values.into_iter().map(|(_, v)| v).collect();
            shell.execute(command, values)?;
            return Ok(Reply::Ack);
        }
        other => panic!("devices do not send {other:?}"),
    };
    shell.execute(command, vec![])?;
    Ok(Reply::Ack)
}

fn unknown() -> CoordinatorError {
    CoordinatorError::refuse(Refusal::Forbidden, "unknown")
}

fn poll(shell: &Shell, device: Digest) -> Result<Reply, CoordinatorError> {
    let work = shell.state().work_for(&device, shell.clock.now());
    let task = match work {
        None => Task::Wait,
        Some(Work::Erase { task }) => Task::Erase { task },
        Some(Work::Validate { release, shards }) => Task::Validate { release, shards },
        Some(Work::Train {
            run,
            counted,
            seed,
            deadline_ms,
            ..
        }) => {
            let Some(Role::Subject(subject)) = shell.state().role(&device) else {
                return Err(unknown());
            };
            let kit = shell.kit(run.epoch)?;
            let start = shell.start_for(&run, &kit, &subject)?;
            shell.offer(device, run)?;
            Task::Train(RoundStart {
                round: run.wire(),
                adapter: Packed::clone(&start.device),
                counted,
                seed: seed.0,
                deadline_ms,
            })
        }
    };
    let recalled = shell.state().recalled();
    Ok(Reply::Awaited(Awaited {
        watched: Watched {
            task,
            recalled,
            lists: ListState::default(),
        },
        newest: shell.joining()?,
    }))
}

fn update(shell: &Shell, device: Digest, request: Request) -> Answer {
    match checked(shell, device, request) {
        Ok(None) => Answer::Now(Reply::Ack),
        Ok(Some((arrived, written))) => Answer::Stores(Box::new(arrived), written),
        Err(e) => Answer::Now(e.reply()),
    }
}

/// None: it is stored already.
fn checked(
    shell: &Shell,
    device: Digest,
    request: Request,
) -> Result<Option<(Arrived, Written)>, CoordinatorError> {
    let Request::Update {
        round,
        delta,
        loss,
        samples,
    } = request
    else {
        panic!("this is no update");
    };
    let Some(Role::Subject(subject)) = shell.state().role(&device) else {
        return Err(unknown());
    };
    if shell.state().holds(round, &subject) {
        return Ok(None);
    }
    let now = shell.clock.now();
    shell.state().expects(round, &subject, now)?;
    let over = || CoordinatorError::refuse(Refusal::RoundClosed, "the round is over");
    let run = shell.state().run_of_wire(round).ok_or_else(over)?;
    let kit = shell.kit(run.epoch)?;
    let delta = match kit.recipe.grid() {
        Some(grid) => {
            let update = masked::Own {
                delta,
                loss,
                samples,
            };
            masked::mask(shell, &kit, &grid, round, &subject, update)?
        }
        None => delta,
    };
    let sent = Sent {
        device: delta,
        middle: middle(&kit),
        loss,
        samples,
        joined: shell.state().joined_samples(&run, &subject),
    };
    let update = Update::checked(&kit.recipe, &kit.whole, round, sent)?;
    let contribution = update.contribution(&kit.recipe, &kit.whole)?;
    let (to, written) = oneshot::channel();
    let arrived = Arrived::new(run, subject, update, contribution, to);
    Ok(Some((arrived, written)))
}

fn release(shell: &Shell, device: Digest, have: Option<u64>) -> Answer {
    fetched(shell, device, have).unwrap_or_else(|e| Answer::Now(e.reply()))
}

fn fetched(shell: &Shell, device: Digest, have: Option<u64>) -> Result<Answer, CoordinatorError> {
    let served = shell.served()?;
    let Some(Role::Subject(subject)) = shell.state().role(&device) else {
        return Err(unknown());
    };
    let parts = shell.parts_for(&served, &subject)?;
    let adapters = parts.iter().filter(|_| have != Some(served.release));
    let adapters = adapters.map(|p| ServedAdapter::New(Packed::clone(&p.device)));
    let adapters = adapters.collect();
    if shell.state().has_fetched(&device, served.release) {
        return Ok(Answer::Now(given(shell, device, served.release, adapters)?));
    }
    let (to, written) = oneshot::channel();
    let fetch = Fetch {
        certificate: device,
        release: served.release,
        answer: to,
    };
    Ok(Answer::Fetches(fetch, adapters, written))
}

/// The release, now that it is written down who holds it.
pub(super) fn given(
    shell: &Shell,
    device: Digest,
    release: u64,
    adapters: Vec<ServedAdapter>,
) -> Result<Reply, CoordinatorError> {
    let state = shell.state();
    // A deletion may have withdrawn it meanwhile.
    state.current(release)?;
    // Of who enrolled and has not joined, nothing is written down.
    let joined = state
        .holder(&device)
        .and_then(|h| state.profile(&h.subject));
    let known = joined.is_none() || state.has_fetched(&device, release);
    assert!(
        known,
        "{release} is given out, and that is not written down"
    );
    Ok(Reply::Release(ReleaseInfo {
        release,
        lineage: state.core().numbers.deletion,
        valid_s: state.rules().release_hours * 3600,
        adapters,
    }))
}

/// The middle part of every update: that of a session without passes.
pub(super) fn middle(kit: &Kit) -> Vec<f32> {
    let zeros = vec![0.0; kit.whole.shape.len()];
    let whole = Adapter::from_data(&kit.whole.shape, zeros).unwrap();
    whole.select(|l| !kit.whole.on_device(&kit.recipe, l)).data
}

/// A request in a few words.
pub(super) fn kind(request: &Request) -> String {
    match request {
        Request::Update { round, .. } => format!("update {round:?}"),
        Request::JoinEpoch { epoch, .. } => format!("join {epoch}"),
        Request::Await { newest, .. } => format!("await, knows {newest}"),
        Request::Errors { release, .. } => format!("errors of {release}"),
        Request::Hello { .. } => "hello".into(),
        other => format!("{other:?}"),
    }
}

/// An answer in a few words.
pub(super) fn brief(reply: &Reply) -> String {
    match reply {
        Reply::Awaited(Awaited {
            watched:
                Watched {
                    task: Task::Train(s),
                    ..
                },
            ..
        }) => format!("train {:?}", s.round),
        Reply::Awaited(a) => format!("{:?}, {}", a.watched.task, a.newest),
        // Salts and proofs are drawn at random.
        Reply::Orders(o) => format!("{} orders", o.orders.len()),
        Reply::Refused { code, message } => format!("refused {code:?}: {message}"),
        Reply::JoinedEpoch(j) => format!("joined {:?}, trains {:?}", j.shard, j.trains),
        Reply::Release(info) => format!("release {} ({})", info.release, info.adapters.len()),
        other => format!("{other:?}"),
    }
}
