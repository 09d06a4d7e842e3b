//! The client library: what an app embeds.
//!
//! A [`Client`] keeps one person's history in a sealed file on the device, trains with the
//! coordinator when asked to, ranks candidates, and forgets. Tokens, labels, titles of the history
//! and lists are not sent; hidden states, their gradients, adapter updates and, for a few
//! validation samples, how wrong each shard's adapter is (with the prompt's embedding) cross to the
//! coordinator. Whoever runs it can read tokens and labels from these: the split is no secrecy.
//! Without the coordinator [`Client::recommend`] answers from its last list and says so; recording
//! and erasing always work.
//!
//! Entry types: [`Client`] (from [`ClientBuilder`]) and [`ClientModel`], which several clients of
//! one process may share.
//!
//! ```no_run
//! use lethe_client::{ClientBuilder, ClientModel};
//! # async fn example() -> Result<(), lethe_client::ClientError> {
//! let model = ClientModel::load("model.gguf".as_ref(), "catalogue".as_ref(), Default::default())?;
//! let addr = "203.0.113.7:4433".parse().expect("an address");
//! let mut client = ClientBuilder::new("app-data/lethe", addr)
//!     .invitation("lethe1:...")
//!     .build(model)
//!     .await?;
//! client.record("50", true, 1_700_000_000)?;
//! client.step().await?; // When idle: takes part in whatever the coordinator asks for.
//! for r in client.recommend(&["50", "172", "181"], 2).await?.items {
//!     println!("{} {:.2}", r.item, r.score);
//! }
//! # Ok(())
//! # }
//! ```

mod backoff;
mod client;
mod conditions;
pub mod encode;
mod enrolment;
mod erasure;
mod error;
mod export;
mod feedback;
mod frozen;
mod history;
mod model;
mod remote;
mod scoring;
mod session;
mod tasks;
mod titles;
mod vault;

pub use client::{Assigned, Client, ClientBuilder, Done, Network, Stats};
pub use conditions::{Canceller, Conditions, Stopped};
pub use erasure::PendingErasure;
pub use error::ClientError;
pub use export::TrainingData;
pub use history::{Cutoffs, LocalEvent};
pub use lethe_proto::message::Declined;
pub use model::{ClientModel, ModelOptions};
pub use scoring::{Ranked, Recommendation, Scored, Source};
