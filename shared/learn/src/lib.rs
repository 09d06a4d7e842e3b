//! Pure mathematics of federated learning and forgetting, on plain slices.
//!
//! Nothing here reads a clock, a random source, a file or a socket: time and seeds are arguments,
//! so every result can be replayed. Entry points: [`partition`] (which shard a subject belongs to),
//! [`balance`] (PPLR's client weights), [`aggregate`] (FedAvg and weighted sums), [`robust`]
//! (aggregates that a minority cannot steer),
//! [`secure_sum`] (sums in fixed point that whoever adds cannot look into), [`apa`] (adapter
//! weights per query), [`metrics`] (AUC, UAUC, spread) and [`seed`] (keyed randomness).
//!
//! ```
//! let auc = lethe_learn::metrics::auc(&[0.1, 0.9, 0.4], &[false, true, false]);
//! assert_eq!(auc, Some(1.0));
//! ```

pub mod aggregate;
pub mod apa;
pub mod balance;
pub mod logistic;
pub mod metrics;
pub mod partition;
pub mod robust;
pub mod secure_sum;
pub mod seed;
pub mod sketch;
