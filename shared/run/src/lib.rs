//! How our programs run: what they log ([`log`]), and that they leave nothing behind when they are
//! told to end ([`children`], [`signals`], [`files`]; [`ending`] of those that serve).

pub mod children;
pub mod ending;
pub mod files;
pub mod log;
pub mod signals;
