//! Contributions to a tally of its own: what is checked before anything is sealed, and what keeps a
//! device that has once sealed from ever contributing in clear.

use std::path::PathBuf;

use lethe_proto::codec;
use lethe_proto::lists::Contributed;
use lethe_proto::message::{Reply, Request};
use lethe_proto::tally::{
    ANSWER, CONTRIBUTION, Confided, SealedContribution, SealingTerms, bound_to, padded,
};
use lethe_receipt::hex::hex;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::sealing::SealingStatement;
use lethe_receipt::vouch::handle_hash;
use lethe_seal::envelope::{AnswerKey, PublicKey, seal_to};
use lethe_transport::TransportError;
use serde::{Deserialize, Serialize};

use crate::local::{Local, now_unix_s};
use crate::status::Contributes;
use crate::vault::{SEALING, Vault};
use crate::worker::{SEALED, Worker};
use crate::{ClientError, Options};

/// How far a device's clock may be off a statement's times, in seconds.
const SLACK_S: u64 = 3_600;

/// The tally that was sealed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// Key that signs snapshots and statements (verifier key text).
    key: String,
    /// What it knows the person by.
    handle: [u8; 16],
}

/// The sealed file `sealing`: while it is there, nothing is contributed in clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct File {
    /// None: the device has gone to another coordinator since, whose tally it does not know yet.
    known: Option<Known>,
}

/// What a device has kept of sealing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sealing {
    /// It has never sealed.
    Never,
    /// It has, to this tally.
    Since(Option<Known>),
    /// It has; the file does not open any more.
    Damaged(PathBuf),
}

impl Sealing {
    pub(crate) fn open(vault: &Vault) -> Result<Self, ClientError> {
        match vault.read::<File>(SEALING) {
            Ok(None) => Ok(Self::Never),
            Ok(Some(file)) => Ok(Self::Since(file.known)),
            Err(ClientError::Sealed { path }) => {
                tracing::error!(
                    "{} is damaged: nothing is contributed until the app decides",
                    path.display()
                );
                Ok(Self::Damaged(path))
            }
            Err(e) => Err(e),
        }
    }
}

/// The key that the app pins, if it does.
fn pinned(options: &Options) -> Result<Option<VerifierKey>, ClientError> {
    let parse = |text: &String| {
        VerifierKey::parse(text).map_err(|_| ClientError::TallyKey { got: text.clone() })
    };
    options.tally_key.as_ref().map(parse).transpose()
}

impl Options {
    /// The text of the key that is pinned.
    pub(crate) fn pinned_key(&self) -> Result<Option<String>, ClientError> {
        Ok(pinned(self)?.map(|k| k.text()))
    }
}

impl Local {
    fn keep_sealing(&mut self, known: Option<Known>) -> Result<(), ClientError> {
        let kept = Sealing::Since(known.clone());
        if self.sealing != kept {
            self.vault.write(SEALING, &File { known })?;
            self.sealing = kept;
        }
        Ok(())
    }

    /// Another coordinator has another tally; it, too, gets nothing in clear.
    pub(crate) fn begin_sealing(&mut self) -> Result<(), ClientError> {
        match self.sealing {
            Sealing::Since(Some(_)) => self.keep_sealing(None),
            _ => Ok(()),
        }
    }

    /// The app pins this key, if it does: what another one signed is not used.
    pub(crate) fn pin(&mut self, key: Option<String>) -> Result<(), ClientError> {
        let kept = self.person.lists.key.as_ref();
        match key.zip(kept).is_some_and(|(pinned, kept)| pinned != *kept) {
            true => self.forget_tally(),
            false => Ok(()),
        }
    }

    /// The app allows the coordinator to read contributions.
    pub(crate) fn accept_embedded(&mut self) -> Result<(), ClientError> {
        if self.sealing == Sealing::Never {
            return Ok(());
        }
        // The coordinator signs with a key of its own from now on, and has numbers of its own.
        self.forget_tally()?;
        self.vault.remove(SEALING)?;
        self.sealing = Sealing::Never;
        Ok(())
    }

    /// Whether contributions are sealed, whatever the coordinator says.
    pub(crate) fn seals(&self, options: &Options) -> bool {
        self.sealing != Sealing::Never || options.tally_key.is_some()
    }

    /// How the person contributes; for [`crate::Status`].
    pub(crate) fn contributes(&self, options: &Options) -> Contributes {
        let lists = &self.person.lists;
        let pinned = options.tally_key.clone();
        match &self.sealing {
            _ if lists.opted_out => Contributes::No,
            Sealing::Damaged(_) => Contributes::Blocked,
            Sealing::Since(known) => Contributes::Sealed {
                tally: pinned.or_else(|| known.as_ref().map(|k| k.key.clone())),
            },
            Sealing::Never if pinned.is_some() => Contributes::Sealed { tally: pinned },
            Sealing::Never if lists.contributed.is_some() => Contributes::InClear,
            Sealing::Never => Contributes::NotYet,
        }
    }

    /// Checks that the device may contribute to a coordinator without a tally.
    fn may_be_in_clear(&self, options: &Options, got: &'static str) -> Result<(), ClientError> {
        let known = match &self.sealing {
            Sealing::Since(known) => known.as_ref().map(|k| k.key.clone()),
            _ => None,
        };
        match self.seals(options) {
            false => Ok(()),
            true => Err(ClientError::WouldContributeInClear {
                expected: options.pinned_key()?.or(known),
                got,
            }),
        }
    }

    /// Checks terms against what the device knows; returns what is sealed to, and what is kept
    /// before that.
    fn check(
        &self,
        terms: &SealingTerms,
        pinned: Option<String>,
    ) -> Result<(PublicKey, Known), ClientError> {
        let kept = match &self.sealing {
            Sealing::Since(known) => known.as_ref(),
            _ => None,
        };
        let of_lists = self.person.lists.key.clone();
        let expected = pinned.or_else(|| kept.map(|k| k.key.clone())).or(of_lists);
        let expected = expected.unwrap_or_else(|| terms.key.clone());
        let key = sealing_key(terms, &expected, u64::try_from(now_unix_s()).unwrap_or(0))?;
        if let Some(kept) = kept.filter(|k| k.handle != terms.handle) {
            let name = |handle: &[u8; 16]| hex(&handle_hash(handle)[..4]);
            return Err(ClientError::OtherHandle {
                known: name(&kept.handle),
                got: name(&terms.handle),
            });
        }
        let known = Known {
            key: expected,
            handle: terms.handle,
        };
        Ok((key, known))
    }
}

/// The key to seal to, if the terms are those of the tally that is expected, at `now`.
fn sealing_key(terms: &SealingTerms, expected: &str, now: u64) -> Result<PublicKey, ClientError> {
    if terms.key != expected {
        return Err(ClientError::OtherListKey {
            known: expected.to_owned(),
            got: terms.key.clone(),
        });
    }
    let bad = |why: String| ClientError::BadSealing(why);
    let key = VerifierKey::parse(expected).map_err(|e| bad(e.to_string()))?;
    let statement = SealingStatement::open(&terms.note, &key).map_err(|e| bad(e.to_string()))?;
    let SealingStatement { from, until, .. } = statement;
    if now.saturating_add(SLACK_S) < from || now > until.saturating_add(SLACK_S) {
        return Err(bad(format!(
            "the tally's sealing key is for {from} to {until}, this device's clock says {now} \
             (seconds since 1970)"
        )));
    }
    Ok(PublicKey(statement.key))
}

/// What came of a sealed contribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// It is stored.
    Taken,
    /// It may be tried again after so many seconds.
    Later(i64),
    /// The ticket is gone: other terms are needed.
    Stale,
}

/// The longest that a device waits because the tally says that it is too soon, in seconds.
const MOST_WAIT_S: i64 = 7 * 86_400;

impl Worker {
    /// How contributions go, as the coordinator says; none: in clear.
    ///
    /// # Errors
    /// [`ClientError::WouldContributeInClear`], [`ClientError::SealingDamaged`]: the device does
    /// not contribute so.
    pub(crate) async fn sealing_terms(&self) -> Result<Option<SealingTerms>, ClientError> {
        if let Sealing::Damaged(path) = &self.local()?.sealing {
            return Err(ClientError::SealingDamaged { path: path.clone() });
        }
        let (terms, got) = match self.minor() >= SEALED {
            true => match self.call(&Request::Terms).await? {
                Reply::Terms(terms) => (terms, "says that it reads contributions itself"),
                _ => return Err(TransportError::UnexpectedReply { asked: "terms" }.into()),
            },
            false => (None, "is of a version that knows no tally of its own"),
        };
        if terms.is_none() {
            self.local()?.may_be_in_clear(&self.shared.options, got)?;
        }
        Ok(terms)
    }

    /// The key of terms that are those of the tally which this device knows, or knows from now on.
    pub(crate) fn sealing_key(&self, terms: &SealingTerms) -> Result<PublicKey, ClientError> {
        let pinned = self.shared.options.pinned_key()?;
        let mut local = self.local()?;
        let (key, known) = local.check(terms, pinned)?;
        // Before anything leaves: a device that stops here contributes sealed ever after.
        local.keep_sealing(Some(known))?;
        Ok(key)
    }

    /// Seals a contribution for the tally, and has the coordinator pass it on. From then on this
    /// device contributes nothing in clear.
    pub(crate) async fn send_sealed(
        &self,
        terms: &SealingTerms,
        body: &Contributed,
        pause: i64,
    ) -> Result<Sealed, ClientError> {
        let internal = |e: &dyn std::fmt::Display| ClientError::Internal(e.to_string());
        let key = self.sealing_key(terms)?;
        let plain = padded(body).map_err(|e| internal(&e))?;
        let bound = bound_to(&terms.handle, &terms.ticket);
        let sealed = seal_to(&key, CONTRIBUTION, &bound, &plain, ANSWER)
            .map_err(|e| ClientError::BadSealing(e.to_string()))?;
        let request = Request::ContributeSealed(SealedContribution {
            ticket: terms.ticket,
            envelope: sealed.envelope,
        });
        let Reply::Confided(answer) = self.call(&request).await? else {
            return Err(TransportError::UnexpectedReply {
                asked: "contribute",
            }
            .into());
        };
        match read_answer(&sealed.answer, &answer)? {
            Confided::Taken | Confided::Smaller => Ok(Sealed::Taken),
            Confided::TooSoon { wait_s } => {
                let wait = i64::try_from(wait_s).unwrap_or(i64::MAX);
                tracing::info!("the contribution waits: the tally asks for {wait_s} s");
                Ok(Sealed::Later(wait.clamp(pause, MOST_WAIT_S)))
            }
            Confided::Full | Confided::Busy => {
                tracing::info!("the contribution waits: the tally takes none now");
                Ok(Sealed::Later(pause))
            }
            Confided::Stale => Ok(Sealed::Stale),
            Confided::Invalid(why) => Err(ClientError::ContributionRefused(why)),
        }
    }
}

/// The tally's answer. One that does not open is not the tally's.
fn read_answer(key: &AnswerKey, answer: &[u8]) -> Result<Confided, ClientError> {
    let opened = key.open(answer);
    let read = opened.and_then(|bytes| Confided::from_bytes(&bytes).ok());
    read.ok_or(ClientError::BadAnswer)
}

/// Bytes of a contribution, for its digest.
pub(crate) fn bytes_of(body: &Contributed) -> Result<Vec<u8>, ClientError> {
    codec::to_bytes(body).map_err(|e| ClientError::Internal(e.to_string()))
}

#[cfg(test)]
mod tests {
    use lethe_receipt::note::Signer;
    use lethe_seal::envelope::SecretKey;

    use super::*;

    fn signed(signer: &Signer, from: u64, until: u64) -> SealingTerms {
        let statement = SealingStatement {
            key: SecretKey::from_seed(&[7; 32]).public().0,
            from,
            until,
        };
        SealingTerms {
            key: signer.verifier().text(),
            note: statement.sign(signer).expect("signs"),
            handle: [1; 16],
            ticket: [2; 32],
        }
    }

    #[test]
    fn a_statement_counts_within_its_times_and_an_hour() {
        let signer = Signer::from_seed("tally", &[3; 32]).expect("a seed");
        let terms = signed(&signer, 100_000, 200_000);
        let at = |now| sealing_key(&terms, &terms.key, now);
        let key = SecretKey::from_seed(&[7; 32]).public();
        for now in [100_000 - 3_600, 100_000, 200_000, 200_000 + 3_600] {
            assert_eq!(at(now).expect("counts"), key);
        }
        for now in [0, 100_000 - 3_601, 200_000 + 3_601, u64::MAX] {
            assert!(matches!(at(now), Err(ClientError::BadSealing(_))), "{now}");
        }
        // Times at the end of the numbers are no way round.
        let odd = signed(&signer, u64::MAX, u64::MAX);
        assert!(sealing_key(&odd, &odd.key, 5).is_err());
    }

    #[test]
    fn statements_of_others_and_about_other_things_are_refused() {
        let signer = Signer::from_seed("tally", &[3; 32]).expect("a seed");
        let stranger = Signer::from_seed("tally", &[4; 32]).expect("a seed");
        let terms = signed(&signer, 1, 200_000);
        let key = &terms.key;
        let other = signed(&stranger, 1, 200_000);
        assert!(matches!(
            sealing_key(&other, key, 5),
            Err(ClientError::OtherListKey { .. })
        ));
        let forged = SealingTerms {
            note: other.note,
            ..terms.clone()
        };
        let about_more = SealingTerms {
            note: signer.note("lethe tally snapshot 1\n").expect("signs"),
            ..terms.clone()
        };
        for bad in [forged, about_more] {
            assert!(matches!(
                sealing_key(&bad, key, 5),
                Err(ClientError::BadSealing(_))
            ));
        }
        assert!(sealing_key(&terms, key, 5).is_ok());
    }
}
