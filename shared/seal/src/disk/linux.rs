//! What Linux says of a folder: its mount, its device, and a file that is made in it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{ioctl_getflags, statfs};

use super::judge::{Judgement, Seen, by_magic, judge};
use super::mounts::{self, Mount};
use super::{Disk, Verdict};

/// Longest file of `/proc` and `/sys` that is read, in bytes: 40,000 mounts and more.
const LONGEST: u64 = 8 << 20;
/// Overlays on overlays, and files as devices, that are looked into.
const DEEPEST: usize = 4;
/// `FS_JOURNAL_DATA_FL`: data goes through the journal.
const JOURNALED: u32 = 0x4000;
/// `EXT4_INLINE_DATA_FL`: data lies beside the file's name and times.
const INLINE: u32 = 0x1000_0000;

pub(super) fn look(folder: &Path) -> Disk {
    let probe = Probe::make(folder);
    let name = probe.as_ref().map(|p| p.name.as_str());
    let mut disk = look_into(folder, name, 0);
    disk.folder = folder.to_owned();
    disk
}

/// A file of 32 bytes, as long as a key is; dropping it removes it.
struct Probe {
    name: String,
    path: PathBuf,
}

impl Probe {
    /// None: nothing can be written there.
    fn make(folder: &Path) -> Option<Self> {
        let id: [u8; 8] = crate::random().ok()?;
        let name = format!(".lethe-disk-{:016x}", u64::from_le_bytes(id));
        let path = folder.join(&name);
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).open(&path).ok()?;
        let probe = Self { name, path };
        // Without the bytes it says less, and nothing wrong.
        let _ = file.write_all(&[0x5a; 32]).and_then(|()| file.sync_all());
        Some(probe)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A file of the kernel, as text.
fn said(path: &Path) -> Option<String> {
    let mut bytes = vec![];
    let file = File::open(path).ok()?;
    file.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The mount that a folder is in.
fn mount_of(folder: &Path) -> Option<Mount> {
    let text = said(Path::new("/proc/self/mountinfo"))?;
    let by_id = File::open(folder).ok().and_then(|file| {
        let info = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
        let id = mounts::id_of_file(&said(Path::new(&info))?)?;
        mounts::by_id(&text, id)
    });
    by_id.or_else(|| mounts::by_path(&text, &fs::canonicalize(folder).ok()?))
}

/// Looks at a folder in which there is a file of this name.
fn look_into(folder: &Path, probe: Option<&str>, depth: usize) -> Disk {
    let Some(mount) = mount_of(folder) else {
        // statfs(2) knows the kind, and nothing of options.
        let magic = statfs(folder).map_or(0, |s| s.f_type as u32);
        let kind = by_magic(magic);
        let seen = Seen {
            kind,
            swap: true,
            ..Seen::default()
        };
        return Disk::judged(folder, kind, judge(&seen));
    };
    if mount.kind == "overlay"
        && depth < DEEPEST
        && let Some(upper) = upper(&mount, folder, probe)
    {
        return over(&mount, look_into(&upper, probe, depth + 1));
    }
    let device = PathBuf::from("/sys/dev/block").join(&mount.device);
    let flags = probe.map_or(0, |name| flags(&folder.join(name)));
    let data = data_mode(&mount, &device);
    let seen = Seen {
        kind: &mount.kind,
        data: data.as_deref(),
        journaled: flags & JOURNALED != 0,
        inline: flags & INLINE != 0,
        volatile: mount.has("volatile"),
        swap: mount.kind == "tmpfs" && has_swap(),
    };
    let disk = Disk::judged(folder, &mount.kind, judge(&seen));
    let disk = of_volume(disk, &device);
    match backing(&device).filter(|_| depth < DEEPEST) {
        Some(file) => in_file(disk, &file, depth),
        None => disk,
    }
}

/// The folder of an overlay's upper layer that this folder's new files are in: it is the right one
/// if the file that was just made is in it.
fn upper(mount: &Mount, folder: &Path, probe: Option<&str>) -> Option<PathBuf> {
    let within = fs::canonicalize(folder).ok()?;
    let within = within.strip_prefix(&mount.point).ok()?;
    let root = mount.root.strip_prefix("/").unwrap_or(&mount.root);
    let upper = PathBuf::from(mount.option("upperdir")?);
    let upper = upper.join(root).join(within);
    upper.join(probe?).exists().then_some(upper)
}

/// New files of an overlay are written as its upper layer does it.
fn over(mount: &Mount, upper: Disk) -> Disk {
    let kind = format!("overlay over {}", upper.kind);
    if mount.has("volatile") {
        let seen = Seen {
            kind: "overlay",
            volatile: true,
            ..Seen::default()
        };
        return Disk::judged(&upper.folder, &kind, judge(&seen));
    }
    Disk { kind, ..upper }
}

/// Where ext3 and ext4 put data first. The mount's options leave out what the file system has as
/// its default; the kernel's own list does not.
fn data_mode(mount: &Mount, device: &Path) -> Option<String> {
    let listed = || {
        let name = fs::read_link(device).ok()?;
        let name = name.file_name()?;
        let options = Path::new("/proc/fs/ext4").join(name).join("options");
        let text = said(&options)?;
        let mode = text.lines().find_map(|l| l.strip_prefix("data="))?;
        Some(mode.to_owned())
    };
    listed().or_else(|| mount.option("data"))
}

fn flags(path: &Path) -> u32 {
    let flags = File::open(path).ok().and_then(|f| ioctl_getflags(f).ok());
    flags.map_or(0, |f| f.bits())
}

/// Whether there is swap space; also when that cannot be found out.
fn has_swap() -> bool {
    said(Path::new("/proc/swaps")).is_none_or(|text| text.lines().count() > 1)
}

/// Says of a volume what cannot be seen of it.
fn of_volume(mut disk: Disk, device: &Path) -> Disk {
    let id = said(&device.join("dm/uuid")).unwrap_or_default();
    if id.starts_with("LVM-") {
        disk.why += "; snapshots and thin pools of its volume group cannot be seen from here";
    }
    disk
}

/// The file that a device is made from.
fn backing(device: &Path) -> Option<PathBuf> {
    let places = ["loop/backing_file", "../loop/backing_file"];
    let text = places.iter().find_map(|p| said(&device.join(p)))?;
    Some(PathBuf::from(text.trim_end_matches('\n')))
}

/// A file system in a file keeps what the one that the file is on keeps.
fn in_file(disk: Disk, file: &Path, depth: usize) -> Disk {
    let below = match file.parent().filter(|_| file.exists()) {
        Some(folder) => look_into(folder, None, depth + 1),
        None => Disk::judged(
            file,
            "",
            Judgement {
                verdict: Verdict::Unknown,
                why: "that file is not to be seen from here".into(),
            },
        ),
    };
    if below.verdict <= disk.verdict {
        return disk;
    }
    Disk {
        folder: disk.folder,
        kind: format!(
            "{} in the file {} on {}",
            disk.kind,
            file.display(),
            below.kind
        ),
        verdict: below.verdict,
        why: below.why,
    }
}
