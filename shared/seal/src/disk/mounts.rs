//! Mounted file systems, as `/proc/self/mountinfo` has them (proc(5)). Pure: text in, mounts out.

use std::path::{Path, PathBuf};

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Number of the mount.
    pub(super) id: u64,
    /// `major:minor` of the device.
    pub(super) device: String,
    /// Folder of the file system that is mounted.
    pub(super) root: PathBuf,
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// Kind of file system.
    pub(super) kind: String,
    /// Options of the file system.
    pub(super) options: String,
}

impl Mount {
    /// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS...] - KIND SOURCE OPTIONS`.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (about, file_system) = line.split_once(" - ")?;
        let mut about = about.split(' ');
        let id = about.next()?.parse().ok()?;
        let mut about = about.skip(1);
        let device = about.next()?.to_owned();
        let root = about.next().map(plain)?;
        let point = about.next().map(plain)?;
        let mut file_system = file_system.splitn(3, ' ');
        let kind = file_system.next()?;
        let _source = file_system.next()?;
        Some(Self {
            id,
            device,
            root: root.into(),
            point: point.into(),
            kind: plain(kind),
            options: file_system.next().unwrap_or_default().trim().to_owned(),
        })
    }

    /// Whether the file system has this option, which has no value.
    pub(super) fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|o| o == option)
    }

    /// The value of an option of the file system.
    pub(super) fn option(&self, name: &str) -> Option<String> {
        let mut options = self.options.split(',').filter_map(|o| o.split_once('='));
        options
            .find(|(key, _)| *key == name)
            .map(|(_, value)| plain(value))
    }
}

/// The mount with this number.
pub(super) fn by_id(text: &str, id: u64) -> Option<Mount> {
    text.lines().filter_map(Mount::parse).find(|m| m.id == id)
}

/// The mount that a path without symbolic links is in. What is mounted later hides what was there.
pub(super) fn by_path(text: &str, path: &Path) -> Option<Mount> {
    let mounts = text.lines().filter_map(Mount::parse);
    mounts
        .filter(|m| path.starts_with(&m.point))
        .max_by_key(|m| m.point.components().count())
}

/// The number of the mount that an open file is in, from `/proc/self/fdinfo/N`.
pub(super) fn id_of_file(fdinfo: &str) -> Option<u64> {
    let line = fdinfo.lines().find_map(|l| l.strip_prefix("mnt_id:"))?;
    line.trim().parse().ok()
}

/// Blanks and the like are written as `\` and three octal digits.
fn plain(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(octal);
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn octal(digits: &[u8]) -> Option<u8> {
    let mut value = 0u32;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value * 8 + u32::from(digit - b'0');
    }
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of real machines: a virtual machine, one with btrfs (Fedora's folders), one with ZFS,
    /// a container, shares of other machines.
    const REAL: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resuid=65534,resgid=65534
25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684096k
61 27 0:33 /home /home rw,relatime shared:29 - btrfs /dev/nvme0n1p3 rw,seclabel,compress=zstd:1,\
ssd,discard=async,space_cache=v2,subvolid=256,subvol=/home
88 27 0:45 / /tank/lethe rw,xattr,noacl shared:62 master:3 - zfs tank/lethe rw,xattr,noacl
90 27 8:17 / /srv/my\\040data\\134x rw,noatime shared:1 - ext4 /dev/sdb1 rw,data=journal
91 27 0:52 / /mnt/nas rw,relatime - nfs4 10.0.0.2:/vol rw,vers=4.2,rsize=1048576
92 27 0:53 / /mnt/far rw,nosuid - fuse.sshfs me@far:/ rw,user_id=1000,group_id=1000
640 500 0:58 / /box rw,relatime master:151 - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=\
/var/lib/docker/overlay2/3f\\054x/diff,workdir=/var/lib/docker/overlay2/3f\\054x/work
700 27 0:61 / /later rw - tmpfs  rw
701 27 0:62 / /later rw - ext4 /dev/sdc rw
";

    #[test]
    fn lines_are_read_with_their_kinds_options_and_blanks() {
        let of = |id| by_id(REAL, id).expect("is there");
        assert_eq!(of(27).kind, "ext4");
        assert_eq!(of(27).device, "254:0");
        assert_eq!(of(61).kind, "btrfs");
        assert_eq!(of(61).root, Path::new("/home"));
        assert_eq!(of(88).kind, "zfs");
        assert_eq!(of(90).point, Path::new("/srv/my data\\x"));
        assert_eq!(of(90).option("data").as_deref(), Some("journal"));
        assert!(of(90).has("rw") && !of(90).has("data"));
        assert_eq!(of(92).kind, "fuse.sshfs");
        let upper = of(640).option("upperdir");
        assert_eq!(upper.as_deref(), Some("/var/lib/docker/overlay2/3f,x/diff"));
        assert_eq!(of(700).kind, "tmpfs", "a source may be empty");
        assert_eq!(by_id(REAL, 1), None);
    }

    #[test]
    fn a_path_is_in_the_deepest_mount_and_in_the_last_of_two() {
        let of = |path: &str| by_path(REAL, Path::new(path)).expect("is there").id;
        assert_eq!(of("/var/lib/lethe"), 27);
        assert_eq!(of("/home/me/app"), 61);
        assert_eq!(of("/homestead"), 27, "components, not letters");
        assert_eq!(of("/srv/my data\\x/keys"), 90);
        assert_eq!(of("/later/x"), 701);
        assert_eq!(by_path("", Path::new("/")), None);
    }

    #[test]
    fn what_is_no_line_is_left_out_whatever_it_is() {
        for line in [
            "",
            " - ",
            "x",
            "1 2 3",
            "1 2 3:4 / /",
            "1 2 3:4 / / rw - ext4",
        ] {
            assert_eq!(Mount::parse(line), None, "{line:?}");
        }
        // Cut and damaged anywhere: a mount or none, and no panic.
        for end in 0..REAL.len() {
            let _ = by_path(&REAL[..end], Path::new("/srv"));
            let mut bytes = REAL.as_bytes().to_vec();
            bytes[end] ^= 0x5c;
            let _ = by_id(&String::from_utf8_lossy(&bytes), 90);
        }
        assert_eq!(plain("a\\04"), "a\\04");
        assert_eq!(plain("a\\777b\\"), "a\\777b\\");
        assert_eq!(
            id_of_file("pos:\t0\nflags:\t0100000\nmnt_id:\t27\nino:\t9\n"),
            Some(27)
        );
        assert_eq!(id_of_file("pos:\t0\n"), None);
    }
}
