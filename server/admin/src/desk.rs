//! The operator's connection to the coordinator.

use std::path::Path;

use anyhow::{Context, bail};
use lethe_proto::admin::{AdminReply, AdminRequest, DeletionSummary, ProposalState};
use lethe_proto::message::{Reply, Request};
use lethe_transport::TransportError;
use lethe_transport::client::{Connection, enrol};
use lethe_transport::identity::{Identity, Invitation};
use lethe_transport::place::Place;
use serde::{Deserialize, Serialize};

use crate::output::error;
use crate::when::{now, show_time};

#[derive(Serialize, Deserialize)]
struct Saved {
    server: Place,
    authority: Vec<u8>,
    identity: Identity,
}

impl Saved {
    fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(file).with_context(|| {
            format!(
                "{}: run `lethe-admin enrol` first, or give --home",
                file.display()
            )
        })?;
        serde_json::from_slice(&text).with_context(|| file.display().to_string())
    }

    /// Replaces the file as a whole: a crash leaves the old one or the new one.
    fn write(&self, file: &Path) -> anyhow::Result<()> {
        let next = file.with_extension("new");
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let out = options
            .open(&next)
            .with_context(|| next.display().to_string())?;
        serde_json::to_writer(&out, self)?;
        out.sync_all()?;
        std::fs::rename(&next, file).with_context(|| file.display().to_string())
    }
}

/// An open connection with the operator's certificate.
pub(crate) struct Desk(Connection);

impl Desk {
    /// Enrols and stores the identity, readable by this user only. An identity that is there is
    /// replaced when it has expired, or when `replace` says so; what else is in the folder stays.
    pub(crate) async fn enrol(
        home: &Path,
        server: Place,
        invitation: &Invitation,
        replace: bool,
    ) -> anyhow::Result<()> {
        let file = home.join("identity.json");
        if file.exists() && !replace {
            let valid = Saved::read(&file)?.identity.validity()?;
            if valid.until > now() as i64 {
                bail!(
                    "{} exists and is valid until {} (UTC): this operator is enrolled already; \
                     use another --home, or --replace. If the coordinator has moved, give its new \
                     place to any command: lethe-admin --server {server} status",
                    file.display(),
                    show_time(valid.until as u64)
                );
            }
        }
        let authority = invitation.authority()?;
        std::fs::create_dir_all(home).with_context(|| home.display().to_string())?;
        let identity = enrol(server.clone(), invitation).await?;
        let saved = Saved {
            server,
            authority,
            identity,
        };
        saved.write(&file)
    }

    /// Connects with the stored identity, and renews it in the last third of its life. A place that
    /// is given takes that of the stored one, and is kept once the coordinator has answered there:
    /// its certificate is checked as ever, so that another one is not taken for it.
    pub(crate) async fn open(home: &Path, moved: Option<&Place>) -> anyhow::Result<Self> {
        let file = home.join("identity.json");
        let mut saved = Saved::read(&file)?;
        let place = moved.unwrap_or(&saved.server).clone();
        let opened = Connection::open(place.clone(), &saved.authority, Some(&saved.identity));
        let connection = match opened.await {
            Err(e @ (TransportError::Connect { .. } | TransportError::Resolve { .. })) => {
                bail!("{e}. If the coordinator has moved, give its new place: --server HOST:PORT")
            }
            opened => opened?,
        };
        if saved.server != place {
            saved.server = place;
            saved.write(&file)?;
        }
        // The authority may have been exchanged since: the one that was trusted leads to it.
        if let Some(next) = connection.shown().successor(&saved.authority) {
            saved.authority = next;
            saved.write(&file)?;
        }
        if saved.identity.is_due() {
            match connection.renew().await {
                // The old certificate goes when the new one is first used: at the next command.
                Ok(identity) => {
                    saved.identity = identity;
                    saved.write(&file)?;
                }
                Err(e) => error(&format!("the certificate is not renewed yet: {e}")),
            }
        }
        Ok(Self(connection))
    }

    /// One request.
    pub(crate) async fn ask(&self, request: AdminRequest) -> anyhow::Result<AdminReply> {
        match self.0.call(&Request::Admin(request)).await? {
            Reply::Admin(reply) => Ok(reply),
            other => bail!("the coordinator answered with {other:?}: versions differ"),
        }
    }

    /// All deletions, page by page.
    pub(crate) async fn deletions(&self) -> anyhow::Result<Vec<DeletionSummary>> {
        let mut all: Vec<DeletionSummary> = vec![];
        loop {
            let after = all.last().map_or(0, |d| d.id);
            match self.ask(AdminRequest::Deletions { after }).await? {
                AdminReply::Deletions(page) if page.is_empty() => return Ok(all),
                AdminReply::Deletions(page) => all.extend(page),
                other => return unexpected(&other),
            }
        }
    }

    /// All proposals that wait, page by page.
    pub(crate) async fn proposals(&self) -> anyhow::Result<Vec<ProposalState>> {
        let mut all: Vec<ProposalState> = vec![];
        loop {
            let after = all.last().map_or(0, |p| p.id);
            match self.ask(AdminRequest::Proposals { after }).await? {
                AdminReply::Proposals(page) if page.is_empty() => return Ok(all),
                AdminReply::Proposals(page) => all.extend(page),
                other => return unexpected(&other),
            }
        }
    }

    pub(crate) async fn close(self) {
        self.0.close().await;
    }
}

/// The coordinator answered something that this request cannot have.
pub(crate) fn unexpected<T>(reply: &AdminReply) -> anyhow::Result<T> {
    bail!("unexpected answer {reply:?}: coordinator and tool differ in version")
}
