//! Hidden states below the first trained layer: they depend on a sample's tokens and on frozen
//! weights only, so that they need to be computed once.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};

/// Keeps states between steps. What it gives back must be what it was given, bit for bit; it may
/// forget.
pub trait FrozenStates: Debug + Send + Sync {
    /// States of a sample's tokens, `[tokens, hidden]`.
    fn get(&self, ids: &[u32]) -> Option<Vec<f32>>;
    /// Keeps them, if it can.
    fn put(&self, ids: &[u32], states: &[f32]);
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recomputed;

impl FrozenStates for Recomputed {
    fn get(&self, _: &[u32]) -> Option<Vec<f32>> {
        None
    }

    fn put(&self, _: &[u32], _: &[f32]) {}
}

/// Keeps everything, for training on one machine: `4 * hidden` bytes a token.
#[derive(Default)]
pub struct InMemory(Mutex<HashMap<Vec<u32>, Vec<f32>>>);

impl InMemory {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<u32>, Vec<f32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for InMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InMemory({} samples)", self.lock().len())
    }
}

impl FrozenStates for InMemory {
    fn get(&self, ids: &[u32]) -> Option<Vec<f32>> {
        self.lock().get(ids).cloned()
    }

    fn put(&self, ids: &[u32], states: &[f32]) {
        self.lock().insert(ids.to_vec(), states.to_vec());
    }
}
