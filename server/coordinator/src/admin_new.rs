//! Requests of operators.

use std::collections::BTreeMap;

use lethe_ledger::{Command, Event, OwnPlans};
use lethe_proto::admin::{AdminReply, AdminRequest, Scanned};
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::message::{Refusal, Reply};
use lethe_scan::{ScanError, Scanner, Secret};
use lethe_store::Class;
use lethe_transport::identity::Invitation;

use crate::CoordinatorError;
use crate::coordinator::Coordinator;
use crate::evidence::admin::{Facts, status};
use crate::handlers::secret_key;
use crate::rounds::internal;
use crate::shell::fresh;

fn invalid(message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(Refusal::Invalid, message)
}

/// A request of an operator that may need others to agree.
struct Asked {
    what: Proposal,
    confirmed: bool,
    /// What the log is to hold when it is proposed.
    note: Option<String>,
    by: Digest,
}

/// The secret of an invitation, and what the ledger knows of it.
struct Drawn {
    secret: String,
    digest: Digest,
}

impl Drawn {
    fn new() -> Result<Self, CoordinatorError> {
        let bytes: [u8; 32] = lethe_seal::random()?;
        let secret = Digest(bytes).hex();
        let digest = secret_key(&secret);
        Ok(Self { secret, digest })
    }
}

impl Coordinator {
    /// Answers an operator.
    pub(crate) fn admin(
        &self,
        request: AdminRequest,
        by: Digest,
    ) -> Result<Reply, CoordinatorError> {
        let changes = request.changes();
        let reply = self.answer_operator(request, by)?;
        if changes {
            // What an operator asked for is done when they are told so.
            self.shell().do_duties();
            self.wake_everybody();
        }
        Ok(Reply::Admin(reply))
    }

    fn answer_operator(
        &self,
        request: AdminRequest,
        by: Digest,
    ) -> Result<AdminReply, CoordinatorError> {
        match request {
            AdminRequest::Forget {
                requests,
                dry_run: true,
                confirmed,
                ..
            } => {
                let now = self.shell().clock.now();
                let plans = self.shell().state().dry_run(&requests, confirmed, now)?;
                planned(&plans, vec![])
            }
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
                self.propose(Asked {
                    what,
                    confirmed,
                    note: None,
                    by,
                })
            }
            AdminRequest::Policy { approvals: Some(n) } => {
                self.note_proposal(Proposal::Approvals(n), format!("policy: {n} approvals"), by)
            }
            AdminRequest::RemoveOperator { fingerprint } => {
                let line = format!("remove operator {fingerprint}");
                self.note_proposal(Proposal::RemoveOperator(fingerprint), line, by)
            }
            // Whoever invited an operator alone could agree with themselves.
            AdminRequest::Invite { subject: None } => {
                self.note_proposal(Proposal::InviteOperator, "invite an operator".into(), by)
            }
            AdminRequest::Invite { subject: Some(s) } => self.invite(s),
            AdminRequest::Approve { proposal } => self.approve(proposal, by),
            AdminRequest::Cancel { proposal } => {
                let command = Command::Cancel {
                    id: proposal,
                    by,
                    fresh: fresh()?,
                };
                self.shell().execute(command, vec![])?;
                Ok(AdminReply::Done)
            }
            AdminRequest::Revoke { subject } => {
                let command = Command::Revoke {
                    subject,
                    by,
                    fresh: fresh()?,
                };
                self.shell().execute(command, vec![])?;
                Ok(AdminReply::Done)
            }
            AdminRequest::Replay { shard } => self.replay(shard, by),
            AdminRequest::Audit { shard } => self.export(shard, by),
            AdminRequest::Scan { texts } => Ok(AdminReply::Scanned(self.search(&texts)?)),
            read => self.answer_reader(read, by),
        }
    }

    /// Requests that change nothing.
    fn answer_reader(
        &self,
        request: AdminRequest,
        by: Digest,
    ) -> Result<AdminReply, CoordinatorError> {
        let shell = self.shell();
        let now = shell.clock.now();
        let state = shell.state();
        match request {
            AdminRequest::Policy { .. } => Ok(AdminReply::Policy {
                approvals: state.approvals(),
            }),
            AdminRequest::Proposals { after } => {
                Ok(AdminReply::Proposals(state.proposal_list(after)))
            }
            AdminRequest::Operators => {
                let you = state.operator(by);
                Ok(AdminReply::Operators(state.operator_list(Some(you))))
            }
            AdminRequest::Actions => Ok(AdminReply::Actions(state.action_list())),
            AdminRequest::Deletions { after } => {
                Ok(AdminReply::Deletions(state.deletion_list(after)))
            }
            AdminRequest::LineageOfSubject { subject } => {
                Ok(AdminReply::Subject(state.subject_lineage(&subject)?))
            }
            AdminRequest::LineageOfRelease { release } => {
                Ok(AdminReply::Release(state.release_lineage(release)?))
            }
            AdminRequest::Coverage { release } => {
                Ok(AdminReply::Coverage(state.coverage(release)?))
            }
            AdminRequest::Log { from } => {
                let page = shell.evidence().page(from);
                Ok(AdminReply::Log {
                    entries: page.entries,
                    checkpoint: page.checkpoint,
                })
            }
            AdminRequest::Deletion { id } => state
                .deletion_state(id, now)
                .map(AdminReply::Deletion)
                .ok_or_else(|| invalid(format!("there is no deletion {id}"))),
            AdminRequest::Receipt { id } => {
                let at = state.deletions().get(&id).and_then(|d| d.receipt.clone());
                drop(state);
                let content = match at {
                    Some(at) => shell.values().get(&at)?,
                    None => None,
                };
                let content = content.ok_or_else(|| {
                    invalid(format!(
                        "deletion {id} has no receipt (yet): `lethe-admin status --deletion {id}` \
                         tells"
                    ))
                })?;
                Ok(AdminReply::Receipt(
                    String::from_utf8_lossy(&content).into_owned(),
                ))
            }
            AdminRequest::ReplayStatus { shard } => {
                let key = state.shard_of_wire(shard);
                let key = key.ok_or_else(|| no_shard())?;
                Ok(AdminReply::Replay(state.replay_state(key, now)?))
            }
            AdminRequest::Status => {
                let traffic = self.traffic();
                let facts = Facts {
                    connections: traffic.connections as u32,
                    update_bytes: traffic.update_bytes,
                    activation_bytes: traffic.activation_bytes,
                    log_key: shell.evidence().log_key(),
                };
                Ok(AdminReply::Status(status(&state, &facts)))
            }
            other => Err(internal(&format!("no answer to {other:?}"))),
        }
    }

    fn note_proposal(
        &self,
        what: Proposal,
        line: String,
        by: Digest,
    ) -> Result<AdminReply, CoordinatorError> {
        self.propose(Asked {
            what,
            confirmed: true,
            note: Some(line),
            by,
        })
    }

    /// Does what an operator asks, or keeps it until enough others agree.
    fn propose(&self, asked: Asked) -> Result<AdminReply, CoordinatorError> {
        let drawn = Drawn::new()?;
        let requests = requests_of(&asked.what);
        let whole = self.plans(&requests)?;
        let command = Command::Propose {
            what: asked.what,
            confirmed: asked.confirmed,
            note: asked.note,
            by: asked.by,
            secret: drawn.digest,
            plans: self.own_plans(&requests),
            fresh: fresh()?,
        };
        let events = self.shell().execute(command, vec![])?;
        self.outcome(&events, &drawn, &whole)
    }

    fn approve(&self, id: u64, by: Digest) -> Result<AdminReply, CoordinatorError> {
        let drawn = Drawn::new()?;
        let requests = {
            let state = self.shell().state();
            let proposal = state.proposals().get(&id);
            proposal.map_or(vec![], |p| requests_of(&p.what))
        };
        let whole = self.plans(&requests)?;
        let command = Command::Approve {
            id,
            by,
            secret: drawn.digest,
            plans: self.own_plans(&requests),
            fresh: fresh()?,
        };
        let events = self.shell().execute(command, vec![])?;
        self.outcome(&events, &drawn, &whole)
    }

    /// What came of a proposal or an approval.
    fn outcome(
        &self,
        events: &[Event],
        drawn: &Drawn,
        whole: &OwnPlans,
    ) -> Result<AdminReply, CoordinatorError> {
        let mut ids = vec![];
        for event in events {
            match event {
                Event::DeletionAccepted { id, .. } => ids.push(*id),
                Event::Proposed { id, .. } | Event::Approved { id, .. } => {
                    let state = self.shell().state();
                    let waiting = state.proposal_list(id.saturating_sub(1));
                    let own = waiting.into_iter().find(|p| p.id == *id);
                    let gone = || internal(&"the proposal is gone");
                    return Ok(AdminReply::Proposed(own.ok_or_else(gone)?));
                }
                Event::OperatorInvited { .. } => {
                    let invitation = self.invitation(drawn.secret.clone());
                    return Ok(AdminReply::Invited {
                        token: invitation.text(),
                    });
                }
                Event::PolicySet { approvals } => {
                    return Ok(AdminReply::Policy {
                        approvals: *approvals,
                    });
                }
                Event::OperatorRemoved { .. } => return Ok(AdminReply::Done),
                _ => {}
            }
        }
        planned(whole, ids)
    }

    /// One plan for all requests together, by epoch: what an operator is shown.
    fn plans(&self, requests: &[DeletionRequest]) -> Result<OwnPlans, CoordinatorError> {
        if requests.is_empty() {
            return Ok(vec![]);
        }
        let now = self.shell().clock.now();
        // Whoever asks has confirmed what is unusual, or is refused by the ledger.
        Ok(self.shell().state().dry_run(requests, true, now)?)
    }

    /// Plans of each request by itself, made on a snapshot: the ledger checks them.
    fn own_plans(&self, requests: &[DeletionRequest]) -> Vec<OwnPlans> {
        let inventories: Vec<_> = {
            let state = self.shell().state();
            let all = state.epochs().keys();
            all.filter_map(|no| Some((*no, state.inventory(*no)?)))
                .collect()
        };
        let of = |r: &DeletionRequest| {
            let own = std::slice::from_ref(r);
            let plans = inventories
                .iter()
                .filter_map(|(no, i)| Some((*no, lethe_plan::plan(i, own).ok()?)));
            plans.collect()
        };
        requests.iter().map(of).collect()
    }

    fn invite(&self, subject: SubjectId) -> Result<AdminReply, CoordinatorError> {
        let drawn = Drawn::new()?;
        let command = Command::Invite {
            subject,
            secret: drawn.digest,
        };
        self.shell().execute(command, vec![])?;
        Ok(AdminReply::Invited {
            token: self.invitation(drawn.secret).text(),
        })
    }

    /// An invitation for the first operator, replacing earlier ones; `None` when one has enrolled
    /// already.
    pub fn first_admin(&self) -> Result<Option<Invitation>, CoordinatorError> {
        if !self.shell().state().core().operators.is_empty() {
            return Ok(None);
        }
        let drawn = Drawn::new()?;
        let command = Command::InviteFirstOperator {
            secret: drawn.digest,
        };
        self.shell().execute(command, vec![])?;
        Ok(Some(self.invitation(drawn.secret)))
    }

    /// An invitation for an operator, for whoever asks on this machine; the log says so.
    pub fn recover_admin(&self) -> Result<Invitation, CoordinatorError> {
        let drawn = Drawn::new()?;
        let command = Command::RecoverOperator {
            secret: drawn.digest,
            fresh: fresh()?,
        };
        self.shell().execute(command, vec![])?;
        self.shell().do_duties();
        Ok(self.invitation(drawn.secret))
    }

    fn replay(&self, shard: ShardId, by: Digest) -> Result<AdminReply, CoordinatorError> {
        let shell = self.shell();
        let key = shell.state().shard_of_wire(shard);
        let key = key.ok_or_else(no_shard)?;
        let command = Command::Replay {
            shard: key,
            by,
            fresh: fresh()?,
        };
        shell.execute(command, vec![])?;
        let now = shell.clock.now();
        let replay = shell.state().replay_state(key, now)?;
        Ok(AdminReply::Replay(replay))
    }

    /// A shard's training, for an auditor; the log says that it was given out.
    fn export(&self, shard: ShardId, by: Digest) -> Result<AdminReply, CoordinatorError> {
        let shell = self.shell();
        let bundle = {
            let state = shell.state();
            let key = state.shard_of_wire(shard).ok_or_else(no_shard)?;
            shell.evidence().bundle(&state, key)?
        };
        let command = Command::Note {
            by,
            line: format!("export {shard} for an audit"),
            fresh: fresh()?,
        };
        shell.execute(command, vec![])?;
        shell.do_duties();
        Ok(AdminReply::Audit(bundle))
    }

    /// Searches all records, decrypted, keys of records included.
    fn search(&self, texts: &[String]) -> Result<Scanned, CoordinatorError> {
        let secrets: Vec<Secret> = texts.iter().cloned().map(Secret::Text).collect();
        let scanner = Scanner::new(&secrets).map_err(|e: ScanError| invalid(e.to_string()))?;
        let mut out = Scanned {
            records: 0,
            hits: vec![],
            evidence: 0,
        };
        let mut tables: BTreeMap<String, u64> = BTreeMap::new();
        self.shell().store().each(|class, table, key, value| {
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
}

fn no_shard() -> CoordinatorError {
    invalid("there is no such shard: `lethe-admin status` lists them")
}

fn requests_of(what: &Proposal) -> Vec<DeletionRequest> {
    match what {
        Proposal::Forget { requests, .. } => requests.clone(),
        _ => vec![],
    }
}

/// Plans as an operator is shown them.
fn planned(plans: &OwnPlans, ids: Vec<u64>) -> Result<AdminReply, CoordinatorError> {
    let texts: Vec<String> = plans.iter().map(|(_, p)| p.to_string()).collect();
    // Who reads them by program expects one.
    let last = plans.last().map(|(_, p)| serde_json::to_string(p));
    let json = last.transpose().map_err(|e| internal(&e))?;
    Ok(AdminReply::Planned {
        text: texts.join("\n\n"),
        json: json.unwrap_or_default(),
        ids,
    })
}
