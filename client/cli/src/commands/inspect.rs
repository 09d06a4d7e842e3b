//! `lethe inspect`: reads a model, and an adapter for it, whole, and says what they are: what is
//! not computed is refused by name.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use lethe_model::kernels::panels::Compute;
use lethe_model::layout::Layout;
use lethe_model::peft;
use lethe_model::source::open;
use lethe_model::split::{DeviceModel, SplitSpec};
use lethe_recsys::prompt::ANSWERS;
use serde_json::{Value, json};

use crate::inputs::Inputs;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// GGUF file (llama) or Hugging Face folder (Llama or Qwen2); fetched SmolLM2-135M when absent.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Folder of a LoRA adapter for it, as PEFT saves it.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// A text: its tokens, and the logits of " No" and " Yes" after it.
    #[arg(long, default_value = "Yes or no? Answer:")]
    prompt: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let path = Inputs::model_of(args.model.as_deref())?;
    let source = open(&path).context("loading the model")?;
    let config = source.config();
    let tokenizer = source.tokenizer().context("loading the model")?;
    let answers = [tokenizer.first(ANSWERS[0])?, tokenizer.first(ANSWERS[1])?];
    anyhow::ensure!(
        answers[0] != answers[1],
        "the answers {ANSWERS:?} begin with the same token: the model cannot tell them apart"
    );
    let mut out = json!({ "model": path.display().to_string(), "shape": config });
    let adapter = match &args.adapter {
        None => None,
        Some(folder) => {
            let read = peft::open(folder, config).context("loading the adapter")?;
            out["adapter"] = json!({
                "folder": folder.display().to_string(), "base": read.base, "recipe": read.recipe,
                "values": read.adapter.data.len(),
            });
            Some(read.adapter)
        }
    };
    let spec = SplitSpec {
        k_in: 0,
        k_out: config.layers,
    };
    let device = DeviceModel::load(source.as_ref(), spec, Compute::F32)?;
    let mut middle = DeviceModel::load_middle(source.as_ref(), spec, Compute::F32)?;
    let tokens = tokenizer.prompt(&args.prompt)?;
    anyhow::ensure!(
        (1..=config.max_positions).contains(&tokens.len()),
        "the prompt has {} tokens, expected 1 to {}",
        tokens.len(),
        config.max_positions
    );
    let (layout, ids) = Layout::pack(std::slice::from_ref(&tokens));
    let adapter = adapter.as_ref();
    let logits = device.score(&layout, &ids, answers, adapter, &mut (&mut middle, None))?;
    out["tokens"] = json!(tokens);
    for (answer, (id, logit)) in ANSWERS.iter().zip(answers.iter().zip(logits.concat())) {
        let logit = logit.is_finite().then_some(logit);
        let logit = logit.with_context(|| format!("the logit of {answer:?} is no number"))?;
        out["answers"][*answer] = json!({ "token": id, "logit": Value::from(logit) });
    }
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&out)?)?;
    Ok(())
}
