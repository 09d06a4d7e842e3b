//! Answers to the admin tool.

use lethe_proto::admin::{AdminReply, AdminRequest, CoordinatorStatus, DeletionPhase, DeletionState, ShardStatus};
use lethe_proto::ids::ShardId;
use lethe_proto::message::Refusal;

use super::Core;
use super::evidence::BUILD;
use crate::CoordinatorError;
use crate::records::ReceiptRecord;

impl Core {
    /// Answers one request; `traffic` is what only the listener knows: connections and bytes.
    pub(crate) fn admin(
        &mut self,
        request: AdminRequest,
        traffic: (u32, (u64, u64)),
        now: u64,
    ) -> Result<AdminReply, CoordinatorError> {
        let unknown = |id: u64| CoordinatorError::refuse(Refusal::Invalid, format!("there is no deletion {id}"));
        match request {
            AdminRequest::Forget { subject, items, dry_run: true } => {
                let plan = self.plan_deletion(&subject, &items)?;
                Ok(AdminReply::Deletion(DeletionState {
                    id: None,
                    plan: plan.to_string(),
                    phase: DeletionPhase::Planned,
                    seconds_until_exact: None,
                    seconds_until_retrained: None,
                    before: self.served_hashes(),
                    now: self.served_hashes(),
                    affected: plan.affected().into_iter().map(|(s, _)| s).collect(),
                }))
            }
            AdminRequest::Forget { subject, items, dry_run: false } => {
                let id = self.forget(&subject, items)?;
                self.tick(now)?;
                self.deletion_state(id).map(AdminReply::Deletion).ok_or_else(|| unknown(id))
            }
            AdminRequest::Deletion { id } => {
                self.deletion_state(id).map(AdminReply::Deletion).ok_or_else(|| unknown(id))
            }
            AdminRequest::Receipt { id } => {
                let receipt = self.store.get::<ReceiptRecord>(&id.to_string())?;
                let bytes = receipt.ok_or_else(|| {
                    let why = format!("deletion {id} has no receipt (yet): `lethe-admin status --deletion {id}` tells");
                    CoordinatorError::refuse(Refusal::Invalid, why)
                })?;
                Ok(AdminReply::Receipt(String::from_utf8_lossy(&bytes.0).into_owned()))
            }
            AdminRequest::Replay { shard } => {
                self.start_replay(shard, now)?;
                Ok(AdminReply::Replay(self.replay_state(shard, now)?))
            }
            AdminRequest::ReplayStatus { shard } => Ok(AdminReply::Replay(self.replay_state(shard, now)?)),
            AdminRequest::Status => Ok(AdminReply::Status(self.status(traffic))),
            AdminRequest::Invite { subject } => {
                Ok(AdminReply::Invited { token: self.invite(subject.as_ref())?.text() })
            }
            AdminRequest::Revoke { subject } => {
                self.revoke(&subject)?;
                Ok(AdminReply::Done)
            }
        }
    }

    fn status(&self, traffic: (u32, (u64, u64))) -> CoordinatorStatus {
        let shard = |k: usize| {
            let run = &self.runs[k];
            ShardStatus {
                subjects: self.members(ShardId(k as u16)).count() as u32,
                rounds: run.progress(&self.recipe),
                adapter: run.hash(),
                done: run.done(&self.recipe),
                losses: run.state.losses.clone(),
            }
        };
        CoordinatorStatus {
            build: BUILD.into(),
            subjects: self.subjects.len() as u32,
            started: self.sub_shards.is_some(),
            release: self.counters.release,
            validated: self.validated(),
            shards: (0..self.runs.len()).map(shard).collect(),
            connections: traffic.0,
            bytes: traffic.1,
            log_key: self.signer.verifier().text(),
        }
    }
}
