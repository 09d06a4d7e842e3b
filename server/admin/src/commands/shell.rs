//! `lethe-admin completion` and `lethe-admin man`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

#[derive(clap::Args)]
pub(crate) struct Completion {
    /// The shell.
    shell: clap_complete::Shell,
}

#[derive(clap::Args)]
pub(crate) struct Man {
    /// Folder for lethe-admin.1 and a page per command.
    #[arg(long)]
    out: PathBuf,
}

pub(crate) fn completion(args: &Completion, mut cli: clap::Command) -> anyhow::Result<ExitCode> {
    let mut text = vec![];
    clap_complete::generate(args.shell, &mut cli, "lethe-admin", &mut text);
    std::io::stdout().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(args: &Man, cli: clap::Command) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    clap_mangen::generate_to(cli, &args.out).with_context(|| args.out.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}
