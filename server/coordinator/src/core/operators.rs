//! The life of certificates: renewal for everybody, and who the operators are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lethe_proto::admin::OperatorState;
use lethe_proto::ids::Digest;
use lethe_proto::message::{Refusal, Role};
use lethe_store::sealed::{Batch, KeyName};
use lethe_transport::identity::{Invitation, Validity};

use super::Core;
use crate::CoordinatorError;
use crate::records::{AdminCert, AdminInvite, OperatorRecord, Renewal, SubjectCert};

fn refuse(code: Refusal, message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(code, message)
}

/// A certificate that was signed and is not stored yet.
pub(super) struct Signed {
    /// DER.
    pub(super) certificate: Vec<u8>,
    pub(super) fingerprint: Digest,
    validity: Validity,
}

impl Signed {
    /// What is kept of it when it is an operator's; `root` is who that is, if they are known, and
    /// `since` the time now, in Unix seconds.
    pub(super) fn operator(&self, root: Option<Digest>, since: u64) -> OperatorRecord {
        OperatorRecord {
            root: root.unwrap_or(self.fingerprint),
            since,
            expires: u64::try_from(self.validity.until).unwrap_or(0),
        }
    }
}

/// Whoever acts from the server's own machine: no certificate has this fingerprint.
const THIS_MACHINE: Digest = Digest([0; 32]);

impl Core {
    /// Signs a request for a certificate; nothing is stored.
    pub(super) fn sign(&self, csr: &[u8]) -> Result<Signed, CoordinatorError> {
        let invalid = |e: lethe_transport::TransportError| refuse(Refusal::Invalid, e.to_string());
        let lifetime = Duration::from_secs_f64(self.config.certificate_days * 86_400.0);
        let certificate = self.authority.sign(csr, lifetime).map_err(invalid)?;
        let validity = Validity::of(&certificate).map_err(invalid)?;
        let fingerprint = Digest::of(&[&certificate]);
        Ok(Signed {
            certificate,
            fingerprint,
            validity,
        })
    }

    /// Gives the holder of `current`, which they have shown to be theirs, a certificate for a new
    /// key. `current` goes when the new one is first used. An earlier renewal that was never used
    /// is replaced, so that a lost answer leaves nothing behind.
    pub(crate) fn renew(
        &mut self,
        current: Digest,
        csr: &[u8],
    ) -> Result<Vec<u8>, CoordinatorError> {
        let role = self
            .role(&current)
            .ok_or_else(|| refuse(Refusal::Forbidden, "this certificate is not known any more"))?;
        let signed = self.sign(csr)?;
        let fingerprint = signed.fingerprint;
        let unused: Vec<Digest> = self
            .renewals
            .iter()
            .filter(|(_, old)| **old == current)
            .map(|(new, _)| *new)
            .collect();
        let mut batch = unused.iter().fold(Batch::new(), Self::without_certificate);
        let id = fingerprint.hex();
        let renewal = Renewal { replaces: current };
        batch = batch.put(&KeyName::public(), &id, &renewal)?;
        let operator = match &role {
            Role::Subject(s) => {
                let owner = KeyName::subject(s.as_str());
                batch = batch.put(&owner, &id, &SubjectCert(s.clone()))?;
                None
            }
            Role::Admin => {
                let mut record = signed.operator(Some(self.operator(current)), self.unix_ms / 1000);
                // Since when they are an operator, not since when they have this certificate.
                let known = self.operators.get(&current);
                record.since = known.map_or(record.since, |o| o.since);
                batch = batch.put(&KeyName::public(), &id, &AdminCert)?;
                batch = batch.put(&KeyName::public(), &id, &record)?;
                Some(record)
            }
        };
        self.store.write(batch)?;
        self.forget_certificates(&unused);
        self.certificates.insert(fingerprint, role);
        self.renewals.insert(fingerprint, current);
        self.operators.extend(operator.map(|o| (fingerprint, o)));
        Ok(signed.certificate)
    }

    /// A certificate was used. If it replaces another one, that one goes now.
    pub(crate) fn used(&mut self, certificate: &Digest) -> Result<(), CoordinatorError> {
        let Some(old) = self.renewals.get(certificate).copied() else {
            return Ok(());
        };
        let batch = Self::without_certificate(Batch::new(), &old);
        self.store
            .write(batch.delete::<Renewal>(&certificate.hex()))?;
        self.renewals.remove(certificate);
        self.forget_certificates(&[old]);
        self.to_disconnect.push(old);
        Ok(())
    }

    /// Removes all that is stored of a certificate.
    pub(super) fn without_certificate(batch: Batch, gone: &Digest) -> Batch {
        let id = gone.hex();
        batch
            .delete::<SubjectCert>(&id)
            .delete::<AdminCert>(&id)
            .delete::<OperatorRecord>(&id)
            .delete::<Renewal>(&id)
    }

    /// The same in memory.
    pub(super) fn forget_certificates(&mut self, gone: &[Digest]) {
        for d in gone {
            self.certificates.remove(d);
            self.operators.remove(d);
            self.renewals.remove(d);
        }
    }

    /// Who an operator is, whatever certificate they have renewed to: the fingerprint of their
    /// first one.
    pub(super) fn operator(&self, certificate: Digest) -> Digest {
        self.operators
            .get(&certificate)
            .map_or(certificate, |o| o.root)
    }

    /// Operators who can connect, by who they are. One with two certificates (the new one of a
    /// renewal was not used yet) is one operator.
    pub(super) fn valid_operators(&self) -> BTreeSet<Digest> {
        let now = self.unix_ms / 1000;
        let all = self.operator_list(None);
        let valid = all
            .into_iter()
            .filter(|o| o.expires.is_none_or(|e| e > now));
        valid.map(|o| o.fingerprint).collect()
    }

    /// All operators, those with expired certificates too; `you` is who asks.
    pub(super) fn operator_list(&self, you: Option<Digest>) -> Vec<OperatorState> {
        let mut out: BTreeMap<Digest, OperatorState> = BTreeMap::new();
        let admins = self.certificates.iter().filter(|(_, r)| **r == Role::Admin);
        for (certificate, _) in admins {
            let known = self.operators.get(certificate);
            let fingerprint = self.operator(*certificate);
            let state = out.entry(fingerprint).or_insert(OperatorState {
                fingerprint,
                since: known.map(|o| o.since),
                expires: known.map(|o| o.expires),
                you: you == Some(fingerprint),
            });
            state.since = state.since.min(known.map(|o| o.since));
            state.expires = state.expires.max(known.map(|o| o.expires));
        }
        out.into_values().collect()
    }

    /// Refuses to remove an operator who is not one, or without whom too few are left to agree.
    pub(super) fn may_remove_operator(&self, who: Digest) -> Result<(), CoordinatorError> {
        let all = self.operator_list(None);
        if !all.iter().any(|o| o.fingerprint == who) {
            let message = format!(
                "{} is no operator: `lethe-admin operators` lists them",
                who.short()
            );
            return Err(refuse(Refusal::Invalid, message));
        }
        let mut left = self.valid_operators();
        left.remove(&who);
        let needed = usize::from(self.approvals()?);
        if left.len() < needed {
            let message = format!(
                "{} operator(s) would be left, {needed} have to agree to a deletion: invite \
                 another one first",
                left.len()
            );
            return Err(refuse(Refusal::Invalid, message));
        }
        Ok(())
    }

    /// Withdraws all certificates of an operator and ends their connections.
    pub(super) fn remove_operator(&mut self, who: Digest) -> Result<(), CoordinatorError> {
        let admins = self.certificates.iter().filter(|(_, r)| **r == Role::Admin);
        let gone: Vec<Digest> = admins
            .map(|(d, _)| *d)
            .filter(|d| self.operator(*d) == who)
            .collect();
        let mut batch = gone.iter().fold(Batch::new(), Self::without_certificate);
        // Whoever is removed may hold invitations that nobody has used.
        for spare in self.store.keys::<AdminInvite>() {
            batch = batch.delete::<AdminInvite>(&spare);
        }
        self.store.write(batch)?;
        self.forget_certificates(&gone);
        self.to_disconnect.extend(gone);
        Ok(())
    }

    /// An invitation for an operator, asked for on the server's own machine. Whoever can do that
    /// holds the folder with all keys; the log says that it was done.
    pub(crate) fn recover_admin(&mut self) -> Result<Invitation, CoordinatorError> {
        let valid = self.valid_operators().len();
        let what = format!("invite an operator from the server's machine ({valid} valid before)");
        self.note(THIS_MACHINE, what)?;
        tracing::warn!(valid, "an operator was invited from this machine");
        self.invite(None)
    }
}
