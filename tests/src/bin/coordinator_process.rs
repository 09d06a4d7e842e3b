//! A coordinator in a process of its own, so that a test can kill it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = std::env::args_os()
        .nth(1)
        .ok_or("usage: coordinator-process CONFIG")?;
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    Ok(lethe_coordinator::process::run(
        config.as_ref(),
        true,
        None,
    )?)
}
