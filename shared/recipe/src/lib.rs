//! The recipe of an epoch: everything that decides the bytes of an adapter besides data and seeds.
//!
//! The coordinator loads it from TOML, hands it to every client as JSON, and its digest enters
//! checkpoint keys and receipts. Unknown keys are refused. Entry type: [`Recipe`].
//!
//! ```
//! let recipe = lethe_recipe::Recipe::from_toml("shards = 2\n")?;
//! assert_eq!(recipe.shards, 2);
//! assert!(lethe_recipe::Recipe::from_toml("shard = 2").is_err());
//! # Ok::<(), lethe_recipe::RecipeError>(())
//! ```

mod file;
mod masking;
mod robust;

use std::io::Read;
use std::sync::Arc;

use lethe_learn::apa::ApaParams;
use lethe_learn::balance::BalanceParams;
use lethe_learn::robust::Robust;
use lethe_learn::seed::Seed;
use lethe_model::kernels::panels::Compute;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe};
use lethe_model::split::SplitSpec;
use lethe_model::train::Packing;
use lethe_proto::ids::Digest;
use lethe_proto::packed::PackedFormat;
use lethe_proto::payload::WireFormat;
use lethe_recsys::prompt::{MAX_TEMPLATE, Template, TemplateError};
use lethe_recsys::spelling::hint;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Digest of a base model: of the file, or of a folder's files in order of their names. It is the
/// same for everybody who has the same model.
pub fn model_digest(path: &std::path::Path) -> std::io::Result<Digest> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        files = std::fs::read_dir(path)?
            .map(|e| e.map(|e| e.path()))
            .collect::<Result<_, _>>()?;
        files.retain(|f| {
            f.extension()
                .is_some_and(|x| x == "safetensors" || x == "json")
        });
        files.sort();
    }
    let digests: Vec<Digest> = files
        .iter()
        .map(|f| Ok(Digest::of(&[&std::fs::read(f)?])))
        .collect::<std::io::Result<_>>()?;
    Ok(Digest::of(
        &digests.iter().map(|d| &d.0[..]).collect::<Vec<_>>(),
    ))
}

/// Why a recipe cannot be used.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// Not valid, or an unknown key.
    #[error("recipe: {0}; docs/operations.md lists the keys")]
    Parse(String),
    /// No template has this name.
    #[error(
        "recipe: template is {got:?}, expected one of {known}; or give a text of your own as \
         `prompt`"
    )]
    Template {
        /// The name.
        got: String,
        /// Those that are known.
        known: String,
    },
    /// A template by name and one by text.
    #[error("recipe: template is {named:?} and there is a prompt, expected one of both")]
    TwoTemplates {
        /// The name.
        named: String,
    },
    /// A text that is no template.
    #[error("recipe: prompt: {0}")]
    Prompt(#[from] TemplateError),
    /// A file that cannot be read.
    #[error(
        "recipe: prompt is {path:?}, expected a file or a text with {{liked}}, {{disliked}} and \
         {{target}}: {why}"
    )]
    PromptFile {
        /// As it was given.
        path: String,
        /// What the system says.
        why: String,
    },
    /// Any of them, in a file of the user's.
    #[error("{said}")]
    InFile {
        /// With the file, its line and the key.
        said: String,
    },
    /// A value out of range.
    #[error("recipe: {field} is {got}, expected {expected}")]
    Range {
        /// The key.
        field: &'static str,
        /// The value.
        got: String,
        /// What is allowed.
        expected: &'static str,
    },
}

/// How client results become the shard's next adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aggregation {
    /// PPLR's balance weights in mode `shared` (arXiv 2402.09959).
    Shared,
    /// FedAvg: weights by sample count.
    Fedavg,
    /// PPLR's mode `personalized`: every client keeps parameters of its own, mixed with its peers'
    /// by the same rule (for cross-silo federations of up to a few hundred clients). The shard's
    /// adapter is the mean of them.
    Personalized,
}

/// How shard adapters are combined for a query (arXiv 2404.10327).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Combination {
    /// APA(ND): the weighted sum of the deltas.
    Nd,
    /// APA(D): weighted sums of A and of B.
    D,
}

/// Which slice a subject's data enters with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// A keyed hash of the subject.
    Hash,
    /// The longer somebody is here when the epoch starts, the earlier: deletions of the newest cost
    /// least.
    Tenure,
}

/// Local training of a client in one round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Local {
    /// Samples a client trains on in a round, chosen by seed.
    pub samples: usize,
    /// Samples per local gradient step.
    pub batch: usize,
    /// Passes over them.
    pub epochs: usize,
    /// Rate of the local gradient steps.
    pub lr: f32,
}

impl Default for Local {
    fn default() -> Self {
        Self {
            samples: 4,
            batch: 4,
            epochs: 1,
            lr: 1.0,
        }
    }
}

/// Everything that decides the bytes of an adapter besides data and seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Prompt template and version: one of [`Template::KNOWN`].
    pub template: String,
    /// The text of a template of the operator's own, in the place of a named one. In TOML it may be
    /// the path of a file, which [`Recipe::from_toml`] reads: devices get the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Adapted projections, rank, scale.
    pub lora: LoraRecipe,
    /// Which layers the device holds.
    pub split: SplitSpec,
    /// Arithmetic of the products with frozen weights, on devices and on the coordinator.
    pub compute: Compute,
    /// Number format of activations and gradients on the wire.
    pub wire: WireFormat,
    /// Number format of updates, from devices to the coordinator.
    #[serde(skip_serializing_if = "exact")]
    pub updates: PackedFormat,
    /// Number format of adapters, from the coordinator to devices. What a device trains on is what
    /// it was sent.
    #[serde(skip_serializing_if = "exact")]
    pub adapters: PackedFormat,
    /// How samples are grouped into forward passes.
    pub packing: Packing,
    /// Shards (K).
    pub shards: usize,
    /// Anchors of the partition; large anchors get several shards.
    pub anchors: usize,
    /// Slices per shard (R): stage r trains on slices 1..=r.
    pub slices: usize,
    /// Which slice a subject is in.
    pub placement: Placement,
    /// Rounds per stage.
    pub rounds: usize,
    /// Clients per round.
    pub cohort: usize,
    /// A round closes as soon as so many of the cohort have answered (absent: all). A cohort of 1.3
    /// times the goal is usual: the slowest tenth of phones decides nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<usize>,
    /// Buffered asynchronous aggregation (FedBuff; Nguyen et al., AISTATS 2022): an update that
    /// comes after its round has closed counts in the next one, if no more than so many rounds of
    /// its stage have closed since it was begun, with a weight of `1 / sqrt(1 + rounds)`. Absent:
    /// it is refused. Needs `goal`, which is the buffer's size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staleness: Option<usize>,
    /// Fewest contributions with which a round may close at its deadline.
    pub quorum: usize,
    /// Seconds until a round closes.
    pub deadline_s: u64,
    /// Local training.
    pub local: Local,
    /// Rate of the server's Adam on the aggregate.
    pub server_lr: f32,
    /// Longest update, as an L2 norm; longer ones are scaled down.
    pub clip: f32,
    /// Longest update as a multiple of the running median length of updates; longer ones are scaled
    /// down. 0 in TOML: no such bound. Absent in JSON: none, as in epochs of older versions.
    #[serde(skip_serializing_if = "Option::is_none", default = "no_clip_factor")]
    pub clip_factor: Option<f32>,
    /// Aggregation rule.
    pub aggregation: Aggregation,
    /// What keeps a minority of a round from steering it, in the place of the weighted sum.
    #[serde(skip_serializing_if = "Robust::is_none")]
    pub robust: Robust,
    /// Parameters of the balance.
    pub balance: BalanceParams,
    /// Parameters of the adapter weights.
    pub apa: ApaParams,
    /// Combination of shard adapters.
    pub combine: Combination,
    /// Validation samples that each client scores for the error table.
    pub validation: usize,
    /// Seed of the epoch: initialisation, anchors, cohorts, sample choice.
    pub seed: u64,
}

/// Honest updates are seldom longer than this many medians, and lose little where they are.
const CLIP_FACTOR: f32 = 2.0;

fn no_clip_factor() -> Option<f32> {
    None
}

/// Left out of the JSON, so that clients that know no other format understand it.
fn exact(format: &PackedFormat) -> bool {
    !format.lossy()
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            template: MOVIE.into(),
            prompt: None,
            lora: LoraRecipe::default(),
            split: SplitSpec { k_in: 4, k_out: 1 },
            compute: Compute::F32,
            wire: WireFormat::F32,
            updates: PackedFormat::F32,
            adapters: PackedFormat::F32,
            packing: Packing::default(),
            shards: 4,
            anchors: 2,
            slices: 2,
            placement: Placement::Hash,
            rounds: 4,
            cohort: 4,
            goal: None,
            staleness: None,
            quorum: 1,
            deadline_s: 120,
            local: Local::default(),
            server_lr: 1.5e-3,
            clip: 10.0,
            clip_factor: Some(CLIP_FACTOR),
            aggregation: Aggregation::Shared,
            robust: Robust::None,
            balance: BalanceParams::default(),
            apa: ApaParams::default(),
            combine: Combination::Nd,
            validation: 1,
            seed: 1,
        }
    }
}

/// The template where none is named.
const MOVIE: &str = "tallrec-movie.v1";

/// A template's text from what stands in TOML: the text itself, or the path of a file. An editor's
/// last line break is no part of it.
fn template_text(given: String) -> Result<String, RecipeError> {
    // No file is called so.
    if given.contains("{target}") {
        return Ok(given);
    }
    let file = |why: String| RecipeError::PromptFile {
        path: given.clone(),
        why,
    };
    let opened = std::fs::File::open(&given).map_err(|e| file(e.to_string()))?;
    let mut text = String::new();
    // One byte more than is allowed: what is longer is refused as too long.
    let mut bounded = opened.take(MAX_TEMPLATE as u64 + 1);
    bounded
        .read_to_string(&mut text)
        .map_err(|e| file(e.to_string()))?;
    if text.len() <= MAX_TEMPLATE {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

impl Recipe {
    /// From TOML; absent keys take their defaults, unknown ones are refused. Where `prompt` is no
    /// template it is the path of a file, and the text of that is taken.
    pub fn from_toml(text: &str) -> Result<Self, RecipeError> {
        let parse = |e: toml::de::Error| {
            let said = e.to_string();
            RecipeError::Parse(format!("{}{}", said.trim_end(), hint(&e)))
        };
        let given: toml::Table = toml::from_str(text).map_err(parse)?;
        let mut recipe = toml::from_str::<Self>(text).map_err(parse)?;
        recipe.prompt = recipe.prompt.map(template_text).transpose()?;
        let masked = recipe.updates == PackedFormat::Masked;
        match recipe.clip_factor {
            None if !given.contains_key("clip_factor") && !masked => {
                recipe.clip_factor = Some(CLIP_FACTOR);
            }
            Some(0.0) => recipe.clip_factor = None,
            _ => {}
        }
        recipe.checked()
    }

    /// This recipe without what the version that stored `json` did not know: an epoch goes on under
    /// the rules that it began with.
    pub fn as_stored(mut self, json: &str) -> Self {
        if Self::from_json(json).is_ok_and(|stored| stored.clip_factor.is_none()) {
            self.clip_factor = None;
        }
        self
    }

    /// From the JSON that a coordinator sent.
    pub fn from_json(text: &str) -> Result<Self, RecipeError> {
        serde_json::from_str::<Self>(text)
            .map_err(|e| RecipeError::Parse(e.to_string()))?
            .checked()
    }

    /// As JSON; the same recipe always gives the same text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// As TOML, from which [`Self::from_toml`] gives this recipe again. Keys that only JSON can
    /// leave out are written.
    pub fn to_toml(&self) -> Result<toml::Table, RecipeError> {
        let mut table =
            toml::Table::try_from(self).map_err(|e| RecipeError::Parse(e.to_string()))?;
        if self.clip_factor.is_none() {
            table.insert("clip_factor".into(), 0.0.into());
        }
        Ok(table)
    }

    /// The adapter (or part of one) that everybody starts from: one common initialisation for all
    /// shards (APA, arXiv 2404.10327), keyed by layer and projection, so that a device computes its
    /// part alone.
    pub fn initial(&self, shape: &Arc<AdapterShape>) -> Adapter {
        Adapter::init(shape, &Seed::from_u64(self.seed).derive("init", &[]))
    }

    /// What the host of the middle layers of a model with `layers` layers can learn, in one
    /// sentence. `docs/leaks-split.md` has the measurements behind it.
    pub fn middle_learns(&self, layers: usize) -> String {
        let SplitSpec { k_in, k_out } = self.split;
        if k_in + k_out >= layers {
            return format!(
                "nothing: all {layers} layers are on the device, and no state or gradient crosses"
            );
        }
        let texts = format!(
            "every prompt, with the titles that a person liked and disliked, from the states that \
             reach layer {} of {layers}",
            k_in + 1
        );
        match self.lora.first_trained(layers) < layers - k_out {
            true => format!("{texts}, and the answer of each training sample, from its gradient"),
            false => format!(
                "{texts}, but no answer of the training: the trained layers are the device's, and \
                 no gradient crosses"
            ),
        }
    }

    /// Digest of the JSON.
    pub fn digest(&self) -> Digest {
        Digest::of(&[b"lethe-recipe", self.to_json().as_bytes()])
    }

    fn checked(self) -> Result<Self, RecipeError> {
        let range = |field, ok: bool, got: String, expected| {
            if ok {
                Ok(())
            } else {
                Err(RecipeError::Range {
                    field,
                    got,
                    expected,
                })
            }
        };
        let count = |field, n: usize, max: usize| {
            range(
                field,
                (1..=max).contains(&n),
                n.to_string(),
                "1 to its limit",
            )
        };
        count("shards", self.shards, lethe_proto::limits::MAX_SHARDS)?;
        count("anchors", self.anchors, self.shards)?;
        count("slices", self.slices, 64)?;
        count("rounds", self.rounds, 10_000)?;
        count("cohort", self.cohort, 100_000)?;
        count("goal", self.goal.unwrap_or(self.cohort), self.cohort)?;
        count("staleness", self.staleness.unwrap_or(1), 64)?;
        let buffers = self.goal.is_some() && self.aggregation != Aggregation::Personalized;
        range(
            "staleness",
            self.staleness.is_none() || buffers,
            format!("{:?}", self.staleness),
            "none without `goal`, or with aggregation \"personalized\": who is late there has \
             parameters of its own",
        )?;
        count("quorum", self.quorum, self.goal.unwrap_or(self.cohort))?;
        count("local.samples", self.local.samples, 10_000)?;
        count("local.batch", self.local.batch, 10_000)?;
        count("local.epochs", self.local.epochs, 1000)?;
        count("validation", self.validation, lethe_proto::limits::MAX_ROWS)?;
        count("lora.rank", self.lora.rank, 256)?;
        count(
            "lora.last_layers",
            self.lora.last_layers.unwrap_or(1),
            10_000,
        )?;
        count(
            "packing.max_tokens",
            self.packing.max_tokens,
            lethe_proto::limits::MAX_TOKENS,
        )?;
        range(
            "deadline_s",
            (1..=86_400).contains(&self.deadline_s),
            self.deadline_s.to_string(),
            "1 to 86400",
        )?;
        let factor = self.clip_factor.unwrap_or(CLIP_FACTOR);
        range(
            "clip_factor",
            (1.0..=1e6).contains(&factor),
            factor.to_string(),
            "1 or more, or 0 for none",
        )?;
        for (field, v) in [
            ("server_lr", self.server_lr),
            ("clip", self.clip),
            ("local.lr", self.local.lr),
        ] {
            range(
                field,
                v.is_finite() && v > 0.0,
                v.to_string(),
                "a positive number",
            )?;
        }
        let trains = self.compute != Compute::Int8;
        range(
            "compute",
            trains,
            "int8".into(),
            "f32 or bf16: int8 scores, it does not train",
        )?;
        let sparse = |f: PackedFormat, max: u16| match f {
            PackedFormat::TopK(n) => (1..=max).contains(&n),
            PackedFormat::Masked => max > 0,
            _ => true,
        };
        range(
            "updates",
            sparse(self.updates, 1000),
            format!("{:?}", self.updates),
            "f32, int8, int4, top-k of 1 to 1000, or masked",
        )?;
        if self.updates == PackedFormat::Masked {
            self.check_sums()?;
        }
        self.check_robust()?;
        range(
            "adapters",
            sparse(self.adapters, 0),
            format!("{:?}", self.adapters),
            "f32, int8 or int4",
        )?;
        self.template()?;
        Ok(self)
    }

    /// The template of its prompts.
    ///
    /// # Errors
    /// [`RecipeError`]: an unknown name, or a text that is no template.
    pub fn template(&self) -> Result<Template, RecipeError> {
        let Some(text) = &self.prompt else {
            return Template::named(&self.template).ok_or_else(|| RecipeError::Template {
                got: self.template.clone(),
                known: Template::KNOWN.join(", "),
            });
        };
        if self.template != MOVIE {
            return Err(RecipeError::TwoTemplates {
                named: self.template.clone(),
            });
        }
        Ok(Template::own(text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trip_keeps_the_digest() {
        let r = Recipe::default();
        let back = Recipe::from_json(&r.to_json()).expect("own JSON");
        assert_eq!((back.digest(), &back), (r.digest(), &r));
    }

    #[test]
    fn an_epoch_of_an_older_version_goes_on_without_the_relative_bound() {
        let new = Recipe::from_toml("shards = 2").expect("valid");
        assert_eq!(new.clip_factor, Some(CLIP_FACTOR));
        let off = Recipe::from_toml("shards = 2\nclip_factor = 0").expect("valid");
        assert_eq!(off.clip_factor, None);
        let old = off.to_json();
        assert!(
            !old.contains("clip_factor"),
            "as the older version wrote it"
        );
        assert_eq!(new.clone().as_stored(&old), off);
        assert_eq!(new.clone().as_stored(&new.to_json()), new);
        for r in [new, off] {
            let text = r.to_toml().expect("TOML").to_string();
            assert_eq!(Recipe::from_toml(&text).expect("own TOML"), r);
        }
    }

    #[test]
    fn the_default_recipe_names_no_prompt_and_keeps_its_digest() {
        let recipe = Recipe::from_toml("").expect("valid");
        assert!(!recipe.to_json().contains("\"prompt\""));
        let hex = recipe.digest().to_string();
        assert_eq!(
            hex,
            "997a53bf3638ab20ad0baed7a7579c29db1a2cf1344309be921743e9dedaa317"
        );
    }

    #[test]
    fn prompts_are_named_or_given() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("shop.txt");
        let text = "Liked: {liked}. Disliked: {disliked}. Will they like {target}?";
        std::fs::write(&path, format!("{text}\n")).expect("writes");
        let of_file = format!("prompt = {:?}", path.display().to_string());
        let recipe = Recipe::from_toml(&of_file).expect("a template");
        assert_eq!(recipe.prompt.as_deref(), Some(text), "devices get the text");
        let same = [
            Recipe::from_json(&recipe.to_json()),
            Recipe::from_toml(&recipe.to_toml().expect("TOML").to_string()),
            Recipe::from_toml(&format!("prompt = {text:?}")),
        ];
        for same in same {
            assert_eq!(same.expect("the same").digest(), recipe.digest());
        }
        assert_ne!(recipe.digest(), Recipe::default().digest());
        for name in Template::KNOWN {
            let named = Recipe::from_toml(&format!("template = {name:?}")).expect(name);
            assert_eq!(named.template().expect(name).version, name);
        }
    }

    #[test]
    fn bad_prompts_are_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let long = dir.path().join("long.txt");
        std::fs::write(&long, "{target} ".repeat(1_000)).expect("writes");
        let long = format!("prompt = {:?}", long.display().to_string());
        for (text, part) in [
            (
                "template = \"books\"",
                "tallrec-movie.v1, tallrec-book.v1, generic.v1",
            ),
            ("prompt = \"none/there.txt\"", "none/there.txt"),
            ("prompt = \"{target}?\"", "{liked} is missing"),
            (
                "template = \"generic.v1\"\nprompt = \"{target}?\"",
                "one of both",
            ),
            (&long, "expected at most 8192"),
        ] {
            let e = Recipe::from_toml(text).expect_err(text).to_string();
            assert!(e.contains(part), "{e}");
        }
        let path = r#"{"prompt": "/etc/hostname"}"#;
        let e = Recipe::from_json(path)
            .expect_err("no template")
            .to_string();
        assert!(
            e.contains("is missing"),
            "a file is never read for JSON: {e}"
        );
    }

    #[test]
    fn what_the_middle_learns_follows_from_split_and_trained_layers() {
        let learns = |text: &str| Recipe::from_toml(text).expect(text).middle_learns(30);
        let all = learns("");
        assert!(
            all.starts_with("every prompt") && all.contains("layer 5 of 30"),
            "{all}"
        );
        assert!(all.ends_with("from its gradient"), "{all}");
        let last = "[lora]\nrank = 8\nalpha = 16.0\ntargets = [\"q\"]\nlast_layers = ";
        assert_eq!(
            learns(&format!("{last}2")),
            all,
            "one trained layer is the middle's"
        );
        let own = learns(&format!("{last}1"));
        assert!(own.starts_with("every prompt"), "{own}");
        assert!(own.contains("but no answer"), "{own}");
        for split in ["k_in = 29\nk_out = 1", "k_in = 0\nk_out = 30"] {
            let nothing = learns(&format!("[split]\n{split}"));
            assert!(nothing.starts_with("nothing: all 30"), "{nothing}");
        }
    }

    #[test]
    fn bad_values_are_named() {
        for (text, field) in [
            ("shards = 0", "shards"),
            ("quorum = 9", "quorum"),
            ("clip = -1.0", "clip"),
        ] {
            let e = Recipe::from_toml(text).expect_err(text).to_string();
            assert!(e.contains(field), "{e}");
        }
    }
}
