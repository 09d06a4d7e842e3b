//! `lethe-server keys rotate`: asks the server that has the data folder for new keys, by a file in
//! it. Whoever can write there runs the server.

use std::path::Path;
use std::time::Duration;

use lethe_ledger::Command;
use lethe_proto::ids::Digest;
use lethe_store::StoreError;
use lethe_store::asking::{AskError, Asking};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::coordinator::Exchanged;
use crate::{Coordinator, CoordinatorError};

/// How long a command waits for the server.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    /// The master keys of all keyrings.
    Master,
    /// The key that signs the log.
    Log,
    /// The authority that signs certificates.
    Authority,
}

/// Why keys were not exchanged.
#[derive(Debug, Error)]
pub enum RotationError {
    /// A key was exchanged, and there is more to do.
    #[error(
        "the new {what} already, but the one before may be in the key source still: {why}. A start \
         of the server destroys it, when the key source can be written"
    )]
    Left {
        /// What the new one does.
        what: &'static str,
        /// Why the private key of before is not destroyed for certain.
        #[source]
        why: CoordinatorError,
    },
    /// It was tried.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    /// The server does not answer, or has not done it.
    #[error(transparent)]
    Asking(#[from] AskError),
}

/// What is said of the authority.
const EXCHANGED: &str = "a new authority signs certificates, and the private key of the one before \
                         is destroyed. Devices and operators follow when they connect next";
const COMPLETED: &str = "an exchange of the authority that was cut off is complete: the newest one \
                         signs certificates, and the private keys of those before are destroyed. \
                         Ask again for another exchange";

impl Coordinator {
    /// Exchanges keys, and enters into the log that it was done.
    ///
    /// # Errors
    /// [`RotationError::Left`], and what kept the key source from being written: repeat it.
    pub fn rotate(&self, which: Which) -> Result<String, RotationError> {
        let _one = self.rotating();
        match which {
            Which::Master => {
                self.shell().rotate_master()?;
                self.note("exchange the master keys on the server's machine")?;
                Ok("all keys are under fresh master keys; the ones before are destroyed".into())
            }
            Which::Log => {
                let exchanged = self.shell().rotate_log()?;
                let now = exchanged.key.text();
                self.note(&format!(
                    "exchange the log's key on the server's machine: now {now}"
                ))?;
                match exchanged.left {
                    Some(why) => Err(RotationError::Left {
                        what: "key signs the log",
                        why,
                    }),
                    None => Ok(format!(
                        "the log's key is {now} from now on, and the one before is destroyed. Tell \
                         witnesses and whoever verifies receipts; `lethe-admin log` writes the \
                         signed note of it"
                    )),
                }
            }
            Which::Authority => {
                let Exchanged { completes, left } = self.rotate_authority()?;
                // Whatever is left: the new one signs.
                self.note("exchange the certificate authority on the server's machine")?;
                match left {
                    Some(why) => Err(RotationError::Left {
                        what: "authority signs certificates",
                        why,
                    }),
                    None if completes => Ok(COMPLETED.into()),
                    None => Ok(EXCHANGED.into()),
                }
            }
        }
    }

    /// An entry of the log, and what follows from it.
    fn note(&self, line: &str) -> Result<(), RotationError> {
        let command = Command::Note {
            // As other actions on the server's own machine.
            by: Digest([0; 32]),
            line: line.into(),
            fresh: crate::shell::fresh()?,
        };
        self.shell().execute(command, vec![])?;
        self.shell().do_duties();
        Ok(())
    }
}

/// The files by which is asked; in the data folder.
fn asking(data_dir: &Path) -> Asking {
    Asking::new(data_dir, "keys-")
}

/// Asks the server that has this data folder, and waits for its answer.
///
/// # Errors
/// [`RotationError::Asking`]: there is none, or why it was not done.
pub fn ask(data_dir: &Path, which: Which) -> Result<String, RotationError> {
    Ok(asking(data_dir).ask(which, PATIENCE)?)
}

/// Forgets what was asked before the server started.
pub(crate) fn forget(data_dir: &Path) {
    asking(data_dir).forget();
}

/// Answers what is asked by a file, if something is.
pub(crate) fn answer(coordinator: &Coordinator, data_dir: &Path) -> Result<(), StoreError> {
    let rotates = |which| coordinator.rotate(which).map_err(|e| e.to_string());
    asking(data_dir).answer(rotates)
}
