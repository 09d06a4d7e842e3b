//! The line to a tally of its own: QUIC, with certificates on both sides.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lethe_ledger::SnapshotRef;
use lethe_proto::limits::HANDSHAKE_TIMEOUT;
use lethe_proto::message::{Reply, Request};
use lethe_proto::tally::{TallyReply, TallyRequest};
use lethe_store::{StoreError, private};
use lethe_transport::client::{Connection, enrol};
use lethe_transport::identity::{Identity, Invitation};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::CoordinatorError;
use crate::fatal;
use crate::rounds::internal;

/// File of the coordinator's identity at the tally, in the data folder.
const FILE: &str = "tally-identity.json";

/// Longest such file, in bytes.
const MOST: usize = 1 << 20;

/// Longest wait for a connection: a handshake, and the renewal of a certificate.
const CONNECT: Duration = Duration::from_secs(2 * HANDSHAKE_TIMEOUT.as_secs());

/// Where the tally listens, and how the coordinator got in: the table `[tally]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TallyConfig {
    /// UDP address of `lethe-tally`.
    pub address: SocketAddr,
    /// The text that `lethe-tally init` or `lethe-tally invite` printed. It is used once, at the
    /// first start; it may stay.
    #[serde(default)]
    pub invitation: Option<String>,
}

/// The tally cannot be reached, or its answer did not come in time. What was asked may have been
/// done, or not.
#[derive(Debug)]
pub(crate) struct Broken(pub(crate) String);

/// A way to a tally.
pub(crate) trait Line: Send + Sync {
    /// Connects anew.
    fn connect(&self) -> Result<(), Broken>;
    /// Asks, and waits so long at most.
    fn call(&self, request: TallyRequest, within: Duration) -> Result<TallyReply, Broken>;
    /// Where the tally is, for people.
    fn place(&self) -> String;
    /// What was kept of it.
    fn remembered(&self) -> Remembered;
    /// Keeps that, in place of what was kept before.
    fn remember(&self, what: &Remembered) -> Result<(), CoordinatorError>;
    /// The tally itself, where it runs in this process.
    #[cfg(test)]
    fn tally(&self) -> Option<Box<dyn std::ops::Deref<Target = lethe_tally::Tally>>> {
        None
    }
}

/// What is known of the tally when it is away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Remembered {
    /// The key that its snapshots were signed with at the first contact.
    pub(crate) key: Option<String>,
    /// The newest snapshot that devices were given, also if it is recalled.
    pub(crate) last: Option<SnapshotRef>,
}

/// What is kept, in a file that only this user reads.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    authority: Vec<u8>,
    identity: Identity,
    of_tally: Remembered,
}

/// The line over QUIC. Its packets are moved by a thread of its own, so that any thread may wait
/// for an answer.
pub(crate) struct Link {
    address: SocketAddr,
    file: PathBuf,
    runtime: Option<Runtime>,
    saved: Mutex<Saved>,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn write(file: &Path, saved: &Saved) -> Result<(), CoordinatorError> {
    let bytes = serde_json::to_vec(saved).map_err(|e| internal(&e))?;
    Ok(private::write(file, &bytes)?)
}

impl Link {
    /// With the identity in the data folder. Where there is none, the invitation is exchanged for
    /// one: the tally has to answer then.
    ///
    /// # Errors
    /// [`CoordinatorError::NoInvitation`] for a first start without an invitation, and what keeps
    /// the tally from enrolling this coordinator.
    pub(crate) fn open(config: &TallyConfig, data_dir: &Path) -> Result<Self, CoordinatorError> {
        let threads = |source| CoordinatorError::Threads { source };
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder
            .worker_threads(1)
            .thread_name("lethe-tally-link")
            .enable_all()
            .build()
            .map_err(threads)?;
        let file = data_dir.join(FILE);
        let saved = match private::read(&file, MOST)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| StoreError::Corrupt {
                name: file.display().to_string(),
                why: format!(
                    "{e}; remove it, and give `invitation` a new text of `lethe-tally invite`"
                ),
            })?,
            None => {
                let saved = first(config, &runtime)?;
                write(&file, &saved)?;
                saved
            }
        };
        Ok(Self {
            address: config.address,
            file,
            runtime: Some(runtime),
            saved: Mutex::new(saved),
            connection: Mutex::new(None),
        })
    }

    fn run<T: Send + 'static>(
        &self,
        within: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Broken> {
        let Some(runtime) = &self.runtime else {
            return Err(Broken("the coordinator is shutting down".into()));
        };
        wait_for(runtime, within, work)
    }
}

fn wait_for<T: Send + 'static>(
    runtime: &Runtime,
    within: Duration,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Broken> {
    let (send, receive) = channel();
    runtime.spawn(async move {
        // Who has stopped waiting does not hear it.
        let _ = send.send(work.await);
    });
    receive.recv_timeout(within).map_err(|e| match e {
        RecvTimeoutError::Timeout => Broken(format!("no answer within {} s", within.as_secs())),
        RecvTimeoutError::Disconnected => Broken("the line's thread has ended".into()),
    })
}

/// Exchanges the invitation for an identity.
fn first(config: &TallyConfig, runtime: &Runtime) -> Result<Saved, CoordinatorError> {
    let text = config
        .invitation
        .as_deref()
        .ok_or(CoordinatorError::NoInvitation)?;
    let invitation = Invitation::parse(text)?;
    let address = config.address;
    let authority = invitation.authority()?;
    let enrolled = wait_for(runtime, CONNECT, async move {
        enrol(address, &invitation).await
    });
    let away = |e: Broken| CoordinatorError::TallyAway {
        place: address.to_string(),
        why: e.0,
    };
    let identity = enrolled.map_err(away)??;
    Ok(Saved {
        authority,
        identity,
        of_tally: Remembered::default(),
    })
}

impl Line for Link {
    fn connect(&self) -> Result<(), Broken> {
        *fatal::lock(&self.connection) = None;
        let saved = fatal::lock(&self.saved).clone();
        let address = self.address;
        let connected = self.run(CONNECT, async move {
            let Saved {
                authority,
                identity,
                of_tally,
            } = saved;
            let connection = Connection::open(address, &authority, Some(&identity)).await?;
            if !identity.is_due() {
                return Ok((connection, None));
            }
            match connection.renew().await {
                Ok(identity) => {
                    let renewed = Saved {
                        authority,
                        identity,
                        of_tally,
                    };
                    Ok((connection, Some(renewed)))
                }
                Err(e) => {
                    tracing::warn!("the certificate at the tally is not renewed yet: {e}");
                    Ok((connection, None))
                }
            }
        });
        let failed = |e: lethe_transport::TransportError| Broken(e.to_string());
        let (connection, renewed) = connected?.map_err(failed)?;
        if let Some(renewed) = renewed {
            // The old certificate is withdrawn when the new one is first used: not before it is
            // kept.
            write(&self.file, &renewed).map_err(|e| Broken(e.to_string()))?;
            let mut saved = fatal::lock(&self.saved);
            let of_tally = saved.of_tally.clone();
            *saved = Saved {
                of_tally,
                ..renewed
            };
        }
        *fatal::lock(&self.connection) = Some(Arc::new(connection));
        Ok(())
    }

    fn call(&self, request: TallyRequest, within: Duration) -> Result<TallyReply, Broken> {
        let connection = fatal::lock(&self.connection).clone();
        let Some(connection) = connection else {
            return Err(Broken("not connected".into()));
        };
        let request = Request::Tally(request);
        let answered = self.run(within, async move {
            connection.call_within(&request, within).await
        })?;
        match answered.map_err(|e| Broken(e.to_string()))? {
            Reply::Tally(reply) => Ok(reply),
            _ => Err(Broken(
                "the answer is of another kind: versions differ".into(),
            )),
        }
    }

    fn place(&self) -> String {
        self.address.to_string()
    }

    fn remembered(&self) -> Remembered {
        fatal::lock(&self.saved).of_tally.clone()
    }

    fn remember(&self, what: &Remembered) -> Result<(), CoordinatorError> {
        let mut saved = fatal::lock(&self.saved);
        let next = Saved {
            of_tally: what.clone(),
            ..saved.clone()
        };
        write(&self.file, &next)?;
        *saved = next;
        Ok(())
    }
}
