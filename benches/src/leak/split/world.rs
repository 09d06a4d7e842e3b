//! Whose prompts cross, and what everybody knows: the model, the catalogue, the template.

use anyhow::{Context, ensure};
use lethe_assets::Files;
use lethe_client::encode::Encoder;
use lethe_learn::seed::Seed;
use lethe_model::source::WeightSource;
use lethe_model::tokenizer::Tokenizer;
use lethe_recsys::data::{DataSpec, Dataset, load};
use lethe_recsys::prompt::{Prompt, Template};
use lethe_recsys::samples::{Part, Samples, Split, TaskSample, prompt};
use lethe_recsys::synthetic::people;

/// Prompts that the attacker makes of the public catalogue, to learn from.
const PUBLIC: usize = 12;

/// The fixed parts of the movie prompt, which is public.
pub(super) struct Frame {
    /// Up to the liked titles.
    pub(super) head: String,
    /// Between the liked titles and the others.
    pub(super) between: String,
    /// Between those and the target.
    pub(super) before: String,
    /// After the target.
    pub(super) after: String,
}

/// A prompt of a person.
pub(super) struct Text {
    /// Tokens.
    pub(super) ids: Vec<u32>,
    /// Whether the person liked the target.
    pub(super) label: bool,
    /// Titles in the order of the prompt, the target last; true: it is among the liked.
    pub(super) titles: Vec<(bool, String)>,
}

pub(super) struct World {
    pub(super) source: Box<dyn WeightSource>,
    pub(super) tokenizer: Tokenizer,
    pub(super) encoder: Encoder,
    pub(super) data: Dataset,
    pub(super) samples: Samples,
    /// Rows of the embedding, `[vocab, hidden]`.
    pub(super) words: Vec<f32>,
    pub(super) vocab: usize,
    /// Titles of the catalogue as prompts show them, each once.
    pub(super) labels: Vec<String>,
    pub(super) frame: Frame,
    /// Tokens of prompts that the attacker made.
    pub(super) public: Vec<Vec<u32>>,
    pub(super) seed: Seed,
}

impl World {
    pub(super) fn load(
        files: &Files,
        source: Box<dyn WeightSource>,
        seed: &Seed,
    ) -> anyhow::Result<Self> {
        let data = load(
            &files.movielens,
            &DataSpec::of_folder(&files.movielens)?,
            false,
        )
        .context("loading the data")?;
        let encoder = Encoder::new(source.tokenizer()?, Template::movie())?;
        let table = source.embedding()?;
        let vocab = table.vocab();
        let all: Vec<u32> = (0..vocab as u32).collect();
        let mut labels: Vec<String> = data.items.iter().map(|i| i.label()).collect();
        labels.sort();
        labels.dedup();
        let made_up = people(&data.items, PUBLIC, &seed.derive("public", &[]));
        let public = made_up.iter().map(|s| encoder.ids(&s.prompt(&data)));
        Ok(Self {
            tokenizer: source.tokenizer()?,
            words: table.rows(&all)?,
            samples: Samples::build(&data, Split::PerUser),
            public: public.collect::<Result<_, _>>()?,
            frame: frame(&Template::movie())?,
            seed: *seed,
            source,
            encoder,
            data,
            vocab,
            labels,
        })
    }

    pub(super) fn hidden(&self) -> usize {
        self.source.config().hidden
    }

    /// Prompts of `n` people: chosen test samples.
    pub(super) fn victims(&self, n: usize) -> anyhow::Result<Vec<Text>> {
        let seed = self.seed.derive("victims", &[]);
        let chosen = self.samples.choose(Part::Test, n, &seed);
        chosen.iter().map(|s| self.text(s)).collect()
    }

    /// For each of `n` people two prompts that follow each other, as `(person, prompt)`.
    pub(super) fn pairs(&self, n: usize) -> anyhow::Result<Vec<(usize, Text)>> {
        let seed = self.seed.derive("pairs", &[]);
        let mut out: Vec<(usize, Text)> = vec![];
        let mut users: Vec<u32> = vec![];
        for first in self.samples.choose(Part::Test, 8 * n, &seed) {
            let later = |s: &&TaskSample| s.user == first.user && s.event > first.event;
            let Some(next) = self.samples.all.iter().find(later) else {
                continue;
            };
            if users.len() == n || users.contains(&first.user) {
                continue;
            }
            out.push((users.len(), self.text(&first)?));
            out.push((users.len(), self.text(next)?));
            users.push(first.user);
        }
        ensure!(
            users.len() == n,
            "{} people have two prompts, expected {n}: choose fewer",
            users.len()
        );
        Ok(out)
    }

    pub(super) fn text(&self, sample: &TaskSample) -> anyhow::Result<Text> {
        let prompt = prompt(&self.data, &sample.history, sample.item);
        let side = |titles: &[String], liked: bool| {
            titles
                .iter()
                .map(|t| (liked, t.clone()))
                .collect::<Vec<_>>()
        };
        let mut titles = side(&prompt.liked, true);
        titles.extend(side(&prompt.disliked, false));
        titles.push((false, prompt.target.clone()));
        Ok(Text {
            ids: self.encoder.ids(&prompt)?,
            label: sample.label,
            titles,
        })
    }
}

fn frame(template: &Template) -> anyhow::Result<Frame> {
    let shown = template.render(&Prompt {
        liked: vec!["@L@".into()],
        disliked: vec!["@D@".into()],
        target: "@T@".into(),
    });
    let cut = |text: &str, mark: &str| {
        let (a, b) = text.split_once(mark).context("the template's fields")?;
        anyhow::Ok((a.to_owned(), b.to_owned()))
    };
    let (head, rest) = cut(&shown, "\"@L@\"")?;
    let (between, rest) = cut(&rest, "\"@D@\"")?;
    let (before, after) = cut(&rest, "@T@")?;
    Ok(Frame {
        head,
        between,
        before,
        after,
    })
}
