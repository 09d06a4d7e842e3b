//! The client library: what an app embeds.
//!
//! A [`Client`] keeps one person's history in sealed files on the device, makes lists from it,
//! trains with the coordinator when asked to, and forgets. It is a handle: clone it, use it from
//! any thread. Recording, lists, exporting and erasing work without a network; the functions that
//! need one are `async`, under any executor.
//!
//! Lists ([`Client::top`]) are made on the device from tables that the coordinator publishes,
//! signed and the same for everybody. For these the newest events cross to the coordinator, if the
//! person contributes ([`Options::contribute`]); without, the person gets lists all the same. Where
//! the operator has a tally of its own, only that tally can read them
//! ([`Options::tally_key`]). With a language model ([`Options::model`]) the client also trains
//! adapters, and ranks over the split ([`Client::recommend`]): hidden states, their gradients,
//! adapter updates and, for a few validation samples, how wrong each shard's adapter is (with the
//! prompt's embedding) cross. Whoever runs the coordinator can read tokens and labels from these:
//! the split is no secrecy. `docs/guide.md` is the page for app developers.
//!
//! ```
//! use lethe_client::{Catalogue, Client, LocalEvent, Options, Outcome, Query};
//! # let files = tempfile::tempdir()?;
//! # let data = files.path().join("data");
//! # std::fs::create_dir_all(&data)?;
//! # std::fs::write(data.join("dataset.toml"), "[interactions]\nfile = \"none\"\nuser = \"u\"\n\
//! # item = \"i\"\nrating = \"r\"\nlike_above = 3\n[items]\nfile = \"items.csv\"\nitem = \"id\"\n\
//! # title = \"title\"\ntags = \"tags\"\n")?;
//! # let items = "id,title,tags\n1,Heat,Crime\n2,Fargo,Crime\n3,Babe,Kids\n";
//! # std::fs::write(data.join("items.csv"), items)?;
//! # let folder = files.path().join("app");
//! let catalogue = Catalogue::load(&data)?;
//! let client = Client::open(&folder, Options::new(catalogue))?;
//! client.record(LocalEvent::liked("1", 1_700_000_000))?;
//! let page = client.top(&Query::first(2))?;
//! assert_eq!(page.items[0].title, "Fargo", "there are no tables yet: like what was liked");
//! client.feedback(page.id, "2", Outcome::Clicked)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! With a coordinator and a model:
//!
//! ```no_run
//! use lethe_client::{Catalogue, Client, ClientModel, Options, Place};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let options = Options::new(Catalogue::load("catalogue".as_ref())?)
//!     .server("recommend.example.org:4433".parse::<Place>()?)
//!     .invitation("lethe1:...")
//!     .model(ClientModel::load("model.gguf".as_ref(), Default::default())?);
//! let client = Client::open("app-data/lethe", options)?;
//! client.join().await?;
//! // When idle: fetches tables, contributes, takes part in whatever the coordinator asks for.
//! client.step().await?;
//! for r in client.recommend(["50", "172", "181"], 2).await?.items {
//!     println!("{} {:.2}", r.item, r.score);
//! }
//! # Ok(())
//! # }
//! ```

mod actor;
mod backoff;
mod catalogue;
mod client;
mod clock;
mod conditions;
mod contribute;
mod contributed;
pub mod encode;
mod enrolment;
mod epochs;
mod erasure;
mod error;
mod event;
mod events;
mod export;
mod feedback;
mod feedback_of_lists;
mod frozen;
mod history;
mod key_store;
mod lists;
mod local;
mod log;
mod logged;
mod masking;
mod migrate;
mod model;
mod network;
mod options;
mod person;
mod remote;
mod renew;
mod scoring;
mod sealing;
mod session;
mod standing;
mod status;
mod tasks;
mod titles;
mod transfer;
mod vault;
mod versions;
mod worker;

pub use catalogue::{Catalogue, TEXT_VECTORS};
pub use client::{Assigned, Client, Done, Network, Refreshed, Stats};
pub use conditions::{Canceller, Conditions, Stopped};
pub use contributed::SentContribution;
pub use epochs::Needs;
pub use erasure::PendingErasure;
pub use error::ClientError;
pub use event::{EventId, LocalEvent};
pub use export::TrainingData;
pub use feedback_of_lists::{ListCounts, Outcome};
pub use history::{Cutoffs, TrainingEvent};
pub use key_store::{KeyStore, KeyStoreError};
pub use lethe_model::ModelError;
pub use lethe_model::kernels::panels::Compute;
pub use lethe_model::split::SplitSpec;
pub use lethe_parts::event::{EventTable, Kind, Meaning};
pub use lethe_proto::epochs::{Lacks, TrainsFrom};
pub use lethe_proto::message::Declined;
pub use lethe_recsys::data::Item;
pub use lethe_transport::TransportError;
pub use lethe_transport::place::Place;
pub use lists::{
    Allows, Boosts, Cursor, Explanation, Fallback, Filter, ListId, ListSource, Listed, MAX_PAGE,
    Page, Query, Reason, Shelf, Shown,
};
pub use model::{ClientModel, ModelOptions};
pub use options::{Options, TimeGranularity};
pub use scoring::{LeftOut, Ranked, Recommendation, Scored, Source};
pub use status::{Contributes, SnapshotStatus, Status};
