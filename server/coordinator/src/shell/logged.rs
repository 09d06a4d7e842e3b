//! What is served is in the log: releases and snapshots are entered before any device is given
//! them.

use lethe_ledger::{Command, LoggedPart, SnapshotRef};
use lethe_proto::ids::Digest;
use lethe_proto::message::{Refusal, ServedPart};
use lethe_receipt::served::{Proven, SERVED_VERSION, SnapshotNamed, public_entry};
use lethe_receipt::statement::Kind;

use super::Shell;
use crate::CoordinatorError;

impl Shell {
    /// Enters a release into the log, unless it is there. True: devices may be given it now.
    pub(super) fn log_release(&self, no: u64) -> Result<bool, CoordinatorError> {
        let seen = self.caches.seen();
        let Some((epoch, version, values)) = self.values_of(no) else {
            return Ok(false);
        };
        let made = self.made(no, epoch, values)?;
        let parts: Vec<Digest> = made.parts.iter().map(|p| p.device.digest()).collect();
        let catalogue = self.catalogue.versions().digest_of(version.0);
        let statement = {
            let state = self.state();
            state.release_statement(no, &parts, &catalogue.unwrap_or_default())
        };
        let Some(statement) = statement else {
            return Ok(false);
        };
        let part = self.entered(Kind::Release, no, &statement.bytes())?;
        let head = self.evidence().head();
        let events = self.execute(Command::ReleaseLogged { part, head }, vec![])?;
        // Devices ask for it next.
        self.caches.keep_served(made, seen);
        Ok(!events.is_empty())
    }

    /// Enters a snapshot into the log, unless it is there.
    pub(crate) fn log_snapshot(
        &self,
        snapshot: &SnapshotRef,
        key: String,
    ) -> Result<(), CoordinatorError> {
        if self.snapshot_is_logged(snapshot) {
            return Ok(());
        }
        let named = SnapshotNamed {
            version: SERVED_VERSION,
            number: snapshot.number,
            sha256: snapshot.digest.hex(),
            key,
        };
        let part = self.entered(Kind::Snapshot, snapshot.number, &named.bytes())?;
        let head = self.evidence().head();
        self.execute(Command::SnapshotLogged { part, head }, vec![])?;
        Ok(())
    }

    fn entered(
        &self,
        kind: Kind,
        number: u64,
        statement: &[u8],
    ) -> Result<LoggedPart, CoordinatorError> {
        let entry = public_entry(kind, statement);
        let entered = self.with_space(|| self.evidence().enter(&entry))?;
        Ok(LoggedPart {
            number,
            statement: String::from_utf8_lossy(statement).into_owned(),
            index: entered.index,
        })
    }

    /// Whether the log holds this snapshot, and the ledger knows that.
    pub(crate) fn snapshot_is_logged(&self, snapshot: &SnapshotRef) -> bool {
        let state = self.state();
        let logged = state.logged().snapshot.as_ref();
        logged.is_some_and(|part| {
            part.number == snapshot.number && part.statement.contains(&snapshot.digest.hex())
        })
    }

    /// The proof that the log holds something that is served now, for a device that has seen a head
    /// of `seen` entries.
    pub(crate) fn proven(&self, of: ServedPart, seen: u64) -> Result<Proven, CoordinatorError> {
        let part = {
            let state = self.state();
            let logged = state.logged();
            match of {
                ServedPart::Release(no) => {
                    state.current(no)?;
                    logged.release.clone().filter(|part| part.number == no)
                }
                ServedPart::Snapshot(no) => {
                    logged.snapshot.clone().filter(|part| part.number == no)
                }
                ServedPart::Catalogue(no) => {
                    let mut all = state.catalogues();
                    let found = all.find(|(version, _)| version.0 == no);
                    found.and_then(|(version, record)| {
                        Some(LoggedPart {
                            number: u64::from(no),
                            statement: record.manifest(version).text(),
                            index: record.index?,
                        })
                    })
                }
            }
        };
        let part = part.ok_or_else(|| {
            CoordinatorError::refuse(
                Refusal::StaleRelease,
                "it is served no more, or not yet: fetch what is served now",
            )
        })?;
        self.evidence().shown(part, seen)
    }
}
