//! Makes a folder for `tests/old_folders.rs`. Run it with the last build of a format, before the
//! format changes:
//!
//! `cargo run --release -p lethe-tests --bin keep-folder tests/fixtures/folder-N.zip`

use std::path::Path;

use lethe_tests::kept;
use lethe_tests::world::World;

/// Six people trained; one was deleted and has a receipt; one has to erase an item and is away.
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::env::args().nth(1).ok_or("usage: keep-folder OUT")?;
    let world = World::new(6);
    let (coordinator, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    op.forget(5, &[]).await;
    op.trained().await;
    let clients = fleet.stop_but(5).await;
    let item = lethe_tests::tiny::history(3)[2].item.clone();
    op.ask_to_forget(3, &[&item]).await?;
    drop(clients);
    drop(op);
    coordinator.shutdown();
    drop(coordinator);
    Ok(kept::pack(world.dir.path(), Path::new(&out))?)
}
