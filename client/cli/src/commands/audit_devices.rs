//! What several devices of a person have sent, as their tally may have sealed it: merged.

use std::collections::BTreeMap;

use anyhow::bail;
use lethe_parts::history::{Interaction, newest_of_each};
use lethe_parts::merge::{Most, Share, merge};
use lethe_proto::lists::{Placed, PlacedEvent};

/// The most combinations that are tried for one person.
const MOST_TRIED: usize = 1 << 16;

/// What each device has sent, by the name of its history.
#[derive(Default)]
pub(super) struct Devices(BTreeMap<String, Vec<(i64, Share)>>);

impl Devices {
    /// A contribution that a device sent at this time, in seconds since 1970.
    pub(super) fn add(&mut self, source: String, at: i64, sent: Placed) {
        let read = |e: PlacedEvent| Interaction::of_flags(e.item, e.day, e.half_stars, e.flags);
        let share = Share {
            whole: sent.whole,
            events: sent.events.into_iter().map(read).collect(),
        };
        self.0.entry(source).or_default().push((at, share));
    }

    /// One contribution of each device, or none, in all combinations: first the newest of each.
    ///
    /// # Errors
    /// There are too many devices.
    pub(super) fn sealed_as(mut self, clip: usize) -> anyhow::Result<impl Iterator<Item = Placed>> {
        let most = (1..=4).rev().find(|most| self.cut(*most) <= MOST_TRIED);
        let Some(most) = most else {
            let got = self.0.len();
            bail!("the files of {got} devices in one folder, expected those of one person");
        };
        for sent in self.0.values_mut() {
            sent.sort_by_key(|s| std::cmp::Reverse(s.0));
            sent.truncate(most);
        }
        let all = 0..self.cut(most);
        Ok(all.flat_map(move |n| sealed(&self.combination(n), clip)))
    }

    /// How many combinations there are with so many contributions of each device.
    fn cut(&self, most: usize) -> usize {
        let of = |sent: &Vec<(i64, Share)>| sent.len().min(most) + 1;
        let count = self.0.values().map(of);
        count.fold(1, usize::saturating_mul)
    }

    fn combination(&self, mut number: usize) -> Vec<&Share> {
        let mut chosen = vec![];
        for sent in self.0.values() {
            let at = number % (sent.len() + 1);
            number /= sent.len() + 1;
            chosen.extend(sent.get(at).map(|s| &s.1));
        }
        chosen
    }
}

/// What the tally may have sealed of these: how often an item counts at most is the operator's
/// setting, so each number is tried.
fn sealed(shares: &[&Share], clip: usize) -> Vec<Placed> {
    let mut all = vec![];
    let longest = shares.iter().map(|s| s.events.len()).max().unwrap_or(0);
    let mut before = None;
    for repeats in 1..=longest {
        let cut = |s: &&Share| Share {
            whole: s.whole,
            events: newest_of_each(&s.events, |e| e.item, repeats),
        };
        let cut: Vec<Share> = shares.iter().map(cut).collect();
        let merged = merge(&cut, &Most { clip, repeats });
        let is_all = cut.iter().zip(shares).all(|(cut, all)| cut == *all);
        if before.as_ref() != Some(&merged) {
            all.push(placed(&merged));
        } else if is_all {
            break;
        }
        before = Some(merged);
    }
    all
}

fn placed(share: &Share) -> Placed {
    let placed = |e: &Interaction| PlacedEvent {
        item: e.item,
        day: e.day,
        half_stars: e.half_stars.unwrap_or(0),
        flags: e.flags(),
    };
    Placed {
        whole: share.whole,
        events: share.events.iter().map(placed).collect(),
    }
}
