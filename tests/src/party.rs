//! A tally of its own, beside the coordinator of a test.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lethe_coordinator::config::ServerConfig;
use lethe_coordinator::lists::{Sums, TallyConfig};
use lethe_tallyd::config::Config;
use lethe_tallyd::process;

use crate::world::World;

/// How long a tally may take to start.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Configuration of a tally in this world: it publishes at once, and takes a contribution at any
/// time.
///
/// # Panics
/// For a folder whose name is no text.
pub fn config(world: &World) -> Config {
    let dir = world.dir.path();
    let mut config = Config::parse(&format!(
        "listen = \"127.0.0.1:0\"\ndata_dir = {:?}\ncatalogue = {:?}\nreserve_mib = \
         0\naccept_recoverable_keys = true\n",
        dir.join("tally"),
        dir.join("data")
    ))
    .expect("parses");
    config.audits = true;
    config.lists.refresh_s = 0;
    config.lists.publish_s = 0;
    config
}

/// The configuration of a coordinator that asks the tally there.
pub fn of_coordinator(world: &World, tally: SocketAddr, invitation: &str) -> ServerConfig {
    let mut config = world.config("");
    config.sums = Sums::Tally;
    config.tally = Some(TallyConfig {
        address: tally.into(),
        invitation: Some(invitation.to_owned()),
    });
    config
}

/// Waits until the tally of this configuration has written where it listens.
///
/// # Panics
/// If it does not start.
pub fn address(config: &Config) -> SocketAddr {
    let file = config.data_dir.join("address");
    let started = Instant::now();
    loop {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if let Ok(addr) = text.parse() {
            return addr;
        }
        assert!(started.elapsed() < PATIENCE, "the tally does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Founds a tally and serves it from a thread of this process, until the process ends. Returns
/// where it listens, and the coordinator's invitation.
///
/// # Panics
/// If it cannot be founded, or does not start.
pub fn serve_here(config: &Config) -> (SocketAddr, String) {
    let invitation = process::init(config).expect("founds");
    let own = config.clone();
    std::thread::spawn(move || process::serve(&own, false));
    (address(config), invitation)
}
