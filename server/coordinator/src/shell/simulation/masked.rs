//! Updates under masks, in some of the seeds with a tally of its own.

use lethe_learn::secure_sum::Grid;
use lethe_learn::seed::Seed;
use lethe_ledger::Contributor;
use lethe_proto::ids::{RoundKey, SubjectId};
use lethe_proto::masked::{MASK, Masked, bound_to};
use lethe_proto::message::Refusal;
use lethe_proto::packed::{Packed, PackedFormat};
use lethe_proto::tally::ANSWER;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::sealing::SealingStatement;
use lethe_recipe::{Aggregation, Recipe};
use lethe_seal::envelope::{PublicKey, seal_to};
use lethe_seal::mask;

use super::super::masked::mean_of;
use super::super::{Kit, Shell};
use super::device;
use super::world::Simulation;
use crate::CoordinatorError;
use crate::aggregate::Mean;

/// Whether updates have masks in this seed.
pub(super) fn is_on(seed: u64) -> bool {
    seed % 3 == 1
}

/// A recipe with masks, otherwise as another one.
pub(super) fn recipe(of: &Recipe) -> Recipe {
    let mut recipe = of.clone();
    recipe.updates = PackedFormat::Masked;
    recipe.aggregation = Aggregation::Fedavg;
    recipe.clip_factor = None;
    recipe.staleness = None;
    recipe.goal = None;
    // All three layers.
    recipe.split.k_in = 2;
    Recipe::from_json(&recipe.to_json()).unwrap()
}

/// What a device has computed.
pub(super) struct Own {
    pub(super) delta: Packed,
    pub(super) loss: f32,
    pub(super) samples: u32,
}

fn on_grid(kit: &Kit, grid: &Grid, own: &Own) -> Vec<u32> {
    let values = own.delta.decode(kit.whole.edge_len()).unwrap();
    let on_grid = kit.recipe.on_grid(grid, &values, own.loss, own.samples);
    on_grid.unwrap()
}

/// As the client library masks it. The seed of the mask is another one each time.
pub(super) fn mask(
    shell: &Shell,
    kit: &Kit,
    grid: &Grid,
    round: RoundKey,
    subject: &SubjectId,
    own: Own,
) -> Result<Packed, CoordinatorError> {
    let away = || CoordinatorError::refuse(Refusal::Busy, "the tally is away");
    let lists = shell.lists.as_ref().ok_or_else(away)?;
    let terms = lists.masking(subject).ok_or_else(away)?;
    let key = VerifierKey::parse(&terms.key)?;
    let statement = SealingStatement::open(&terms.note, &key)?;
    let mut values = on_grid(kit, grid, &own);
    let now = shell.clock.now().unix_ms.to_le_bytes();
    let seed = Seed::from_u64(6).derive(subject.as_str(), &[&now]).0;
    mask::add(&seed, &mut values)?;
    let bound = bound_to(&terms.handle, &round, values.len() as u32);
    let sealed = seal_to(&PublicKey(statement.key), MASK, &bound, &seed, ANSWER)?;
    let update = Masked {
        values,
        seed: sealed.envelope,
    };
    Ok(update.pack())
}

/// What a round comes to, from what devices hold now, without masks and without a tally.
pub(super) fn mean(
    sim: &Simulation,
    kit: &Kit,
    grid: &Grid,
    at: RoundKey,
    contributors: &[Contributor],
) -> Option<Mean> {
    let mut sum = vec![0u32; kit.whole.edge_len() + 1];
    let mut weight = 0.0;
    for (subject, begun) in contributors {
        let round = RoundKey {
            round: *begun,
            ..at
        };
        let (delta, loss, samples) = device::update(&sim.common, subject, round);
        let own = Own {
            delta,
            loss,
            samples,
        };
        for (to, code) in sum.iter_mut().zip(on_grid(kit, grid, &own)) {
            *to = to.wrapping_add(code);
        }
        weight += f64::from(kit.recipe.masked_weight(samples));
    }
    let clients = u32::try_from(contributors.len()).unwrap();
    (clients > 0).then(|| mean_of(kit, grid, &sum, clients, weight).unwrap())
}
