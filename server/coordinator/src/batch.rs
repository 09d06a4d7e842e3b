//! Continuous batching: scoring passes that wait for the middle layers run together.
//!
//! Whoever gets the permit runs everything that waits, up to a bound on rows, in one pass; the
//! others find their answers. Every request has the same bits as alone (`Segment::forward_many`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use lethe_model::layout::Layout;
use lethe_model::lora::Adapter;
use lethe_model::segment::{Part, Segment};
use lethe_proto::limits::MAX_TOKENS;
use lethe_proto::message::Refusal;
use tokio::sync::{Semaphore, oneshot};

use crate::CoordinatorError;

type Answer = Result<Vec<f32>, CoordinatorError>;

/// One client's pass.
struct Job {
    layout: Layout,
    hidden: Vec<f32>,
    adapter: Option<Adapter>,
    answer: oneshot::Sender<Answer>,
}

/// Passes that wait.
#[derive(Default)]
pub(crate) struct Queue(Mutex<VecDeque<Job>>);

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({} waiting)", self.lock().len())
    }
}

fn internal(message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(Refusal::Internal, message)
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that waited longest, at most [`MAX_TOKENS`] rows (the first in any case). Whose client
    /// went away is left out.
    fn take(&self) -> Vec<Job> {
        let mut waiting = self.lock();
        let (mut batch, mut rows): (Vec<Job>, usize) = (vec![], 0);
        while let Some(job) = waiting.pop_front() {
            if job.answer.is_closed() {
                continue;
            }
            rows += job.layout.rows();
            if rows > MAX_TOKENS && !batch.is_empty() {
                waiting.push_front(job);
                break;
            }
            batch.push(job);
        }
        batch
    }

    /// Hidden states after the middle layers.
    pub(crate) async fn run(
        &self,
        segment: &Segment,
        permits: &Arc<Semaphore>,
        layout: Layout,
        hidden: Vec<f32>,
        adapter: Option<Adapter>,
    ) -> Answer {
        let (answer, mut mine) = oneshot::channel();
        self.lock().push_back(Job {
            layout,
            hidden,
            adapter,
            answer,
        });
        loop {
            let permit = tokio::select! {
                biased;
                done = &mut mine => return done.unwrap_or_else(|_| Err(internal("a pass failed"))),
                permit = permits.clone().acquire_owned() => {
                    permit.map_err(|e| internal(e.to_string()))?
                }
            };
            let batch = self.take();
            if batch.is_empty() {
                // Somebody else has this job.
                drop(permit);
                return mine
                    .await
                    .unwrap_or_else(|_| Err(internal("a pass failed")));
            }
            let segment = segment.clone();
            // The answers leave from the blocking thread: this client may go away meanwhile, the
            // others still get theirs.
            let ran = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                run(&segment, batch);
            });
            ran.await
                .map_err(|e| internal(format!("a pass failed: {e}")))?;
        }
    }
}

/// Each job by itself.
fn alone(segment: &Segment, batch: Vec<Job>, x: &[f32]) {
    let (width, mut at) = (segment.config().hidden, 0);
    for job in batch {
        let end = at + job.layout.rows() * width;
        let part = Part {
            layout: &job.layout,
            adapter: job.adapter.as_ref(),
        };
        let answer = segment
            .forward_many(&[part], x[at..end].to_vec())
            .map_err(|e| internal(e.to_string()));
        at = end;
        let _ = job.answer.send(answer);
    }
}

fn run(segment: &Segment, mut batch: Vec<Job>) {
    let x: Vec<f32> = batch
        .iter_mut()
        .flat_map(|j| std::mem::take(&mut j.hidden))
        .collect();
    let parts: Vec<Part<'_>> = batch
        .iter()
        .map(|j| Part {
            layout: &j.layout,
            adapter: j.adapter.as_ref(),
        })
        .collect();
    let width = segment.config().hidden;
    let together = match segment.forward_many(&parts, x.clone()) {
        // One of several may be at fault: the others must not suffer.
        Err(_) if parts.len() > 1 => return alone(segment, batch, &x),
        other => other,
    };
    let answers: Vec<Answer> = match together {
        Ok(y) => {
            let mut rest = &y[..];
            let rows = parts.iter().map(|p| {
                let (own, left) = rest.split_at(p.layout.rows() * width);
                rest = left;
                Ok(own.to_vec())
            });
            rows.collect()
        }
        Err(e) => {
            let message = e.to_string();
            parts
                .iter()
                .map(|_| Err(internal(message.clone())))
                .collect()
        }
    };
    for (job, answer) in batch.into_iter().zip(answers) {
        let _ = job.answer.send(answer);
    }
}
