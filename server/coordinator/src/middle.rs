//! The middle layers: training sessions, and passes on a bounded pool.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use lethe_model::kernels::panels::Compute;
use lethe_model::layout::Layout;
use lethe_model::lora::Adapter;
use lethe_model::segment::Segment;
use lethe_model::split::{LocalMiddle, Middle, SplitSpec, Stage};
use lethe_proto::ids::{Digest, EpochNo, RoundKey, SubjectId};
use lethe_proto::limits::{MAX_TOKENS, RESUME};
use lethe_proto::message::{BatchShape, Refusal};
use lethe_proto::payload::{Payload, WireFormat};
use tokio::sync::Semaphore;

use crate::CoordinatorError;
use crate::batch::Queue;
use crate::quota::{InWork, Shares, enough};
use crate::room::{Place, Room};
use crate::slots::{Slots, Taken};
use crate::strikes::Strikes;
use crate::waiting::{Waiting, Waits};

/// Longest wait of a training forward for memory to be free.
const TAPE_WAIT: Duration = Duration::from_secs(60);

/// Longest time between a training forward and its backward; what the forward keeps is dropped
/// then.
const TAPE_LIFE: Duration = Duration::from_secs(180);

/// Hidden states that wait for a training pass, of all clients together, and the same for lists and
/// layers that are not trained, in MiB: 70 training passes of 800 tokens, or 300 requests for lists
/// of 180.
const WAITING_MIB: usize = 128;

/// Layers of an epoch that could not be loaded are tried again after this time.
const LOAD_AGAIN: Duration = Duration::from_secs(60);

/// How often a wait for a place looks whether one can be taken from somebody.
const LOOK: Duration = Duration::from_millis(250);

/// Places taken away after which a client gets none while all are taken.
const STRIKES: u32 = 3;

/// Most bytes of answers that are kept for clients which may ask again.
const ANSWERS: usize = 256 << 20;

/// Longest wait of a repeated pass for the one before it, and pauses of that wait.
const AGAIN_WAIT: (Duration, Duration) = (Duration::from_secs(60), Duration::from_millis(10));

/// A client's middle adapter during a round; dropped when the round closes, the client sends its
/// update or stays away.
#[derive(Debug)]
pub(crate) struct Session {
    /// Everybody's in this round, unless the recipe gives each client its own.
    start: Arc<Adapter>,
    /// The client's own copy, from its first training pass on: thousands may be asked at once, and
    /// each has one then.
    middle: Option<LocalMiddle>,
    /// Held from a training forward to its backward: what the passes keep in memory is bounded.
    tape: Option<(Place, Instant)>,
    /// Number of the last pass.
    pass: u32,
    /// Its answer, for a client that lost it with its connection.
    answer: Option<Answer>,
    /// Since when the client has no connection.
    gone: Option<Instant>,
}

type At = (RoundKey, SubjectId);
type Answer = (Payload, Instant);
type Places = Mutex<Slots<At, Session>>;

/// A pass in the order of its session.
enum Turn {
    /// It ran already: what it gave.
    Again(Payload),
    Now(Box<Held>),
}

/// A session in use. It returns to its place when dropped, unless a pass failed half-way.
struct Held {
    places: Arc<Places>,
    at: At,
    taken: Option<Taken<Session>>,
}

impl Held {
    fn session(&mut self) -> Result<&mut Session, CoordinatorError> {
        self.taken.as_mut().map(|t| &mut t.content).ok_or_else(lost)
    }

    /// What a pass gave, for this session alone: one that was closed or replaced meanwhile counts
    /// no more.
    fn done(mut self, pass: u32, reply: &Payload) -> Result<(), CoordinatorError> {
        let session = self.session()?;
        (session.pass, session.answer) = (pass, Some((reply.clone(), Instant::now())));
        if !self.put_back() {
            return Err(lost());
        }
        forget_oldest(
            held(&self.places)
                .iter_mut()
                .map(|(_, s)| &mut s.answer)
                .collect(),
            ANSWERS,
        );
        Ok(())
    }

    fn put_back(&mut self) -> bool {
        self.taken
            .take()
            .is_some_and(|t| held(&self.places).put_back(&self.at, t))
    }

    /// Half a pass has run: nothing may go on from here.
    fn spoilt(&mut self) {
        self.taken = None;
        let mut places = held(&self.places);
        // Unless another session has come into its place.
        if places.is_taken(&self.at) {
            places.close(&self.at);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.spoilt();
        } else {
            self.put_back();
        }
    }
}

/// Lets go of the oldest answers when all together have more than `most` bytes: whose client still
/// needs one begins again.
fn forget_oldest(mut answers: Vec<&mut Option<Answer>>, most: usize) {
    let size = |a: &Option<Answer>| a.as_ref().map_or(0, |(p, _)| p.bytes.len());
    let mut total: usize = answers.iter().map(|a| size(a)).sum();
    if total <= most {
        return;
    }
    answers.sort_unstable_by_key(|a| a.as_ref().map(|(_, at)| *at));
    for answer in answers {
        if total <= most / 4 * 3 {
            break;
        }
        total -= size(answer);
        *answer = None;
    }
}

fn held(places: &Places) -> std::sync::MutexGuard<'_, Slots<At, Session>> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What layers an epoch needs: epochs that need the same share them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LayersKey {
    /// The base model.
    pub(crate) model: Digest,
    pub(crate) split: SplitSpec,
    pub(crate) compute: Compute,
    /// The first trained layer of the whole model.
    pub(crate) cut: usize,
}

/// The middle layers of an epoch.
#[derive(Debug)]
struct Layers {
    key: LayersKey,
    segment: Segment,
    /// Scoring passes that wait.
    queue: Queue,
}

/// Layers, sessions and the bound on passes.
#[derive(Debug)]
pub(crate) struct MiddleHost {
    layers: RwLock<BTreeMap<EpochNo, Arc<Layers>>>,
    /// Epochs whose layers could not be loaded, and when that was tried last.
    failed: Mutex<BTreeMap<EpochNo, Instant>>,
    places: Arc<Places>,
    passes: Arc<Semaphore>,
    tapes: Room,
    /// Hidden states of passes that wait for a tape, and of others: neither takes the other's
    /// room.
    training: Waiting,
    scoring: Waiting,
    strikes: Mutex<Strikes>,
    /// What each person has of the passes.
    shares: Shares<SubjectId>,
    /// And of those, gradients.
    backwards: Shares<SubjectId>,
}

impl Layers {
    fn pack(&self, values: &[f32], format: WireFormat) -> Payload {
        Payload::encode(values, self.segment.config().hidden, format)
    }
}

fn lost() -> CoordinatorError {
    CoordinatorError::refuse(
        Refusal::SessionLost,
        "no training session for this round: ask for work again",
    )
}

/// Largest weight of a shard's adapter in a query: the gain of a recipe is at most a few times the
/// number of shards.
const MAX_WEIGHT: f32 = 65_536.0;

/// Refuses weights of a query that are not one for each shard, or out of range.
pub(crate) fn check_weights(omega: &[f32], shards: usize) -> Result<(), CoordinatorError> {
    let within = -MAX_WEIGHT..=MAX_WEIGHT;
    if omega.len() == shards && omega.iter().all(|w| within.contains(w)) {
        return Ok(());
    }
    let got = omega.len();
    Err(CoordinatorError::invalid(format!(
        "{got} weights, expected {shards} from -{MAX_WEIGHT} to {MAX_WEIGHT}, one for each shard"
    )))
}

impl MiddleHost {
    /// `passes` at once, and room for `tapes` training passes with `tape_mib` MiB together.
    pub(crate) fn new(passes: usize, tapes: usize, tape_mib: usize) -> Self {
        Self {
            layers: RwLock::default(),
            failed: Mutex::default(),
            places: Arc::default(),
            passes: Arc::new(Semaphore::new(passes.max(1))),
            tapes: Room::new(tapes, tape_mib),
            training: Waiting::new(WAITING_MIB << 20),
            scoring: Waiting::new(WAITING_MIB << 20),
            strikes: Mutex::default(),
            shares: Shares::of_passes(passes),
            backwards: Shares::of_backwards(),
        }
    }

    /// Begins a pass of somebody: few of one person's are in work at once, and of those that run
    /// half are left to others.
    pub(crate) fn begin(&self, subject: &SubjectId) -> Result<InWork<SubjectId>, CoordinatorError> {
        let begun = self.shares.begin(subject);
        begun.ok_or_else(|| enough("this person's devices have many passes in work"))
    }

    /// Begins a backward of somebody: one, and the same sent again.
    pub(crate) fn begin_backward(
        &self,
        subject: &SubjectId,
    ) -> Result<InWork<SubjectId>, CoordinatorError> {
        let begun = self.backwards.begin(subject);
        begun.ok_or_else(|| enough("this person's devices have several gradients in work"))
    }

    /// Room for the `values` that a pass of somebody runs over, until it has been run. Who finds
    /// none is told to come back: passes may wait for each other, so they do not wait for this.
    pub(crate) fn hold(
        &self,
        subject: &SubjectId,
        needs_tape: bool,
        values: usize,
    ) -> Result<Waits, CoordinatorError> {
        let waiting = if needs_tape {
            &self.training
        } else {
            &self.scoring
        };
        let held = waiting.hold(subject, values * size_of::<f32>());
        held.ok_or_else(|| enough("too many hidden states wait for the middle layers"))
    }

    /// Has the layers of an epoch from now on: those of another epoch that needs the same, or what
    /// `load` gives.
    pub(crate) fn host(
        &self,
        epoch: EpochNo,
        key: LayersKey,
        load: impl FnOnce() -> Result<Segment, CoordinatorError>,
    ) -> Result<(), CoordinatorError> {
        let known = self.with_key(&key);
        let layers = match known {
            Some(layers) => layers,
            None => Arc::new(Layers {
                key,
                segment: load()?,
                queue: Queue::default(),
            }),
        };
        self.all_layers_alone().insert(epoch, layers);
        Ok(())
    }

    /// Whether it has the layers of an epoch.
    pub(crate) fn hosts(&self, epoch: EpochNo) -> bool {
        self.all_layers().contains_key(&epoch)
    }

    /// Whether layers that an epoch lacks are to be loaded now: a file that cannot be read is not
    /// read again with each event.
    pub(crate) fn may_load(&self, epoch: EpochNo) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed
            .get(&epoch)
            .is_none_or(|at| at.elapsed() >= LOAD_AGAIN)
    }

    /// The layers of an epoch could not be loaded.
    pub(crate) fn load_failed(&self, epoch: EpochNo) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.insert(epoch, Instant::now());
    }

    fn with_key(&self, key: &LayersKey) -> Option<Arc<Layers>> {
        let all = self.all_layers();
        all.values().find(|l| l.key == *key).cloned()
    }

    /// Lets go of the layers of epochs that are not alive any more.
    pub(crate) fn keep(&self, alive: impl Fn(EpochNo) -> bool) {
        let dead = |no: &EpochNo| !alive(*no);
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|no, _| alive(*no));
        drop(failed);
        if self.all_layers().keys().any(dead) {
            self.all_layers_alone().retain(|no, _| alive(*no));
        }
    }

    // They are as good after a panic: an epoch has its layers, or has not.
    fn all_layers(&self) -> RwLockReadGuard<'_, BTreeMap<EpochNo, Arc<Layers>>> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_layers_alone(&self) -> RwLockWriteGuard<'_, BTreeMap<EpochNo, Arc<Layers>>> {
        self.layers.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn layers(&self, epoch: EpochNo) -> Result<Arc<Layers>, CoordinatorError> {
        let known = self.all_layers().get(&epoch).cloned();
        known.ok_or_else(|| {
            let message = format!("{epoch} has ended: ask for the epochs that are alive");
            CoordinatorError::refuse(Refusal::RoundClosed, message)
        })
    }

    fn strikes(&self) -> std::sync::MutexGuard<'_, Strikes> {
        // Counts only: they are as good after a panic.
        self.strikes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for the activations of a training pass. While somebody waits, a place goes from the
    /// client that has kept its own longest without a backward, beyond its grace.
    async fn tape(&self, subject: &SubjectId, bytes: usize) -> Result<Place, CoordinatorError> {
        if let Some(place) = self.tapes.try_take(bytes) {
            return Ok(place);
        }
        self.drop_tapes_of_gone();
        if self.strikes().of(subject) >= STRIKES {
            let message = "all places for training are taken, and this client kept its own \
                           without going on: try again later";
            return Err(CoordinatorError::refuse(Refusal::Busy, message));
        }
        let busy =
            || CoordinatorError::refuse(Refusal::Busy, "too many clients train at once: try again");
        let until = tokio::time::Instant::now() + TAPE_WAIT;
        let place = self.tapes.take(bytes);
        tokio::pin!(place);
        loop {
            tokio::select! {
                place = &mut place => return Ok(place),
                () = tokio::time::sleep(LOOK) => {
                    self.drop_tapes_of_gone();
                    self.take_one_away();
                }
            }
            if tokio::time::Instant::now() > until {
                return Err(busy());
            }
        }
    }

    /// Ends the session that has kept its place longest, if it is beyond its grace.
    fn take_one_away(&self) {
        let mut strikes = self.strikes();
        let mut slots = self.slots();
        let beyond = |(at, s): (&At, &mut Session)| {
            let since = s.tape.as_ref()?.1;
            (since.elapsed() > strikes.grace(&at.1)).then(|| (since, at.clone()))
        };
        let oldest = slots
            .iter_mut()
            .filter_map(beyond)
            .min_by_key(|(since, _)| *since);
        if let Some((_, at)) = oldest {
            // Whose it was, a log has no need to say.
            tracing::info!(round = ?at.0, "a training pass without its backward made room");
            slots.close(&at);
            strikes.add(&at.1);
        }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots<At, Session>> {
        held(&self.places)
    }

    /// Opens (or restarts) a subject's session with the round's middle adapter.
    pub(crate) fn open(&self, round: RoundKey, subject: &SubjectId, start: Arc<Adapter>) {
        let session = Session {
            start,
            middle: None,
            tape: None,
            pass: 0,
            answer: None,
            gone: None,
        };
        self.slots().open((round, subject.clone()), session);
    }

    fn take(&self, at: &At) -> Result<Taken<Session>, CoordinatorError> {
        self.slots().take(at).ok_or_else(lost)
    }

    /// Takes a session for its next pass. A pass that is sent again waits for itself.
    async fn turn(&self, at: &At, pass: u32) -> Result<Turn, CoordinatorError> {
        let (until, pause) = (Instant::now() + AGAIN_WAIT.0, AGAIN_WAIT.1);
        let taken = loop {
            let waits = {
                let mut slots = self.slots();
                match slots.take(at) {
                    Some(taken) => break taken,
                    None => slots.is_taken(at) && Instant::now() < until,
                }
            };
            if !waits {
                return Err(lost());
            }
            tokio::time::sleep(pause).await;
        };
        let mut held = Held {
            places: self.places.clone(),
            at: at.clone(),
            taken: Some(taken),
        };
        let session = held.session()?;
        session.gone = None;
        match &session.answer {
            Some((reply, _)) if session.pass == pass => Ok(Turn::Again(reply.clone())),
            _ if session.pass.checked_add(1) == Some(pass) => Ok(Turn::Now(Box::new(held))),
            _ => Err(lost()),
        }
    }

    /// Ends a session: the change of the middle adapter, flat.
    pub(crate) fn finish(
        &self,
        round: RoundKey,
        subject: &SubjectId,
    ) -> Result<Vec<f32>, CoordinatorError> {
        let at = (round, subject.clone());
        let Session { start, middle, .. } = self.take(&at)?.content;
        self.slots().close(&at);
        Ok(match middle {
            Some(m) => m
                .adapter
                .data
                .iter()
                .zip(&start.data)
                .map(|(a, b)| a - b)
                .collect(),
            None => vec![0.0; start.data.len()],
        })
    }

    /// The sessions that are open.
    pub(crate) fn open_sessions(&self) -> Vec<At> {
        self.slots().keys()
    }

    /// Drops a session; a pass that works on it loses its result.
    pub(crate) fn close(&self, round: RoundKey, subject: &SubjectId) {
        self.slots().close(&(round, subject.clone()));
    }

    /// A client has no connection: its sessions wait for it for a while, if nobody needs what they
    /// keep.
    pub(crate) fn gone(&self, subject: &SubjectId) {
        let now = Instant::now();
        self.slots()
            .iter_mut()
            .filter(|((_, s), _)| s == subject)
            .for_each(|(_, s)| s.gone = Some(now));
    }

    /// Somebody needs the room for activations that clients have which are gone.
    fn drop_tapes_of_gone(&self) {
        self.slots()
            .retain(|_, s| !s.is_some_and(|s| s.gone.is_some() && s.tape.is_some()));
    }

    /// Drops sessions whose backward has not come in time, or whose client stays away: what they
    /// keep is needed by others.
    pub(crate) fn expire(&self) {
        let late = |s: &Session| {
            s.tape
                .as_ref()
                .is_some_and(|(_, since)| since.elapsed() > TAPE_LIFE)
                || s.gone.is_some_and(|since| since.elapsed() > RESUME)
        };
        self.slots().retain(|_, session| !session.is_some_and(late));
        self.strikes().forgive();
    }

    /// Layout and hidden values of a request, within all limits.
    pub(crate) fn unpack(
        &self,
        epoch: EpochNo,
        shape: BatchShape,
        hidden: &Payload,
    ) -> Result<(Layout, Vec<f32>), CoordinatorError> {
        let layout = Layout {
            prefix: shape.prefix,
            lens: shape.lens,
        };
        let invalid = |e: String| CoordinatorError::refuse(Refusal::Invalid, e);
        let layers = self.layers(epoch)?;
        let config = layers.segment.config();
        layout
            .check(MAX_TOKENS, config.max_positions)
            .map_err(invalid)?;
        let x = hidden
            .decode(layout.rows(), config.hidden)
            .map_err(|e| invalid(e.to_string()))?;
        if x.iter().any(|v| !v.is_finite()) {
            return Err(CoordinatorError::refuse(
                Refusal::Invalid,
                "hidden states hold values that are not finite",
            ));
        }
        Ok((layout, x))
    }

    async fn pass<T: Send + 'static>(
        &self,
        subject: &SubjectId,
        f: impl FnOnce() -> Result<T, CoordinatorError> + Send + 'static,
    ) -> Result<T, CoordinatorError> {
        let failed = |e: String| CoordinatorError::refuse(Refusal::Internal, e);
        let share = self.shares.run(subject).await;
        let permit = self
            .passes
            .clone()
            .acquire_owned()
            .await
            .map_err(|e| failed(e.to_string()))?;
        tokio::task::spawn_blocking(move || {
            let _share = share;
            let _permit = permit;
            f()
        })
        .await
        .map_err(|e| failed(format!("a pass failed: {e}")))?
    }

    /// Scores with an adapter that was mixed for the query (or the untuned model).
    pub(crate) async fn score(
        &self,
        epoch: EpochNo,
        subject: &SubjectId,
        layout: Layout,
        hidden: Vec<f32>,
        adapter: Option<Adapter>,
        format: WireFormat,
    ) -> Result<Payload, CoordinatorError> {
        let layers = self.layers(epoch)?;
        let _share = self.shares.run(subject).await;
        let out = layers
            .queue
            .run(&layers.segment, &self.passes, layout, hidden, adapter)
            .await?;
        Ok(layers.pack(&out, format))
    }

    /// The layers below the first trained one.
    pub(crate) async fn frozen(
        &self,
        epoch: EpochNo,
        subject: &SubjectId,
        layout: Layout,
        hidden: Vec<f32>,
        format: WireFormat,
    ) -> Result<Payload, CoordinatorError> {
        let layers = self.layers(epoch)?;
        let below = layers.segment.part(0..layers.key.cut);
        let out = self
            .pass(subject, move || Ok(below.forward(&layout, hidden, None)?))
            .await?;
        Ok(layers.pack(&out, format))
    }

    /// Runs a pass of a session and keeps its answer.
    async fn session_pass(
        &self,
        pass: u32,
        mut held: Box<Held>,
        f: impl FnOnce(&mut Session) -> Result<Payload, CoordinatorError> + Send + 'static,
    ) -> Result<Payload, CoordinatorError> {
        let subject = held.at.1.clone();
        self.pass(&subject, move || match f(held.session()?) {
            Ok(reply) => held.done(pass, &reply).map(|()| reply),
            Err(e) => {
                held.spoilt();
                Err(e)
            }
        })
        .await
    }

    /// Forward pass of a training batch.
    pub(crate) async fn forward(
        &self,
        at: At,
        pass: u32,
        layout: Layout,
        hidden: Vec<f32>,
        format: WireFormat,
    ) -> Result<Payload, CoordinatorError> {
        let layers = self.layers(at.0.epoch)?;
        let segment = layers.segment.clone();
        let width = segment.config().hidden;
        let trained = segment.part(layers.key.cut..usize::MAX);
        let bytes = trained.tape_bytes(layout.rows());
        // What a forward without its backward kept is given back before the wait for a place.
        match self.turn(&at, pass).await? {
            Turn::Again(reply) => return Ok(reply),
            Turn::Now(mut held) => {
                let session = held.session()?;
                if let Some(middle) = &mut session.middle {
                    middle.drop_tape();
                }
                session.tape = None;
            }
        }
        let place = self.tape(&at.1, bytes).await?;
        let held = match self.turn(&at, pass).await? {
            Turn::Again(reply) => return Ok(reply),
            Turn::Now(held) => held,
        };
        self.session_pass(pass, held, move |session| {
            session.tape = Some((place, Instant::now()));
            let Session { start, middle, .. } = session;
            let middle =
                middle.get_or_insert_with(|| LocalMiddle::new(segment, Adapter::clone(start)));
            let out = middle.forward(&layout, hidden, Stage::Train)?;
            Ok(Payload::encode(&out, width, format))
        })
        .await
    }

    /// Backward pass of the last training batch; with `step`, one gradient step at rate `lr`
    /// follows.
    pub(crate) async fn backward(
        &self,
        at: At,
        pass: u32,
        grad: Payload,
        step: Option<f32>,
    ) -> Result<Payload, CoordinatorError> {
        let mut held = match self.turn(&at, pass).await? {
            Turn::Again(reply) => return Ok(reply),
            Turn::Now(held) => held,
        };
        let layers = self.layers(at.0.epoch)?;
        let width = layers.segment.config().hidden;
        let rows = held
            .session()?
            .middle
            .as_ref()
            .and_then(LocalMiddle::pending_rows)
            .unwrap_or(0);
        let format = grad.format;
        // Nobody below is trained: no gradient is sent.
        let needed = layers.key.cut < layers.segment.range().start;
        let decoded = grad.decode(rows, width);
        // Once is enough.
        drop(grad);
        let grad =
            decoded.map_err(|e| CoordinatorError::refuse(Refusal::Invalid, e.to_string()))?;
        let subject = at.1.clone();
        let reply = self.session_pass(pass, held, move |session| {
            let middle = session.middle.as_mut().ok_or_else(lost)?;
            let mut out = middle.backward(grad)?;
            if !needed {
                out.clear();
            }
            session.tape = None;
            if let Some(lr) = step {
                middle.descend(lr);
            }
            Ok(Payload::encode(&out, width, format))
        });
        let reply = reply.await?;
        self.strikes().less(&subject);
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_the_middle_layers_has_a_bound() {
        let host = MiddleHost::new(1, 1, 1);
        let subject = SubjectId::new("a").expect("an id");
        let all = (WAITING_MIB << 20) / size_of::<f32>();
        let trains = host.hold(&subject, true, all).expect("there is room");
        let refused = host.hold(&subject, true, 1).expect_err("it is full");
        assert!(refused.to_string().contains("try again"), "{refused}");
        assert!(
            host.hold(&subject, false, 1).is_ok(),
            "lists have their own"
        );
        drop(trains);
        assert!(
            host.hold(&subject, true, 1).is_ok(),
            "the pass has been run"
        );
    }

    #[test]
    fn the_oldest_answers_go_first() {
        let now = Instant::now();
        let answer = |n| {
            Some((
                Payload::encode(&[0.0; 25], 25, WireFormat::F32),
                now + Duration::from_secs(n),
            ))
        };
        let mut answers: Vec<Option<Answer>> =
            [3, 0, 7, 1, 6, 2, 5, 4].into_iter().map(answer).collect();
        forget_oldest(answers.iter_mut().collect(), 800);
        assert!(answers.iter().all(Option::is_some));
        forget_oldest(answers.iter_mut().collect(), 400);
        let left: Vec<u64> = answers
            .iter()
            .flatten()
            .map(|(_, at)| (*at - now).as_secs())
            .collect();
        assert_eq!(left, [7, 6, 5]);
    }
}
