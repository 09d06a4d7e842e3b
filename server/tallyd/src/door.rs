//! Who may connect: one coordinator, which was invited once.

use lethe_proto::ids::Digest;

use crate::TallydError;
use crate::office::{CertificateRow, DoorRow};

/// Invitations that wait at a time; the oldest makes way.
const INVITATIONS: usize = 8;
/// Certificates that are known at a time: the one in use, and what it is renewed to.
const CERTIFICATES: usize = 2;

/// What is kept of an invitation's secret.
pub(crate) fn hash_of(secret: &str) -> Digest {
    Digest::of(&[b"lethe tally invitation", secret.as_bytes()])
}

impl DoorRow {
    /// An invitation is made.
    pub(crate) fn invite(&mut self, secret: &str, now: u64) {
        self.invitations.insert(hash_of(secret), now);
        while self.invitations.len() > INVITATIONS {
            let oldest = self.invitations.iter().min_by_key(|i| *i.1).map(|i| *i.0);
            oldest.map(|o| self.invitations.remove(&o));
        }
    }

    /// An invitation is used, up. The coordinator of before, if there was one, is let in no more:
    /// returns its certificates.
    pub(crate) fn enrol(
        &mut self,
        secret: &str,
        certificate: Digest,
        expires: u64,
    ) -> Result<Vec<Digest>, TallydError> {
        if self.invitations.remove(&hash_of(secret)).is_none() {
            return Err(TallydError::NotInvited);
        }
        let gone = self.certificates.keys().copied().collect();
        self.certificates.clear();
        let replaces = None;
        self.certificates
            .insert(certificate, CertificateRow { expires, replaces });
        Ok(gone)
    }

    /// A certificate is exchanged for another, which ends it when it is first used.
    pub(crate) fn renew(
        &mut self,
        current: Digest,
        certificate: Digest,
        expires: u64,
    ) -> Result<(), TallydError> {
        if !self.certificates.contains_key(&current) {
            return Err(TallydError::NotKnown);
        }
        // One that was made before and never used.
        let replaces = Some(current);
        self.certificates.retain(|_, c| c.replaces != replaces);
        if self.certificates.len() >= CERTIFICATES {
            // It was never used, so what it replaces is still in use; and that one asks now.
            self.certificates.retain(|c, _| *c == current);
        }
        self.certificates
            .insert(certificate, CertificateRow { expires, replaces });
        Ok(())
    }

    /// A certificate is used. Returns the one that it ends, if it does.
    pub(crate) fn used(&mut self, certificate: &Digest) -> Option<Digest> {
        let row = self.certificates.get_mut(certificate)?;
        let ended = row.replaces.take()?;
        self.certificates.remove(&ended);
        Some(ended)
    }

    /// Whether a certificate is known.
    pub(crate) fn admits(&self, certificate: &Digest) -> bool {
        self.certificates.contains_key(certificate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_is_used_once_and_ends_the_coordinator_of_before() {
        let mut door = DoorRow::default();
        let (a, b) = (Digest([1; 32]), Digest([2; 32]));
        assert!(door.enrol("one", a, 9).is_err());
        door.invite("one", 1);
        assert_eq!(door.enrol("one", a, 9).expect("invited"), []);
        assert!(door.enrol("one", b, 9).is_err() && door.admits(&a));
        door.invite("two", 2);
        assert_eq!(door.enrol("two", b, 9).expect("invited"), [a]);
        assert!(!door.admits(&a) && door.admits(&b));
    }

    #[test]
    fn invitations_are_bounded() {
        let mut door = DoorRow::default();
        (0..20).for_each(|n| door.invite(&format!("{n}"), n));
        assert_eq!(door.invitations.len(), INVITATIONS);
        assert!(door.enrol("19", Digest([1; 32]), 9).is_ok());
        assert!(door.enrol("11", Digest([1; 32]), 9).is_err());
    }

    #[test]
    fn a_renewed_certificate_ends_the_one_before_when_it_is_used() {
        let mut door = DoorRow::default();
        let [a, b, c, d] = [1, 2, 3, 4].map(|n| Digest([n; 32]));
        door.invite("one", 1);
        door.enrol("one", a, 9).expect("invited");
        door.renew(a, b, 9).expect("known");
        assert!(door.admits(&a) && door.admits(&b));
        // The answer was lost: asked again, and the one that nobody has is gone.
        door.renew(a, c, 9).expect("known");
        assert!(!door.admits(&b) && door.admits(&c));
        assert_eq!(door.used(&c), Some(a));
        assert_eq!(door.used(&c), None);
        assert!(!door.admits(&a));
        assert!(door.renew(a, d, 9).is_err());
        // Renewed from one that itself was renewed and not used yet.
        door.renew(c, d, 9).expect("known");
        door.renew(d, a, 9).expect("known");
        assert!(door.certificates.len() <= CERTIFICATES && door.admits(&a) && door.admits(&d));
    }
}
