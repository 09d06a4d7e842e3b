//! What measurements of lists share: data sets as the recommender sees them, the next item, made-up
//! people.

pub mod made_up;
pub mod next;
pub mod world;
