//! Answers to the admin tool.

use std::collections::BTreeSet;

use lethe_plan::Plan;
use lethe_proto::admin::{AdminReply, AdminRequest, CoordinatorStatus, Scanned, ShardStatus};
use lethe_proto::deletion::Proposal;
use lethe_proto::ids::{Digest, ShardId};
use lethe_proto::message::Refusal;

use lethe_scan::{ScanError, Scanner, Secret};
use lethe_store::Class;

use super::Core;
use super::evidence::BUILD;
use crate::CoordinatorError;
use crate::metrics::Traffic;
use crate::records::ReceiptRecord;

pub(super) fn planned(plan: &Plan, ids: Vec<u64>) -> AdminReply {
    AdminReply::Planned {
        text: plan.to_string(),
        json: serde_json::to_string(plan).unwrap_or_default(),
        ids,
    }
}

impl Core {
    /// Answers one request; `traffic` is what only the listener knows.
    pub(crate) fn admin(
        &mut self,
        request: AdminRequest,
        by: Digest,
        traffic: Traffic,
        now: u64,
    ) -> Result<AdminReply, CoordinatorError> {
        let by = self.operator(by);
        let unknown = |id: u64| {
            CoordinatorError::refuse(Refusal::Invalid, format!("there is no deletion {id}"))
        };
        match request {
            AdminRequest::Forget {
                requests,
                dry_run: true,
                confirmed,
                ..
            } => Ok(planned(&self.plan_deletion(&requests, confirmed)?, vec![])),
            AdminRequest::Forget {
                requests,
                dry_run: false,
                asked,
                reference,
                confirmed,
            } => {
                let what = Proposal::Forget {
                    requests,
                    asked,
                    reference,
                };
                self.propose(what, confirmed, by, now)
            }
            AdminRequest::Policy { approvals: Some(n) } => {
                let line = format!("policy: {n} approvals");
                self.note_proposal(Proposal::Approvals(n), line, by, now)
            }
            AdminRequest::Policy { approvals: None } => Ok(AdminReply::Policy {
                approvals: self.approvals()?,
            }),
            AdminRequest::Proposals { after } => Ok(AdminReply::Proposals(self.proposals(after)?)),
            AdminRequest::Approve { proposal } => {
                self.open_databases()?;
                self.may_approve(proposal, by)?;
                self.note_by(by, format!("approve proposal {proposal}"), now)?;
                self.approve(proposal, by, now)
            }
            AdminRequest::Cancel { proposal } => {
                self.proposal(proposal)?;
                self.note_by(by, format!("cancel proposal {proposal}"), now)?;
                self.cancel(proposal)?;
                Ok(AdminReply::Done)
            }
            AdminRequest::Operators => Ok(AdminReply::Operators(self.operator_list(Some(by)))),
            AdminRequest::RemoveOperator { fingerprint } => {
                let what = Proposal::RemoveOperator(fingerprint);
                self.note_proposal(what, format!("remove operator {fingerprint}"), by, now)
            }
            AdminRequest::Actions => Ok(AdminReply::Actions(self.actions()?)),
            AdminRequest::Deletions { after } => {
                Ok(AdminReply::Deletions(self.deletion_list(after)))
            }
            AdminRequest::LineageOfSubject { subject } => {
                Ok(AdminReply::Subject(self.subject_lineage(&subject)?))
            }
            AdminRequest::LineageOfRelease { release } => {
                Ok(AdminReply::Release(self.release_lineage(release)?))
            }
            AdminRequest::Coverage { release } => Ok(AdminReply::Coverage(self.coverage(release)?)),
            AdminRequest::Scan { texts } => Ok(AdminReply::Scanned(self.search(&texts)?)),
            AdminRequest::Log { from } => {
                let (entries, checkpoint) = self.log_page(from);
                Ok(AdminReply::Log {
                    entries,
                    checkpoint,
                })
            }
            AdminRequest::Deletion { id } => self
                .deletion_state(id)
                .map(AdminReply::Deletion)
                .ok_or_else(|| unknown(id)),
            AdminRequest::Receipt { id } => {
                let receipt = self.store.get::<ReceiptRecord>(&id.to_string())?;
                let bytes = receipt.ok_or_else(|| {
                    let why = format!(
                        "deletion {id} has no receipt (yet): `lethe-admin status \
                        --deletion {id}` tells"
                    );
                    CoordinatorError::refuse(Refusal::Invalid, why)
                })?;
                Ok(AdminReply::Receipt(
                    String::from_utf8_lossy(&bytes.0).into_owned(),
                ))
            }
            AdminRequest::Replay { shard } => {
                self.may_replay(shard)?;
                self.note_by(by, format!("replay {shard}"), now)?;
                self.start_replay(shard, now)?;
                Ok(AdminReply::Replay(self.replay_state(shard, now)?))
            }
            AdminRequest::ReplayStatus { shard } => {
                Ok(AdminReply::Replay(self.replay_state(shard, now)?))
            }
            AdminRequest::Status => Ok(AdminReply::Status(self.status(traffic))),
            // Whoever invited an operator alone could agree with themselves.
            AdminRequest::Invite { subject: None } => {
                let line = "invite an operator".into();
                self.note_proposal(Proposal::InviteOperator, line, by, now)
            }
            AdminRequest::Invite { subject: Some(s) } => Ok(AdminReply::Invited {
                token: self.invite(Some(&s))?.text(),
            }),
            AdminRequest::Audit { shard } => {
                let bundle = self.audit_bundle(shard)?;
                self.note_by(by, format!("export {shard} for an audit"), now)?;
                Ok(AdminReply::Audit(bundle))
            }
            AdminRequest::Revoke { subject } => {
                if !self.inventory()?.knows(&subject) {
                    let why = format!("nothing is known of {subject}");
                    return Err(CoordinatorError::refuse(Refusal::Invalid, why));
                }
                self.note_by(by, "revoke a subject's certificates".into(), now)?;
                self.revoke(&BTreeSet::from([subject]))?;
                Ok(AdminReply::Done)
            }
        }
    }

    /// Searches all records, decrypted, keys of records included.
    fn search(&self, texts: &[String]) -> Result<Scanned, CoordinatorError> {
        let secrets: Vec<Secret> = texts.iter().cloned().map(Secret::Text).collect();
        let invalid = |e: ScanError| CoordinatorError::refuse(Refusal::Invalid, e.to_string());
        let scanner = Scanner::new(&secrets).map_err(invalid)?;
        let (mut out, mut tables) = (
            Scanned {
                records: 0,
                hits: vec![],
                evidence: 0,
            },
            std::collections::BTreeMap::<String, u64>::new(),
        );
        self.store.each(|class, table, key, value| {
            out.records += 1;
            let n = scanner.count(key.as_bytes()) + scanner.count(value);
            match class {
                Class::Evidence => out.evidence += n,
                _ if n > 0 => *tables.entry(table.to_owned()).or_default() += n,
                _ => {}
            }
        })?;
        out.hits = tables.into_iter().collect();
        Ok(out)
    }

    fn status(&self, traffic: Traffic) -> CoordinatorStatus {
        let shard = |k: usize| {
            let run = &self.runs[k];
            ShardStatus {
                subjects: self.members(ShardId(k as u16)).count() as u32,
                rounds: run.progress(&self.recipe),
                adapter: run.hash(),
                done: run.done(&self.recipe),
                quarantined: self
                    .store
                    .quarantined()
                    .iter()
                    .any(|q| usize::from(q.shard) == k),
                losses: run.losses(),
            }
        };
        CoordinatorStatus {
            build: BUILD.into(),
            subjects: self.subjects.len() as u32,
            started: self.epoch.is_some(),
            release: self.counters.release,
            validated: self.validated(),
            shards: (0..self.runs.len()).map(shard).collect(),
            connections: traffic.connections as u32,
            bytes: (traffic.update_bytes, traffic.activation_bytes),
            log_key: self.signer.verifier().text(),
        }
    }
}
