//! Keys that are exchanged while the coordinator runs.

use lethe_store::keys::Keys;

use super::Shell;
use crate::evidence::succession::Exchanged;
use crate::{CoordinatorError, fatal};

impl Shell {
    /// Where the keys lie.
    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Writes all keys under fresh master keys, those of the tally in this process too, and
    /// destroys the master keys of before. After an error it may be repeated.
    pub(crate) fn rotate_master(&self) -> Result<(), CoordinatorError> {
        fatal::lock(&self.writer).durable.store().rotate_master()?;
        match &self.lists {
            Some(lists) => lists.rotate_master(),
            None => Ok(()),
        }
    }

    /// Public key of the log (verifier key text).
    pub(crate) fn log_key(&self) -> String {
        fatal::read(&self.log_key).clone()
    }

    /// Another key signs the log from now on.
    pub(crate) fn rotate_log(&self) -> Result<Exchanged, CoordinatorError> {
        let exchanged = self.evidence().exchange(&self.keys)?;
        *fatal::write(&self.log_key) = exchanged.key.text();
        Ok(exchanged)
    }
}
