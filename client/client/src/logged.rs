//! What is served is in the log: a release or a snapshot is used only if the log holds it, under a
//! head that extends the newest one that this device has seen.

use lethe_proto::ids::{Digest, EpochNo};
use lethe_proto::message::{Proven, Reply, Request, ServedPart};
use lethe_receipt::manifest::Manifest;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::order::SeenHead;
use lethe_receipt::served::ServedError;
use lethe_recipe::{Aggregation, Recipe};
use lethe_transport::TransportError;

use crate::ClientError;
use crate::worker::Worker;

/// Minor version from which coordinators enter into the log what they serve.
pub(crate) const MINOR: u16 = 6;

/// A release as the coordinator gave it.
pub(crate) struct Given<'a> {
    pub(crate) release: u64,
    pub(crate) epoch: EpochNo,
    pub(crate) recipe: &'a Recipe,
    /// Of the device's parts, as they came, by shard.
    pub(crate) parts: &'a [Digest],
}

impl Worker {
    /// Whether the coordinator can show that its log holds what it serves. What an older one serves
    /// is used as ever, and that is said once, unless the app asks for proofs.
    fn proves(&mut self) -> Result<bool, ClientError> {
        let minor = self.minor();
        if minor >= MINOR {
            return Ok(true);
        }
        if self.shared.options.logged_only {
            return Err(ClientError::Unlogged { minor });
        }
        if !self.said_unlogged {
            self.said_unlogged = true;
            tracing::warn!(
                minor,
                "this coordinator is older: it does not enter into its log what it serves, and \
                 nothing shows that everybody is given the same"
            );
        }
        Ok(false)
    }

    /// Refuses a release that the log does not hold as it was given.
    ///
    /// # Errors
    /// [`ClientError::Served`], [`ClientError::Unlogged`].
    pub(crate) async fn release_is_logged(&mut self, given: &Given<'_>) -> Result<(), ClientError> {
        if !self.proves()? {
            return Ok(());
        }
        let release = given.release;
        let (proven, key, seen) = self.proof_of(ServedPart::Release(release)).await?;
        let (stated, head) = proven.release(&key, seen)?;
        self.see(head)?;
        let what = || format!("release {release}");
        let other = |part: String| -> Result<(), ClientError> {
            Err(ServedError::Other { what: what(), part }.into())
        };
        if stated.release != release {
            return Err(ServedError::NotLogged { what: what() }.into());
        }
        if stated.epoch != given.epoch.0 || stated.recipe != given.recipe.digest().hex() {
            return other("recipe".into());
        }
        if stated.base_model != self.model()?.digest.hex() {
            return other("base model".into());
        }
        if stated.parts.len() != given.parts.len() {
            return other("number of shards".into());
        }
        // Where everybody has parameters of their own, the log does not hold them: they are about
        // one person. They take the place of one shard's.
        let own = usize::from(given.recipe.aggregation == Aggregation::Personalized);
        let parts = stated.parts.iter().zip(given.parts).enumerate();
        let mut differ = parts.filter(|(_, (stated, given))| **stated != given.hex());
        match differ.nth(own) {
            None => Ok(()),
            Some((shard, _)) => other(format!("adapter of shard {shard}")),
        }
    }

    /// Refuses a version of the catalogue whose manifest the log does not hold.
    ///
    /// # Errors
    /// [`ClientError::Served`], [`ClientError::Unlogged`].
    pub(crate) async fn catalogue_is_logged(
        &mut self,
        manifest: &Manifest,
    ) -> Result<(), ClientError> {
        if !self.proves()? {
            return Ok(());
        }
        let of = ServedPart::Catalogue(manifest.number);
        let (proven, key, seen) = self.proof_of(of).await?;
        let head = proven.catalogue(manifest, &key, seen)?;
        self.see(head)
    }

    /// Refuses a snapshot of the lists' tables that the log does not hold.
    ///
    /// # Errors
    /// [`ClientError::Served`], [`ClientError::Unlogged`].
    pub(crate) async fn snapshot_is_logged(
        &mut self,
        number: u64,
        sha256: Digest,
    ) -> Result<(), ClientError> {
        if !self.proves()? {
            return Ok(());
        }
        let (proven, key, seen) = self.proof_of(ServedPart::Snapshot(number)).await?;
        let (named, head) = proven.snapshot(&key, seen)?;
        self.see(head)?;
        let what = || format!("snapshot {number}");
        if named.number != number {
            return Err(ServedError::NotLogged { what: what() }.into());
        }
        let other = |part: &str| -> Result<(), ClientError> {
            let part = part.to_owned();
            Err(ServedError::Other { what: what(), part }.into())
        };
        if named.sha256 != sha256.hex() {
            return other("content");
        }
        match self.local()?.person.lists.key.as_deref() == Some(named.key.as_str()) {
            true => Ok(()),
            false => other("key"),
        }
    }

    async fn proof_of(
        &mut self,
        of: ServedPart,
    ) -> Result<(Proven, VerifierKey, Option<SeenHead>), ClientError> {
        let seen = self.seen()?;
        let Reply::Logged(proven) = self.call(&Request::Logged { of, seen }).await? else {
            return Err(TransportError::UnexpectedReply { asked: "logged" }.into());
        };
        let local = self.local()?;
        let key = VerifierKey::parse(local.person.log_key.as_deref().unwrap_or_default())?;
        Ok((proven, key, local.person.head))
    }

    /// Remembers the newest head of the log that was shown.
    pub(crate) fn see(&self, head: SeenHead) -> Result<(), ClientError> {
        let mut local = self.local()?;
        if local.person.head == Some(head) {
            return Ok(());
        }
        local.person.head = Some(head);
        local.save()
    }
}
