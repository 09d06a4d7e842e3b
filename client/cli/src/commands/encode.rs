//! `lethe encode`: text vectors of a catalogue, for devices and the coordinator.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use lethe_model::encoder::Encoder;
use lethe_recsys::data::TEXT_VECTORS;
use lethe_recsys::histories::sentence;

use crate::inputs;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with dataset.toml and the items. The vectors are written into it: give the same file
    /// to the coordinator and to the app.
    #[arg(long)]
    data: PathBuf,
    /// What the items are called in the texts that are encoded: "Fargo (1996), a Crime movie".
    #[arg(long, default_value = "item")]
    noun: String,
    /// Folder of the sentence encoder (`config.json`, `tokenizer.json`, `model.safetensors` of a
    /// BERT model); fetched MiniLM-L6-v2 when absent.
    #[arg(long)]
    encoder: Option<PathBuf>,
    /// Refuse a catalogue with malformed rows, or with something that has to be guessed.
    #[arg(long)]
    strict: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let items = inputs::items(&args.data, args.strict)?;
    let mut said = std::io::stderr();
    let folder = match &args.encoder {
        Some(folder) => folder.clone(),
        None => lethe_assets::fetch_encoder(&lethe_assets::default_home()?, &mut |line| {
            let _ = writeln!(said, "{line}");
        })?,
    };
    let texts: Vec<String> = items.iter().map(|i| sentence(i, &args.noun)).collect();
    let vectors = Encoder::open(&folder)?.encode(&texts)?;
    let bytes: Vec<u8> = vectors.iter().flat_map(|v| v.to_le_bytes()).collect();
    let path = args.data.join(TEXT_VECTORS);
    // Whole or not at all: a coordinator may be starting.
    let context = || path.display().to_string();
    lethe_run::files::write(&path, &bytes).with_context(context)?;
    writeln!(
        std::io::stdout(),
        "{}: {} items, {} numbers each",
        path.display(),
        items.len(),
        vectors.len() / items.len().max(1)
    )?;
    Ok(())
}
