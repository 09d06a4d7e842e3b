//! From task samples to tokens: the one place where prompts are rendered and encoded.

use std::sync::Arc;

use lethe_model::ModelError;
use lethe_model::tokenizer::Tokenizer;
use lethe_model::train::Sample;
use lethe_recsys::prompt::{ANSWERS, Prompt, Template};

use crate::titles::Titles;

/// Most tokens of a title. The longest of MovieLens-100K has 30; of 271,379 books 264 have more
/// than this. Ten items of history, the target and a template of a hundred take some 630 then.
const TITLE: usize = 48;
/// Where the prompt is still longer than the model's window, titles may have half as many, and so
/// on; with fewer than this nobody could tell them apart.
const LEAST: usize = 6;

/// Renders and encodes prompts of one template. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Encoder {
    tokenizer: Arc<Tokenizer>,
    titles: Arc<Titles>,
    template: Template,
    window: usize,
    /// First tokens of `[no, yes]`.
    pub answers: [u32; 2],
}

impl Encoder {
    /// An encoder; fails when the two answers begin with the same token.
    pub fn new(tokenizer: Tokenizer, template: Template) -> Result<Self, ModelError> {
        let answers = [tokenizer.first(ANSWERS[0])?, tokenizer.first(ANSWERS[1])?];
        if answers[0] == answers[1] {
            return Err(ModelError::Tokenizer(
                "the answers \" No\" and \" Yes\" begin with the same token".into(),
            ));
        }
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            titles: Arc::default(),
            template,
            window: usize::MAX,
            answers,
        })
    }

    /// The same for a model that reads so many tokens at a time.
    #[must_use]
    pub fn within(self, window: usize) -> Self {
        Self { window, ..self }
    }

    /// The same with another template.
    #[must_use]
    pub fn with(&self, template: Template) -> Self {
        Self {
            template,
            ..self.clone()
        }
    }

    /// Tokens of a prompt. A title that is too long is shortened by whole words, and named once in
    /// a warning.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`]; also for a template that leaves the titles no room.
    pub fn ids(&self, prompt: &Prompt) -> Result<Vec<u32>, ModelError> {
        let mut most = TITLE;
        loop {
            let short = self.titles.shorten(&self.tokenizer, prompt, most)?;
            let ids = self.tokenizer.prompt(&self.template.render(&short))?;
            if ids.len() <= self.window {
                return Ok(ids);
            }
            if most / 2 < LEAST {
                return Err(ModelError::Tokenizer(format!(
                    "a prompt takes {} tokens with titles of {most}, the model reads {}: shorten \
                     the recipe's prompt",
                    ids.len(),
                    self.window
                )));
            }
            most /= 2;
        }
    }

    /// A training sample.
    ///
    /// # Errors
    /// As [`Self::ids`].
    pub fn sample(&self, prompt: &Prompt, label: bool) -> Result<Sample, ModelError> {
        Ok(Sample {
            ids: self.ids(prompt)?,
            label,
        })
    }
}

#[cfg(test)]
impl Encoder {
    /// A byte is a token.
    pub(crate) fn of_bytes(template: Template, window: usize) -> Self {
        use lethe_model::config::ModelConfig;
        use lethe_model::source::{RandomWeights, WeightSource};
        let source = RandomWeights::new(ModelConfig::tiny(), 1);
        Self {
            tokenizer: Arc::new(source.tokenizer().expect("bytes")),
            titles: Arc::default(),
            template,
            window,
            answers: [0, 1],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder(window: usize) -> Encoder {
        let template = Template::own("{liked}{disliked}{target}").expect("fields");
        Encoder::of_bytes(template, window)
    }

    fn prompt(liked: &[&str], target: &str) -> Prompt {
        Prompt {
            liked: liked.iter().map(|t| (*t).to_owned()).collect(),
            disliked: vec![],
            target: target.into(),
        }
    }

    #[test]
    fn titles_are_shortened_by_whole_words_and_short_ones_stay() {
        let encoder = encoder(2_000);
        let same = |a: &Prompt, text: &str| {
            let want = encoder.tokenizer.encode(text).expect("encodes");
            assert_eq!(encoder.ids(a).expect("encodes"), want);
        };
        let fits = "x".repeat(TITLE);
        same(&prompt(&[], &fits), &format!("NoneNone{fits}"));
        let long = "A very long product title ".repeat(120);
        let short = "A very long product title A very long product...";
        assert_eq!(short.len(), TITLE);
        same(&prompt(&[&long], "Tea"), &format!("\"{short}\"NoneTea"));
        // No spaces: cut between characters.
        let short = format!("{}...", "é".repeat(22));
        same(&prompt(&[], &"é".repeat(400)), &format!("NoneNone{short}"));
    }

    #[test]
    fn case_09_no_title_makes_a_prompt_longer_than_the_window() {
        let odd = [
            "A very long product title ".repeat(4_000),
            "x".repeat(100_000),
            "\u{301}".repeat(50_000),
            "\u{1}\u{7}\u{1b}[31m\r\n\u{0}".repeat(9_000),
            "\u{10ffff}".repeat(30_000),
            " ".repeat(100_000),
            "{target}".repeat(20_000),
            String::new(),
        ];
        let encoder = encoder(700);
        let titles: Vec<&str> = odd.iter().map(String::as_str).collect();
        for target in &titles {
            let ids = encoder.ids(&prompt(&titles, target)).expect("fits");
            assert!(ids.len() <= 700, "{} tokens", ids.len());
            // And again, from what is remembered.
            assert_eq!(encoder.ids(&prompt(&titles, target)).expect("fits"), ids);
        }
    }

    #[test]
    fn a_prompt_fits_the_window_or_says_why_not() {
        let title = "word ".repeat(12);
        let titles = vec![title.as_str(); 10];
        let prompt = prompt(&titles, &title);
        let ids = encoder(300).ids(&prompt).expect("shortened further");
        assert!((100..=300).contains(&ids.len()), "{}", ids.len());
        let refused = encoder(50).ids(&prompt).expect_err("no room").to_string();
        assert!(refused.contains("shorten the recipe's prompt"), "{refused}");
    }
}
