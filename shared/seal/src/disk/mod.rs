//! Where a key lies, and whether destroying it there is real.
//!
//! A key is destroyed by overwriting the file that holds it. A file system that writes in place has
//! it no longer then. One that copies on write, appends, or sends data through a journal has it
//! still: until it uses the blocks again, or as long as there is a snapshot. [`Disk::of`] says
//! which it is.
//!
//! What lies below a file system cannot be seen from here: cells of solid-state drives that were
//! retired, snapshots of volumes, disks of virtual machines, backups. `docs/operations.md` says
//! what these keep.
//!
//! ```
//! use lethe_seal::disk::{Disk, Verdict};
//! let folder = std::env::temp_dir();
//! let disk = Disk::of(&folder);
//! if disk.verdict == Verdict::Kept {
//!     println!("{disk}");
//! }
//! ```

mod judge;
#[cfg(target_os = "linux")]
mod linux;
mod mounts;

use std::fmt;
use std::path::{Path, PathBuf};

use judge::Judgement;
use thiserror::Error;

/// What becomes of a file's bytes when they are overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// They are gone, as far as the file system goes.
    InPlace,
    /// That cannot be said.
    Unknown,
    /// They are known to stay for a while, or for long.
    Kept,
}

/// The file system of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The folder.
    pub folder: PathBuf,
    /// Kind of the file system, as the system calls it; empty: it does not say.
    pub kind: String,
    /// What becomes of bytes that are overwritten.
    pub verdict: Verdict,
    /// Why, for people: what follows "it lies on KIND: ".
    pub why: String,
}

impl Disk {
    /// Looks at a folder, which is there. What cannot be found out is [`Verdict::Unknown`]. A small
    /// file is made in the folder and removed again: some file systems decide for each.
    pub fn of(folder: &Path) -> Self {
        #[cfg(target_os = "linux")]
        let disk = linux::look(folder);
        #[cfg(not(target_os = "linux"))]
        let disk = Self::elsewhere(folder);
        disk
    }

    /// Where mounts cannot be asked for: Apple's systems have one kind of file system for all.
    #[cfg(not(target_os = "linux"))]
    fn elsewhere(folder: &Path) -> Self {
        let kind = match cfg!(target_vendor = "apple") {
            true => "apfs",
            false => "",
        };
        let seen = judge::Seen {
            kind,
            ..judge::Seen::default()
        };
        Self::judged(folder, kind, judge::judge(&seen))
    }

    fn judged(folder: &Path, kind: &str, judgement: Judgement) -> Self {
        let Judgement { verdict, why } = judgement;
        Self {
            folder: folder.to_owned(),
            kind: kind.to_owned(),
            verdict,
            why,
        }
    }
}

/// Keys lie where destroying them is known not to be real, and nobody has said that they know.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{0}. A deletion would not be what its receipt says. Use a folder on a file system that writes \
     in place (ext4 with data=ordered, xfs), or say that you know: `--accept-recoverable-keys`, or \
     `accept_recoverable_keys = true` in the configuration; nothing was changed"
)]
pub struct Recoverable(pub Disk);

/// Looks at the folders in which a server destroys keys, those that are there. Two that are alike
/// are told once.
///
/// # Errors
/// [`Recoverable`]: one keeps what is overwritten, and that was not accepted.
pub fn check(folders: &[PathBuf], accepted: bool) -> Result<Vec<Disk>, Recoverable> {
    let there = folders.iter().filter(|f| f.exists());
    accept(there.map(|f| Disk::of(f)), accepted)
}

/// What [`check`] says of folders that were looked at.
///
/// # Errors
/// [`Recoverable`], likewise.
pub fn accept(
    disks: impl IntoIterator<Item = Disk>,
    accepted: bool,
) -> Result<Vec<Disk>, Recoverable> {
    let mut out: Vec<Disk> = vec![];
    for disk in disks {
        if disk.verdict == Verdict::Kept && !accepted {
            return Err(Recoverable(disk));
        }
        let known = |d: &Disk| d.kind == disk.kind && d.why == disk.why;
        if !out.iter().any(known) {
            out.push(disk);
        }
    }
    Ok(out)
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind.as_str() {
            "" => "a file system of an unknown kind",
            kind => kind,
        };
        write!(
            f,
            "the keys in {} lie on {kind}: {}",
            self.folder.display(),
            self.why
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_looked_at_and_left_as_it_was() {
        let folder = std::env::temp_dir().join(format!("lethe-disk-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("makes");
        let disk = Disk::of(&folder);
        assert!(!disk.why.is_empty());
        assert!(disk.to_string().contains("the keys in"));
        #[cfg(target_os = "linux")]
        assert!(!disk.kind.is_empty(), "{disk:?}");
        let left = std::fs::read_dir(&folder).expect("lists").count();
        assert_eq!(left, 0, "the file that was made is gone");
        std::fs::remove_dir(&folder).expect("removes");
        // What is not there is not known, and nothing fails.
        assert_eq!(Disk::of(&folder).verdict, Verdict::Unknown);
    }

    fn on(kind: &str, verdict: Verdict) -> Disk {
        Disk {
            folder: "/data".into(),
            kind: kind.into(),
            verdict,
            why: "it is so".into(),
        }
    }

    #[test]
    fn h7_keys_that_stay_on_the_disk_are_refused_unless_that_is_accepted() {
        let disks = [
            on("ext4", Verdict::InPlace),
            on("nfs", Verdict::Unknown),
            on("btrfs", Verdict::Kept),
            on("btrfs", Verdict::Kept),
        ];
        let refused = accept(disks.clone(), false).expect_err("btrfs keeps them");
        let text = refused.to_string();
        assert!(
            text.contains("in /data lie on btrfs: it is so. A deletion"),
            "{text}"
        );
        assert!(text.contains("--accept-recoverable-keys"), "{text}");
        assert!(text.contains("accept_recoverable_keys = true"), "{text}");
        // Two that are alike are told once.
        assert_eq!(accept(disks.clone(), true).expect("accepted"), disks[..3]);
        assert_eq!(
            accept(disks[..2].to_vec(), false).expect("none"),
            disks[..2]
        );
    }

    #[test]
    fn folders_that_are_not_there_are_not_looked_at() {
        let there = std::env::temp_dir();
        let missing = there.join("lethe-there-is-no-such-folder");
        let told = check(&[there.clone(), there, missing], true).expect("accepted");
        assert_eq!(told.len(), 1);
    }
}
