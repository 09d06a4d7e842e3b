//! The device's identity: where it comes from, and how it stays valid.

use lethe_proto::ids::Digest;
use lethe_proto::message::{Refusal, Reply, Request};
use lethe_receipt::note::{SignedNote, VerifierKey};
use lethe_receipt::succession::{MOST_CHANGES, Succession};
use lethe_transport::TransportError;
use lethe_transport::client::enrol_for;
use lethe_transport::identity::Invitation;
use lethe_transport::place::Place;

use crate::ClientError;
use crate::local::{Local, Shared};
use crate::options::Options;
use crate::person::Person;
use crate::vault::LOG_KEYS;
use crate::worker::Worker;

/// The invitation that a client is opened with, if there is one.
///
/// # Errors
/// [`TransportError::Invitation`] if it does not parse: it must not take the place of a good one
/// that is kept.
pub(crate) fn offered(options: &Options) -> Result<Option<String>, ClientError> {
    let text = options.invitation.clone();
    let text = text.filter(|t| !t.trim().is_empty());
    if let Some(text) = &text {
        Invitation::parse(text)?.authority()?;
    }
    Ok(text)
}

/// Whether the device has an identity and this invitation was used, or refused, before.
pub(crate) fn tried(person: &Person, text: &str) -> bool {
    let parsed = Invitation::parse(text).ok();
    parsed.is_some_and(|i| person.identity.is_some() && person.invited == Some(name(&i)))
}

fn name(invitation: &Invitation) -> Digest {
    Digest::of(&[b"lethe-invitation", invitation.secret.as_bytes()])
}

/// Enrols with the invitation that is kept, if there is one; returns whether it did. The history
/// stays. With an identity already there, an invitation that the coordinator does not know, and a
/// coordinator that is away, change nothing.
pub(crate) async fn use_invitation(shared: &Shared, place: Place) -> Result<bool, ClientError> {
    let (text, subject, known) = {
        let local = shared.alive()?;
        let person = &local.person;
        let Some(text) = person.invitation.clone() else {
            return Ok(false);
        };
        (text, person.subject.clone(), person.identity.is_some())
    };
    let invitation = match Invitation::parse(&text) {
        Ok(invitation) => invitation,
        Err(e) if known => {
            drop_invitation(shared, None)?;
            return Err(e.into());
        }
        Err(e) => return Err(e.into()),
    };
    let enrolled = match enrol_for(place, &invitation, subject).await {
        Ok(enrolled) => enrolled,
        Err(e) if known && e.is_transient() => {
            tracing::info!("the invitation is tried again later: {e}");
            return Ok(false);
        }
        Err(e @ TransportError::Refused { .. }) if !e.is_transient() => {
            let used = matches!(
                e,
                TransportError::Refused {
                    code: Refusal::Forbidden,
                    ..
                }
            );
            if known {
                // It would be refused again.
                drop_invitation(shared, Some(name(&invitation)))?;
            }
            // An app may hand over the same invitation at every start.
            return match known && used {
                true => Ok(false),
                false => Err(ClientError::NotInvited(e)),
            };
        }
        Err(e) => return Err(e.into()),
    };
    let mut local = shared.alive()?;
    let invited = invitation.authority()?;
    // An invitation from before or after an exchange of the authority is of the same coordinator.
    let same = invited == local.person.authority || enrolled.shown.proves(&local.person.authority);
    if known && !same {
        local.begin_lists()?;
    }
    let authority = enrolled.shown.successor(&invited).unwrap_or(invited);
    let former = local.former_log_keys()?;
    let person = &mut local.person;
    // It may know nothing of this person: what was contributed is offered again.
    person.lists.contributed = None;
    person.identity = Some(enrolled.identity);
    person.authority = authority;
    person.subject = enrolled.subject;
    person.invited = Some(name(&invitation));
    person.invitation = None;
    let outlived = |key: &String| same && former.contains(key);
    let changes = invitation.log_key.is_some() && invitation.log_key != person.log_key;
    if changes && !invitation.log_key.as_ref().is_some_and(outlived) {
        // The person who invites vouches for this log; heads of another one say nothing about it.
        person.log_key = invitation.log_key;
        if !same {
            person.head = None;
        }
    }
    local.save()?;
    Ok(true)
}

fn drop_invitation(shared: &Shared, refused: Option<Digest>) -> Result<(), ClientError> {
    let mut local = shared.alive()?;
    local.person.invitation = None;
    local.person.invited = refused.or(local.person.invited);
    local.save()
}

/// First minor version that says which keys a log has had.
const LOG_KEYS_MINOR: u16 = 7;

impl Local {
    /// Keys of before of the coordinator's log, the newest last.
    pub(crate) fn former_log_keys(&self) -> Result<Vec<String>, ClientError> {
        match self.vault.read(LOG_KEYS) {
            Ok(keys) => Ok(keys.unwrap_or_default()),
            // Losing them costs a fetch.
            Err(ClientError::Sealed { .. }) => Ok(vec![]),
            Err(e) => Err(e),
        }
    }

    /// Trusts `next` in place of the authority `before` (DER), if that is trusted still. After an
    /// error it is tried again at the next connection.
    pub(crate) fn follow(&mut self, before: &[u8], next: &[u8]) -> Result<bool, ClientError> {
        if self.person.authority != before {
            return Ok(false);
        }
        self.person.authority = next.to_vec();
        if let Err(e) = self.save() {
            self.person.authority = before.to_vec();
            return Err(e);
        }
        tracing::info!("the coordinator has another authority now, and this device trusts it");
        Ok(true)
    }
}

impl Worker {
    /// Exchanges the certificate for a new one in the last third of its life. A failure is no
    /// reason to stop: there is time to try again. When another authority is trusted than the one
    /// that has signed it, it waits all the same: an older data folder of the coordinator, put
    /// back, would not know the new one.
    pub(crate) async fn renew_if_due(&mut self) -> Result<(), ClientError> {
        let identity = self.local()?.person.identity.clone();
        if !identity.is_some_and(|i| i.is_due()) {
            return Ok(());
        }
        let session = self.session()?;
        match session.renew().await {
            Ok(identity) => {
                // On disk before it is used: the old certificate goes when the new one is shown.
                let mut local = self.local()?;
                local.person.identity = Some(identity.clone());
                local.save()?;
                session.show(identity);
            }
            Err(e) => tracing::warn!("the certificate is not renewed yet: {e}"),
        }
        Ok(())
    }

    /// The log's key comes with the invitation; a device that enrolled with an older version takes
    /// the first that it is told. It keeps to it until that key itself has signed which one
    /// succeeds it ([`lethe_receipt::succession`]).
    pub(crate) async fn learn_log_key(&mut self, key: String) -> Result<(), ClientError> {
        let known = {
            let mut local = self.local()?;
            match local.person.log_key.clone() {
                Some(known) if known != key => known,
                Some(_) => return Ok(()),
                None => {
                    local.person.log_key = Some(key);
                    return local.save();
                }
            }
        };
        match self.follow_log(&known).await {
            Ok(newest) if newest.text() == key => Ok(()),
            // Nothing that this log holds is believed, and so nothing of it used.
            followed => {
                let why = followed.err().map(|e| format!(": {e}"));
                tracing::error!(
                    "the coordinator's log has another key than this device knows, and that one \
                     does not say so{}",
                    why.unwrap_or_default()
                );
                Ok(())
            }
        }
    }

    /// The key that a note of the log is to be verified with: the one that is known or, where that
    /// has not signed it, the one that succeeds it. Whether it has signed is not verified here.
    pub(crate) async fn log_key_of(&mut self, note: &str) -> Result<VerifierKey, ClientError> {
        let known = self.local()?.person.log_key.clone().unwrap_or_default();
        let key = VerifierKey::parse(&known)?;
        // What is no note is refused where it is verified.
        let by_another = SignedNote::parse(note).is_ok_and(|n| n.of(&key).is_none());
        match by_another {
            true => self.follow_log(&known).await,
            false => Ok(key),
        }
    }

    /// Goes over from the key that is known to the newest that it, and those after it, have signed
    /// as succeeding it. Without one it stays.
    async fn follow_log(&mut self, known: &str) -> Result<VerifierKey, ClientError> {
        let key = VerifierKey::parse(known)?;
        if self.minor() < LOG_KEYS_MINOR {
            return Ok(key);
        }
        let Reply::LogKeys(notes) = self.call(&Request::LogKeys).await? else {
            return Err(TransportError::UnexpectedReply { asked: "log keys" }.into());
        };
        let newest = Succession::open(notes.iter().map(String::as_str))?.newest(&key);
        if newest == key {
            return Ok(key);
        }
        let mut local = self.local()?;
        // What the old key has signed of the catalogue stays good.
        let mut former = local.former_log_keys()?;
        former.retain(|k| k != known);
        former.push(known.to_owned());
        let surplus = former.len().saturating_sub(MOST_CHANGES);
        former.drain(..surplus);
        local.vault.write(LOG_KEYS, &former)?;
        local.person.log_key = Some(newest.text());
        local.save()?;
        tracing::info!("the coordinator's log has another key: the one before says so");
        Ok(newest)
    }
}
