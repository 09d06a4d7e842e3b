//! Greedy text generation with cached keys and values, for explanations on a machine that has the
//! whole model.

use crate::ModelError;
use crate::kernels::linear::Linear;
use crate::kernels::panels::Compute;
use crate::lora::Adapter;
use crate::segment::{Cache, Segment};
use crate::split::DeviceModel;

/// Rows of the head that are read at a time when it is prepared.
const HEAD_ROWS: usize = 4096;

/// A whole model that continues texts.
#[derive(Debug)]
pub struct Generator {
    device: DeviceModel,
    middle: Segment,
    head: Linear,
}

impl Generator {
    /// From the two parts of a model, with the head's products in `compute` arithmetic.
    pub fn new(device: DeviceModel, middle: Segment, compute: Compute) -> Result<Self, ModelError> {
        let (vocab, hidden) = (device.head().vocab(), device.config().hidden);
        let mut weights = Vec::with_capacity(vocab * hidden);
        for start in (0..vocab).step_by(HEAD_ROWS) {
            let ids: Vec<u32> = (start..(start + HEAD_ROWS).min(vocab))
                .map(|i| i as u32)
                .collect();
            weights.extend(device.head().rows(&ids)?);
        }
        Ok(Self {
            head: Linear::new(weights, vocab, hidden, compute),
            device,
            middle,
        })
    }

    /// Continues `prompt` with the likeliest tokens: at most `limit`, ending before `stop` (if
    /// given). The prompt and the answer must fit the model's positions.
    pub fn generate(
        &self,
        prompt: &[u32],
        limit: usize,
        stop: Option<u32>,
        adapter: Option<&Adapter>,
    ) -> Result<Vec<u32>, ModelError> {
        let longest = self.device.config().max_positions;
        if prompt.is_empty() || prompt.len().checked_add(limit).is_none_or(|n| n > longest) {
            return Err(ModelError::Shape(format!(
                "a prompt of {} and an answer of {limit} tokens, together 1 to {longest} are \
                 possible",
                prompt.len()
            )));
        }
        let segments = [self.device.bottom(), &self.middle, self.device.top()];
        let mut caches = segments.map(|s| s.cache(prompt.len() + limit));
        let mut next = self.extend(segments, &mut caches, prompt, adapter)?;
        let mut out = Vec::with_capacity(limit);
        while out.len() < limit && Some(next) != stop {
            out.push(next);
            if out.len() < limit {
                next = self.extend(segments, &mut caches, &[next], adapter)?;
            }
        }
        Ok(out)
    }

    /// Runs new tokens; the likeliest one after them.
    fn extend(
        &self,
        segments: [&Segment; 3],
        caches: &mut [Cache; 3],
        ids: &[u32],
        adapter: Option<&Adapter>,
    ) -> Result<u32, ModelError> {
        let mut h = self.device.embed(ids)?;
        for (segment, cache) in segments.into_iter().zip(caches) {
            h = segment.extend(cache, h, adapter)?;
        }
        let last = self
            .device
            .final_norm(&h[h.len() - self.device.config().hidden..]);
        let mut logits = vec![0.0; self.device.head().vocab()];
        crate::in_pool(|| self.head.forward(&last, 1, &mut logits, false));
        let best = logits
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        Ok(best.map_or(0, |(i, _)| i as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::layout::Layout;
    use crate::source::RandomWeights;
    use crate::split::SplitSpec;

    #[test]
    fn generation_follows_the_uncached_model() {
        let source = RandomWeights::new(ModelConfig::tiny(), 9);
        for spec in [
            SplitSpec { k_in: 0, k_out: 0 },
            SplitSpec { k_in: 1, k_out: 1 },
        ] {
            let device = DeviceModel::load(&source, spec, Compute::F32).expect("loads");
            let middle = DeviceModel::load_middle(&source, spec, Compute::F32).expect("loads");
            let mut tokens = vec![5, 9, 2];
            let generator =
                Generator::new(device.clone(), middle.clone(), Compute::F32).expect("loads");
            let got = generator
                .generate(&tokens, 6, None, None)
                .expect("generates");
            for token in &got {
                let (layout, ids) = Layout::pack(&[tokens.clone()]);
                let mut h = device.embed(&ids).expect("embeds");
                for s in [device.bottom(), &middle, device.top()] {
                    h = s.forward(&layout, h, None).expect("runs");
                }
                let logits = device.logits(&device.final_norm(&h)).expect("runs");
                let last = &logits[logits.len() - device.head().vocab()..];
                let best = (0..last.len())
                    .max_by(|a, b| last[*a].total_cmp(&last[*b]))
                    .expect("not empty");
                assert_eq!(best as u32, *token);
                tokens.push(*token);
            }
            let first = got.iter().position(|t| *t == got[2]).expect("it is there");
            assert_eq!(
                generator
                    .generate(&[5, 9, 2], 6, Some(got[2]), None)
                    .expect("generates"),
                got[..first]
            );
            assert!(generator.generate(&[], 1, None, None).is_err());
            assert!(generator.generate(&[1], usize::MAX, None, None).is_err());
        }
    }
}
