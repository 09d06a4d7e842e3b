//! One handler for each request. A handler reads the state, or asks the ledger to decide; passes
//! over the model, checks of updates and all arithmetic happen without a lock.

use lethe_ledger::{Command, Work};
use lethe_proto::ids::{Digest, EpochNo, RoundKey, SubjectId};
use lethe_proto::limits::{MAX_POLL_WAIT, MINOR};
use lethe_proto::lists::{Contributed, ListState, ServedTables, SnapshotReply, Watched};
use lethe_proto::message::{
    Erased, ErrorReport, Refusal, ReleaseInfo, Reply, Request, Role, RoundStart, ServedAdapter,
    Task,
};
use lethe_proto::packed::Packed;
use lethe_proto::tally::SealedContribution;
use lethe_recipe::Combination;

use crate::CoordinatorError;
use crate::content::Update;
use crate::coordinator::{Coordinator, aside};
use crate::epochs::Joining;
use crate::passes::{Gradient, Pass};
use crate::quota::Pace;
use crate::rounds::Sent;

/// What came with a request: whose it is, and its length.
#[derive(Clone, Copy)]
pub(crate) struct Envelope {
    pub(crate) certificate: Option<Digest>,
    pub(crate) bytes: usize,
}

/// A device that asks: its certificate, and whose it is.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) certificate: Digest,
    pub(crate) subject: SubjectId,
}

/// Minor version from which clients know that there are several epochs.
const EPOCHS: u16 = 5;

fn forbidden() -> CoordinatorError {
    CoordinatorError::refuse(
        Refusal::Forbidden,
        "this certificate has no right to this request: enrol, or use an admin identity",
    )
}

pub(crate) fn no_lists() -> CoordinatorError {
    CoordinatorError::invalid("this coordinator has no lists: set `sums` in its configuration")
}

impl Coordinator {
    /// Answers a request of anybody.
    pub(crate) async fn answer(
        &self,
        envelope: Envelope,
        request: Request,
    ) -> Result<Reply, CoordinatorError> {
        let Some(certificate) = envelope.certificate else {
            return match request {
                Request::Enrol {
                    token,
                    csr,
                    subject,
                } => self.enrol(&token, &csr, subject).await,
                _ => Err(forbidden()),
            };
        };
        let role = self.shell().state().who(&certificate)?;
        if let Some(pace) = Pace::of(&request) {
            self.paces().turn(certificate, pace).await?;
        }
        match (role, request) {
            (Some(role), Request::Renew { csr }) => self.renew(role, certificate, &csr).await,
            (Some(Role::Admin), Request::Admin(request)) => {
                let this = self.clone();
                let _place = self.heavy(&request, &certificate)?;
                aside(move || this.admin(request, certificate)).await
            }
            (Some(Role::Subject(subject)), request) => {
                let device = Device {
                    certificate,
                    subject,
                };
                self.answer_device(device, request, envelope.bytes).await
            }
            _ => Err(forbidden()),
        }
    }

    async fn answer_device(
        &self,
        device: Device,
        request: Request,
        bytes: usize,
    ) -> Result<Reply, CoordinatorError> {
        match request {
            Request::Hello { model, minor, .. } => self.hello(&device, model, minor).await,
            Request::Join {
                anchor,
                samples,
                commitment,
            } => {
                let asks = Joining {
                    anchor,
                    samples,
                    commitment,
                };
                self.join(&device, asks).await
            }
            Request::Poll => self.poll(&device).await,
            Request::Forward {
                purpose,
                shape,
                hidden,
            } => {
                let pass = Pass {
                    purpose,
                    shape,
                    hidden,
                };
                self.forward(device, pass, bytes).await
            }
            Request::Backward {
                round,
                pass,
                grad,
                step,
            } => {
                let gradient = Gradient {
                    round,
                    pass,
                    grad,
                    step,
                };
                self.backward(device, gradient, bytes).await
            }
            Request::Update {
                round,
                delta,
                loss,
                samples,
            } => {
                let sent = Sent {
                    device: delta,
                    middle: vec![],
                    loss,
                    samples,
                    joined: 0,
                };
                self.update(device, round, sent, bytes).await
            }
            Request::Release { have, adapters } => {
                self.one_recipe_only()?;
                let release = self.release(&device, have, &adapters).await?;
                Ok(Reply::Release(release))
            }
            Request::Served { have, adapters } => {
                self.served_release(&device, have, &adapters).await
            }
            Request::Epochs => self.epochs(),
            Request::JoinEpoch {
                epoch,
                anchor,
                samples,
                commitment,
            } => {
                let asks = Joining {
                    anchor,
                    samples,
                    commitment,
                };
                self.join_epoch(&device, epoch, asks).await
            }
            Request::Await { lists, newest } => self.await_news(&device, lists, newest).await,
            Request::Lacks { epoch, lacks } => self.lacks(&device, epoch, lacks).await,
            Request::Weigh { embedding } => self.weigh(&embedding),
            Request::Errors { release, rows } => self.errors(&device, release, rows).await,
            Request::Erased { task, outcome } => self.erased(&device, task, outcome).await,
            Request::Orders { task, seen } => {
                // Whoever writes to the log waits for the disk.
                let this = self.clone();
                aside(move || this.orders(&device, task, seen)).await
            }
            Request::Decline { round, why } => {
                tracing::debug!(?round, ?why, "declined");
                self.decline(&device, round).await
            }
            Request::Contribute(brought) => self.contribute(&device, brought).await,
            Request::Uncontribute => self.uncontribute(&device).await,
            Request::Terms => self.sealing_terms(&device).await,
            Request::ContributeSealed(sealed) => self.contribute_sealed(&device, sealed).await,
            Request::Snapshot { have, items } => {
                // A snapshot is copied.
                let this = self.clone();
                aside(move || Ok(Reply::Snapshot(this.snapshot(have, &items)))).await
            }
            Request::Catalogue { have, at } => {
                // It is signed, which takes the lock of the log.
                let this = self.clone();
                let page = move || this.shell().catalogue_for(&have, at);
                aside(move || page().map(Reply::Catalogue)).await
            }
            Request::OrdersSince { deletion, seen } => {
                let this = self.clone();
                aside(move || this.orders_since(&device, deletion, seen)).await
            }
            Request::Standing => {
                let standing = self.shell().state().standing(&device.certificate)?;
                Ok(Reply::Standing(standing))
            }
            Request::Logged { of, seen } => {
                let this = self.clone();
                aside(move || this.shell().proven(of, seen).map(Reply::Logged)).await
            }
            Request::LogKeys => {
                let this = self.clone();
                aside(move || Ok(Reply::LogKeys(this.shell().evidence().changes()))).await
            }
            Request::Watch { lists } => Ok(Reply::Watched(self.watch(&device, lists).await?)),
            Request::Enrol { .. }
            | Request::Renew { .. }
            | Request::Admin(_)
            | Request::Tally(_) => Err(CoordinatorError::refuse(
                Refusal::Forbidden,
                "not with a subject's certificate",
            )),
        }
    }

    async fn enrol(
        &self,
        token: &str,
        csr: &[u8],
        device_of: Option<SubjectId>,
    ) -> Result<Reply, CoordinatorError> {
        // Signed first; a certificate that is refused is known to nobody, and opens nothing.
        let signed = self.sign(csr)?;
        let command = Command::Enrol {
            secret: secret_key(token),
            certificate: signed.fingerprint,
            expires: signed.expires,
            device_of,
        };
        self.decide(command, vec![]).await?;
        let subject = match self.shell().state().role(&signed.fingerprint) {
            Some(Role::Subject(s)) => Some(s),
            _ => None,
        };
        Ok(Reply::Enrolled {
            certificate: signed.certificate,
            subject,
        })
    }

    async fn renew(
        &self,
        role: Role,
        current: Digest,
        csr: &[u8],
    ) -> Result<Reply, CoordinatorError> {
        let signed = self.sign(csr)?;
        let command = Command::Renew {
            current,
            certificate: signed.fingerprint,
            expires: signed.expires,
        };
        self.decide(command, vec![]).await?;
        let subject = match role {
            Role::Subject(s) => Some(s),
            Role::Admin => None,
        };
        Ok(Reply::Enrolled {
            certificate: signed.certificate,
            subject,
        })
    }

    async fn hello(
        &self,
        device: &Device,
        model: Digest,
        minor: u16,
    ) -> Result<Reply, CoordinatorError> {
        let shell = self.shell();
        let older = minor < EPOCHS;
        // An older client keeps lists when the epochs have come to differ: it is given what it
        // fits, and no work.
        let differ = older && !self.one_recipe();
        let epoch = match differ {
            true => shell.scoring()?,
            false => shell.joining()?,
        };
        let kit = shell.kit(epoch)?;
        let wanted = kit.base.digest;
        // Zeros: a device without a model, which takes part in sums only. Newer clients ask which
        // epochs there are, and say themselves what they lack.
        if older && !differ && model != wanted && model != Digest::default() {
            let message = format!("this epoch uses base model {wanted}, the client has {model}");
            return Err(CoordinatorError::refuse(Refusal::WrongModel, message));
        }
        let command = Command::Hello {
            device: device.certificate,
        };
        self.decide(command, vec![]).await?;
        Ok(Reply::Welcome {
            recipe: kit.recipe.to_json(),
            anchors: kit.anchors.clone(),
            engine: lethe_model::engine::kind_from_env(),
            minor: MINOR,
            log_key: shell.log_key(),
            recalled: shell.state().recalled(),
        })
    }

    /// For clients that know one epoch only.
    async fn join(&self, device: &Device, asks: Joining) -> Result<Reply, CoordinatorError> {
        self.one_recipe_only()?;
        let epoch = self.shell().joining()?;
        match self.join_epoch(device, epoch, asks).await? {
            Reply::JoinedEpoch(joined) => Ok(Reply::Joined {
                shard: joined.shard,
                commitment: joined.commitment,
            }),
            other => Ok(other),
        }
    }

    async fn contribute(
        &self,
        device: &Device,
        brought: Contributed,
    ) -> Result<Reply, CoordinatorError> {
        let Some(lists) = &self.shell().lists else {
            return Err(no_lists());
        };
        let contributions = self.contributions();
        contributions
            .bring(lists, device.certificate, brought)
            .await?;
        Ok(Reply::Ack)
    }

    /// How contributions go: none of the terms of a tally, or a ticket for one.
    async fn sealing_terms(&self, device: &Device) -> Result<Reply, CoordinatorError> {
        let lists = self.shell().lists.as_ref().ok_or_else(no_lists)?;
        if !lists.is_sealed() {
            return Ok(Reply::Terms(None));
        }
        let terms = self.contributions().ticket(device.certificate).await?;
        Ok(Reply::Terms(Some(terms)))
    }

    async fn contribute_sealed(
        &self,
        device: &Device,
        sealed: SealedContribution,
    ) -> Result<Reply, CoordinatorError> {
        if self.shell().lists.is_none() {
            return Err(no_lists());
        }
        let contributions = self.contributions();
        let said = contributions
            .bring_sealed(device.certificate, sealed)
            .await?;
        Ok(Reply::Confided(said))
    }

    async fn uncontribute(&self, device: &Device) -> Result<Reply, CoordinatorError> {
        if self.shell().lists.is_none() {
            return Err(no_lists());
        }
        let contributions = self.contributions();
        contributions.withdraw(device.subject.clone()).await?;
        Ok(Reply::Ack)
    }

    fn snapshot(&self, have: u64, items: &Digest) -> SnapshotReply {
        let shell = self.shell();
        match &shell.lists {
            Some(lists) => lists.snapshot(shell, have, items),
            None => SnapshotReply {
                terms: None,
                state: ListState::default(),
                key: String::new(),
                items: vec![],
                tables: ServedTables::None,
            },
        }
    }

    /// What is served of lists now.
    fn lists_now(&self) -> ListState {
        let shell = self.shell();
        let lists = shell.lists.as_ref();
        lists.map_or_else(ListState::default, |l| l.state(shell))
    }

    async fn poll(&self, device: &Device) -> Result<Reply, CoordinatorError> {
        let Watched { task, recalled, .. } = self.wait(device, None, None).await?;
        Ok(Reply::Task { task, recalled })
    }

    async fn watch(&self, device: &Device, known: ListState) -> Result<Watched, CoordinatorError> {
        self.wait(device, Some(known), None).await
    }

    /// Answers at once when there is work, lists are not as the device knows them, or there is
    /// another epoch than the newest that it knows; else when something changes or the wait is
    /// over. Clients that know one epoch only get no work where epochs differ: they would do it by
    /// the wrong recipe.
    pub(crate) async fn wait(
        &self,
        device: &Device,
        known_lists: Option<ListState>,
        newest: Option<EpochNo>,
    ) -> Result<Watched, CoordinatorError> {
        let deadline = tokio::time::Instant::now() + MAX_POLL_WAIT;
        let waiting = self.waiters().enter(&device.subject);
        let known = self.shell().state().recalled();
        loop {
            let now = self.shell().clock.now();
            let follows = newest.is_some();
            let one_recipe = follows || self.one_recipe();
            let (work, recalled) = {
                let state = self.shell().state();
                let work = state.work_for(&device.certificate, now);
                let fits = |w: &Work| match w {
                    // What is to be erased is the same in every epoch.
                    Work::Erase { .. } => true,
                    w => follows || (one_recipe && state.fits_older(&device.subject, w)),
                };
                (work.filter(fits), state.recalled())
            };
            let task = match work {
                Some(work) => self.task(device, work)?,
                // A device that waits must not go on showing what was recalled.
                None if recalled != known => Task::Wait,
                None if known_lists.is_some_and(|l| l != self.lists_now()) => Task::Wait,
                None if newest.is_some_and(|no| self.shell().joining().is_ok_and(|n| n != no)) => {
                    Task::Wait
                }
                None => {
                    let told = waiting.notify.notified();
                    if tokio::time::timeout_at(deadline, told).await.is_ok() {
                        continue;
                    }
                    Task::Wait
                }
            };
            // As it is now: the wait may have been long.
            let recalled = recalled.max(self.shell().state().recalled());
            return Ok(Watched {
                task,
                recalled,
                lists: self.lists_now(),
            });
        }
    }

    /// What a device is told to do.
    fn task(&self, device: &Device, work: Work) -> Result<Task, CoordinatorError> {
        let (run, counted, seed, deadline_ms) = match work {
            Work::Erase { task } => return Ok(Task::Erase { task }),
            Work::Validate { release, shards } => return Ok(Task::Validate { release, shards }),
            Work::Train {
                run,
                counted,
                seed,
                deadline_ms,
                ..
            } => (run, counted, seed, deadline_ms),
        };
        let shell = self.shell();
        let kit = shell.kit(run.epoch)?;
        let start = shell.start_for(&run, &kit, &device.subject)?;
        shell.offer(device.certificate, run)?;
        let round = run.wire();
        self.middle()
            .open(round, &device.subject, start.middle.clone());
        Ok(Task::Train(RoundStart {
            round,
            adapter: Packed::clone(&start.device),
            counted,
            seed: seed.0,
            deadline_ms,
        }))
    }

    async fn update(
        &self,
        device: Device,
        round: RoundKey,
        mut sent: Sent,
        bytes: usize,
    ) -> Result<Reply, CoordinatorError> {
        self.count_update(bytes);
        self.count_training(bytes);
        let shell = self.shell();
        let now = shell.clock.now();
        let run = {
            let state = shell.state();
            if state.holds(round, &device.subject) {
                // The acknowledgement was lost: it counts once and is acknowledged again.
                return Ok(Reply::Ack);
            }
            state.expects(round, &device.subject, now)?;
            let over = || {
                CoordinatorError::refuse(
                    Refusal::RoundClosed,
                    "the round is over: ask for work again",
                )
            };
            let run = state.run_of_wire(round).ok_or_else(over)?;
            sent.joined = state.joined_samples(&run, &device.subject);
            run
        };
        let kit = shell.kit(run.epoch)?;
        sent.middle = self.middle().finish(round, &device.subject)?;
        let check = move || {
            let update = Update::checked(&kit.recipe, &kit.whole, round, sent)?;
            let contribution = update.contribution(&kit.recipe, &kit.whole)?;
            Ok((update, contribution))
        };
        let (update, contribution) = self.compute(check).await?;
        self.arrivals()
            .store(run, device.subject, update, contribution)
            .await?;
        Ok(Reply::Ack)
    }

    /// What is served. That the device holds it is written down first.
    pub(crate) async fn release(
        &self,
        device: &Device,
        have: Option<u64>,
        known: &[Digest],
    ) -> Result<ReleaseInfo, CoordinatorError> {
        let shell = self.shell();
        let served = shell.served()?;
        let mut adapters = vec![];
        if have != Some(served.release) {
            for (k, part) in shell
                .parts_for(&served, &device.subject)?
                .iter()
                .enumerate()
            {
                let digest = part.device.digest();
                adapters.push(match known.get(k) == Some(&digest) {
                    true => ServedAdapter::Same(digest),
                    false => ServedAdapter::New(Packed::clone(&part.device)),
                });
            }
        }
        let known = shell
            .state()
            .has_fetched(&device.certificate, served.release);
        if !known {
            self.arrivals()
                .fetched(device.certificate, served.release)
                .await?;
        }
        // A deletion may have withdrawn it meanwhile.
        shell.current(served.release)?;
        let state = shell.state();
        Ok(ReleaseInfo {
            release: served.release,
            // Nothing is served while an accepted deletion is not executed: all of them are in
            // this release.
            lineage: state.core().numbers.deletion,
            valid_s: state.rules().release_hours * 3600,
            adapters,
        })
    }

    /// APA's weights.
    fn weigh(&self, embedding: &[f32]) -> Result<Reply, CoordinatorError> {
        let shell = self.shell();
        shell.may_serve()?;
        let epoch = shell.serving()?;
        let kit = shell.kit(epoch)?;
        let hidden = kit.base.config.hidden;
        if embedding.len() != hidden || embedding.iter().any(|v| !v.is_finite()) {
            let got = embedding.len();
            let message = format!("an embedding of {got} finite values, expected {hidden}");
            return Err(CoordinatorError::refuse(Refusal::Invalid, message));
        }
        let table = shell.table()?;
        let apa = kit.recipe.apa;
        let factors = match kit.recipe.combine {
            Combination::D => 2,
            Combination::Nd => 1,
        };
        let omega = lethe_learn::apa::omega(&apa, &table, embedding, kit.recipe.shards);
        Ok(Reply::Omega(apa.amplified(omega, factors)))
    }

    /// A device has measured adapters: all its rows of each of them are stored together.
    async fn errors(
        &self,
        device: &Device,
        release: u64,
        rows: Vec<ErrorReport>,
    ) -> Result<Reply, CoordinatorError> {
        let values = self.shell().merge_rows(&device.subject, &rows)?;
        let command = Command::Errors {
            device: device.certificate,
            release,
            rows,
            values: values
                .iter()
                .map(|(shard, v)| (*shard, v.at.clone()))
                .collect(),
        };
        let values = values.into_iter().map(|(_, v)| v).collect();
        self.decide(command, values).await?;
        Ok(Reply::Ack)
    }

    async fn erased(
        &self,
        device: &Device,
        task: u64,
        outcome: Erased,
    ) -> Result<Reply, CoordinatorError> {
        let command = Command::Erased {
            device: device.certificate,
            task,
            outcome,
        };
        self.decide(command, vec![]).await?;
        Ok(Reply::Ack)
    }

    fn orders(&self, device: &Device, task: u64, seen: u64) -> Result<Reply, CoordinatorError> {
        let shell = self.shell();
        let evidence = shell.evidence();
        let state = shell.state();
        let orders = evidence.orders(&state, &device.certificate, task, seen)?;
        Ok(Reply::Orders(orders))
    }

    fn orders_since(
        &self,
        device: &Device,
        deletion: u64,
        seen: u64,
    ) -> Result<Reply, CoordinatorError> {
        let shell = self.shell();
        let evidence = shell.evidence();
        let state = shell.state();
        let orders = evidence.orders_since(&state, &device.certificate, deletion, seen)?;
        Ok(Reply::Orders(orders))
    }

    async fn decline(&self, device: &Device, round: RoundKey) -> Result<Reply, CoordinatorError> {
        self.middle().close(round, &device.subject);
        let command = Command::Decline {
            device: device.certificate,
            round,
        };
        self.decide(command, vec![]).await?;
        Ok(Reply::Ack)
    }
}

/// An invitation is known by a digest of its secret.
pub(crate) fn secret_key(secret: &str) -> Digest {
    Digest::of(&[b"invitation", secret.as_bytes()])
}
