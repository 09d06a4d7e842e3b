//! What is public about items: tags, words of titles, text vectors.

use std::collections::BTreeMap;

use ring::digest::{Context, SHA256};

/// The most distinct tags or words that become columns.
const MOST_TERMS: usize = 4_096;

/// An item's public description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Title, without the year.
    pub title: String,
    /// Year, if known.
    pub year: Option<u16>,
    /// Genres or other tags.
    pub tags: Vec<String>,
}

/// Public vectors of all items. Nobody's events enter, so there is nothing to forget.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    terms: Vec<String>,
    starts: Vec<u32>,
    entries: Vec<(u32, f32)>,
    years: Vec<Option<u16>>,
    text: Option<Text>,
}

/// Vectors of a sentence encoder, centred and of unit length.
#[derive(Clone, Debug, PartialEq)]
struct Text {
    width: usize,
    vectors: Vec<f32>,
}

/// Why text vectors do not fit the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Not one vector for every item.
    #[error("{got} numbers for {items} items, expected items x width; encode the whole catalogue")]
    Shape {
        /// Numbers that were given.
        got: usize,
        /// Items of the catalogue.
        items: usize,
    },
    /// A number that is infinite or none at all.
    #[error("item {item}: its vector has a number that is not finite; encode the text again")]
    NotFinite {
        /// The first such item.
        item: usize,
    },
}

impl Content {
    /// Vectors of tags, or of words of the titles where no item has tags: for each of an item's
    /// terms `ln(items / (items with the term + 1))`, scaled to unit length.
    pub fn new(items: &[Description]) -> Self {
        let tagged = items.iter().any(|i| !i.tags.is_empty());
        let of_items: Vec<Vec<String>> = items.iter().map(|i| terms_of(i, tagged)).collect();
        let mut frequency: BTreeMap<&str, usize> = BTreeMap::new();
        for term in of_items.iter().flatten() {
            *frequency.entry(term).or_default() += 1;
        }
        // A word that only one title has relates it to nothing.
        let mut kept: Vec<(&str, usize)> = frequency
            .into_iter()
            .filter(|(_, n)| tagged || *n > 1)
            .collect();
        kept.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        kept.truncate(MOST_TERMS);
        let column: BTreeMap<&str, (u32, f64)> = kept
            .iter()
            .enumerate()
            .map(|(at, (term, n))| {
                let weight = libm::log(items.len() as f64 / (*n as f64 + 1.0));
                (*term, (at as u32, weight))
            })
            .collect();
        let mut starts = vec![0];
        let mut entries = vec![];
        for terms in &of_items {
            let mut own: Vec<(u32, f64)> = terms
                .iter()
                .filter_map(|t| column.get(t.as_str()).copied())
                .collect();
            own.sort_by_key(|e| e.0);
            let length = own.iter().map(|e| e.1 * e.1).sum::<f64>().sqrt();
            if length > 0.0 {
                entries.extend(own.iter().map(|e| (e.0, (e.1 / length) as f32)));
            }
            starts.push(entries.len() as u32);
        }
        Self {
            terms: kept.iter().map(|(term, _)| (*term).to_owned()).collect(),
            starts,
            entries,
            years: items.iter().map(|i| i.year).collect(),
            text: None,
        }
    }

    /// Adds vectors of a sentence encoder, `[items][width]`: the mean over items is subtracted, and
    /// each is scaled to unit length. Zeros alone stand for an item without a vector: it stays
    /// without, and does not enter the mean.
    ///
    /// # Errors
    /// [`TextError`] if there is not one vector of finite numbers for every item.
    pub fn with_text(mut self, vectors: &[f32]) -> Result<Self, TextError> {
        let items = self.items();
        let bad = TextError::Shape {
            got: vectors.len(),
            items,
        };
        if items == 0 || vectors.is_empty() || !vectors.len().is_multiple_of(items) {
            return Err(bad);
        }
        let width = vectors.len() / items;
        if let Some(at) = vectors.iter().position(|v| !v.is_finite()) {
            return Err(TextError::NotFinite { item: at / width });
        }
        let mut mean = vec![0.0f64; width];
        let is_there = |vector: &&[f32]| vector.iter().any(|v| *v != 0.0);
        let there = vectors.chunks(width).filter(is_there).count().max(1);
        for vector in vectors.chunks(width).filter(is_there) {
            for (m, v) in mean.iter_mut().zip(vector) {
                *m += f64::from(*v);
            }
        }
        mean.iter_mut().for_each(|m| *m /= there as f64);
        let mut out = Vec::with_capacity(vectors.len());
        for vector in vectors.chunks(width) {
            if !is_there(&vector) {
                out.extend_from_slice(vector);
                continue;
            }
            let centred: Vec<f64> = vector
                .iter()
                .zip(&mean)
                .map(|(v, m)| f64::from(*v) - m)
                .collect();
            let length = centred.iter().map(|v| v * v).sum::<f64>().sqrt();
            let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
            out.extend(centred.iter().map(|v| (v * scale) as f32));
        }
        self.text = Some(Text {
            width,
            vectors: out,
        });
        Ok(self)
    }

    /// Names what is public about the items: SHA-256 of all of it. Two catalogues of which tables
    /// are solved alike have the same.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        let mut part = |bytes: &[u8]| {
            context.update(&(bytes.len() as u64).to_le_bytes());
            context.update(bytes);
        };
        part(&(self.terms.len() as u64).to_le_bytes());
        for term in &self.terms {
            part(term.as_bytes());
        }
        for (item, year) in self.years.iter().enumerate() {
            let entries = self.starts[item] as usize..self.starts[item + 1] as usize;
            let weights = self.entries[entries].iter();
            let weights = weights.flat_map(|e| [e.0.to_le_bytes(), e.1.to_le_bytes()].concat());
            part(&weights.collect::<Vec<u8>>());
            part(&year.map_or(vec![], |y| y.to_le_bytes().to_vec()));
        }
        if let Some(text) = &self.text {
            for vector in text.vectors.chunks(text.width.max(1)) {
                let values = vector.iter().flat_map(|v| v.to_le_bytes());
                part(&values.collect::<Vec<u8>>());
            }
        }
        let mut out = [0; 32];
        out.copy_from_slice(context.finish().as_ref());
        out
    }

    /// The same without text vectors.
    #[must_use]
    pub fn without_text(&self) -> Self {
        Self {
            text: None,
            ..self.clone()
        }
    }

    /// The same without tags and words.
    #[must_use]
    pub fn without_terms(&self) -> Self {
        Self {
            terms: vec![],
            starts: vec![0; self.starts.len()],
            entries: vec![],
            ..self.clone()
        }
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.years.len()
    }

    /// The tags or words, by column.
    pub fn terms(&self) -> &[String] {
        &self.terms
    }

    /// The column of a tag or word, whatever its case.
    pub fn term(&self, name: &str) -> Option<u32> {
        let name = name.to_lowercase();
        self.terms.iter().position(|t| *t == name).map(|i| i as u32)
    }

    /// An item's columns and weights, of unit length together; empty if nothing is known.
    pub fn terms_of(&self, item: u32) -> &[(u32, f32)] {
        let at = item as usize;
        // An item that is newer than this content has no terms.
        if at >= self.items() {
            return &[];
        }
        &self.entries[self.starts[at] as usize..self.starts[at + 1] as usize]
    }

    /// An item's year.
    pub fn year(&self, item: u32) -> Option<u16> {
        self.years[item as usize]
    }

    /// Width of the text vectors; 0 without.
    pub fn text_width(&self) -> usize {
        self.text.as_ref().map_or(0, |t| t.width)
    }

    /// An item's text vector, of unit length; empty without.
    pub fn text_of(&self, item: u32) -> &[f32] {
        let Some(text) = &self.text else {
            return &[];
        };
        let start = item as usize * text.width;
        let found = text.vectors.get(start..start + text.width);
        found.unwrap_or(&[])
    }

    /// Cosine of the two items' terms, 0 to 1 (below 0 only where a tag is on nearly all items).
    pub fn term_cosine(&self, a: u32, b: u32) -> f64 {
        let mut left = self.terms_of(a).iter().peekable();
        let mut sum = 0.0;
        for (column, weight) in self.terms_of(b) {
            while left.next_if(|e| e.0 < *column).is_some() {}
            if let Some(own) = left.next_if(|e| e.0 == *column) {
                sum += f64::from(own.1) * f64::from(*weight);
            }
        }
        sum
    }

    /// Cosine of the two items' text vectors; 0 without.
    pub fn text_cosine(&self, a: u32, b: u32) -> f64 {
        f64::from(dot_single(self.text_of(a), self.text_of(b)))
    }

    /// How alike two items are by content alone: the mean of both cosines, or the one there is.
    pub fn likeness(&self, a: u32, b: u32) -> f64 {
        match (self.terms.is_empty(), self.text.is_some()) {
            (false, true) => f64::midpoint(self.term_cosine(a, b), self.text_cosine(a, b)),
            (true, true) => self.text_cosine(a, b),
            (_, false) => self.term_cosine(a, b),
        }
    }
}

/// Sum of products in sixteen fixed lanes: the same on any CPU.
fn dot_single(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0f32; LANES];
    let left = a.chunks_exact(LANES);
    let right = b.chunks_exact(LANES);
    let rest = left.remainder().iter().zip(right.remainder());
    let mut sum: f32 = rest.map(|(x, y)| x * y).sum();
    for (x, y) in left.zip(right) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += x * y;
        }
    }
    for lane in lanes {
        sum += lane;
    }
    sum
}

fn terms_of(item: &Description, tagged: bool) -> Vec<String> {
    let mut terms: Vec<String> = if tagged {
        item.tags.iter().map(|t| t.to_lowercase()).collect()
    } else {
        item.title
            .to_lowercase()
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| word.chars().count() > 3)
            .map(str::to_owned)
            .collect()
    };
    terms.sort();
    terms.dedup();
    terms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(title: &str, tags: &[&str]) -> Description {
        Description {
            title: title.into(),
            year: None,
            tags: tags.iter().map(|t| (*t).to_owned()).collect(),
        }
    }

    #[test]
    fn rare_tags_weigh_more() {
        let items = [
            item("a", &["Drama", "War"]),
            item("b", &["Drama"]),
            item("c", &["War"]),
            item("d", &["Drama", "Comedy"]),
            item("e", &["Drama"]),
            item("f", &["Comedy"]),
            item("g", &[]),
        ];
        let c = Content::new(&items);
        assert!((c.term_cosine(0, 0) - 1.0).abs() < 1e-6);
        assert!(c.term_cosine(0, 2) > c.term_cosine(0, 1));
        assert_eq!(c.term_cosine(2, 5), 0.0);
        assert_eq!(c.term_cosine(6, 0), 0.0);
        assert_eq!(c.term("drama"), Some(0));
    }

    #[test]
    fn without_tags_words_that_titles_share_count() {
        let items = [
            item("The Return of Heat", &[]),
            item("Heat and Dust", &[]),
            item("Dust", &[]),
        ];
        let c = Content::new(&items);
        assert_eq!(c.terms(), ["dust", "heat"]);
    }

    #[test]
    fn text_is_centred_and_of_unit_length() {
        let c = Content::new(&[item("a", &[]), item("b", &[])]);
        let c = c.with_text(&[1.0, 0.0, 0.0, 1.0]).expect("two of width 2");
        assert!((c.text_cosine(0, 0) - 1.0).abs() < 1e-6);
        assert!((c.text_cosine(0, 1) + 1.0).abs() < 1e-6);
        assert!(c.with_text(&[1.0]).is_err());
    }

    #[test]
    fn the_digest_names_all_that_is_public() {
        let items = [item("a", &["Drama"]), item("b", &["Drama", "War"])];
        let c = Content::new(&items);
        assert_eq!(c.digest(), Content::new(&items).digest());
        let with = |vectors: &[f32]| c.clone().with_text(vectors).expect("fits").digest();
        let mut dated = items.clone();
        dated[0].year = Some(1999);
        let tagged = [item("a", &["Drama"]), item("b", &["War", "Comedy"])];
        let others = [
            with(&[1.0, 0.0, 0.0, 1.0]),
            with(&[0.0, 1.0, 1.0, 0.0]),
            Content::new(&dated).digest(),
            Content::new(&tagged).digest(),
            Content::new(&items[..1]).digest(),
        ];
        let mut all: Vec<[u8; 32]> = others.to_vec();
        all.push(c.digest());
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6);
    }
}
