//! What is served is in the log: a release or a snapshot is used only if the log holds it, under a
//! head that extends the newest one that this device has seen.

use lethe_proto::ids::{Digest, EpochNo};
use lethe_proto::message::{Proven, Reply, Request, ServedPart};
use lethe_receipt::manifest::Manifest;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::order::SeenHead;
use lethe_receipt::served::{ReleaseStatement, ServedError};
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
        let base_model = self.model()?.digest;
        Ok(compared(&stated, given, base_model)?)
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
        let key = self.log_key_of(&proven.checkpoint).await?;
        let head = self.local()?.person.head;
        Ok((proven, key, head))
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

/// Whether a release is, part by part, what the log says of it.
fn compared(
    stated: &ReleaseStatement,
    given: &Given<'_>,
    base_model: Digest,
) -> Result<(), ServedError> {
    let what = || format!("release {}", given.release);
    let other = |part: String| Err(ServedError::Other { what: what(), part });
    if stated.release != given.release {
        return Err(ServedError::NotLogged { what: what() });
    }
    if stated.epoch != given.epoch.0 || stated.recipe != given.recipe.digest().hex() {
        return other("recipe".into());
    }
    if stated.base_model != base_model.hex() {
        return other("base model".into());
    }
    if stated.parts.len() != given.parts.len() {
        return other("number of shards".into());
    }
    // Where everybody has parameters of their own, the log does not hold them: they are about one
    // person. They take the place of one shard's.
    let own = usize::from(given.recipe.aggregation == Aggregation::Personalized);
    let parts = stated.parts.iter().zip(given.parts).enumerate();
    let mut differ = parts.filter(|(_, (stated, given))| **stated != given.hex());
    match differ.nth(own) {
        None => Ok(()),
        Some((shard, _)) => other(format!("adapter of shard {shard}")),
    }
}

#[cfg(test)]
mod tests {
    use lethe_receipt::served::SERVED_VERSION;

    use super::*;

    fn given<'a>(release: u64, recipe: &'a Recipe, parts: &'a [Digest]) -> Given<'a> {
        Given {
            release,
            epoch: EpochNo::FIRST,
            recipe,
            parts,
        }
    }

    /// Audit M5: an adapter that differs from the one in the log is not used.
    #[test]
    fn each_part_of_a_release_is_compared_with_the_log() {
        let recipe = Recipe::default();
        let model = Digest([9; 32]);
        let parts = [Digest([1; 32]), Digest([2; 32]), Digest([3; 32])];
        let stated = ReleaseStatement {
            version: SERVED_VERSION,
            release: 7,
            epoch: 1,
            at: 0,
            recipe: recipe.digest().hex(),
            base_model: model.hex(),
            catalogue: 1,
            catalogue_digest: String::new(),
            build: "test".into(),
            adapters: vec![],
            parts: parts.iter().map(Digest::hex).collect(),
        };
        let right = given(7, &recipe, &parts[..]);
        assert_eq!(compared(&stated, &right, model), Ok(()));
        let other = |part: &str| {
            let what = "release 7".to_owned();
            let part = part.to_owned();
            Err(ServedError::Other { what, part })
        };
        let mut lie = parts;
        lie[1] = Digest([8; 32]);
        let lied = given(7, &recipe, &lie[..]);
        assert_eq!(compared(&stated, &lied, model), other("adapter of shard 1"));
        let fewer = given(7, &recipe, &parts[..2]);
        assert_eq!(compared(&stated, &fewer, model), other("number of shards"));
        let another = compared(&stated, &right, Digest::default());
        assert_eq!(another, other("base model"));
        let eight = given(8, &recipe, &parts[..]);
        let missing = compared(&stated, &eight, model);
        assert!(matches!(missing, Err(ServedError::NotLogged { .. })));
        let mut own = recipe.clone();
        own.seed += 1;
        let other_recipe = given(7, &own, &parts[..]);
        assert_eq!(compared(&stated, &other_recipe, model), other("recipe"));

        // A person's own parameters take the place of one shard's, and of no other.
        own.aggregation = Aggregation::Personalized;
        let stated = ReleaseStatement {
            recipe: own.digest().hex(),
            ..stated
        };
        let personal = given(7, &own, &lie[..]);
        assert_eq!(compared(&stated, &personal, model), Ok(()));
        lie[2] = Digest([8; 32]);
        let two = given(7, &own, &lie[..]);
        assert_eq!(compared(&stated, &two, model), other("adapter of shard 2"));
    }
}
