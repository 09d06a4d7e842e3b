//! What devices ask, and what the listener does with it: as `handlers.rs`, without sessions and
//! sockets.

use anyhow::{Context, ensure};
use lethe_learn::seed::Seed;
use lethe_ledger::{Command, RunKey, Work};
use lethe_model::lora::Adapter;
use lethe_proto::ids::{Digest, ShardId};
use lethe_proto::lists::Contributed;
use lethe_proto::message::{Erased, ErrorReport};
use lethe_proto::packed::Packed;
use lethe_receipt::order::check;
use tokio::sync::oneshot::{self, Receiver};

use super::super::{Kit, fresh};
use super::{Woken, Year};
use crate::CoordinatorError;
use crate::arrivals::{Arrived, Fetch};
use crate::content::Update;
use crate::lists::Arriving;
use crate::rounds::Sent;

/// Days of a certificate, as configured by default; devices renew in the last third.
const RENEWS: u64 = 60;
/// What a device does when it was woken once, at most.
const MOST: usize = 8;

type Written = Receiver<Result<(), CoordinatorError>>;

/// What has come at the same time, to be written together.
#[derive(Default)]
struct Together {
    updates: Vec<Arrived>,
    fetches: Vec<Fetch>,
    /// Who waits for the answer, and what is new then: the release that was fetched.
    waiting: Vec<(usize, Option<u64>, Written)>,
}

impl Year {
    /// Those whose hour it is ask for everything that is new, and contribute.
    pub(super) fn visits(&mut self, hour: u64) -> anyhow::Result<()> {
        let mut together = Together::default();
        let mut bring = vec![];
        for n in 0..self.people.len() {
            let person = &self.people[n];
            if !person.is_there() || person.hour != hour || person.away {
                continue;
            }
            self.renew(n)?;
            self.works(n, true, &mut together)?;
            let person = &self.people[n];
            if person.lists && person.changed && !person.restricted {
                bring.push(n);
            }
        }
        self.write(together)?;
        self.bring(bring)
    }

    /// Those who were woken look whether there is work. False: there was none.
    pub(super) fn answer(&mut self, woken: &Woken) -> anyhow::Result<bool> {
        let before = self.count.requests;
        let mut together = Together::default();
        for n in 0..self.people.len() {
            let person = &self.people[n];
            let is_woken = woken.everybody || woken.subjects.contains(&person.subject);
            if person.is_there() && !person.away && is_woken {
                self.works(n, false, &mut together)?;
            }
        }
        self.write(together)?;
        Ok(self.count.requests > before)
    }

    /// A certificate lasts for a while.
    fn renew(&mut self, n: usize) -> anyhow::Result<()> {
        if self.day < self.people[n].certified + RENEWS {
            return Ok(());
        }
        let current = self.people[n].certificate;
        let certificate = self.next_certificate(n);
        self.must(Command::Renew {
            current,
            certificate,
            expires: u64::MAX,
        })?;
        // As when it connects.
        self.must(Command::CertificateUsed { certificate })
    }

    /// One that nobody has had.
    fn next_certificate(&mut self, n: usize) -> Digest {
        let person = &mut self.people[n];
        person.certificates += 1;
        person.certified = self.day;
        let subject = person.subject.as_str().as_bytes();
        let parts: [&[u8]; 3] = [b"certificate", subject, &person.certificates.to_le_bytes()];
        person.certificate = Digest::of(&parts);
        person.certificate
    }

    /// Somebody is invited, and enrols their device.
    pub(super) fn enrol(&mut self, n: usize) -> anyhow::Result<()> {
        let subject = self.people[n].subject.clone();
        let certificate = self.next_certificate(n);
        let secret = Digest::of(&[b"secret", &certificate.0]);
        self.must(Command::Invite {
            subject: subject.clone(),
            secret,
        })?;
        self.must(Command::Enrol {
            secret,
            certificate,
            expires: u64::MAX,
            device_of: Some(subject),
        })
    }

    /// Does what there is to do. `visit`: it also measures, and fetches what is served.
    fn works(&mut self, n: usize, visit: bool, together: &mut Together) -> anyhow::Result<()> {
        for _ in 0..MOST {
            let device = self.people[n].certificate;
            let work = {
                let state = self.shell.state();
                state.work_for(&device, self.shell.clock.now())
            };
            match work {
                Some(Work::Erase { task }) => self.erase(n, task)?,
                Some(Work::Train { run, .. }) => {
                    self.train(n, run, together)?;
                    break;
                }
                Some(Work::Validate { release, shards })
                    if visit && self.day % super::WEEK == self.people[n].measures =>
                {
                    self.measure(n, release, &shards)?;
                }
                _ => {
                    if !self.join(n)? {
                        break;
                    }
                }
            }
        }
        if visit {
            self.fetch(n, together)?;
        }
        Ok(())
    }

    /// Joins the newest epoch, if that is new. False: it has, or may not.
    fn join(&mut self, n: usize) -> anyhow::Result<bool> {
        let newest = self.shell.joining()?;
        let person = &self.people[n];
        if person.restricted || person.joined >= Some(newest) {
            return Ok(false);
        }
        let who = person.subject.as_str().as_bytes();
        let erased = person.erased.to_le_bytes();
        let anchors = self.shell.kit(newest)?.anchors.len() as u64;
        let anchor = Seed::from_u64(1).rank("anchor", who) % anchors.max(1);
        let command = Command::Join {
            device: person.certificate,
            epoch: newest,
            anchor: Some(anchor as u16),
            samples: self.recipe.local.samples as u32,
            commitment: Digest::of(&[who, &erased, &newest.0.to_le_bytes()]),
            fresh: fresh()?,
        };
        match self.shell.execute(command, vec![]) {
            Ok(_) => {}
            // A deletion is being executed: it asks again.
            Err(e) if e.code() == lethe_proto::message::Refusal::Busy => return Ok(false),
            Err(e) => return Err(e).context("a device joins"),
        }
        self.people[n].joined = Some(newest);
        self.count.joins += 1;
        self.count.requests += 1;
        Ok(true)
    }

    /// Carries out an order, if the log holds it.
    fn erase(&mut self, n: usize, task: u64) -> anyhow::Result<()> {
        let person = &self.people[n];
        let device = person.certificate;
        let orders = {
            let evidence = self.shell.evidence();
            let seen = person.seen.map_or(0, |s| s.size);
            evidence.orders(&self.shell.state(), &device, task, seen)?
        };
        let head = check(
            &orders.orders,
            person.subject.as_str(),
            &orders.checkpoint,
            &self.log_key,
            person.seen,
            &orders.consistency,
        )
        .context("an order that the log does not hold")?;
        let removed = orders.orders.iter().map(|o| (o.deletion, 1)).collect();
        let person = &mut self.people[n];
        person.seen = Some(head);
        person.erased = person.erased.max(task);
        for order in &orders.orders {
            let from = order.from.map(|from| (from / 86_400) as i32);
            person.history.retain(|e| {
                let named = order.items.contains(&e.item);
                !named && from.is_none_or(|from| e.day < from)
            });
        }
        person.changed = true;
        // It joins again with what remains.
        person.joined = None;
        let erased = Command::Erased {
            device,
            task,
            outcome: Erased::Done { removed },
        };
        self.shell.execute(erased, vec![])?;
        self.count.requests += 1;
        Ok(())
    }

    /// Is told of a round, and sends made-up numbers.
    fn train(&mut self, n: usize, run: RunKey, together: &mut Together) -> anyhow::Result<()> {
        let person = &self.people[n];
        let subject = person.subject.clone();
        let kit = self.shell.kit(run.epoch)?;
        self.shell.start_for(&run, &kit, &subject)?;
        self.shell.offer(person.certificate, run)?;
        let round = run.wire();
        let now = self.shell.clock.now();
        if self.shell.state().expects(round, &subject, now).is_err() {
            return Ok(());
        }
        let erased = person.erased.to_le_bytes();
        let parts: [&[u8]; 5] = [
            &round.shard.0.to_le_bytes(),
            &round.stage.to_le_bytes(),
            &round.round.to_le_bytes(),
            subject.as_str().as_bytes(),
            &erased,
        ];
        let mut rng = self.seed.derive("update", &parts).rng();
        let values: Vec<f32> = (0..edge(&kit)?.data.len())
            .map(|_| rng.uniform(-1e-3, 1e-3))
            .collect();
        let sent = Sent {
            device: Packed::encode(&values, kit.recipe.updates)
                .map_err(|e| anyhow::anyhow!("an update cannot be packed: {e}"))?,
            middle: middle(&kit)?.data,
            loss: rng.uniform(0.3, 0.9),
            samples: 1 + rng.below(8) as u32,
            joined: self.shell.state().joined_samples(&run, &subject),
        };
        let update = Update::checked(&kit.recipe, &kit.whole, round, sent)?;
        let contribution = update.contribution(&kit.recipe, &kit.whole)?;
        let (to, written) = oneshot::channel();
        together
            .updates
            .push(Arrived::new(run, subject, update, contribution, to));
        together.waiting.push((n, None, written));
        Ok(())
    }

    /// Measures what is served on one sample.
    fn measure(&mut self, n: usize, release: u64, shards: &[ShardId]) -> anyhow::Result<()> {
        let person = &self.people[n];
        let error = |s: &ShardId| {
            let parts = [&s.0.to_le_bytes()[..], &release.to_le_bytes()];
            let seed = Seed::from_u64(9).derive(person.subject.as_str(), &parts);
            (*s, seed.rng().unit())
        };
        let rows = vec![ErrorReport {
            sample: 0,
            embedding: vec![0.5; super::model().hidden],
            errors: shards.iter().map(error).collect(),
        }];
        let values = self.shell.merge_rows(&person.subject, &rows)?;
        let command = Command::Errors {
            device: person.certificate,
            release,
            rows,
            values: values.iter().map(|(s, v)| (*s, v.at.clone())).collect(),
        };
        let values = values.into_iter().map(|(_, v)| v).collect();
        self.shell.execute(command, values)?;
        self.count.requests += 1;
        Ok(())
    }

    /// Fetches what is served, if that is new.
    fn fetch(&mut self, n: usize, together: &mut Together) -> anyhow::Result<()> {
        // Before the first training nothing is served, and while somebody is deleted.
        let Ok(served) = self.shell.served() else {
            return Ok(());
        };
        let person = &self.people[n];
        if person.holds == served.release {
            return Ok(());
        }
        let parts = self.shell.parts_for(&served, &person.subject)?;
        ensure!(
            parts.len() == self.recipe.shards,
            "a release without its parts"
        );
        let (to, written) = oneshot::channel();
        together.fetches.push(Fetch {
            certificate: person.certificate,
            release: served.release,
            answer: to,
        });
        together.waiting.push((n, Some(served.release), written));
        Ok(())
    }

    /// Writes what has come together.
    fn write(&mut self, together: Together) -> anyhow::Result<()> {
        let updates = together.updates.len() as u64;
        self.shell.take_updates(together.updates);
        self.shell.take_fetches(together.fetches);
        self.count.updates += updates;
        for (n, fetched, mut written) in together.waiting {
            written.try_recv().context("everybody is answered")??;
            self.count.requests += 1;
            if let Some(release) = fetched {
                self.people[n].holds = release;
            }
        }
        Ok(())
    }

    /// These contribute, all in one write.
    fn bring(&mut self, who: Vec<usize>) -> anyhow::Result<()> {
        let shell = self.shell.clone();
        let lists = shell.lists.as_ref().context("there are lists")?;
        let mut all = vec![];
        let mut waiting = vec![];
        for n in who {
            let person = &self.people[n];
            if shell.state().may_contribute(&person.certificate).is_err() {
                // It has to erase, or to join, before.
                continue;
            }
            let brought: Contributed = person.contributed();
            let (arriving, answer) = Arriving::contribution(lists, person.certificate, &brought)?;
            all.push(arriving);
            waiting.push((n, answer));
        }
        if all.is_empty() {
            return Ok(());
        }
        lists.take_in(&shell, all);
        for (n, mut answer) in waiting {
            match answer.try_recv().context("everybody is answered")? {
                Ok(()) => {}
                // Within hours of the last one: it is brought tomorrow.
                Err(e) if e.code() == lethe_proto::message::Refusal::Busy => continue,
                Err(e) => return Err(e).context("somebody contributes"),
            }
            self.people[n].changed = false;
            self.count.contributions += 1;
        }
        Ok(())
    }

    /// Somebody takes part in lists no longer.
    pub(super) fn leave_lists(&mut self, n: usize) -> anyhow::Result<()> {
        let shell = self.shell.clone();
        let lists = shell.lists.as_ref().context("there are lists")?;
        let subject = self.people[n].subject.clone();
        let (arriving, mut answer) = Arriving::withdrawal(subject);
        lists.take_in(&shell, vec![arriving]);
        answer.try_recv().context("everybody is answered")??;
        Ok(())
    }
}

fn whole(kit: &Kit) -> anyhow::Result<Adapter> {
    let zeros = vec![0.0; kit.whole.shape.len()];
    Adapter::from_data(&kit.whole.shape, zeros).map_err(|e| anyhow::anyhow!("an adapter: {e}"))
}

/// The device's part of an adapter.
fn edge(kit: &Kit) -> anyhow::Result<Adapter> {
    Ok(whole(kit)?.select(|l| kit.whole.on_device(&kit.recipe, l)))
}

/// The middle part of an update: that of a session without passes.
fn middle(kit: &Kit) -> anyhow::Result<Adapter> {
    Ok(whole(kit)?.select(|l| !kit.whole.on_device(&kit.recipe, l)))
}
