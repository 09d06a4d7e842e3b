//! A file that is only appended to: one sealed frame for each call, made durable before it returns.
//!
//! `lethe history 1`, a line break, 16 random bytes; then for each frame its length (u32, little
//! endian), the same with all bits turned, and the sealed records. A frame is sealed for its file
//! and its place in it. A crash leaves a beginning of the last frame, or zeros: that is dropped.
//! Anything else that does not open is damage, and an error.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use lethe_proto::codec;
use serde::{Deserialize, Serialize};

use crate::event::LocalEvent;
use crate::feedback_of_lists::Told;
use crate::vault::{io, write_atomically};
use crate::{ClientError, EventId};

const MAGIC: &[u8; 16] = b"lethe history 1\n";
const HEADER: usize = MAGIC.len() + 16;
const FRAME: usize = 8;
/// Longest frame, in bytes.
const MAX_FRAME: usize = 64 << 20;
/// Longest file, in bytes.
const MAX_FILE: u64 = 1 << 30;
/// Records of a frame when the file is written anew.
const PER_FRAME: usize = 4_096;

/// What is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Record {
    /// Random name of the history, and the number of the next event.
    Head([u8; 16], u64),
    /// An event.
    Event(EventId, LocalEvent),
    /// The event is taken back.
    Undone(EventId),
    /// What the person did with a list.
    Told(Told),
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    /// `None`: it was closed.
    file: Option<File>,
    key: [u8; 32],
    id: [u8; 16],
    frames: u64,
    len: u64,
    /// A write failed, and what it left could not be removed.
    broken: bool,
}

fn aad(id: &[u8; 16], frame: u64) -> Vec<u8> {
    [b"lethe-client-history/1", &id[..], &frame.to_le_bytes()].concat()
}

fn frame(key: &[u8; 32], aad: &[u8], records: &[Record]) -> Result<Vec<u8>, ClientError> {
    let internal = |e: &dyn std::fmt::Display| ClientError::Internal(e.to_string());
    let plain = codec::to_bytes(&records).map_err(|e| internal(&e))?;
    let sealed = lethe_seal::seal(key, aad, &plain).map_err(|e| internal(&e))?;
    if sealed.len() > MAX_FRAME {
        return Err(ClientError::TooMany {
            got: records.len(),
            most: MAX_FRAME / 256,
        });
    }
    let len = sealed.len() as u32;
    let mut out = Vec::with_capacity(FRAME + sealed.len());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&(!len).to_le_bytes());
    out.extend_from_slice(&sealed);
    Ok(out)
}

impl Log {
    /// Opens the file with its records; `None` if there is none.
    pub(crate) fn open(
        path: &Path,
        key: [u8; 32],
    ) -> Result<Option<(Self, Vec<Record>)>, ClientError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(path)(e)),
        };
        let len = file.metadata().map_err(io(path))?.len();
        if len > MAX_FILE {
            return Err(damaged(path, MAX_FILE));
        }
        let bytes = std::fs::read(path).map_err(io(path))?;
        let id = match bytes.split_at_checked(HEADER) {
            Some((head, _)) if head.starts_with(MAGIC) => {
                let mut id = [0; 16];
                id.copy_from_slice(&head[MAGIC.len()..]);
                id
            }
            _ => return Err(damaged(path, 0)),
        };
        let mut log = Self {
            path: path.to_owned(),
            file: Some(file),
            key,
            id,
            frames: 0,
            len: HEADER as u64,
            broken: false,
        };
        let records = log.read(&bytes)?;
        if log.len < len {
            tracing::warn!(
                "{}: the last record was not written to its end and is dropped",
                path.display()
            );
            log.cut()?;
        }
        Ok(Some((log, records)))
    }

    /// A new file with these records, in place of one that may be there.
    pub(crate) fn create(
        path: &Path,
        key: [u8; 32],
        records: &[Record],
    ) -> Result<Self, ClientError> {
        let id = lethe_seal::random().map_err(|e| ClientError::Internal(e.to_string()))?;
        let mut bytes = [&MAGIC[..], &id[..]].concat();
        let mut frames = 0;
        for some in records.chunks(PER_FRAME) {
            bytes.extend(frame(&key, &aad(&id, frames), some)?);
            frames += 1;
        }
        write_atomically(path, &bytes)?;
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: Some(file.map_err(io(path))?),
            key,
            id,
            frames,
            len: bytes.len() as u64,
            broken: false,
        })
    }

    fn read(&mut self, bytes: &[u8]) -> Result<Vec<Record>, ClientError> {
        let mut out = vec![];
        loop {
            let rest = &bytes[self.len as usize..];
            let Some((head, body)) = rest.split_at_checked(FRAME) else {
                return Ok(out);
            };
            let number = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            let len = number(&head[..4]);
            // What a file system adds to a file before the bytes have come.
            let zeros = rest.iter().all(|b| *b == 0);
            if number(&head[4..]) != !len || len as usize > MAX_FRAME {
                return match zeros {
                    true => Ok(out),
                    false => Err(damaged(&self.path, self.len)),
                };
            }
            let Some(sealed) = body.get(..len as usize) else {
                return Ok(out);
            };
            let last = sealed.len() == body.len();
            let plain = lethe_seal::unseal(&self.key, &aad(&self.id, self.frames), sealed);
            let records = plain.and_then(|p| codec::from_bytes::<Vec<Record>>(&p, MAX_FRAME).ok());
            let Some(records) = records else {
                // The first frame is written with the file: if it does not open, the key is
                // another.
                let torn = (last || body.iter().all(|b| *b == 0)) && self.frames > 0;
                return match (torn, self.frames) {
                    (true, _) => Ok(out),
                    (false, 0) => Err(ClientError::Sealed {
                        path: self.path.clone(),
                    }),
                    (false, _) => Err(damaged(&self.path, self.len)),
                };
            };
            out.extend(records);
            self.frames += 1;
            self.len += (FRAME + sealed.len()) as u64;
        }
    }

    fn cut(&mut self) -> Result<(), ClientError> {
        let file = self.file.as_mut().ok_or(ClientError::Closed)?;
        let cut = file.set_len(self.len);
        cut.and_then(|()| file.sync_data()).map_err(io(&self.path))
    }

    /// Gives the file back to the system; nothing can be appended any more.
    pub(crate) fn close(&mut self) {
        self.file = None;
    }

    /// Appends records as one frame: all of them are on disk, or none.
    pub(crate) fn append(&mut self, records: &[Record]) -> Result<(), ClientError> {
        if self.broken {
            self.cut()?;
            self.broken = false;
        }
        let bytes = frame(&self.key, &aad(&self.id, self.frames), records)?;
        let file = self.file.as_mut().ok_or(ClientError::Closed)?;
        let written = file
            .seek(SeekFrom::Start(self.len))
            .and_then(|_| file.write_all(&bytes))
            .and_then(|()| file.sync_data());
        if let Err(e) = written {
            // What was written of it must not be there when the file is opened again.
            self.broken = self.cut().is_err();
            return Err(io(&self.path)(e));
        }
        self.frames += 1;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

fn damaged(path: &Path, at: u64) -> ClientError {
    ClientError::Damaged {
        path: path.to_owned(),
        at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn event(n: u64) -> Record {
        Record::Event(EventId(n), LocalEvent::liked(format!("item-{n}"), n as i64))
    }

    fn written(dir: &Path) -> (PathBuf, Vec<u64>) {
        let path = dir.join("history");
        let mut log = Log::create(&path, KEY, &[Record::Head([1; 16], 0)]).expect("creates");
        let mut ends = vec![log.len];
        for n in 0..3 {
            log.append(&[event(n)]).expect("appends");
            ends.push(log.len);
        }
        (path, ends)
    }

    #[test]
    fn a_file_that_ends_anywhere_keeps_all_whole_records() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (path, ends) = written(dir.path());
        let whole = std::fs::read(&path).expect("reads");
        for end in ends[0] as usize..=whole.len() {
            std::fs::write(&path, &whole[..end]).expect("writes");
            let (mut log, records) = Log::open(&path, KEY).expect("opens").expect("is there");
            let kept = ends.iter().filter(|e| **e <= end as u64).count();
            assert_eq!(records.len(), kept, "cut at {end}");
            // It goes on from there.
            log.append(&[event(9)]).expect("appends");
            let (_, records) = Log::open(&path, KEY).expect("opens").expect("is there");
            assert_eq!(records.len(), kept + 1, "cut at {end}");
            assert_eq!(records.last(), Some(&event(9)));
        }
        let mut zeros = whole.clone();
        zeros.extend([0; 100]);
        std::fs::write(&path, &zeros).expect("writes");
        let (_, records) = Log::open(&path, KEY).expect("opens").expect("is there");
        assert_eq!(records.len(), 4);
    }

    #[test]
    fn damage_in_the_middle_is_an_error_wherever_it_is() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (path, ends) = written(dir.path());
        let whole = std::fs::read(&path).expect("reads");
        for at in 0..ends[2] as usize {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).expect("writes");
            let opened = Log::open(&path, KEY);
            assert!(
                matches!(
                    opened,
                    Err(ClientError::Damaged { .. } | ClientError::Sealed { .. })
                ),
                "byte {at}"
            );
            assert_eq!(std::fs::read(&path).expect("reads"), bad, "left as it is");
        }
        // A frame that was taken out, or put elsewhere.
        let mut without = whole[..ends[1] as usize].to_vec();
        without.extend(&whole[ends[2] as usize..]);
        without.extend(&whole[ends[1] as usize..ends[2] as usize]);
        std::fs::write(&path, &without).expect("writes");
        assert!(matches!(
            Log::open(&path, KEY),
            Err(ClientError::Damaged { .. })
        ));
    }
}
