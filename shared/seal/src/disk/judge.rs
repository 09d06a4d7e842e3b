//! What is known of kinds of file systems. Pure.

use super::Verdict;

/// What was seen of a folder's file system.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen<'a> {
    /// Its kind, as the kernel calls it.
    pub(super) kind: &'a str,
    /// Where ext3 and ext4 put data first: `journal`, `ordered` or `writeback`; none: not known.
    pub(super) data: Option<&'a str>,
    /// A small file that was made in the folder: its data goes through the journal (`chattr +j`).
    pub(super) journaled: bool,
    /// It has its data beside its name and times, with which it goes through the journal.
    pub(super) inline: bool,
    /// An overlay that does not sync.
    pub(super) volatile: bool,
    /// Memory may be written to a disk.
    pub(super) swap: bool,
}

/// A verdict, and what to say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) verdict: Verdict,
    pub(super) why: String,
}

fn says(verdict: Verdict, why: &str) -> Judgement {
    let why = why.to_owned();
    Judgement { verdict, why }
}

/// Whether overwriting a file's bytes leaves none of the old ones, as far as the file system goes.
pub(super) fn judge(seen: &Seen<'_>) -> Judgement {
    match seen.kind {
        "btrfs" | "zfs" | "bcachefs" | "apfs" | "reiser4" => says(
            Verdict::Kept,
            "it copies on write: what is overwritten stays until its blocks are used again, and \
             for as long as a snapshot has it",
        ),
        "nilfs2" | "f2fs" | "ubifs" | "jffs2" | "logfs" | "yaffs" | "yaffs2" => says(
            Verdict::Kept,
            "it only ever appends: what is overwritten stays until its segment is cleaned",
        ),
        "ext3" | "ext4" | "reiserfs" => journaling(seen),
        "ext2" | "xfs" | "jfs" | "vfat" | "msdos" | "exfat" | "ntfs3" | "minix" => {
            says(Verdict::InPlace, "it writes in place")
        }
        "tmpfs" | "ramfs" if seen.kind == "tmpfs" && seen.swap => says(
            Verdict::Unknown,
            "it is in memory, which may be written to the swap space; all of it is gone when the \
             machine stops",
        ),
        "tmpfs" | "ramfs" => says(
            Verdict::InPlace,
            "it is in memory: all of it is gone when the machine stops",
        ),
        "overlay" | "aufs" | "unionfs" if seen.volatile => says(
            Verdict::Kept,
            "it is mounted `volatile`: what is overwritten reaches no disk before it is answered",
        ),
        "overlay" | "aufs" | "unionfs" | "ecryptfs" => says(
            Verdict::Unknown,
            "the file system below it, which is not to be seen from here, decides: of a container, \
             that of the machine's folder for containers; mount a folder of the machine",
        ),
        "nfs" | "nfs4" | "cifs" | "smb3" | "smbfs" | "ceph" | "afs" | "lustre" | "gpfs" | "9p"
        | "virtiofs" | "vboxsf" | "beegfs" | "glusterfs" => says(
            Verdict::Unknown,
            "another machine keeps it, whose disk and snapshots are not to be seen from here",
        ),
        kind if kind.starts_with("fuse") => says(
            Verdict::Unknown,
            "a program keeps it, and what that does is not to be seen from here",
        ),
        "" => says(
            Verdict::Unknown,
            "the system does not say which file system it is",
        ),
        _ => says(
            Verdict::Unknown,
            "it is not known what it does with bytes that are overwritten",
        ),
    }
}

/// A file system that may write data to its journal first.
fn journaling(seen: &Seen<'_>) -> Judgement {
    if seen.data == Some("journal") {
        return says(
            Verdict::Kept,
            "it is mounted with data=journal: what is written stays in the journal, too, until \
             that comes round again; mount it with data=ordered",
        );
    }
    if seen.journaled {
        return says(
            Verdict::Kept,
            "files of this folder go through its journal (`chattr +j`), where what is written \
             stays until that comes round again; `chattr -R -j` ends it",
        );
    }
    if seen.inline {
        return says(
            Verdict::Kept,
            "it keeps small files among its own data (`inline_data`), which goes through the \
             journal and stays there until that comes round again",
        );
    }
    says(Verdict::InPlace, "it writes data in place")
}

/// The kind by the number that statfs(2) gives, where mounts cannot be read.
pub(super) fn by_magic(magic: u32) -> &'static str {
    match magic {
        0x9123_683e => "btrfs",
        0x2fc1_2fc1 => "zfs",
        0xca45_1a4e => "bcachefs",
        0x3434 => "nilfs2",
        0xf2f5_2010 => "f2fs",
        0x2405_1905 => "ubifs",
        0x72b6 => "jffs2",
        0x5846_5342 => "xfs",
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlay",
        0x6969 => "nfs",
        0xff53_4d42 | 0xfe53_4d42 => "cifs",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        // Of ext2, ext3 and ext4 (0xef53) the options are needed, which are with the mounts.
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str) -> Verdict {
        let kind = Seen {
            kind,
            ..Seen::default()
        };
        judge(&kind).verdict
    }

    #[test]
    fn file_systems_that_keep_old_bytes_are_known() {
        for kind in [
            "btrfs", "zfs", "bcachefs", "nilfs2", "f2fs", "ubifs", "jffs2", "apfs",
        ] {
            assert_eq!(of(kind), Verdict::Kept, "{kind}");
        }
        for kind in ["ext2", "ext3", "ext4", "xfs", "jfs", "vfat", "exfat"] {
            assert_eq!(of(kind), Verdict::InPlace, "{kind}");
        }
    }

    #[test]
    fn what_cannot_be_known_is_not_called_known() {
        for kind in [
            "overlay",
            "nfs",
            "nfs4",
            "cifs",
            "smb3",
            "9p",
            "virtiofs",
            "fuse",
            "fuseblk",
            "fuse.sshfs",
            "ceph",
            "ecryptfs",
            "",
            "something new",
        ] {
            assert_eq!(of(kind), Verdict::Unknown, "{kind}");
        }
    }

    #[test]
    fn data_that_goes_through_a_journal_stays_in_it() {
        let ext4 = Seen {
            kind: "ext4",
            data: Some("ordered"),
            ..Seen::default()
        };
        assert_eq!(judge(&ext4).verdict, Verdict::InPlace);
        let kept = [
            Seen {
                data: Some("journal"),
                ..ext4
            },
            Seen {
                journaled: true,
                ..ext4
            },
            Seen {
                inline: true,
                ..ext4
            },
        ];
        for seen in kept {
            assert_eq!(judge(&seen).verdict, Verdict::Kept, "{seen:?}");
            let xfs = Seen {
                kind: "xfs",
                ..seen
            };
            assert_eq!(judge(&xfs).verdict, Verdict::InPlace, "only of ext");
        }
    }

    #[test]
    fn memory_is_no_disk_unless_there_is_swap() {
        let tmpfs = Seen {
            kind: "tmpfs",
            ..Seen::default()
        };
        assert_eq!(judge(&tmpfs).verdict, Verdict::InPlace);
        let swap = Seen {
            swap: true,
            ..tmpfs
        };
        assert_eq!(judge(&swap).verdict, Verdict::Unknown);
        let volatile = Seen {
            kind: "overlay",
            volatile: true,
            ..tmpfs
        };
        assert_eq!(judge(&volatile).verdict, Verdict::Kept);
    }

    #[test]
    fn numbers_of_statfs_are_kinds_with_a_verdict() {
        assert_eq!(of(by_magic(0x9123_683e)), Verdict::Kept);
        assert_eq!(of(by_magic(0xf2f5_2010)), Verdict::Kept);
        assert_eq!(of(by_magic(0x5846_5342)), Verdict::InPlace);
        assert_eq!(of(by_magic(0xef53)), Verdict::Unknown, "options decide");
    }
}
