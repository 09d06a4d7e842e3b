//! How the person stands with the coordinator: restricted or not, trained on or not, and whether
//! what was contributed still counts.

use lethe_proto::message::{Reply, Request};
use lethe_proto::people::Standing;
use lethe_transport::TransportError;
use serde::{Deserialize, Serialize};

use crate::ClientError;
use crate::contributed;
use crate::local::{Local, now_unix_s};
use crate::vault::{STANDING, Vault};
use crate::worker::{STANDS, Worker};

/// So many seconds pass until the coordinator is asked again.
const AGAIN_S: i64 = 600;
/// The same while the person's data is restricted: the restriction may be lifted.
const RESTRICTED_S: i64 = 60;

/// The sealed file `standing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The newest deletion about the person that this device has heard of.
    left: u64,
}

/// What the file says. One that is damaged costs one contribution more, and nothing else.
fn known(vault: &Vault) -> Result<Known, ClientError> {
    match vault.read(STANDING) {
        Err(ClientError::Sealed { .. }) => Ok(Known::default()),
        other => Ok(other?.unwrap_or_default()),
    }
}

impl Local {
    /// What the coordinator said. A deletion that the device has not heard of has taken the person
    /// out of the sums: what the device holds is contributed again, when that is allowed.
    pub(crate) fn hear_of_standing(&mut self, standing: Standing) -> Result<(), ClientError> {
        if known(&self.vault)?.left != standing.left {
            self.person.lists.contributed = None;
            contributed::drop_all(&self.vault)?;
            self.save()?;
            // Last: what fails before it is done again.
            let left = standing.left;
            self.vault.write(STANDING, &Known { left })?;
        }
        self.standing = Some(standing);
        Ok(())
    }

    /// The coordinator takes nothing of this person, as far as is known.
    pub(crate) fn is_restricted(&self) -> bool {
        self.standing.as_ref().is_some_and(|s| s.restricted)
    }
}

impl Worker {
    /// Asks how the person stands, unless that was asked a moment ago.
    pub(crate) async fn stands_if_due(&mut self) -> Result<(), ClientError> {
        match now_unix_s() < self.stands_at {
            true => Ok(()),
            false => self.stands().await,
        }
    }

    /// Asks how the person stands.
    pub(crate) async fn stands(&mut self) -> Result<(), ClientError> {
        if self.minor() < STANDS {
            return Ok(());
        }
        self.stands_at = now_unix_s().saturating_add(RESTRICTED_S);
        let Reply::Standing(standing) = self.call(&Request::Standing).await? else {
            return Err(TransportError::UnexpectedReply { asked: "standing" }.into());
        };
        if !standing.restricted {
            self.stands_at = now_unix_s().saturating_add(AGAIN_S);
        }
        self.local()?.hear_of_standing(standing)
    }
}
