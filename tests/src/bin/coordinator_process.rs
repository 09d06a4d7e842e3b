//! A coordinator in a process of its own, so that a test can kill it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = std::env::args_os()
        .nth(1)
        .ok_or("usage: coordinator-process CONFIG")?;
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    // Wherever tests run, temporary folders are as good as any.
    let start = lethe_coordinator::process::Start {
        with_parent: true,
        accept_recoverable_keys: true,
        ..Default::default()
    };
    Ok(lethe_coordinator::process::run(
        config.as_ref(),
        start,
        None,
    )?)
}
