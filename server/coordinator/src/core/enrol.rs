//! Invitations, enrolment, joining, and where a subject is placed.

use std::collections::BTreeSet;

use lethe_learn::partition::SubShards;
use lethe_learn::seed::Seed;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::limits::MAX_SAMPLES;
use lethe_proto::message::{Refusal, Role};
use lethe_recipe::Placement;
use lethe_store::sealed::{Batch, KeyName};
use lethe_transport::identity::Invitation;

use super::Core;
use crate::CoordinatorError;
use crate::records::{
    AdminCert, AdminInvite, Counters, Epoch, Inherited, Invite, SubjectCert, SubjectRecord,
};

fn refuse(code: Refusal, message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(code, message)
}

/// 32 random bytes as hexadecimal.
fn secret() -> Result<String, CoordinatorError> {
    let bytes: [u8; 32] = lethe_seal::random()?;
    Ok(Digest(bytes).hex())
}

fn secret_key(secret: &str) -> String {
    Digest::of(&[b"invitation", secret.as_bytes()]).hex()
}

impl Core {
    /// Issues a single-use invitation; only a hash of its secret is kept.
    pub(crate) fn invite(
        &mut self,
        subject: Option<&SubjectId>,
    ) -> Result<Invitation, CoordinatorError> {
        let secret = secret()?;
        let key = secret_key(&secret);
        let batch = match subject {
            Some(s) => Batch::new().put(&KeyName::subject(s.as_str()), &key, &Invite(s.clone()))?,
            None => Batch::new().put(&KeyName::public(), &key, &AdminInvite)?,
        };
        self.store.write(batch)?;
        Ok(Invitation::new(secret, &self.authority).with_log_key(self.log_key()))
    }

    /// An invitation for the first operator while nobody has enrolled as one; it replaces those
    /// issued before, so that the one that the caller publishes is the one that works.
    pub(crate) fn first_admin(&mut self) -> Result<Option<Invitation>, CoordinatorError> {
        if !self.store.keys::<AdminCert>().is_empty() {
            return Ok(None);
        }
        let old = self.store.keys::<AdminInvite>();
        self.store.write(
            old.iter()
                .fold(Batch::new(), |b, k| b.delete::<AdminInvite>(k)),
        )?;
        self.invite(None).map(Some)
    }

    /// Exchanges an invitation for a certificate; the invitation is spent. `device_of` is whose
    /// device asks, if it knows: an invitation for somebody else is refused and stays good.
    /// Returns the certificate, and whose it is (`None`: an operator's).
    pub(crate) fn enrol(
        &mut self,
        token: &str,
        csr: &[u8],
        device_of: Option<&SubjectId>,
    ) -> Result<(Vec<u8>, Option<SubjectId>), CoordinatorError> {
        let key = secret_key(token);
        let subject = self.store.get::<Invite>(&key)?.map(|i| i.0);
        if subject.is_none() && self.store.get::<AdminInvite>(&key)?.is_none() {
            return Err(refuse(
                Refusal::Forbidden,
                "this invitation is not known or was used already: ask for a new one",
            ));
        }
        if device_of.is_some() && subject.as_ref() != device_of {
            let message = "this invitation is for another person than the one whose history this \
                           device holds: use a new folder for them";
            return Err(refuse(Refusal::Invalid, message));
        }
        let signed = self.sign(csr)?;
        let id = signed.fingerprint.hex();
        let mut operator = None;
        let batch = match &subject {
            Some(s) => {
                let owner = KeyName::subject(s.as_str());
                let spent = Batch::new().delete::<Invite>(&key);
                spent.put(&owner, &id, &SubjectCert(s.clone()))?
            }
            None => {
                let record = signed.operator(None, self.unix_ms / 1000);
                operator = Some((signed.fingerprint, record));
                let spent = Batch::new().delete::<AdminInvite>(&key);
                let owner = KeyName::public();
                spent
                    .put(&owner, &id, &AdminCert)?
                    .put(&owner, &id, &record)?
            }
        };
        self.store.write(batch)?;
        let role = subject.clone().map_or(Role::Admin, Role::Subject);
        self.certificates.insert(signed.fingerprint, role);
        self.operators.extend(operator);
        Ok((signed.certificate, subject))
    }

    /// Withdraws all certificates and invitations of subjects and ends their connections.
    pub(crate) fn revoke(
        &mut self,
        subjects: &BTreeSet<SubjectId>,
    ) -> Result<(), CoordinatorError> {
        if subjects.is_empty() {
            return Ok(());
        }
        let of_subject = |r: &Role| matches!(r, Role::Subject(s) if subjects.contains(s));
        let gone: Vec<Digest> = self
            .certificates
            .iter()
            .filter(|(_, r)| of_subject(r))
            .map(|(d, _)| *d)
            .collect();
        let mut batch = gone.iter().fold(Batch::new(), Self::without_certificate);
        for (key, invite) in self.store.all::<Invite>()? {
            if subjects.contains(&invite.0) {
                batch = batch.delete::<Invite>(&key);
            }
        }
        self.store.write(batch)?;
        self.forget_certificates(&gone);
        self.to_disconnect.extend(gone);
        Ok(())
    }

    /// Takes a subject into the epoch, or updates where it stands. Returns its shard once the epoch
    /// has started, and the commitment that counts: what the subject trains on.
    pub(crate) fn join(
        &mut self,
        subject: &SubjectId,
        anchor: Option<u16>,
        samples: u32,
        commitment: Digest,
    ) -> Result<(Option<ShardId>, Digest), CoordinatorError> {
        // Who names no direction is placed by who they are: never at random, nor by who came first.
        let anchor = anchor.unwrap_or_else(|| {
            let rank = self
                .epoch_seed()
                .rank("anchor", subject.as_str().as_bytes());
            (rank % self.anchors.len() as u64) as u16
        });
        if usize::from(anchor) >= self.anchors.len() {
            let n = self.anchors.len();
            let message = format!("anchor {anchor} of {n}: take it from the welcome");
            return Err(refuse(Refusal::Invalid, message));
        }
        if samples > MAX_SAMPLES {
            let message = format!("{samples} training samples, at most {MAX_SAMPLES} of a person");
            return Err(refuse(Refusal::Invalid, message));
        }
        // Until a deletion has been executed, the person may be somebody who stays and is not
        // written anew yet: they would get another number.
        if self.deletion_unexecuted() {
            let message = "a deletion is being executed: try again in a moment";
            return Err(refuse(Refusal::Busy, message));
        }
        // The connection may have been accepted before a deletion that has happened since.
        if !self
            .certificates
            .values()
            .any(|r| matches!(r, Role::Subject(s) if s == subject))
        {
            return Err(refuse(
                Refusal::Forbidden,
                "this subject's certificates were withdrawn",
            ));
        }
        let known = self.subjects.get(subject).cloned();
        let rejoin = known
            .as_ref()
            .is_some_and(|r| r.erase.as_ref().is_some_and(|e| e.confirmed));
        let erasing = known.as_ref().is_some_and(|r| r.erase.is_some());
        if let Some(r) = known
            .as_ref()
            .filter(|_| !rejoin && (erasing || self.epoch.is_some()))
        {
            // A device that has yet to erase does not get around it by joining again. And new data
            // counts from the next epoch on: what is being trained must stay what was committed to.
            return Ok((r.shard, r.commitment));
        }
        let since = known.as_ref().map_or(self.unix_ms, |r| r.since);
        let slice = self.slice(self.epoch.as_ref(), subject, since);
        let shard = self
            .epoch
            .as_ref()
            .map(|e| self.place(&e.sub_shards, subject, anchor));
        // Who was left out stays out: the receipt of that deletion says what was trained.
        let restricted = known.as_ref().is_some_and(|r| r.restricted);
        let idle = if rejoin {
            known.as_ref().is_some_and(|r| r.idle)
        } else {
            self.epoch.is_some()
        };
        let idle = idle || restricted;
        let moved = known.as_ref().and_then(|r| r.shard) != shard;
        if let (true, true, false, Some(to)) = (rejoin, moved, idle, shard) {
            // What remains of a person after a partial deletion may lie nearer to another shard:
            // that one is retrained too. Before the subject is a member of it: a crash in between
            // leaves the erasure pending, to be repeated.
            let keys = self.roll_back(&[(to, slice + 1)], &[])?;
            self.also_affected(subject, to, slice + 1, keys)?;
            // What is served has changed: it gets a number of its own.
            self.release_rolled_back()?;
        }
        let (number, salt) = match &known {
            Some(r) => (r.number, r.salt),
            None => (self.next_number()?, lethe_seal::random()?),
        };
        let inherited = if known.is_none() {
            self.inherited(subject)
        } else {
            Inherited::default()
        };
        let (restricted, idle) = (
            restricted || inherited.restricted,
            idle || inherited.restricted,
        );
        let erase = inherited.erase;
        let record = SubjectRecord {
            anchor,
            samples,
            commitment,
            shard,
            slice,
            idle,
            restricted,
            erase,
            number,
            salt,
            since,
        };
        self.save_subject(subject, record)?;
        let starts = self.epoch.is_none() && self.audited.is_none();
        if starts && self.subjects.len() >= self.config.min_subjects {
            self.start_epoch()?;
            self.wake.everybody = true;
        }
        self.wake.everybody |= rejoin;
        Ok((self.subjects.get(subject).and_then(|r| r.shard), commitment))
    }

    fn epoch_seed(&self) -> Seed {
        Seed::from_u64(self.recipe.seed).derive("epoch", &[])
    }

    /// A number for a new subject in lineages.
    fn next_number(&mut self) -> Result<u32, CoordinatorError> {
        let counters = Counters {
            subject: self.counters.subject + 1,
            ..self.counters.clone()
        };
        self.store
            .write(Batch::new().put(&KeyName::public(), "", &counters)?)?;
        self.counters = counters;
        Ok(self.counters.subject)
    }

    /// The slice of a subject: by a keyed hash, or by how long it has been here. The bounds of the
    /// latter are fixed when the epoch starts; a deletion never computes them again.
    fn slice(&self, epoch: Option<&Epoch>, subject: &SubjectId, since: u64) -> u16 {
        let slices = self.recipe.slices as u64;
        match (self.recipe.placement, epoch) {
            (Placement::Hash, _) => {
                (self.epoch_seed().rank("slice", subject.as_str().as_bytes()) % slices) as u16
            }
            (Placement::Tenure, Some(e)) => e.tenure.iter().filter(|t| since >= **t).count() as u16,
            (Placement::Tenure, None) => 0,
        }
    }

    fn place(&self, sub_shards: &SubShards, subject: &SubjectId, anchor: u16) -> ShardId {
        ShardId(sub_shards.shard(
            usize::from(anchor),
            subject.as_str().as_bytes(),
            &self.epoch_seed(),
        ) as u16)
    }

    fn start_epoch(&mut self) -> Result<(), CoordinatorError> {
        let mut counts = vec![0; self.anchors.len()];
        self.subjects
            .values()
            .for_each(|r| counts[usize::from(r.anchor)] += 1);
        let sub_shards = SubShards::allot(&counts, self.recipe.shards)?;
        let mut times: Vec<u64> = self.subjects.values().map(|r| r.since).collect();
        times.sort_unstable();
        let bound = |i: usize| times[i * times.len() / self.recipe.slices];
        let tenure = (1..self.recipe.slices).map(bound).collect();
        let epoch = Epoch { sub_shards, tenure };
        let mut batch = Batch::new().put(&KeyName::public(), "", &epoch)?;
        let mut placed = self.subjects.clone();
        for (subject, record) in &mut placed {
            record.shard = Some(self.place(&epoch.sub_shards, subject, record.anchor));
            record.slice = self.slice(Some(&epoch), subject, record.since);
            batch = batch.put(
                &KeyName::subject(subject.as_str()),
                subject.as_str(),
                record,
            )?;
        }
        self.store.write(batch)?;
        self.subjects = placed;
        self.epoch = Some(epoch);
        self.dirty = (0..self.recipe.shards).map(|k| ShardId(k as u16)).collect();
        tracing::info!(subjects = self.subjects.len(), "epoch started");
        Ok(())
    }
}
