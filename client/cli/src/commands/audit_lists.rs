//! `lethe audit --lists`: the sums of the lists folded again, and the snapshot solved again, by
//! somebody else on their own machine.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use lethe_client::SentContribution;
use lethe_parts::content::{Content, Description};
use lethe_parts::contribution::Contribution;
use lethe_parts::ease::DENSE_SOLVE;
use lethe_parts::field::FIELD_ITEMS;
use lethe_parts::history::{Interaction, newest_of_each};
use lethe_parts::noise::{Drawn, accountant};
use lethe_parts::refold::{self, Method, salted};
use lethe_parts::solve::Form;
use lethe_parts::{Refused, snapshot};
use lethe_proto::lists::{Placed, PlacedEvent};
use lethe_receipt::hex::hex;
use lethe_receipt::lists_audit::{ListsBundle, MAX_BUNDLE, Opened};
use lethe_receipt::note::VerifierKey;
use lethe_recsys::data::{Item, content_of, text_vectors};
use lethe_recsys::versions::load_renamed;
use serde::Deserialize;
use serde_json::{Value, json};

use super::audit_devices::Devices;
use crate::inputs;

/// Largest export that is read, in bytes.
const MAX_EXPORT: u64 = 256 << 20;
/// Columns of the item field that an operator can have asked for, at most.
const MAX_RANK: usize = 1_024;
/// Weights of an item that nobody has met that an operator can have asked for, at most.
const MAX_UNSEEN: usize = 1_024;

/// What an audit of the lists is given.
pub(crate) struct Asked<'a> {
    /// File from `lethe-admin export-audit --lists`.
    pub(crate) bundle: &'a Path,
    /// Key of the lists (verifier key text).
    pub(crate) key: &'a str,
    /// Folder with people's files.
    pub(crate) exports: &'a Path,
    /// The catalogue's folder.
    pub(crate) data: &'a Path,
    /// Refuse a catalogue with malformed rows.
    pub(crate) strict: bool,
    /// JSON instead of text.
    pub(crate) json: bool,
}

/// What is read of a file from `lethe training-data`, or of an app's export of a history.
#[derive(Deserialize)]
struct Exported {
    #[serde(default)]
    contributed: Vec<SentContribution>,
}

/// What was found among the exports.
#[derive(Default)]
struct Found {
    /// Of those who count.
    counting: Vec<Contribution>,
    /// Files.
    files: usize,
    /// Files without a contribution that counts.
    unused: usize,
}

/// Exit code 0: equal; 3: somebody is missing, or different.
pub(crate) fn run(asked: &Asked<'_>) -> anyhow::Result<ExitCode> {
    let key = VerifierKey::parse(asked.key).context("--key")?;
    let bytes = read_at_most(asked.bundle, MAX_BUNDLE as u64)?;
    let name = || asked.bundle.display().to_string();
    let bundle = ListsBundle::open(&bytes, &key).with_context(name)?;
    let method = method_of(&bundle).with_context(name)?;
    let content = catalogue(&bundle, asked)?;
    let places = places_of(&bundle, asked.data)?;
    let found = people(&bundle, asked.exports, &places, &method)?;
    let here = found.counting.len();
    let all = bundle.people.len();
    if here < all {
        return missing(asked, &found, all);
    }
    let fold: Result<_, Refused> =
        refold::fold(bundle.items.len(), &bundle.taken_down, [Ok(found.counting)]);
    let sums = fold?;
    let digest = snapshot::digest(&sums.to_bytes());
    let sums_digest = salted(&bundle.sums_salt, &digest);
    let statement = &bundle.statement;
    let (solve, packing) = (&method.solve, &method.packing);
    let tables = match &method.noise {
        None => refold::snapshot(&sums, &content, solve, packing, statement.day)?,
        Some(drawn) => {
            refold::noised_snapshot(&sums, drawn, &content, solve, packing, statement.day)?
        }
    };
    let verdict = Verdict {
        sums: [sums_digest, statement.sums],
        snapshot: [snapshot::digest(&tables), statement.snapshot],
        other_catalogue: content.digest() != bundle.content,
    };
    let text = verdict.text(&bundle);
    show(asked, &text, &verdict.json(&bundle))?;
    Ok(match verdict.is_equal() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(3),
    })
}

fn show(asked: &Asked<'_>, text: &str, value: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match asked.json {
        true => writeln!(out, "{value:#}")?,
        false => writeln!(out, "{text}")?,
    }
    Ok(())
}

fn missing(asked: &Asked<'_>, found: &Found, all: usize) -> anyhow::Result<ExitCode> {
    let here = found.counting.len();
    let missing = all - here;
    let text = format!(
        "NOT FOLDED: {here} of {all} people who count have an export here, {missing} are missing; \
         without all of them the sums cannot be folded again\n  {} files, {} of them without a \
         contribution that counts",
        found.files, found.unused
    );
    let value = json!({
        "equal": null, "people": all, "found": here, "missing": missing,
        "files": found.files, "unused": found.unused,
    });
    show(asked, &text, &value)?;
    Ok(ExitCode::from(3))
}

fn read_at_most(path: &Path, most: u64) -> anyhow::Result<Vec<u8>> {
    let name = || path.display().to_string();
    let length = std::fs::metadata(path).with_context(name)?.len();
    if length > most {
        bail!("{}: {length} bytes, expected at most {most}", name());
    }
    std::fs::read(path).with_context(name)
}

/// How the tally solves and packs, within what this machine takes.
fn method_of(bundle: &Opened) -> anyhow::Result<Method> {
    let method: Method = serde_json::from_str(&bundle.method).context("method")?;
    let (k, rank) = (method.solve.k, method.solve.rank);
    if k != bundle.statement.k {
        bail!("k = {k}, the note says {}", bundle.statement.k);
    }
    if rank > MAX_RANK {
        bail!("rank = {rank}, expected at most {MAX_RANK}");
    }
    let items = bundle.items.len();
    if method.solve.form == Form::Dense && items > DENSE_SOLVE {
        bail!("one dense system of {items} items, expected at most {DENSE_SOLVE}");
    }
    if method.solve.field_items > FIELD_ITEMS && items > FIELD_ITEMS {
        bail!("a field of {items} items, expected at most {FIELD_ITEMS}");
    }
    if method.solve.unseen > MAX_UNSEEN {
        let got = method.solve.unseen;
        bail!("unseen = {got}, expected at most {MAX_UNSEEN}");
    }
    noise_fits(bundle, method.noise.as_ref())?;
    Ok(method)
}

/// Noise is what the note says, and no more than this machine takes.
fn noise_fits(bundle: &Opened, drawn: Option<&Drawn>) -> anyhow::Result<()> {
    let stated = bundle.statement.noise.filter(|n| n.epsilon_millionths > 0);
    let (drawn, stated) = match (drawn, stated) {
        (None, None) => return Ok(()),
        (Some(drawn), Some(stated)) => (drawn, stated),
        (Some(_), None) => bail!("noise, the note says that there is none"),
        (None, Some(_)) => bail!("no noise, the note says that there is"),
    };
    let mechanism = &drawn.mechanism;
    mechanism.check(bundle.items.len())?;
    let bounds = [u64::from(mechanism.clip), u64::from(mechanism.repeats)];
    if bounds != [stated.clip, stated.repeats] {
        bail!(
            "noise for clip {} and repeats {}, the note says {} and {}",
            bounds[0],
            bounds[1],
            stated.clip,
            stated.repeats
        );
    }
    let delta = stated.delta_trillionths as f64 / 1e12;
    if !(1e-12..1.0).contains(&delta) {
        bail!("delta = {delta}, expected 1e-12 to 1");
    }
    let epsilon = (accountant::epsilon(mechanism.charge, delta) * 1e6).ceil();
    if epsilon > stated.epsilon_millionths as f64 {
        bail!(
            "noise for an epsilon of {} millionths, the note says {}",
            epsilon,
            stated.epsilon_millionths
        );
    }
    Ok(())
}

/// What is public about the items, if the folder has those of the tables, in their order; with text
/// vectors where the folder has them, as the coordinator does it.
fn catalogue(bundle: &Opened, asked: &Asked<'_>) -> anyhow::Result<Content> {
    let folder = asked.data;
    let name = || folder.display().to_string();
    let items = inputs::items(folder, asked.strict).with_context(name)?;
    let same = items.iter().zip(&bundle.items);
    let first = same.take_while(|pair| pair.0.id == *pair.1).count();
    if first < items.len().max(bundle.items.len()) {
        // Items have come, gone and been renamed since: their places are those of the tables.
        let placed = content_by_place(bundle, folder, &items)?;
        if placed.digest() == bundle.content {
            return Ok(placed);
        }
        let or_none = |id: Option<&String>| id.map_or("nothing".into(), |id| format!("{id:?}"));
        bail!(
            "{}: item {first} is {}, in the tables it is {}: give the operator's catalogue with \
             --data",
            name(),
            or_none(items.get(first).map(|i| &i.id)),
            or_none(bundle.items.get(first))
        );
    }
    Ok(content_of(folder, &items)?)
}

/// What is public about the items of the tables, by identifier. Nothing is of those that the folder
/// does not list: they were removed.
fn content_by_place(bundle: &Opened, folder: &Path, items: &[Item]) -> anyhow::Result<Content> {
    let own: HashMap<&str, usize> = items.iter().map(|i| i.id.as_str()).zip(0..).collect();
    let at: Vec<Option<usize>> = bundle
        .items
        .iter()
        .map(|id| own.get(&id[..]).copied())
        .collect();
    let described = at.iter().map(|at| {
        at.map_or_else(Description::default, |at| Description {
            title: items[at].title.clone(),
            year: items[at].year,
            tags: items[at].tags.clone(),
        })
    });
    let content = Content::new(&described.collect::<Vec<_>>());
    let Some(vectors) = text_vectors(folder, items.len())? else {
        return Ok(content);
    };
    let width = vectors.len() / items.len().max(1);
    let mut placed = vec![0.0; at.len() * width];
    for (to, at) in placed.chunks_mut(width.max(1)).zip(&at) {
        if let Some(at) = at {
            to.copy_from_slice(&vectors[at * width..(at + 1) * width]);
        }
    }
    Ok(content.with_text(&placed)?)
}

/// Places of the tables by identifier; those that items had before, as `renamed.csv` of the folder
/// has them, among them.
fn places_of(bundle: &Opened, folder: &Path) -> anyhow::Result<HashMap<String, u32>> {
    let mut places: HashMap<String, u32> = bundle.items.iter().cloned().zip(0..).collect();
    // The last one first: a name may have been replaced more than once.
    for (old, new) in load_renamed(folder)?.into_iter().rev() {
        if let Some(place) = places.get(&new).copied() {
            places.entry(old).or_insert(place);
        }
    }
    Ok(places)
}

/// The contributions that count, each found by its digest. A file is of one person; so is a folder
/// with the files of that person's devices.
fn people(
    bundle: &Opened,
    folder: &Path,
    places: &HashMap<String, u32>,
    method: &Method,
) -> anyhow::Result<Found> {
    let mut search = Search {
        bundle,
        places,
        method,
        wanted: BTreeMap::new(),
        found: Found::default(),
    };
    for digest in &bundle.people {
        *search.wanted.entry(*digest).or_default() += 1;
    }
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        match path.is_dir() {
            true => search.devices(&path)?,
            false => search.file(&path)?,
        }
    }
    Ok(search.found)
}

/// A search among exports.
struct Search<'a> {
    bundle: &'a Opened,
    places: &'a HashMap<String, u32>,
    method: &'a Method,
    /// How many people are still to be found by each digest.
    wanted: BTreeMap<[u8; 32], usize>,
    found: Found,
}

impl Search<'_> {
    fn read(&mut self, path: &Path) -> anyhow::Result<Vec<SentContribution>> {
        let text = read_at_most(path, MAX_EXPORT)?;
        let exported: Exported = serde_json::from_slice(&text)
            .with_context(|| format!("{}: not an export of a device", path.display()))?;
        self.found.files += 1;
        Ok(exported.contributed)
    }

    /// By place; none: one with an item that the tables do not have was never sealed.
    fn placed(&self, sent: &SentContribution) -> Option<Placed> {
        Placed::of(sent.whole, &sent.events, |id| self.places.get(id).copied())
    }

    /// Whether somebody counts with this, whom nothing was found for yet. Nothing is found twice
    /// with the same `known`.
    fn take(
        &mut self,
        sealed: &Placed,
        known: &mut BTreeSet<[u8; 32]>,
        path: &Path,
    ) -> anyhow::Result<bool> {
        let digest = salted(&self.bundle.salt, &snapshot::digest(&sealed.to_bytes()?));
        // Several people may contribute the same.
        let left = self.wanted.get_mut(&digest).filter(|left| **left > 0);
        let Some(left) = left.filter(|_| known.insert(digest)) else {
            return Ok(false);
        };
        *left -= 1;
        let one = contribution(sealed, self.bundle.items.len(), self.method)
            .with_context(|| path.display().to_string())?;
        self.found.counting.push(one);
        Ok(true)
    }

    /// The file of a person with one device: it speaks for one of those who contribute the same.
    fn file(&mut self, path: &Path) -> anyhow::Result<()> {
        let all = self.read(path)?;
        let mut known = BTreeSet::new();
        let before = self.found.counting.len();
        for sent in &all {
            let placed = self.placed(sent);
            for sealed in placed.iter().flat_map(sealed_as) {
                self.take(&sealed, &mut known, path)?;
            }
        }
        self.found.unused += usize::from(self.found.counting.len() == before);
        Ok(())
    }

    /// The folder of a person with several devices, who counts once.
    fn devices(&mut self, folder: &Path) -> anyhow::Result<()> {
        let mut files = 0;
        let mut sent = Devices::default();
        for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                continue;
            }
            files += 1;
            for one in self.read(&path)? {
                if let Some(placed) = self.placed(&one) {
                    sent.add(one.source, one.at, placed);
                }
            }
        }
        for sealed in sent.sealed_as(self.method.clip)? {
            if self.take(&sealed, &mut BTreeSet::new(), folder)? {
                return Ok(());
            }
        }
        self.found.unused += files;
        Ok(())
    }
}

/// As the tally may have sealed what was sent: it keeps the newest few events of an item. How many
/// is the operator's setting, which may have changed since; so each number is tried. What counts is
/// bound by the digest.
fn sealed_as(sent: &Placed) -> Vec<Placed> {
    let mut all: Vec<Placed> = vec![];
    for most in 1..=sent.events.len().max(1) {
        let events = newest_of_each(&sent.events, |e| e.item, most);
        let longest = events.len() == sent.events.len();
        all.push(Placed {
            whole: sent.whole,
            events,
        });
        if longest {
            break;
        }
    }
    all
}

/// What counts of it: with noise no more than the noise is made for.
fn contribution(placed: &Placed, items: usize, method: &Method) -> Result<Contribution, Refused> {
    let read = |e: &PlacedEvent| Interaction::of_flags(e.item, e.day, e.half_stars, e.flags);
    let events: Vec<Interaction> = placed.events.iter().map(read).collect();
    match method.noise.map(|n| n.mechanism) {
        None => refold::contribution(placed.whole, &events, items),
        Some(m) => refold::clipped(placed.whole, &events, items, m.clip, m.repeats),
    }
}

/// Digests as they came out here, and as the tally signed them.
struct Verdict {
    /// Salted.
    sums: [[u8; 32]; 2],
    snapshot: [[u8; 32]; 2],
    /// What is public about items is not what the operator says.
    other_catalogue: bool,
}

impl Verdict {
    fn is_equal(&self) -> bool {
        self.sums[0] == self.sums[1] && self.snapshot[0] == self.snapshot[1]
    }

    fn text(&self, bundle: &Opened) -> String {
        let sums = self.sums[0] == self.sums[1];
        let snapshot = self.snapshot[0] == self.snapshot[1];
        let number = bundle.statement.number;
        let people = bundle.people.len();
        let said = match (sums, snapshot) {
            (true, true) => format!(
                "EQUAL: snapshot {number}, folded again from {people} people, nobody else, and \
                 solved again"
            ),
            (false, _) => format!(
                "DIFFERENT: the sums of these {people} people are not those that snapshot \
                 {number} is signed with"
            ),
            (true, false) => format!(
                "DIFFERENT: the sums are those of these {people} people, and snapshot {number} is \
                 not what they give"
            ),
        };
        let hint = match self.other_catalogue {
            true if !snapshot => {
                "\n  titles, years, tags or text vectors here are not those that the operator \
                 names: that alone gives another snapshot"
            }
            _ => "",
        };
        let lines = [
            ("sums here (salted)", self.sums[0]),
            ("sums signed", self.sums[1]),
            ("snapshot here", self.snapshot[0]),
            ("snapshot signed", self.snapshot[1]),
        ];
        let lines = lines.map(|(name, of)| format!("\n  {name:<19} {}", hex(&of)));
        format!("{said}{hint}{}", lines.concat())
    }

    fn json(&self, bundle: &Opened) -> Value {
        let pair = |of: &[[u8; 32]; 2]| {
            json!({
                "here": hex(&of[0]), "signed": hex(&of[1]), "equal": of[0] == of[1],
            })
        };
        let people = bundle.people.len();
        json!({
            "equal": self.is_equal(), "number": bundle.statement.number, "people": people,
            "found": people, "missing": 0, "sums": pair(&self.sums),
            "snapshot": pair(&self.snapshot), "same_catalogue": !self.other_catalogue,
        })
    }
}
