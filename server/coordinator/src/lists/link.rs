//! The line to a tally of its own: QUIC, with certificates on both sides.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lethe_ledger::SnapshotRef;
use lethe_proto::limits::HANDSHAKE_TIMEOUT;
use lethe_proto::message::{Reply, Request};
use lethe_proto::tally::{TallyReply, TallyRequest};
use lethe_store::keys::Keys;
use lethe_store::{StoreError, private};
use lethe_transport::client::{Connection, enrol};
use lethe_transport::identity::{Identity, Invitation};
use lethe_transport::place::Place;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use crate::CoordinatorError;
use crate::fatal;
use crate::rounds::internal;

/// File of what is known of the tally, in the data folder.
const FILE: &str = "tally.json";
/// The coordinator's identity at the tally, in the key source.
const IDENTITY: &str = "tally-identity";
/// File of both, in the data folders of earlier builds.
const OLD_FILE: &str = "tally-identity.json";

/// Longest of these files, in bytes.
const MOST: usize = 1 << 20;

/// Longest wait for a connection: a handshake, and the renewal of a certificate.
const CONNECT: Duration = Duration::from_secs(2 * HANDSHAKE_TIMEOUT.as_secs());

/// Where the tally listens, and how the coordinator got in: the table `[tally]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TallyConfig {
    /// Where `lethe-tally` listens (UDP): `HOST:PORT`. A name is looked up at each connection.
    pub address: Place,
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

/// Who the coordinator is at the tally: a secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    authority: Vec<u8>,
    identity: Identity,
}

/// What earlier builds kept in one file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Old {
    authority: Vec<u8>,
    identity: Identity,
    of_tally: Remembered,
}

/// The line over QUIC. Its packets are moved by a thread of its own, so that any thread may wait
/// for an answer.
pub(crate) struct Link {
    address: Place,
    file: PathBuf,
    keys: Keys,
    runtime: Option<Runtime>,
    saved: Mutex<Saved>,
    of_tally: Mutex<Remembered>,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn keep(keys: &Keys, saved: &Saved) -> Result<(), CoordinatorError> {
    let bytes = serde_json::to_vec(saved).map_err(|e| internal(&e))?;
    Ok(keys.keep(IDENTITY, &Zeroizing::new(bytes))?)
}

fn write(file: &Path, of_tally: &Remembered) -> Result<(), CoordinatorError> {
    let bytes = serde_json::to_vec(of_tally).map_err(|e| internal(&e))?;
    Ok(private::write(file, &bytes)?)
}

/// What an earlier build has kept in the data folder goes where it belongs. An identity that is in
/// the key source is newer: the file came back with a backup.
fn move_out(data_dir: &Path, keys: &Keys) -> Result<(), CoordinatorError> {
    let file = data_dir.join(OLD_FILE);
    let Some(bytes) = private::read(&file, MOST)?.map(Zeroizing::new) else {
        return Ok(());
    };
    // One that was cut off while it was overwritten holds nothing any more.
    if let Ok(old) = serde_json::from_slice::<Old>(&bytes) {
        if keys.secret(IDENTITY)?.is_none() {
            let saved = Saved {
                authority: old.authority,
                identity: old.identity,
            };
            keep(keys, &saved)?;
        }
        if !data_dir.join(FILE).exists() {
            write(&data_dir.join(FILE), &old.of_tally)?;
        }
    }
    Ok(lethe_store::keys::destroy_file(&file)?)
}

impl Link {
    /// With the identity in the key source. Where there is none, the invitation is exchanged for
    /// one: the tally has to answer then.
    ///
    /// # Errors
    /// [`CoordinatorError::NoInvitation`] for a first start without an invitation, and what keeps
    /// the tally from enrolling this coordinator.
    pub(crate) fn open(
        config: &TallyConfig,
        data_dir: &Path,
        keys: &Keys,
    ) -> Result<Self, CoordinatorError> {
        let threads = |source| CoordinatorError::Threads { source };
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder
            .worker_threads(1)
            .thread_name("lethe-tally-link")
            .enable_all()
            .build()
            .map_err(threads)?;
        move_out(data_dir, keys)?;
        let saved = match keys.secret(IDENTITY)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| StoreError::Keys {
                place: keys.place().into(),
                why: format!(
                    "{IDENTITY}: {e}; remove it, and give `invitation` a new text of \
                     `lethe-tally invite`"
                ),
            })?,
            None => {
                let saved = first(config, &runtime)?;
                keep(keys, &saved)?;
                saved
            }
        };
        let file = data_dir.join(FILE);
        let of_tally = match private::read(&file, MOST)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| StoreError::Corrupt {
                name: file.display().to_string(),
                why: format!("{e}; remove it: what it held is asked again"),
            })?,
            None => Remembered::default(),
        };
        Ok(Self {
            address: config.address.clone(),
            file,
            keys: keys.clone(),
            of_tally: Mutex::new(of_tally),
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
    let address = config.address.clone();
    let authority = invitation.authority()?;
    let place = address.to_string();
    let enrolled = wait_for(runtime, CONNECT, async move {
        enrol(address, &invitation).await
    });
    let away = |e: Broken| CoordinatorError::TallyAway {
        place: place.clone(),
        why: e.0,
    };
    let identity = enrolled.map_err(away)??;
    Ok(Saved {
        authority,
        identity,
    })
}

impl Line for Link {
    fn connect(&self) -> Result<(), Broken> {
        *fatal::lock(&self.connection) = None;
        let saved = fatal::lock(&self.saved).clone();
        let address = self.address.clone();
        let connected = self.run(CONNECT, async move {
            let Saved {
                authority,
                identity,
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
            keep(&self.keys, &renewed).map_err(|e| Broken(e.to_string()))?;
            *fatal::lock(&self.saved) = renewed;
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
        fatal::lock(&self.of_tally).clone()
    }

    fn remember(&self, what: &Remembered) -> Result<(), CoordinatorError> {
        let mut of_tally = fatal::lock(&self.of_tally);
        write(&self.file, what)?;
        *of_tally = what.clone();
        Ok(())
    }
}
