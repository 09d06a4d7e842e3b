//! From task samples to tokens: the one place where prompts are rendered and encoded.

use lethe_model::ModelError;
use lethe_model::tokenizer::Tokenizer;
use lethe_model::train::Sample;
use lethe_recsys::prompt::{ANSWERS, Prompt, Template};

/// Renders and encodes prompts of one template.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Template,
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
            tokenizer,
            template,
            answers,
        })
    }

    /// Tokens of a prompt.
    pub fn ids(&self, prompt: &Prompt) -> Result<Vec<u32>, ModelError> {
        self.tokenizer.encode(&self.template.render(prompt))
    }

    /// A training sample.
    pub fn sample(&self, prompt: &Prompt, label: bool) -> Result<Sample, ModelError> {
        Ok(Sample {
            ids: self.ids(prompt)?,
            label,
        })
    }
}
