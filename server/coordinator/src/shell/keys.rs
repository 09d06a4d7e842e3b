//! Keys that are exchanged while the coordinator runs.

use super::Shell;
use crate::{CoordinatorError, fatal};

impl Shell {
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

    /// Another key signs the log from now on. Returns it as text.
    pub(crate) fn rotate_log(&self) -> Result<String, CoordinatorError> {
        let mut evidence = self.evidence();
        let exchanged = evidence.exchange(&self.keys);
        // Also where only the destruction of the old one failed.
        let now = evidence.log_key();
        *fatal::write(&self.log_key) = now.clone();
        exchanged?;
        Ok(now)
    }
}
