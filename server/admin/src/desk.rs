//! The operator's connection to the coordinator.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, bail};
use lethe_proto::admin::{AdminReply, AdminRequest, DeletionSummary, ProposalState};
use lethe_proto::message::{Reply, Request};
use lethe_transport::client::{Connection, enrol};
use lethe_transport::identity::{Identity, Invitation};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Saved {
    server: SocketAddr,
    authority: Vec<u8>,
    identity: Identity,
}

/// An open connection with the operator's certificate.
pub(crate) struct Desk(Connection);

impl Desk {
    /// Enrols and stores the identity, readable by this user only.
    pub(crate) async fn enrol(
        home: &Path,
        server: SocketAddr,
        invitation: &str,
    ) -> anyhow::Result<()> {
        let file = home.join("identity.json");
        if file.exists() {
            bail!(
                "{} exists: this operator is enrolled already; use another --home",
                file.display()
            );
        }
        let invitation = Invitation::parse(invitation)?;
        std::fs::create_dir_all(home).with_context(|| home.display().to_string())?;
        let identity = enrol(server, &invitation).await?;
        let saved = Saved {
            server,
            authority: invitation.authority()?,
            identity,
        };
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let out = options
            .open(&file)
            .with_context(|| file.display().to_string())?;
        serde_json::to_writer(out, &saved)?;
        Ok(())
    }

    /// Connects with the stored identity.
    pub(crate) async fn open(home: &Path) -> anyhow::Result<Self> {
        let file = home.join("identity.json");
        let text = std::fs::read(&file).with_context(|| {
            format!(
                "{}: run `lethe-admin enrol` first, or give --home",
                file.display()
            )
        })?;
        let saved: Saved =
            serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
        Ok(Self(
            Connection::open(saved.server, &saved.authority, Some(&saved.identity)).await?,
        ))
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
