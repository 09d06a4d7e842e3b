//! Deletion plans: pure data, computed from an inventory, checked before anything is written.
//!
//! The planner proposes, the coordinator's executor writes; nothing else schedules a deletion.
//! Entry points: [`plan()`], [`Plan::lint`], [`Forecast`], [`lineage::checkpoint_key`],
//! [`lineage::Census`], [`simulate`].
//!
//! ```
//! use lethe_plan::{Inventory, Member, Rates, Request, ShardInventory, plan};
//! use lethe_proto::ids::{ShardId, SubjectId};
//! let member = |id: &str, slice| {
//!     let subject = SubjectId::new(id)?;
//!     Ok::<_, lethe_proto::ids::IdError>(Member { subject, slice, samples: 8, idle: false })
//! };
//! let members = vec![member("a", 0)?, member("b", 1)?];
//! let shard = ShardInventory { id: ShardId(0), members, trained_stage: 2, losses: vec![] };
//! let inventory = Inventory {
//!     shards: vec![shard],
//!     unplaced: vec![],
//!     stages: 2,
//!     rounds_per_stage: 4,
//!     cohort: 10,
//!     samples_per_round: 8,
//!     rates: Rates::default(),
//! };
//! let plan = plan(&inventory, &[Request::Erase { subject: SubjectId::new("b")? }])?;
//! assert_eq!(plan.forecast.cost.rounds, 4, "only the second stage is retrained");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod forecast;
mod inventory;
pub mod lineage;
mod lint;
mod plan;
pub mod simulate;

pub use forecast::{Cost, Forecast, Rates};
pub use inventory::{Inventory, Member, ShardInventory};
pub use lethe_proto::deletion::DeletionRequest as Request;
pub use lint::LintError;
pub use plan::{Plan, PlanError, Step, plan};
