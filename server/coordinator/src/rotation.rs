//! `lethe-server keys rotate`: asks the server that has the data folder for new keys, by a file in
//! it. Whoever can write there runs the server.

use std::path::Path;
use std::time::{Duration, Instant};

use lethe_ledger::Command;
use lethe_proto::ids::Digest;
use lethe_store::private;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::coordinator::Exchanged;
use crate::{Coordinator, CoordinatorError};

/// File by which is asked, and the one that answers; in the data folder.
const ASK: &str = "keys-ask";
const ANSWER: &str = "keys-answer";
/// Longest of them, in bytes.
const LONGEST: usize = 4096;
/// How often they are looked for, and how long is waited for an answer.
const LOOK: Duration = Duration::from_millis(100);
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
    /// The files cannot be read or written.
    #[error(transparent)]
    Store(#[from] lethe_store::StoreError),
    /// The server did not do it.
    #[error("{0}")]
    Refused(String),
    /// The server is at it.
    #[error(
        "the server of {folder} has taken the request and has not answered within {seconds} s: its \
         log, and `lethe-admin actions`, say what became of it. Do not ask again before that: it \
         would be another exchange",
        seconds = PATIENCE.as_secs()
    )]
    Slow {
        /// The data folder.
        folder: std::path::PathBuf,
    },
    /// Nobody answers.
    #[error(
        "no server answers on {folder} within {seconds} s: start it, and ask again",
        seconds = PATIENCE.as_secs()
    )]
    Silent {
        /// The data folder.
        folder: std::path::PathBuf,
    },
}

#[derive(Serialize, Deserialize)]
struct Ask {
    id: String,
    which: Which,
}

#[derive(Serialize, Deserialize)]
struct Said {
    id: String,
    text: Result<String, String>,
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

/// Asks the server that has this data folder, and waits for its answer.
///
/// # Errors
/// [`RotationError::Silent`]: there is none. [`RotationError::Refused`]: why it was not done.
pub fn ask(data_dir: &Path, which: Which) -> Result<String, RotationError> {
    let id: [u8; 16] = lethe_seal::random().map_err(CoordinatorError::from)?;
    let id = lethe_receipt::hex::hex(&id);
    let ask = Ask {
        id: id.clone(),
        which,
    };
    let path = data_dir.join(ASK);
    private::write(&path, &encoded(&ask)?)?;
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let said = private::read(&data_dir.join(ANSWER), LONGEST)?;
        let said = said.and_then(|b| serde_json::from_slice::<Said>(&b).ok());
        if let Some(said) = said.filter(|s| s.id == id) {
            let _ = std::fs::remove_file(data_dir.join(ANSWER));
            return said.text.map_err(RotationError::Refused);
        }
        std::thread::sleep(LOOK);
    }
    let folder = data_dir.to_owned();
    // Whoever takes the file answers it.
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(RotationError::Slow { folder }),
        _ => Err(RotationError::Silent { folder }),
    }
}

fn encoded<T: Serialize>(value: &T) -> Result<Vec<u8>, RotationError> {
    let failed = |e: serde_json::Error| RotationError::Refused(e.to_string());
    serde_json::to_vec(value).map_err(failed)
}

/// Forgets what was asked before the server started: whoever asked was told that nobody answers, or
/// the file came with a backup.
pub(crate) fn forget(data_dir: &Path) {
    let _ = std::fs::remove_file(data_dir.join(ASK));
}

/// Answers what is asked by a file, if something is.
pub(crate) fn answer(coordinator: &Coordinator, data_dir: &Path) -> Result<(), RotationError> {
    let path = data_dir.join(ASK);
    let Some(bytes) = private::read(&path, LONGEST)? else {
        return Ok(());
    };
    std::fs::remove_file(&path).map_err(|source| lethe_store::StoreError::Io {
        path: path.clone(),
        source,
    })?;
    let ask: Ask = match serde_json::from_slice(&bytes) {
        Ok(ask) => ask,
        Err(e) => return Err(RotationError::Refused(format!("{}: {e}", path.display()))),
    };
    let said = Said {
        id: ask.id,
        text: coordinator.rotate(ask.which).map_err(|e| e.to_string()),
    };
    Ok(private::write(&data_dir.join(ANSWER), &encoded(&said)?)?)
}
