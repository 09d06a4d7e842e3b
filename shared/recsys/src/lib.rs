//! The recommendation task: data sets, prompts, samples, chronological splits and the cheap
//! references.
//!
//! The task is TALLRec's (Bao et al., RecSys 2023, arXiv 2305.00447): given at most ten earlier
//! items of a person, split into liked and not liked, does the person like the target item? Entry
//! points: [`data::Dataset`], [`samples::Samples`], [`prompt::Template`],
//! [`references::References`].
//!
//! ```
//! use lethe_recsys::prompt::{Prompt, Template};
//! let prompt = Prompt {
//!     liked: vec!["Fargo (1996)".into()],
//!     disliked: vec![],
//!     target: "Heat (1995)".into(),
//! };
//! assert!(Template::movie().render(&prompt).ends_with("Answer:"));
//! ```

pub mod data;
pub mod evaluation;
pub mod features;
pub mod histories;
mod load;
pub mod prompt;
pub mod references;
pub mod samples;
pub mod spelling;
pub mod synthetic;
pub mod table;
pub mod versions;
