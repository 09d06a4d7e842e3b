//! From a history and tables to an order, and from an order to pages. Nothing here takes a lock.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use lethe_parts::content::Content;
use lethe_parts::event::Event;
use lethe_parts::history::{History, Interaction, day_of};
use lethe_parts::score::{self, Like, Ranker, Weights, reasons_of_all};

use super::{
    Cursor, Explanation, Fallback, ListId, ListSource, Listed, MAX_PAGE, Page, Query, Reason, View,
};
use crate::{Catalogue, ClientError};

/// Histories up to this length have few events.
const FEW: usize = 10;
/// Among so many of the best diversity chooses.
const DIVERSE: usize = 500;
/// Newest events that content alone is compared with, and the decay of their weights.
const CONTENT_EVENTS: usize = 30;
const CONTENT_DECAY: f64 = 8.0;
/// Reasons of a place, and of an explanation.
const REASONS: usize = 2;
const ALL_REASONS: usize = 5;

/// What a list is made from: a copy of the history, and the tables if there are some.
pub(crate) struct Input {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) tables: Result<Arc<View>, Fallback>,
    /// By position in the catalogue.
    pub(crate) events: Vec<Event>,
    /// Seconds since 1970.
    pub(crate) at: i64,
}

/// The person, as ranking sees them.
struct Person {
    /// By item of the tables; empty without.
    history: History,
    /// The newest met items, by position in the catalogue, newest first.
    newest: Vec<u32>,
    /// Met or hidden, by position in the catalogue.
    met: HashSet<u32>,
}

/// An order, kept for its next pages.
pub(crate) struct Ranked {
    pub(crate) id: ListId,
    input: Input,
    person: Person,
    /// Best first.
    order: Vec<Place>,
}

impl fmt::Debug for Ranked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} items", self.id, self.order.len())
    }
}

#[derive(Clone, Copy)]
struct Place {
    /// Position in the catalogue.
    item: u32,
    score: f64,
}

fn best_first(a: &Place, b: &Place) -> std::cmp::Ordering {
    b.score.total_cmp(&a.score).then(a.item.cmp(&b.item))
}

impl Input {
    fn person(&self) -> Person {
        let read = Interaction::read(&self.events, self.catalogue.meaning());
        let of_tables = |i: &Interaction| {
            let view = self.tables.as_ref().ok()?;
            let item = view.of_catalogue[i.item as usize]?;
            Some(Interaction { item, ..*i })
        };
        let mapped: Vec<Interaction> = read.iter().filter_map(of_tables).collect();
        let seen = read.iter().rev().filter(|i| i.seen).map(|i| i.item);
        Person {
            history: History::new(&mapped),
            newest: seen.take(CONTENT_EVENTS).collect(),
            met: read.iter().map(|i| i.item).collect(),
        }
    }

    fn source(&self, person: &Person) -> ListSource {
        match (&self.tables, person.history.seen().len()) {
            (Err(why), _) => ListSource::Catalogue(*why),
            (Ok(_), 0) => ListSource::PopularNow,
            (Ok(_), n) if n <= FEW => ListSource::FewEvents,
            (Ok(_), _) => ListSource::OwnHistory,
        }
    }

    fn today(&self) -> i32 {
        day_of(self.at)
    }

    /// Ranks for a query; the order does not depend on the length of its page.
    pub(crate) fn rank(self, query: &Query) -> Result<Ranked, ClientError> {
        let person = self.person();
        let candidates = self.candidates(query)?;
        let excluded: HashSet<u32> = query
            .exclude
            .iter()
            .filter_map(|id| self.catalogue.find(id))
            .collect();
        let allowed = |item: u32| {
            !person.met.contains(&item)
                && !excluded.contains(&item)
                && candidates.as_ref().is_none_or(|c| c.contains(&item))
                && query.filter.admits(self.catalogue.at(item))
        };
        let lift = |item: u32| {
            let boost = query.boost.as_ref();
            boost.map_or(0.0, |boost| boost(self.catalogue.at(item)))
        };
        let mut order = self.by_tables(&person, &allowed, &lift);
        if query.diversity > 0.0 {
            diversify(self.catalogue.content(), query.diversity, &mut order);
        }
        order.extend(self.by_content(&person, &allowed, &lift));
        Ok(Ranked {
            id: ListId::new(self.source(&person))?,
            input: self,
            person,
            order,
        })
    }

    fn candidates(&self, query: &Query) -> Result<Option<HashSet<u32>>, ClientError> {
        let Some(names) = &query.candidates else {
            return Ok(None);
        };
        // Those that have left are in no list.
        let there = names.iter().filter(|id| !self.catalogue.has_left(id));
        let places = there.map(|id| self.catalogue.position(id));
        places.collect::<Result<_, _>>().map(Some)
    }

    /// The items that the tables know, best first.
    fn by_tables(
        &self,
        person: &Person,
        allowed: &dyn Fn(u32) -> bool,
        lift: &dyn Fn(u32) -> f64,
    ) -> Vec<Place> {
        let Ok(view) = &self.tables else {
            return vec![];
        };
        let request = score::Request {
            history: &person.history,
            today: self.today(),
        };
        let mut ranker = Ranker::default();
        let scores = ranker.scores(&view.tables, &view.content, &request, Weights::PUBLIC);
        let place = |at: (&Option<u32>, &f32)| {
            let item = (*at.0)?;
            if *at.1 == f32::NEG_INFINITY || !allowed(item) {
                return None;
            }
            let score = f64::from(*at.1) + lift(item);
            (!score.is_nan()).then_some(Place { item, score })
        };
        let mut order: Vec<Place> = view.of_table.iter().zip(scores).filter_map(place).collect();
        order.sort_by(best_first);
        order
    }

    /// The items that the tables do not know, or all without tables: those most like the history
    /// first.
    fn by_content(
        &self,
        person: &Person,
        allowed: &dyn Fn(u32) -> bool,
        lift: &dyn Fn(u32) -> f64,
    ) -> Vec<Place> {
        let known = |item: u32| {
            let view = self.tables.as_ref().ok();
            view.is_some_and(|v| v.of_catalogue[item as usize].is_some())
        };
        let content = self.catalogue.content();
        let place = |item: u32| {
            if known(item) || !allowed(item) {
                return None;
            }
            let score = content_score(content, &person.newest, item) + lift(item);
            (!score.is_nan()).then_some(Place { item, score })
        };
        let all = 0..self.catalogue.items().len() as u32;
        let mut order: Vec<Place> = all.filter_map(place).collect();
        order.sort_by(best_first);
        order
    }

    /// Items that are met by those who meet `item`, or that are like it.
    pub(crate) fn similar(self, item: &str, n: usize) -> Result<Page, ClientError> {
        let own = self.catalogue.position(item)?;
        let n = n.min(MAX_PAGE);
        let person = self.person();
        let mut order = self.neighbours(own);
        if order.is_empty() {
            order = self.alike(own);
        }
        order.truncate(n);
        let source = match &self.tables {
            Ok(_) => ListSource::Similar,
            Err(why) => ListSource::Catalogue(*why),
        };
        let ranked = Ranked {
            id: ListId::new(source)?,
            input: self,
            person,
            order,
        };
        Ok(ranked.plain(n))
    }

    /// Items that are met by those who meet `own`; none where the tables do not know it.
    fn neighbours(&self, own: u32) -> Vec<Place> {
        let view = self.tables.as_ref().ok();
        let known = view.and_then(|v| Some((v, v.of_catalogue[own as usize]?)));
        let Some((view, at)) = known else {
            return vec![];
        };
        let found = Ranker::default().similar(&view.tables, &view.content, at, MAX_PAGE);
        // Some of those that are found may be unknown here.
        let place = |pair: (u32, f64)| {
            let item = view.of_table[pair.0 as usize]?;
            let score = pair.1;
            Some(Place { item, score })
        };
        found.into_iter().filter_map(place).collect()
    }

    /// All items by likeness of content.
    fn alike(&self, own: u32) -> Vec<Place> {
        let content = self.catalogue.content();
        let like = |item| Place {
            item,
            score: content.likeness(own, item),
        };
        let all = 0..self.catalogue.items().len() as u32;
        let mut order: Vec<Place> = all.filter(|i| *i != own).map(like).collect();
        order.sort_by(best_first);
        order
    }

    /// What people meet first and lately, whatever this person has met.
    pub(crate) fn popular(mut self, n: usize) -> Result<Page, ClientError> {
        self.events.clear();
        let n = n.min(MAX_PAGE);
        Ok(self.rank(&Query::first(n))?.plain(n))
    }

    /// What is known about an item.
    pub(crate) fn explain(&self, item: &str) -> Result<Explanation, ClientError> {
        let at = self.catalogue.position(item)?;
        let person = self.person();
        let source = self.source(&person);
        let listed = self.describe(&person, at, 0.0, ALL_REASONS);
        let rated = |view: &Arc<View>| {
            let own = view.of_catalogue[at as usize]?;
            let enough = view.tables.columns().rated[own as usize] > 0;
            enough.then(|| view.tables.mean(own))
        };
        Ok(Explanation {
            met: person.met.contains(&at),
            mean_stars: self.tables.as_ref().ok().and_then(rated),
            item: listed.item,
            title: listed.title,
            like: listed.like,
            reasons: listed.reasons,
            unseen: listed.unseen,
            source,
        })
    }

    fn describe(&self, person: &Person, item: u32, score: f64, reasons: usize) -> Listed {
        let places = [Place { item, score }];
        let mut listed = self.describe_all(person, &places, reasons);
        listed.remove(0)
    }

    /// The places of a page with everything that is said about them.
    fn describe_all(&self, person: &Person, places: &[Place], reasons: usize) -> Vec<Listed> {
        let plain = |p: &Place| {
            let item = self.catalogue.at(p.item);
            Listed {
                item: item.id.clone(),
                title: item.label(),
                score: p.score,
                like: None,
                reasons: vec![],
                unseen: self.tables.is_ok(),
            }
        };
        let mut listed: Vec<Listed> = places.iter().map(plain).collect();
        let Ok(view) = &self.tables else {
            return listed;
        };
        let like = Like::new(&view.tables, &view.content, &person.history);
        let own: Vec<Option<u32>> = places
            .iter()
            .map(|p| view.of_catalogue[p.item as usize])
            .collect();
        let known: Vec<u32> = own.iter().flatten().copied().collect();
        let request = score::Request {
            history: &person.history,
            today: self.today(),
        };
        let weights = Weights::PUBLIC;
        let found = match reasons {
            0 => vec![vec![]; known.len()],
            n => reasons_of_all(&view.tables, &view.content, &request, &weights, &known, n),
        };
        let mut found = found.into_iter();
        for (listed, own) in listed.iter_mut().zip(own) {
            let Some(own) = own else {
                continue;
            };
            listed.like = Some(like.probability(own));
            listed.unseen = !view.tables.is_seen(own);
            let why = found.next().unwrap_or_default();
            listed.reasons = why.iter().filter_map(|r| self.reason(view, r)).collect();
        }
        listed
    }

    fn reason(&self, view: &View, reason: &score::Reason) -> Option<Reason> {
        let item = self.catalogue.at(view.of_table[reason.item as usize]?);
        Some(Reason {
            item: item.id.clone(),
            title: item.label(),
            amount: reason.amount,
        })
    }
}

impl Ranked {
    /// Where an item is in the order, from 0; none: it may not be shown.
    pub(super) fn place(&self, item: u32) -> Option<usize> {
        self.order.iter().position(|p| p.item == item)
    }

    /// Probabilities that the person likes these items; none where the tables say nothing.
    pub(super) fn likes(&self, items: &[u32]) -> Vec<Option<f64>> {
        let place = |item: &u32| Place {
            item: *item,
            score: 0.0,
        };
        let places: Vec<Place> = items.iter().map(place).collect();
        let listed = self.input.describe_all(&self.person, &places, 0);
        listed.into_iter().map(|l| l.like).collect()
    }

    /// The page from `offset` on.
    pub(crate) fn page(&self, offset: usize, n: usize) -> Page {
        let from = offset.min(self.order.len());
        let end = from.saturating_add(n.min(MAX_PAGE)).min(self.order.len());
        let places = &self.order[from..end];
        let next = (end < self.order.len() && end > from).then_some(Cursor {
            list: self.id,
            offset: end,
        });
        Page {
            items: self.input.describe_all(&self.person, places, REASONS),
            next,
            source: self.id.source(),
            id: self.id,
        }
    }

    /// One page without reasons and without a next one.
    fn plain(&self, n: usize) -> Page {
        let places = &self.order[..n.min(self.order.len())];
        Page {
            items: self.input.describe_all(&self.person, places, 0),
            next: None,
            source: self.id.source(),
            id: self.id,
        }
    }
}

fn content_score(content: &Content, newest: &[u32], item: u32) -> f64 {
    let weight = |age: usize| (-(age as f64) / CONTENT_DECAY).exp();
    let each = newest.iter().enumerate();
    each.map(|(age, h)| weight(age) * content.likeness(*h, item))
        .sum()
}

/// Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) over the best; the others
/// follow as they are.
fn diversify(content: &Content, diversity: f64, order: &mut Vec<Place>) {
    let rest = order.split_off(DIVERSE.min(order.len()));
    let mut pool = std::mem::take(order);
    let mut penalty = vec![0.0f64; pool.len()];
    while !pool.is_empty() {
        let value = |at: &usize| pool[*at].score - diversity * penalty[*at];
        let best = (0..pool.len()).max_by(|a, b| {
            let by_value = value(a).total_cmp(&value(b));
            by_value.then_with(|| best_first(&pool[*b], &pool[*a]))
        });
        let Some(at) = best else {
            break;
        };
        let next = pool.remove(at);
        penalty.remove(at);
        for (place, penalty) in pool.iter().zip(&mut penalty) {
            *penalty = penalty.max(content.likeness(next.item, place.item));
        }
        order.push(next);
    }
    order.extend(rest);
}
