//! The client's work: one task that takes jobs one after the other, on a runtime of its own.
//!
//! Handles may live on any thread and under any executor, or none: they send jobs and wait for
//! answers with means that need no runtime. A job whose caller stops waiting is dropped.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

use crate::ClientError;
use crate::local::Shared;
use crate::worker::Worker;

/// Jobs that may wait.
const QUEUE: usize = 64;
/// Threads that move messages; heavy work has threads of its own.
const THREADS: usize = 2;

/// A future that borrows the worker.
pub(crate) type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T, ClientError>> + Send + 'a>>;

type Job =
    Box<dyn for<'a> FnOnce(&'a mut Worker) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> + Send>;

/// The runtime of all clients of this process that bring none.
fn background() -> Result<Handle, ClientError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("lethe-client")
            .enable_all()
            .build()
            .map_err(|e| e.to_string())
    });
    match runtime {
        Ok(runtime) => Ok(runtime.handle().clone()),
        Err(e) => Err(ClientError::Internal(format!("no threads: {e}"))),
    }
}

/// How many jobs wait. One that waits for work to come makes way for them.
#[derive(Clone, Debug)]
pub(crate) struct Queued(watch::Sender<usize>);

impl Queued {
    fn change(&self, by: isize) {
        self.0.send_modify(|n| *n = n.saturating_add_signed(by));
    }

    /// Ends when a job waits.
    pub(crate) async fn any(&self) {
        let mut waiting = self.0.subscribe();
        // The sender lives as long as this.
        let _ = waiting.wait_for(|n| *n > 0).await;
    }
}

/// A job that is waiting, for as long as this lives.
struct Waiting(Queued);

impl Waiting {
    fn new(queued: &Queued) -> Self {
        queued.change(1);
        Self(queued.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.change(-1);
    }
}

/// Where jobs are sent.
#[derive(Debug)]
pub(crate) struct Actor {
    jobs: OnceLock<mpsc::Sender<Job>>,
    queued: Queued,
}

impl Default for Actor {
    fn default() -> Self {
        Self {
            jobs: OnceLock::new(),
            queued: Queued(watch::Sender::new(0)),
        }
    }
}

/// The runtime on which a client's work is done.
pub(crate) fn runtime(shared: &Shared) -> Result<Handle, ClientError> {
    match &shared.options.runtime {
        Some(handle) => Ok(handle.clone()),
        None => background(),
    }
}

impl Actor {
    /// The task, which is started by the first job.
    fn jobs(&self, shared: &Arc<Shared>) -> Result<&mpsc::Sender<Job>, ClientError> {
        if let Some(jobs) = self.jobs.get() {
            return Ok(jobs);
        }
        let handle = runtime(shared)?;
        Ok(self.jobs.get_or_init(|| {
            let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
            let mut worker = Worker::new(shared.clone(), self.queued.clone());
            handle.spawn(async move {
                while let Some(job) = queue.recv().await {
                    job(&mut worker).await;
                }
                worker.leave();
            });
            jobs
        }))
    }

    /// Has a job done. One that waits for work makes way for it.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        shared: &Arc<Shared>,
        job: impl for<'a> FnOnce(&'a mut Worker) -> Work<'a, T> + Send + 'static,
    ) -> Result<T, ClientError> {
        self.send(shared, Some(Waiting::new(&self.queued)), job)
            .await
    }

    /// Has a job done that waits for work itself: two of them must not keep each other from it.
    pub(crate) async fn ask_for_work<T: Send + 'static>(
        &self,
        shared: &Arc<Shared>,
        job: impl for<'a> FnOnce(&'a mut Worker) -> Work<'a, T> + Send + 'static,
    ) -> Result<T, ClientError> {
        self.send(shared, None, job).await
    }

    async fn send<T: Send + 'static>(
        &self,
        shared: &Arc<Shared>,
        waiting: Option<Waiting>,
        job: impl for<'a> FnOnce(&'a mut Worker) -> Work<'a, T> + Send + 'static,
    ) -> Result<T, ClientError> {
        drop(shared.alive()?);
        let (mut reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |worker| {
            drop(waiting);
            Box::pin(async move {
                let done = tokio::select! {
                    biased;
                    () = reply.closed() => None,
                    done = job(worker) => Some(done),
                };
                if let Some(done) = done {
                    // Nobody waits any more: the work is done all the same.
                    let _ = reply.send(done);
                }
            })
        });
        let ended = |what: &str| ClientError::Internal(format!("the client's task {what}"));
        let sent = self.jobs(shared)?.send(job).await;
        sent.map_err(|_| ended("has ended: its runtime was shut down"))?;
        let done = answer.await;
        let done =
            done.map_err(|_| ended("ended before it answered: its runtime was shut down"))?;
        // A client that was released, or erased, meanwhile says that, and not what became of it.
        done.map_err(|e| shared.alive().err().unwrap_or(e))
    }
}
