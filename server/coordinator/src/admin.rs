//! Requests of operators.

use std::collections::BTreeMap;

use lethe_ledger::{Command, OwnPlans};
use lethe_proto::admin::{AdminReply, AdminRequest, ListsAuditPlace, Scanned};
use lethe_proto::catalogue::CatalogueChange;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, ShardId};
use lethe_proto::message::{Refusal, Reply};
use lethe_scan::{ScanError, Scanner, Secret};
use lethe_store::Class;
use lethe_transport::identity::Invitation;

use crate::CoordinatorError;
use crate::coordinator::Coordinator;
use crate::epochs::Starting;
use crate::evidence::admin::{self, Asked, Facts, Made};
use crate::handlers::{no_lists, secret_key};
use crate::lists::status;
use crate::shell::{NewVersion, fresh};

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
    /// Answers an operator. It may take as long as the disk does.
    pub(crate) fn admin(
        &self,
        request: AdminRequest,
        by: Digest,
    ) -> Result<Reply, CoordinatorError> {
        let changes = request.changes();
        let request = self.with_all_names(request);
        let reply = self.answer_operator(request, by)?;
        if changes {
            // What an operator asked for is done when they are told so.
            let failed = self.shell().do_duties();
            self.wake_everybody();
            self.executed(&reply, &failed)?;
        }
        Ok(Reply::Admin(reply))
    }

    /// A request about items is about all names that they have or had.
    fn with_all_names(&self, mut request: AdminRequest) -> AdminRequest {
        if let AdminRequest::Forget { requests, .. } | AdminRequest::ListsForecast { requests } =
            &mut request
        {
            self.shell().catalogue.with_all_names(requests);
        }
        request
    }

    /// Refuses to say that a deletion is executed when it is not.
    fn executed(&self, reply: &AdminReply, failed: &[String]) -> Result<(), CoordinatorError> {
        let AdminReply::Planned { ids, .. } = reply else {
            return Ok(());
        };
        // Where deletions gather, they wait for others as the operator has set.
        if ids.is_empty() || !self.shell().state().holds_serving() {
            return Ok(());
        }
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        let why = failed.first().map_or("the store fails", String::as_str);
        let message = format!(
            "accepted as deletion {}, and not executed yet: {why}; it is tried again by itself, \
             and nothing is served until then",
            ids.join(", ")
        );
        Err(CoordinatorError::refuse(Refusal::Internal, message))
    }

    fn answer_operator(
        &self,
        request: AdminRequest,
        by: Digest,
    ) -> Result<AdminReply, CoordinatorError> {
        if let Some(answer) = self.read(&request, by) {
            return answer;
        }
        if let Some(answer) = self.lists_asked(&request) {
            return answer;
        }
        match request {
            AdminRequest::Log { from } => Ok(admin::log(self.shell().evidence().page(from))),
            AdminRequest::Receipt { id } => self.receipt(id),
            AdminRequest::Approve { proposal } => self.approve(proposal, by),
            AdminRequest::Replay { shard } => self.replay(shard, by),
            AdminRequest::StartReplay {
                shard,
                without_missing,
            } => self.start_replay(shard, without_missing, by),
            AdminRequest::HoldShard { shard } => {
                let shard = admin::shard(&self.shell().state(), shard)?;
                let fresh = fresh()?;
                self.done(Command::HoldShard { shard, by, fresh })
            }
            AdminRequest::ReleaseShard { shard } => {
                let shard = admin::shard(&self.shell().state(), shard)?;
                let fresh = fresh()?;
                self.done(Command::ReleaseShard { shard, by, fresh })
            }
            AdminRequest::Audit { shard } => self.export(shard, by),
            AdminRequest::ListsAudit { at } => self.export_lists(at, by),
            AdminRequest::MiddleLearns => self.middle_learns(),
            AdminRequest::LogKeys => Ok(AdminReply::LogKeys(self.shell().evidence().changes())),
            AdminRequest::KeyDisks => Ok(AdminReply::KeyDisks(self.key_disks().to_vec())),
            AdminRequest::EpochStart {
                recipe,
                model,
                dry_run,
            } => {
                let starting = Starting {
                    recipe,
                    model,
                    dry_run,
                };
                self.start_epoch(starting, by)
            }
            AdminRequest::EpochCancel { epoch } => self.cancel_epoch(epoch, by),
            AdminRequest::Catalogue { from } => {
                Ok(AdminReply::Catalogue(self.shell().catalogue_page(from)))
            }
            AdminRequest::CatalogueStatus => {
                Ok(AdminReply::CatalogueStatus(self.shell().catalogue_status()))
            }
            AdminRequest::CatalogueChange {
                before,
                at,
                changes,
                ends,
            } => {
                let catalogue = &self.shell().catalogue;
                let staged = catalogue.stage(by, before, at, changes, ends.is_some())?;
                match staged.zip(ends) {
                    None => Ok(AdminReply::Done),
                    Some((changes, ends)) => self.apply_catalogue(before, changes, ends, by),
                }
            }
            request => match admin::asked(request) {
                Some(asked) => self.propose(asked, by),
                None => Err(CoordinatorError::invalid(
                    "this coordinator does not know the request",
                )),
            },
        }
    }

    /// What the state alone answers.
    fn read(
        &self,
        request: &AdminRequest,
        by: Digest,
    ) -> Option<Result<AdminReply, CoordinatorError>> {
        let shell = self.shell();
        let traffic = self.traffic();
        let facts = Facts {
            connections: traffic.connections as u32,
            update_bytes: traffic.update_bytes,
            activation_bytes: traffic.activation_bytes,
            log_key: shell.log_key(),
        };
        let now = shell.clock.now();
        admin::read(&shell.state(), request, by, now, &facts)
    }

    /// What this coordinator can learn as the host of the middle layers, under the recipe of the
    /// newest epoch.
    fn middle_learns(&self) -> Result<AdminReply, CoordinatorError> {
        let kit = self.shell().kit(self.shell().joining()?)?;
        let learns = kit.recipe.middle_learns(kit.base.config.layers);
        Ok(AdminReply::MiddleLearns(learns))
    }

    /// What is asked of the lists.
    fn lists_asked(&self, request: &AdminRequest) -> Option<Result<AdminReply, CoordinatorError>> {
        let shell = self.shell();
        let lists = shell.lists.as_ref();
        let needed = || lists.ok_or_else(no_lists);
        Some(match request {
            AdminRequest::Lists => lists
                .map(|l| l.status(shell))
                .transpose()
                .map(AdminReply::Lists),
            AdminRequest::ListsOf { deletion } => {
                let of = status::of_deletion(&shell.state(), *deletion);
                Ok(AdminReply::ListsOf(of))
            }
            AdminRequest::ListsLineage { subject } => needed()
                .and_then(|l| l.lineage(shell, subject))
                .map(AdminReply::ListsLineage),
            AdminRequest::ListsReplay => needed()
                .and_then(|l| l.replay(shell))
                .map(AdminReply::ListsReplayed),
            AdminRequest::ListsForecast { requests } => lists
                .map_or_else(|| Ok(String::new()), |l| l.forecast(shell, requests))
                .map(AdminReply::ListsForecast),
            _ => return None,
        })
    }

    fn apply_catalogue(
        &self,
        before: Digest,
        changes: Vec<CatalogueChange>,
        ends: Digest,
        by: Digest,
    ) -> Result<AdminReply, CoordinatorError> {
        let asked = NewVersion {
            before,
            changes,
            ends,
        };
        let version = self.shell().apply_catalogue(by, asked)?;
        Ok(AdminReply::CatalogueApplied { version })
    }

    fn done(&self, command: Command) -> Result<AdminReply, CoordinatorError> {
        self.shell().execute(command, vec![])?;
        Ok(AdminReply::Done)
    }

    fn receipt(&self, id: u64) -> Result<AdminReply, CoordinatorError> {
        let shell = self.shell();
        let now = shell.clock.now();
        let at = admin::receipt_at(&shell.state(), id, now)?;
        let content = shell.values().get(&at)?;
        let content = content.map(|issued| shell.evidence().with_witnesses(issued));
        admin::receipt(id, content.as_deref())
    }

    /// Does what an operator asks, or keeps it until enough others agree.
    fn propose(&self, asked: Asked, by: Digest) -> Result<AdminReply, CoordinatorError> {
        let drawn = Drawn::new()?;
        let requests = requests_of(&asked.what);
        let texts = texts_of(&asked.what);
        let plans = self.plans(&requests)?;
        let command = Command::Propose {
            what: asked.what,
            confirmed: asked.confirmed,
            note: asked.note,
            by,
            secret: drawn.digest,
            plans: self.own_plans(&requests),
            fresh: fresh()?,
        };
        let reply = self.decided(command, &drawn, &plans)?;
        self.searched(reply, &texts)
    }

    fn approve(&self, id: u64, by: Digest) -> Result<AdminReply, CoordinatorError> {
        let drawn = Drawn::new()?;
        let (requests, texts) = {
            let state = self.shell().state();
            let what = state.proposals().get(&id).map(|p| &p.what);
            (
                what.map_or(vec![], requests_of),
                what.map_or(vec![], texts_of),
            )
        };
        let plans = self.plans(&requests)?;
        let command = Command::Approve {
            id,
            by,
            secret: drawn.digest,
            plans: self.own_plans(&requests),
            fresh: fresh()?,
        };
        let reply = self.decided(command, &drawn, &plans)?;
        self.searched(reply, &texts)
    }

    /// Searches the records, once the log is to hold that it happens and enough have agreed.
    fn searched(
        &self,
        reply: AdminReply,
        texts: &[String],
    ) -> Result<AdminReply, CoordinatorError> {
        if texts.is_empty() || reply != AdminReply::Done {
            return Ok(reply);
        }
        Ok(AdminReply::Scanned(self.search(texts)?))
    }

    /// What came of a proposal or an approval.
    fn decided(
        &self,
        command: Command,
        drawn: &Drawn,
        plans: &OwnPlans,
    ) -> Result<AdminReply, CoordinatorError> {
        let events = self.shell().execute(command, vec![])?;
        let token = self.invitation(drawn.secret.clone()).text();
        let made = Made {
            plans,
            token: &token,
        };
        Ok(admin::decided(&self.shell().state(), &events, made))
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
        let key = admin::shard(&shell.state(), shard)?;
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

    fn start_replay(
        &self,
        shard: ShardId,
        without_missing: bool,
        by: Digest,
    ) -> Result<AdminReply, CoordinatorError> {
        let shell = self.shell();
        let key = admin::shard(&shell.state(), shard)?;
        let fresh = fresh()?;
        let command = match without_missing {
            true => Command::ReplayWithoutMissing {
                shard: key,
                by,
                fresh,
            },
            false => Command::Replay {
                shard: key,
                by,
                fresh,
            },
        };
        shell.execute(command, vec![])?;
        let now = shell.clock.now();
        let progress = admin::replay_progress(&shell.state(), shard, now)?;
        Ok(AdminReply::ReplayProgress(progress))
    }

    /// A shard's training, for an auditor; the log says that it was given out.
    fn export(&self, shard: ShardId, by: Digest) -> Result<AdminReply, CoordinatorError> {
        let shell = self.shell();
        let bundle = {
            let evidence = shell.evidence();
            let state = shell.state();
            evidence.bundle(&state, admin::shard(&state, shard)?)?
        };
        let command = Command::Note {
            by,
            line: admin::export_line(shard),
            fresh: fresh()?,
        };
        shell.execute(command, vec![])?;
        shell.do_duties();
        Ok(AdminReply::Audit(bundle))
    }

    /// A page for an auditor of the lists; the log says that the first one was given out.
    fn export_lists(
        &self,
        at: Option<ListsAuditPlace>,
        by: Digest,
    ) -> Result<AdminReply, CoordinatorError> {
        let shell = self.shell();
        let lists = shell.lists.as_ref().ok_or_else(no_lists)?;
        let page = lists.audit(shell, at.as_ref())?;
        if at.is_none() {
            let command = Command::Note {
                by,
                line: "export lists for an audit".into(),
                fresh: fresh()?,
            };
            shell.execute(command, vec![])?;
            shell.do_duties();
        }
        Ok(AdminReply::ListsAudit(page))
    }

    /// Searches all records, decrypted, keys of records included.
    fn search(&self, texts: &[String]) -> Result<Scanned, CoordinatorError> {
        let secrets: Vec<Secret> = texts.iter().cloned().map(Secret::Text).collect();
        let scanner = Scanner::new(&secrets)
            .map_err(|e: ScanError| CoordinatorError::invalid(e.to_string()))?;
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
        if let Some(lists) = &self.shell().lists {
            lists.search(texts, &scanner, &mut out.records, &mut tables)?;
        }
        out.hits = tables.into_iter().collect();
        Ok(out)
    }
}

fn requests_of(what: &Proposal) -> Vec<DeletionRequest> {
    match what {
        Proposal::Forget { requests, .. } => requests.clone(),
        _ => vec![],
    }
}

fn texts_of(what: &Proposal) -> Vec<String> {
    match what {
        Proposal::Scan { texts } => texts.clone(),
        _ => vec![],
    }
}
