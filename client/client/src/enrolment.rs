//! The device's identity: where it comes from, and how it stays valid.

use std::net::SocketAddr;

use lethe_proto::ids::Digest;
use lethe_proto::message::Refusal;
use lethe_transport::TransportError;
use lethe_transport::client::{Dialer, enrol_as};
use lethe_transport::identity::Invitation;

use crate::ClientError;
use crate::client::Client;
use crate::vault::{State, Vault};

/// Enrols with an invitation that this device has not tried before. The history stays. With an
/// identity already there, an invitation that the coordinator does not know, and a coordinator that
/// is away, change nothing.
pub(crate) async fn use_invitation(
    vault: &Vault,
    state: &mut State,
    addr: SocketAddr,
    text: &str,
) -> Result<(), ClientError> {
    let invitation = Invitation::parse(text)?;
    let tried = Digest::of(&[b"lethe-invitation", invitation.secret.as_bytes()]);
    if state.invited == Some(tried) && state.identity.is_some() {
        return Ok(());
    }
    let dialer = Dialer::bind(addr)?;
    let enrolled = match enrol_as(&dialer, addr, &invitation, state.subject.clone()).await {
        Ok(enrolled) => enrolled,
        Err(e) if state.identity.is_none() => return Err(e.into()),
        Err(e) if e.is_transient() => {
            tracing::info!("the invitation is tried again later: {e}");
            return Ok(());
        }
        Err(TransportError::Refused {
            code: Refusal::Forbidden,
            ..
        }) => {
            // Used already: an app may hand over the same invitation at every start.
            state.invited = Some(tried);
            return vault.save(state);
        }
        Err(e) => return Err(e.into()),
    };
    state.identity = Some(enrolled.identity);
    state.authority = invitation.authority()?;
    state.subject = enrolled.subject;
    state.invited = Some(tried);
    if invitation.log_key.is_some() && invitation.log_key != state.log_key {
        // The person who invites vouches for this log; heads of another one say nothing about it.
        state.log_key = invitation.log_key;
        state.head = None;
    }
    vault.save(state)
}

impl Client {
    /// Exchanges the certificate for a new one in the last third of its life. A failure is no
    /// reason to stop: there is time to try again.
    pub(crate) async fn renew_if_due(&mut self) -> Result<(), ClientError> {
        if !self.state.identity.as_ref().is_some_and(|i| i.is_due()) {
            return Ok(());
        }
        match self.session.renew().await {
            Ok(identity) => {
                // On disk before it is used: the old certificate goes when the new one is shown.
                self.state.identity = Some(identity.clone());
                self.vault.save(&self.state)?;
                self.session.show(identity);
            }
            Err(e) => tracing::warn!("the certificate is not renewed yet: {e}"),
        }
        Ok(())
    }

    /// The log's key comes with the invitation; a device that enrolled with an older version takes
    /// the first that it is told, and keeps to it.
    pub(crate) fn learn_log_key(&mut self, key: String) -> Result<(), ClientError> {
        match &self.state.log_key {
            Some(known) if *known != key => {
                tracing::error!("the coordinator's log has another key than this device knows");
                Ok(())
            }
            Some(_) => Ok(()),
            None => {
                self.state.log_key = Some(key);
                self.vault.save(&self.state)
            }
        }
    }
}
