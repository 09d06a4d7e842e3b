//! Where keys are: outside the data folder, so that a copy of it opens nothing.
//!
//! A **key source** keeps secrets by name: the master keys of keyrings, the authority that signs
//! certificates, the seed of the log's key. It is a folder of its own, the same folder with every
//! secret sealed under a passphrase, or a command that reaches a vault, a hardware token or the
//! system's keyring. Keyrings ([`crate::sealed`]) are files in the folder in every form: each is
//! sealed under its master key, which the source destroys when a key is.
//!
//! The folder is never put back from an older copy: keys that were destroyed would be back. A store
//! notes the newest generation that it has seen (`keys-seen`), and refuses an older one.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::StoreError;

mod command;
mod folder;
mod passphrase;

use command::Command;
use folder::Folder;
pub use folder::destroy_file;

/// Longest secret, in bytes.
pub const LONGEST: usize = 16 << 10;

/// Longest name of a secret, in bytes.
const LONGEST_NAME: usize = 64;

/// Secrets by name. Names have letters a to z, digits, hyphens and dots.
pub trait KeySource: Send + Sync + fmt::Debug {
    /// The secret of this name; `None`: there is none.
    ///
    /// # Errors
    /// The source cannot be asked, or what it holds is damaged.
    fn get(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError>;

    /// Keeps a secret, in place of one with this name. It is durable when this returns.
    ///
    /// # Errors
    /// The source cannot be written.
    fn put(&self, name: &str, secret: &[u8]) -> Result<(), StoreError>;

    /// Destroys a secret: nobody gets it from the source again. One that is not there is no error.
    ///
    /// # Errors
    /// It may still be there: repeat it.
    fn destroy(&self, name: &str) -> Result<(), StoreError>;

    /// Names of all secrets, in no order.
    ///
    /// # Errors
    /// The source cannot be asked.
    fn list(&self) -> Result<Vec<String>, StoreError>;
}

/// The table `[keys]` of a configuration; without it keys are files in `DATA_DIR-keys`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysConfig {
    /// Folder of the keys; `DATA_DIR-keys` when absent. It is not inside the data folder, and is
    /// never put back from an older copy.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// File whose content is the passphrase that secrets are sealed under, such as a credential of
    /// systemd. A newline at its end does not belong to it.
    #[serde(default)]
    pub passphrase_file: Option<PathBuf>,
    /// Environment variable with the passphrase, where there is no file.
    #[serde(default)]
    pub passphrase_env: Option<String>,
    /// Program, and its first arguments, that keeps secrets elsewhere: it is called with `get
    /// NAME`, `put NAME`, `destroy NAME` or `list` (docs/keys.md).
    #[serde(default)]
    pub command: Vec<String>,
}

/// Where the keys of one store are. Cloning shares the source.
#[derive(Clone)]
pub struct Keys {
    folder: PathBuf,
    source: Arc<dyn KeySource>,
    /// Master keys are in the source; if not, they are files beside their keyring.
    masters: bool,
    /// What the names of this store's secrets begin with.
    prefix: String,
    place: Arc<str>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({}, {:?})", self.place, self.prefix)
    }
}

impl Keys {
    /// Keys as files in a folder.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            source: Arc::new(Folder::plain(folder)),
            masters: false,
            prefix: String::new(),
            place: format!("the folder {}", folder.display()).into(),
        }
    }

    /// Keys as a configuration says, for the store in `data_dir`. Secrets that are in the folder,
    /// from when it was the source itself, go where they belong now.
    ///
    /// # Errors
    /// [`StoreError::Keys`]: the table does not fit, or the passphrase is another one.
    pub fn open(config: &KeysConfig, data_dir: &Path) -> Result<Self, StoreError> {
        let folder = folder_of(config, data_dir);
        let wrong = |why: &str| StoreError::Keys {
            place: "the table [keys]".into(),
            why: why.into(),
        };
        let given = [
            config.passphrase_file.is_some(),
            config.passphrase_env.is_some(),
            !config.command.is_empty(),
        ];
        if given.iter().filter(|g| **g).count() > 1 {
            let why = "expected one of passphrase_file, passphrase_env and command; leave out the \
                       others";
            return Err(wrong(why));
        }
        if lies_in(&folder, data_dir) {
            return Err(wrong(INSIDE));
        }
        make_private(&folder)?;
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if lies_in(&real(&folder), &real(data_dir)) {
            return Err(wrong(INSIDE));
        }
        let plain = Self::in_folder(&folder);
        let place = &plain.place;
        let source: Arc<dyn KeySource> = if !config.command.is_empty() {
            Arc::new(Command::new(&config.command)?)
        } else if let Some(phrase) = passphrase::of(config)? {
            let key = passphrase::unlock(&folder, &phrase)?;
            Arc::new(Folder::sealed(&folder, key))
        } else {
            return Ok(plain);
        };
        let place = match config.command.first() {
            Some(program) => format!("the command {program}, and {place}"),
            None => format!("{place}, under a passphrase"),
        };
        let opened = Self {
            source,
            masters: true,
            place: place.into(),
            ..plain.clone()
        };
        opened.adopt(&Folder::plain(&folder))?;
        Ok(opened)
    }

    /// What was kept as plain files goes into the source.
    fn adopt(&self, plain: &Folder) -> Result<(), StoreError> {
        for name in plain.plain_names()? {
            if self.source.get(&name)?.is_none()
                && let Some(secret) = plain.get(&name)?
            {
                self.source.put(&name, &secret)?;
            }
            plain.drop_plain(&name)?;
        }
        Ok(())
    }

    /// Keys of another store, beside these: in a folder inside, under names of their own.
    pub fn within(&self, name: &str) -> Self {
        Self {
            folder: self.folder.join(name),
            prefix: format!("{}{name}.", self.prefix),
            ..self.clone()
        }
    }

    /// Folder of the keyring.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where they are, for people.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether there is a keyring.
    ///
    /// # Errors
    /// [`StoreError::Io`]: the folder cannot be read.
    pub fn has_keyring(&self) -> Result<bool, StoreError> {
        Ok(!crate::keyring::generations(&self.folder)?.is_empty())
    }

    /// A secret of this store.
    ///
    /// # Errors
    /// The source cannot be asked, or what it holds is damaged.
    pub fn secret(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        self.source.get(&self.named(name)?)
    }

    /// Keeps a secret of this store, in place of the one with this name.
    ///
    /// # Errors
    /// The source cannot be written.
    pub fn keep(&self, name: &str, secret: &[u8]) -> Result<(), StoreError> {
        if secret.len() > LONGEST {
            return Err(StoreError::Keys {
                place: self.place.to_string(),
                why: format!(
                    "{name} has {} bytes, expected at most {LONGEST}",
                    secret.len()
                ),
            });
        }
        self.source.put(&self.named(name)?, secret)
    }

    /// Destroys a secret of this store.
    ///
    /// # Errors
    /// It may still be there: repeat it.
    pub fn destroy(&self, name: &str) -> Result<(), StoreError> {
        self.source.destroy(&self.named(name)?)
    }

    /// Numbers of the secrets that are named `NAME-NUMBER`, ascending.
    ///
    /// # Errors
    /// The source cannot be asked.
    pub fn numbers(&self, name: &str) -> Result<Vec<u64>, StoreError> {
        let before = format!("{}{name}-", self.prefix);
        let all = self.source.list()?;
        let numbers = all
            .iter()
            .filter_map(|n| n.strip_prefix(&before)?.parse().ok());
        let mut numbers: Vec<u64> = numbers.collect();
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    /// Whether master keys are in the source, not beside their keyring.
    pub(crate) fn masters(&self) -> bool {
        self.masters
    }

    fn named(&self, name: &str) -> Result<String, StoreError> {
        let full = format!("{}{name}", self.prefix);
        check_name(&full)?;
        Ok(full)
    }
}

const INSIDE: &str = "its folder lies in the data folder: whoever copies that would have the keys; \
                      choose one outside";

/// Whether a folder is the data folder, or in it.
fn lies_in(folder: &Path, data_dir: &Path) -> bool {
    folder
        .components()
        .as_path()
        .starts_with(data_dir.components().as_path())
}

/// The folder that a configuration names.
pub fn folder_of(config: &KeysConfig, data_dir: &Path) -> PathBuf {
    config.folder.clone().unwrap_or_else(|| {
        // Without a slash at its end.
        let mut name = data_dir.components().as_path().to_owned().into_os_string();
        name.push("-keys");
        PathBuf::from(name)
    })
}

/// A folder of records, and where their keys are.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Records.
    pub records: PathBuf,
    /// Their keys.
    pub keys: Keys,
}

/// Keys in the folder `keys` inside: for tests and made-up worlds. Whoever keeps people's records
/// says where the keys are.
impl From<&Path> for Folders {
    fn from(folder: &Path) -> Self {
        Self {
            records: folder.to_owned(),
            keys: Keys::in_folder(&folder.join("keys")),
        }
    }
}

impl From<&PathBuf> for Folders {
    fn from(folder: &PathBuf) -> Self {
        folder.as_path().into()
    }
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    if begins && name.len() <= LONGEST_NAME && name.chars().all(fits) {
        return Ok(());
    }
    Err(StoreError::Keys {
        place: "the key source".into(),
        why: format!("{name:?} is no name of a secret: a to z, digits, hyphens and dots"),
    })
}

/// Makes a folder that only this user can look into, unless it is there.
///
/// # Errors
/// [`StoreError::Io`]: it cannot be made.
pub fn make_private(folder: &Path) -> Result<(), StoreError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(StoreError::io(folder))
}

#[cfg(test)]
mod tests;
