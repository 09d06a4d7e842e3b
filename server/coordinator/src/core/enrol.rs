//! Invitations, enrolment, joining, and where a subject is placed.

use std::time::Duration;

use lethe_learn::partition::SubShards;
use lethe_learn::seed::Seed;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::message::{Refusal, Role};
use lethe_store::sealed::{Batch, KeyName};
use lethe_transport::identity::Invitation;

use super::Core;
use crate::CoordinatorError;
use crate::records::{AdminCert, AdminInvite, Epoch, Invite, SubjectCert, SubjectRecord};

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
    pub(crate) fn invite(&mut self, subject: Option<&SubjectId>) -> Result<Invitation, CoordinatorError> {
        let secret = secret()?;
        let key = secret_key(&secret);
        let batch = match subject {
            Some(s) => Batch::new().put(&KeyName::subject(s.as_str()), &key, &Invite(s.clone()))?,
            None => Batch::new().put(&KeyName::public(), &key, &AdminInvite)?,
        };
        self.store.write(batch)?;
        Ok(Invitation::new(secret, &self.authority))
    }

    /// An invitation for the first operator while nobody has enrolled as one; it replaces those issued before, so that
    /// the one that the caller publishes is the one that works.
    pub(crate) fn first_admin(&mut self) -> Result<Option<Invitation>, CoordinatorError> {
        if !self.store.keys::<AdminCert>().is_empty() {
            return Ok(None);
        }
        let old = self.store.keys::<AdminInvite>();
        self.store.write(old.iter().fold(Batch::new(), |b, k| b.delete::<AdminInvite>(k)))?;
        self.invite(None).map(Some)
    }

    /// Exchanges an invitation for a certificate; the invitation is spent.
    pub(crate) fn enrol(&mut self, token: &str, csr: &[u8]) -> Result<Vec<u8>, CoordinatorError> {
        let key = secret_key(token);
        let subject = self.store.get::<Invite>(&key)?.map(|i| i.0);
        if subject.is_none() && self.store.get::<AdminInvite>(&key)?.is_none() {
            return Err(refuse(
                Refusal::Forbidden,
                "this invitation is not known or was used already: ask for a new one",
            ));
        }
        let lifetime = Duration::from_secs(self.config.certificate_days * 86_400);
        let certificate = self.authority.sign(csr, lifetime).map_err(|e| refuse(Refusal::Invalid, e.to_string()))?;
        let fingerprint = Digest::of(&[&certificate]);
        let batch = match &subject {
            Some(s) => {
                let owner = KeyName::subject(s.as_str());
                Batch::new().delete::<Invite>(&key).put(&owner, &fingerprint.hex(), &SubjectCert(s.clone()))?
            }
            None => Batch::new().delete::<AdminInvite>(&key).put(&KeyName::public(), &fingerprint.hex(), &AdminCert)?,
        };
        self.store.write(batch)?;
        self.certificates.insert(fingerprint, subject.map_or(Role::Admin, Role::Subject));
        Ok(certificate)
    }

    /// Withdraws all certificates and invitations of a subject and ends its connections.
    pub(crate) fn revoke(&mut self, subject: &SubjectId) -> Result<(), CoordinatorError> {
        let of_subject = |r: &Role| matches!(r, Role::Subject(s) if s == subject);
        let gone: Vec<Digest> = self.certificates.iter().filter(|(_, r)| of_subject(r)).map(|(d, _)| *d).collect();
        let mut batch = gone.iter().fold(Batch::new(), |b, d| b.delete::<SubjectCert>(&d.hex()));
        for (key, invite) in self.store.all::<Invite>()? {
            if invite.0 == *subject {
                batch = batch.delete::<Invite>(&key);
            }
        }
        self.store.write(batch)?;
        self.certificates.retain(|_, r| !of_subject(r));
        self.to_disconnect.extend(gone);
        Ok(())
    }

    /// Takes a subject into the epoch, or updates where it stands. Returns its shard once the epoch has started, and the
    /// commitment that counts: what the subject trains on.
    pub(crate) fn join(
        &mut self,
        subject: &SubjectId,
        anchor: u16,
        samples: u32,
        commitment: Digest,
    ) -> Result<(Option<ShardId>, Digest), CoordinatorError> {
        if usize::from(anchor) >= self.anchors.len() {
            return Err(refuse(
                Refusal::Invalid,
                format!("anchor {anchor} of {}: take it from the welcome", self.anchors.len()),
            ));
        }
        // The connection may have been accepted before a deletion that has happened since.
        if !self.certificates.values().any(|r| matches!(r, Role::Subject(s) if s == subject)) {
            return Err(refuse(Refusal::Forbidden, "this subject's certificates were withdrawn"));
        }
        let known = self.subjects.get(subject).cloned();
        let rejoin = known.as_ref().is_some_and(|r| r.erase.as_ref().is_some_and(|e| e.confirmed));
        if let Some(r) = known.as_ref().filter(|_| !rejoin && self.sub_shards.is_some()) {
            // New data counts from the next epoch on: what is being trained must stay what was committed to.
            return Ok((r.shard, r.commitment));
        }
        let slice = self.slice(subject);
        let shard = self.sub_shards.as_ref().map(|s| self.place(s, subject, anchor));
        // Who was left out stays out: the receipt of that deletion says what was trained.
        let idle = if rejoin { known.as_ref().is_some_and(|r| r.idle) } else { self.sub_shards.is_some() };
        let moved = known.as_ref().and_then(|r| r.shard) != shard;
        if let (true, true, false, Some(to)) = (rejoin, moved, idle, shard) {
            // What remains of a person after a partial deletion may lie nearer to another shard: that one is retrained
            // too. Before the subject is a member of it: a crash in between leaves the erasure pending, to be repeated.
            let keys = self.roll_back(&[(to, slice + 1)], &[])?;
            self.also_affected(subject, (to, slice + 1), keys)?;
        }
        self.save_subject(subject, SubjectRecord { anchor, samples, commitment, shard, slice, idle, erase: None })?;
        if self.sub_shards.is_none() && self.subjects.len() >= self.config.min_subjects {
            self.start_epoch()?;
        }
        Ok((self.subjects.get(subject).and_then(|r| r.shard), commitment))
    }

    fn epoch_seed(&self) -> Seed {
        Seed::from_u64(self.recipe.seed).derive("epoch", &[])
    }

    fn slice(&self, subject: &SubjectId) -> u16 {
        (self.epoch_seed().rank("slice", subject.as_str().as_bytes()) % self.recipe.slices as u64) as u16
    }

    fn place(&self, sub_shards: &SubShards, subject: &SubjectId, anchor: u16) -> ShardId {
        ShardId(sub_shards.shard(usize::from(anchor), subject.as_str().as_bytes(), &self.epoch_seed()) as u16)
    }

    fn start_epoch(&mut self) -> Result<(), CoordinatorError> {
        let mut counts = vec![0; self.anchors.len()];
        self.subjects.values().for_each(|r| counts[usize::from(r.anchor)] += 1);
        let sub_shards = SubShards::allot(&counts, self.recipe.shards)?;
        let mut batch = Batch::new().put(&KeyName::public(), "", &Epoch { sub_shards: sub_shards.clone() })?;
        let mut placed = self.subjects.clone();
        for (subject, record) in &mut placed {
            record.shard = Some(self.place(&sub_shards, subject, record.anchor));
            batch = batch.put(&KeyName::subject(subject.as_str()), subject.as_str(), record)?;
        }
        self.store.write(batch)?;
        self.subjects = placed;
        self.sub_shards = Some(sub_shards);
        tracing::info!(subjects = self.subjects.len(), "epoch started");
        Ok(())
    }
}
