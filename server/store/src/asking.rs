//! A command asks the process that has a folder, by a file in it, and another file answers. Whoever
//! can write there runs the process.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{StoreError, private};

/// Longest of the files, in bytes.
const LONGEST: usize = 64 << 10;
/// How often they are looked for.
pub const LOOK: Duration = Duration::from_millis(100);

/// Why nothing was answered.
#[derive(Debug, Error)]
pub enum AskError {
    /// The files cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The process did not do it; why.
    #[error("{0}")]
    Refused(String),
    /// No process has the folder.
    #[error("no server answers on {folder} within {seconds} s: start it, and ask again")]
    Silent {
        /// The folder.
        folder: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A process has taken the request.
    #[error(
        "the server of {folder} has taken the request and has not answered within {seconds} s: its \
         log says what became of it. Do not ask again before that: it may be done twice"
    )]
    Slow {
        /// The folder.
        folder: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
}

/// The two files.
#[derive(Clone, Debug)]
pub struct Asking {
    folder: PathBuf,
    ask: PathBuf,
    answer: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Asked<T> {
    id: String,
    what: T,
}

#[derive(Serialize, Deserialize)]
struct Answered {
    id: String,
    text: Result<String, String>,
}

impl Asking {
    /// Files in a folder whose names begin like this.
    pub fn new(folder: &Path, prefix: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            ask: folder.join(format!("{prefix}ask")),
            answer: folder.join(format!("{prefix}answer")),
        }
    }

    /// Asks, and waits for the answer for so long.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn ask<T: Serialize>(&self, what: T, patience: Duration) -> Result<String, AskError> {
        let id: [u8; 16] = lethe_seal::random().map_err(StoreError::from)?;
        let id = lethe_receipt::hex::hex(&id);
        let asked = Asked {
            id: id.clone(),
            what,
        };
        private::write(&self.ask, &self.bytes(&asked)?)?;
        let began = Instant::now();
        while began.elapsed() < patience {
            let said = private::read(&self.answer, LONGEST)?;
            let said = said.and_then(|bytes| serde_json::from_slice::<Answered>(&bytes).ok());
            if let Some(said) = said.filter(|said| said.id == id) {
                let _ = fs::remove_file(&self.answer);
                return said.text.map_err(AskError::Refused);
            }
            std::thread::sleep(LOOK);
        }
        let folder = self.folder.clone();
        let seconds = patience.as_secs();
        // Whoever takes the file answers it.
        match fs::remove_file(&self.ask) {
            Err(e) if e.kind() == ErrorKind::NotFound => Err(AskError::Slow { folder, seconds }),
            _ => Err(AskError::Silent { folder, seconds }),
        }
    }

    /// Forgets what was asked before the process started: whoever asked was told that nobody
    /// answers, or the file came with a backup.
    pub fn forget(&self) {
        let _ = fs::remove_file(&self.ask);
    }

    /// Does what is asked, if something is, and answers it. What is asked is taken first: it is
    /// done once, also where the process ends in between.
    ///
    /// # Errors
    /// [`StoreError`]: the files cannot be read or written, or the request makes no sense.
    pub fn answer<T: DeserializeOwned>(
        &self,
        does: impl FnOnce(T) -> Result<String, String>,
    ) -> Result<(), StoreError> {
        let Some(bytes) = private::read(&self.ask, LONGEST)? else {
            return Ok(());
        };
        fs::remove_file(&self.ask).map_err(StoreError::io(&self.ask))?;
        let asked: Asked<T> = serde_json::from_slice(&bytes).map_err(|e| StoreError::Corrupt {
            name: self.ask.display().to_string(),
            why: e.to_string(),
        })?;
        let answered = Answered {
            id: asked.id,
            text: does(asked.what),
        };
        private::write(&self.answer, &self.bytes(&answered)?)
    }

    fn bytes(&self, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec(value).map_err(|e| StoreError::Corrupt {
            name: self.ask.display().to_string(),
            why: e.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_done_once_and_answered() {
        let dir = tempfile::tempdir().expect("tempdir");
        let asking = Asking::new(dir.path(), "keys-");
        let asks = asking.clone();
        let asked = std::thread::spawn(move || asks.ask(7_u32, Duration::from_secs(60)));
        let mut done = vec![];
        while !asked.is_finished() {
            let does = |what: u32| {
                done.push(what);
                Ok(format!("done {what}"))
            };
            asking.answer(does).expect("answers");
            std::thread::sleep(LOOK);
        }
        assert_eq!(asked.join().expect("ends").expect("answered"), "done 7");
        assert_eq!(done, [7]);
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 0);
    }

    #[test]
    fn silence_and_a_process_that_is_at_it_are_told_apart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let asking = Asking::new(dir.path(), "");
        let none = asking.ask(1_u32, Duration::from_millis(1));
        assert!(matches!(none, Err(AskError::Silent { .. })), "{none:?}");
        // What nobody waits for any more is not done.
        asking
            .answer(|_: u32| panic!("asked before"))
            .expect("nothing");
        let asks = asking.clone();
        let asked = std::thread::spawn(move || asks.ask(1_u32, Duration::from_secs(2)));
        while !asking.ask.exists() {
            std::thread::sleep(LOOK / 10);
        }
        // It takes the request, and its answer comes too late.
        fs::remove_file(&asking.ask).expect("takes it");
        let slow = asked.join().expect("ends");
        assert!(matches!(slow, Err(AskError::Slow { .. })), "{slow:?}");
    }
}
