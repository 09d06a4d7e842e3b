//! A coordinator in a process of its own, so that a test can kill it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = std::env::args_os().nth(1).ok_or("usage: coordinator-process CONFIG")?;
    Ok(lethe_coordinator::process::run(config.as_ref(), true, None)?)
}
