//! Titles that are too long for a prompt.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lethe_model::ModelError;
use lethe_model::tokenizer::Tokenizer;
use lethe_recsys::prompt::Prompt;

/// What says that something was left out.
const DOTS: &str = "...";
/// Titles that are remembered: what is more is worked out again each time, and not named.
const MOST: usize = 10_000;
/// Bytes of a title that are looked at. A token of a title seldom has more than a word.
const BYTES: usize = 4_096;
/// Characters of a title that a warning shows.
const SHOWN: usize = 60;

/// Shortens titles, and remembers those that it had to look at.
#[derive(Debug, Default)]
pub(crate) struct Titles {
    /// By title and most tokens; none: it is short enough.
    known: Mutex<BTreeMap<(String, usize), Option<String>>>,
}

impl Titles {
    /// The prompt with titles of at most so many tokens.
    pub(crate) fn shorten(
        &self,
        tokenizer: &Tokenizer,
        prompt: &Prompt,
        most: usize,
    ) -> Result<Prompt, ModelError> {
        let one = |title: &String| self.title(tokenizer, title, most);
        let all = |titles: &[String]| titles.iter().map(one).collect::<Result<Vec<_>, _>>();
        Ok(Prompt {
            liked: all(&prompt.liked)?,
            disliked: all(&prompt.disliked)?,
            target: one(&prompt.target)?,
        })
    }

    fn title(&self, tokenizer: &Tokenizer, title: &str, most: usize) -> Result<String, ModelError> {
        // No token is shorter than a byte.
        if title.len() <= most {
            return Ok(title.to_owned());
        }
        let key = (title.to_owned(), most);
        if let Some(known) = self.known().get(&key) {
            return Ok(known.clone().unwrap_or_else(|| title.to_owned()));
        }
        let short = shortened(tokenizer, title, most)?;
        let mut known = self.known();
        if known.len() < MOST {
            if short.is_some() {
                let shown: String = title.chars().take(SHOWN).collect();
                tracing::warn!(
                    title = shown,
                    "the title has more than {most} tokens: it is shortened in prompts"
                );
            }
            known.insert(key, short.clone());
        }
        Ok(short.unwrap_or_else(|| title.to_owned()))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<(String, usize), Option<String>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As many whole words as fit, else as many characters; none: all of it fits.
fn shortened(
    tokenizer: &Tokenizer,
    title: &str,
    most: usize,
) -> Result<Option<String>, ModelError> {
    let fits = |text: &str| Ok::<bool, ModelError>(tokenizer.encode(text)?.len() <= most);
    let whole = title.len() <= BYTES;
    if whole && fits(title)? {
        return Ok(None);
    }
    let head = &title[..title.floor_char_boundary(BYTES)];
    let spaces = head.char_indices().filter(|c| c.1.is_whitespace());
    let words: Vec<&str> = spaces.map(|c| head[..c.0].trim_end()).collect();
    let chars: Vec<&str> = head.char_indices().map(|c| &head[..c.0]).collect();
    for starts in [words, chars] {
        let mut low = 0;
        let mut high = starts.len();
        // The longest that fits: longer texts have more tokens.
        while low < high {
            let middle = low + (high - low) / 2;
            match fits(&format!("{}{DOTS}", starts[middle]))? {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        let longest = low.checked_sub(1).map(|at| starts[at]);
        if let Some(start) = longest.filter(|s| !s.is_empty()) {
            return Ok(Some(format!("{start}{DOTS}")));
        }
    }
    Ok(Some(DOTS.to_owned()))
}
