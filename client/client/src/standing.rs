//! How the person stands with the coordinator: restricted or not, trained on or not, whether what
//! was contributed still counts, and which orders to erase this copy of the folder has not carried
//! out.
//!
//! The coordinator tracks for each device what it has erased. A folder that was restored from a
//! backup of the phone holds what was erased since, and the coordinator does not know that. So the
//! folder says itself which order it has carried out last, and one that lacks some carries them out
//! before anything else: before it joins, contributes or trains.

use lethe_proto::message::{Reply, Request};
use lethe_proto::people::Standing;
use lethe_transport::TransportError;
use serde::{Deserialize, Serialize};

use crate::ClientError;
use crate::contributed;
use crate::erasure::Checked;
use crate::local::{Local, now_unix_s};
use crate::vault::{STANDING, Vault};
use crate::worker::{STANDS, Worker};

/// So many seconds pass until the coordinator is asked again.
const AGAIN_S: i64 = 600;
/// The same while the person's data is restricted: the restriction may be lifted.
const RESTRICTED_S: i64 = 60;
/// Pages of orders that are carried out at a start: a coordinator that never ends is left.
const PAGES: usize = 100;

/// The sealed file `standing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// The newest deletion about the person that this device has heard of.
    left: u64,
    /// The newest deletion whose order this device has carried out, or was told of before it kept
    /// this file.
    erased: u64,
}

/// What the file says; none: there is none, or it is damaged. Then the coordinator is believed,
/// which knows what this device has confirmed.
fn known(vault: &Vault) -> Result<Option<Known>, ClientError> {
    match vault.read(STANDING) {
        Err(ClientError::Sealed { .. }) => Ok(None),
        other => other,
    }
}

impl Local {
    /// What the coordinator said. A deletion that the device has not heard of has taken the person
    /// out of the sums: what the device holds is contributed again, when that is allowed.
    fn hear_of_standing(&mut self, standing: Standing) -> Result<(), ClientError> {
        let before = known(&self.vault)?;
        let now = Known {
            left: standing.left,
            erased: before.map_or(standing.ordered, |k| k.erased),
        };
        if before != Some(now) {
            if before.unwrap_or_default().left != now.left {
                self.person.lists.contributed = None;
                contributed::drop_all(&self.vault)?;
                self.save()?;
            }
            // Last: what fails before it is done again.
            self.vault.write(STANDING, &now)?;
        }
        self.standing = Some(standing);
        Ok(())
    }

    /// Orders up to this deletion are carried out.
    pub(crate) fn has_erased(&mut self, deletion: u64) -> Result<(), ClientError> {
        let mut now = known(&self.vault)?.unwrap_or_default();
        if now.erased >= deletion {
            return Ok(());
        }
        now.erased = deletion;
        self.vault.write(STANDING, &now)
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

    /// Asks how the person stands, and erases what this folder should not hold any more.
    pub(crate) async fn stands(&mut self) -> Result<(), ClientError> {
        if self.minor() < STANDS {
            return Ok(());
        }
        self.stands_at = now_unix_s().saturating_add(RESTRICTED_S);
        let Reply::Standing(standing) = self.call(&Request::Standing).await? else {
            return Err(TransportError::UnexpectedReply { asked: "standing" }.into());
        };
        let ordered = standing.ordered;
        if !standing.restricted {
            self.stands_at = now_unix_s().saturating_add(AGAIN_S);
        }
        self.local()?.hear_of_standing(standing)?;
        self.erase_what_is_left(ordered, false).await.map(drop)
    }

    /// Carries out orders that this copy of the folder lacks. False: they would erase almost
    /// everything, and wait for the person's consent.
    pub(crate) async fn erase_what_is_left(
        &mut self,
        ordered: u64,
        consented: bool,
    ) -> Result<bool, ClientError> {
        for _ in 0..PAGES {
            let erased = {
                let local = self.local()?;
                known(&local.vault)?.unwrap_or_default().erased
            };
            if erased >= ordered {
                self.local()?.owes = false;
                return Ok(true);
            }
            // Nothing is joined with, contributed or trained before this is done.
            self.local()?.owes = true;
            let checked = self.orders_since(erased).await?;
            let newest = checked.newest().unwrap_or(ordered);
            if checked.is_empty() {
                // The rest is part of a task, which comes with the next question for work.
                self.local()?.has_erased(newest)?;
                continue;
            }
            if !self.erase_again(&checked, consented)? {
                return Ok(false);
            }
            self.local()?.has_erased(newest)?;
            tracing::info!("an older copy of this folder erased what was ordered since: {newest}");
        }
        Ok(false)
    }

    async fn orders_since(&mut self, deletion: u64) -> Result<Checked, ClientError> {
        let seen = self.seen()?;
        self.checked(Request::OrdersSince { deletion, seen }).await
    }
}
