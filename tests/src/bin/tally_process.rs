//! A tally in a process of its own, so that a test can kill it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = std::env::args_os()
        .nth(1)
        .ok_or("usage: tally-process CONFIG")?;
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let config = lethe_tallyd::process::read_config(config.as_ref())?;
    Ok(lethe_tallyd::process::serve(&config, true)?)
}
