//! The server's part: a tally on disk, asked by number and answered by number. It runs in a process
//! of its own, which is killed now and then.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use lethe_learn::seed::Seed;
use lethe_parts::history::Interaction;
use lethe_parts::solve;
use lethe_proto::ids::Digest;
use lethe_proto::lists::Placed;
use lethe_recsys::data::{DataSpec, content_of, load_items};
use lethe_store::sled_backend::SledStorage;
use lethe_tally::{Catalogue, Finished, Handle, Offer, Options, Served, Tally};
use serde::{Deserialize, Serialize};

/// Where a server is, and what it draws from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// The folder of the catalogue.
    pub(crate) catalogue: PathBuf,
    pub(crate) seed: u64,
    /// Seconds since 1970.
    pub(crate) now: u64,
}

/// A contribution on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sent {
    pub(crate) handle: [u8; 16],
    /// [`Placed::to_bytes`].
    pub(crate) bytes: Vec<u8>,
}

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Contribute(Vec<Sent>),
    OpenCells,
    /// As of the beginning of a day since 1970.
    Publish(i32),
    Leave([u8; 16]),
    Status,
    /// Who counts, the digest of sums that are folded again, and whether all copies are equal.
    Refold,
}

/// With the time, in seconds since 1970.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) now: u64,
    pub(crate) ask: Ask,
}

/// Who counts, and with which of their contributions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) handle: [u8; 16],
    /// 1: the first since they came.
    pub(crate) version: u32,
}

/// What is answered; the bytes of a snapshot come after it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) error: Option<String>,
    /// Contributions that were not taken, and why.
    pub(crate) refused: Vec<String>,
    pub(crate) opened: usize,
    /// Number of the snapshot that is served now.
    pub(crate) served: Option<u64>,
    /// What was served is recalled.
    pub(crate) out: bool,
    /// Bytes of what leads here from earlier snapshots, by their number.
    pub(crate) deltas: BTreeMap<u64, usize>,
    pub(crate) people: usize,
    pub(crate) counting: usize,
    pub(crate) waiting: usize,
    pub(crate) cells: usize,
    pub(crate) counts: Vec<Counts>,
    /// Of the sums.
    pub(crate) digest: Option<Digest>,
    /// Sums in memory, in the folder and in the signed note are those that were folded again.
    pub(crate) equal: bool,
}

/// An answer, and the snapshot if it was asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    pub(crate) snapshot: Vec<u8>,
}

/// A tally, opened.
pub(crate) struct Server {
    tally: Tally,
}

/// What a folder remembers of the catalogue that people contributed for.
#[derive(Serialize, Deserialize)]
struct Known {
    items: usize,
    digest: Digest,
}

impl Server {
    /// Opens or founds the folder of a tally over the catalogue of a folder, as a coordinator does:
    /// the catalogue may have grown since, and nothing else.
    pub(crate) fn open(place: &Place) -> anyhow::Result<Self> {
        let spec = DataSpec::of_folder(&place.catalogue)?;
        let items = load_items(&place.catalogue, &spec)?;
        let catalogue = Catalogue::new(items.iter().map(|i| i.id.as_str()));
        std::fs::create_dir_all(&place.folder)?;
        let path = place.folder.join("catalogue.json");
        if let Ok(text) = std::fs::read(&path) {
            let known: Known = serde_json::from_slice(&text)?;
            catalogue.follows(known.items, known.digest)?;
        }
        let known = Known {
            items: items.len(),
            digest: catalogue.digest(),
        };
        let next = path.with_extension("next");
        std::fs::write(&next, serde_json::to_vec(&known)?)?;
        std::fs::rename(&next, &path)?;
        let content = content_of(&place.catalogue, &items)?;
        let tally = Tally::open_seeded(
            &SledStorage::engine,
            &place.folder.join("tally"),
            Arc::new(content),
            options(),
            Seed::from_u64(place.seed).derive("life", &[]),
            place.now,
        )?;
        Ok(Self { tally })
    }

    /// Does what is asked.
    pub(crate) fn answer(&self, asked: &Asked) -> Answered {
        self.try_answer(asked).unwrap_or_else(|e| Answered {
            answer: Answer {
                error: Some(format!("{e:#}")),
                ..Answer::default()
            },
            snapshot: vec![],
        })
    }

    fn try_answer(&self, asked: &Asked) -> anyhow::Result<Answered> {
        let now = asked.now;
        let mut out = Answered::default();
        match &asked.ask {
            Ask::Contribute(all) => out.answer.refused = self.contribute(all, now)?,
            Ask::OpenCells => out.answer.opened = self.tally.open_cells(now)?,
            Ask::Publish(day) => {
                let finished = self.tally.publish(*day, now)?;
                ensure!(finished != Finished::TooLate, "nobody else is here");
            }
            Ask::Leave(handle) => self.tally.leave(&[Handle(*handle)], now)?,
            Ask::Status => {}
            Ask::Refold => {
                let refolded = self.tally.refold(now)?.context("nobody else is here")?;
                let is = |same: Option<bool>| same != Some(false);
                out.answer.equal =
                    is(refolded.memory) && is(refolded.folder) && is(refolded.stated);
                out.answer.digest = Some(refolded.digest);
                let counting = self.tally.counting(now)?;
                let counts = counting.into_iter().map(|(handle, version)| Counts {
                    handle: handle.0,
                    version: version.0,
                });
                out.answer.counts = counts.collect();
            }
        }
        let status = self.tally.status(now)?;
        out.answer.people = status.people;
        out.answer.counting = status.counting;
        out.answer.waiting = status.waiting;
        out.answer.cells = status.cells;
        match self.tally.served() {
            Served::Nothing => {}
            Served::Out { .. } => out.answer.out = true,
            Served::Snapshot(served) => {
                out.answer.served = Some(served.statement.number);
                let size = |delta: (&u64, &Vec<u8>)| (*delta.0, delta.1.len());
                out.answer.deltas = served.deltas.iter().map(size).collect();
                if matches!(asked.ask, Ask::Publish(_)) {
                    out.snapshot = served.bytes.to_vec();
                }
            }
        }
        Ok(out)
    }

    fn contribute(&self, all: &[Sent], now: u64) -> anyhow::Result<Vec<String>> {
        let mut read = vec![];
        for one in all {
            read.push(Placed::from_bytes(&one.bytes)?);
        }
        let events: Vec<Vec<Interaction>> = read.iter().map(interactions).collect();
        let offers: Vec<Offer<'_>> = (all.iter().zip(&read).zip(&events))
            .map(|((sent, placed), events)| Offer {
                handle: Handle(sent.handle),
                source: [1; 16],
                whole: placed.whole,
                events,
            })
            .collect();
        let mut refused = vec![];
        for answer in self.tally.contribute_all(&offers, now)? {
            refused.extend(answer.err().map(|e| e.to_string()));
        }
        Ok(refused)
    }
}

/// The product's defaults, and nothing else.
pub(crate) fn options() -> Options {
    Options::default()
}

/// How tables are solved from what a system has, with the product's defaults.
pub(crate) fn settings() -> solve::Settings {
    options().solve
}

/// The events of a contribution.
pub(crate) fn interactions(placed: &Placed) -> Vec<Interaction> {
    let read = |e: &lethe_proto::lists::PlacedEvent| {
        Interaction::of_flags(e.item, e.day, e.half_stars, e.flags)
    };
    placed.events.iter().map(read).collect()
}

/// Answers what comes in until nothing more comes: the process that is killed.
pub(crate) fn serve(place: &Place, mut from: impl Read, mut to: impl Write) -> anyhow::Result<()> {
    let server = Server::open(place)?;
    send(&mut to, &Answer::default(), &[])?;
    while let Some(asked) = receive(&mut from)? {
        let answered = server.answer(&serde_json::from_slice(&asked.head)?);
        send(&mut to, &answered.answer, &answered.snapshot)?;
    }
    Ok(())
}

/// A message: JSON, and bytes.
pub(crate) struct Message {
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// Both lengths, four bytes each, then both.
pub(crate) fn send(to: &mut impl Write, head: &impl Serialize, body: &[u8]) -> anyhow::Result<()> {
    let head = serde_json::to_vec(head)?;
    to.write_all(&u32::try_from(head.len())?.to_le_bytes())?;
    to.write_all(&u32::try_from(body.len())?.to_le_bytes())?;
    to.write_all(&head)?;
    to.write_all(body)?;
    Ok(to.flush()?)
}

/// The next message; none: the other end is gone.
pub(crate) fn receive(from: &mut impl Read) -> anyhow::Result<Option<Message>> {
    let mut lengths = [0; 8];
    if from.read_exact(&mut lengths).is_err() {
        return Ok(None);
    }
    let [a, b, c, d, e, f, g, h] = lengths;
    let mut head = vec![0; u32::from_le_bytes([a, b, c, d]) as usize];
    let mut body = vec![0; u32::from_le_bytes([e, f, g, h]) as usize];
    let whole = from
        .read_exact(&mut head)
        .and_then(|()| from.read_exact(&mut body));
    Ok(whole.is_ok().then_some(Message { head, body }))
}

/// Bytes of all files under a folder.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => folder_bytes(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
