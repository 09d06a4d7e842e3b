//! Cosignatures: each new head of the log is shown to the witnesses of a policy file (C2SP
//! tlog-policy, tlog-witness), and what they sign is published and goes into receipts.
//!
//! A thread of its own asks, every few seconds. Nothing waits for it: no lock is held while it
//! waits for an answer, each witness has a few seconds, and an answer a bound.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use lethe_receipt::merkle::Hash;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::policy::{MAX_POLICY, Policy};
use lethe_receipt::receipt::Cosigned;
use lethe_receipt::witness::{AddCheckpoint, add_cosignatures};
use ureq::Agent;

use crate::CoordinatorError;
use crate::config::LogConfig;
use crate::shell::Shell;

/// Longest wait for a witness, in all.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes: signatures of several keys, with ML-DSA-44.
const MOST: u64 = 64 << 10;
/// A head that some witness has not signed is shown to it again after so many rounds.
const AGAIN: u64 = 12;

/// A head that is to be signed.
#[derive(Clone, Debug)]
pub(crate) struct Unsigned {
    /// Entries.
    pub(crate) size: u64,
    /// The checkpoint, with the log's signature alone.
    pub(crate) checkpoint: String,
}

/// A witness that is asked.
struct Asked {
    name: String,
    url: String,
    key: VerifierKey,
}

/// Whoever asks the witnesses.
pub(crate) struct Witnesses {
    all: Vec<Asked>,
    agent: Agent,
    every: Duration,
    /// Size of the head that each has signed last, as far as is known, by name.
    sizes: Mutex<BTreeMap<String, u64>>,
    ended: Mutex<bool>,
    changed: Condvar,
}

fn wrong(config: &LogConfig, why: String) -> CoordinatorError {
    let path = config.policy.clone().unwrap_or_default();
    CoordinatorError::Policy { path, why }
}

/// The policy of the configuration, checked against the log's keys, the last of which signs now;
/// none: there is none. One that names an earlier key only is used all the same: witnesses and keys
/// change at different times.
///
/// # Errors
/// [`CoordinatorError::Policy`].
pub(crate) fn policy(
    config: &LogConfig,
    keys: &[VerifierKey],
) -> Result<Option<Policy>, CoordinatorError> {
    let Some(path) = &config.policy else {
        return Ok(None);
    };
    let bytes = std::fs::read(path).map_err(|e| wrong(config, e.to_string()))?;
    if bytes.len() > MAX_POLICY {
        return Err(wrong(config, format!("more than {MAX_POLICY} bytes")));
    }
    let policy = Policy::parse(&bytes).map_err(|e| wrong(config, e.to_string()))?;
    let Some(now) = keys.last().map(VerifierKey::text) else {
        return Ok(Some(policy));
    };
    let named = |key: &VerifierKey| policy.logs.iter().any(|l| l.key == *key);
    if policy.logs.is_empty() || keys.last().is_some_and(named) {
        return Ok(Some(policy));
    }
    if !keys.iter().any(named) {
        let why = format!("it names logs, and this one is not among them: add `log {now}`");
        return Err(wrong(config, why));
    }
    let path = config.policy.clone().unwrap_or_default();
    let path = path.display();
    tracing::warn!("{path} names an earlier key of this log: add `log {now}`");
    Ok(Some(policy))
}

impl Witnesses {
    /// Those of a policy that have an address.
    ///
    /// # Errors
    /// [`CoordinatorError::Policy`]: an address is none.
    pub(crate) fn new(config: &LogConfig, policy: &Policy) -> Result<Self, CoordinatorError> {
        let mut all = vec![];
        for witness in &policy.witnesses {
            let name = String::from_utf8_lossy(&witness.name).into_owned();
            let Some(url) = &witness.url else {
                tracing::warn!(
                    name,
                    "this witness has no address in the policy: nobody asks it"
                );
                continue;
            };
            if !url.starts_with("https://") && !url.starts_with("http://") {
                let why =
                    format!("{url}: expected an address that begins with https:// or http://");
                return Err(wrong(config, why));
            }
            all.push(Asked {
                url: format!("{}/add-checkpoint", url.trim_end_matches('/')),
                key: witness.key.clone(),
                name,
            });
        }
        // No redirects: the address is the one that the operator named.
        let agent = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        Ok(Self {
            all,
            agent,
            every: Duration::from_secs(config.cosign_s.max(1)),
            sizes: Mutex::default(),
            ended: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    /// The thread ends.
    pub(crate) fn end(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Asks until the coordinator ends.
    pub(crate) fn look_after(self: &Arc<Self>, shell: &Shell) {
        let mut round = 0u64;
        while self.waits() {
            round += 1;
            let head = shell
                .evidence()
                .to_cosign(self.all.len(), round.is_multiple_of(AGAIN));
            let Some(head) = head else {
                continue;
            };
            let signed = self.ask(&head, &|old| shell.evidence().extends(old, head.size));
            if let Some(signed) = signed
                && let Err(e) = shell.evidence().take_cosigned(signed)
            {
                shell.complain("keep what witnesses have signed", &e);
            }
        }
    }

    fn waits(&self) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(ended, self.every, |e| !*e);
        let ended = waited.unwrap_or_else(PoisonError::into_inner).0;
        !*ended
    }

    /// Shows a head to all witnesses at once; `extends` proves that it extends one of an older
    /// size. None: nobody has signed.
    pub(crate) fn ask(
        &self,
        head: &Unsigned,
        extends: &(dyn Fn(u64) -> Option<Vec<Hash>> + Sync),
    ) -> Option<Cosigned> {
        let answers: Vec<Option<String>> = std::thread::scope(|scope| {
            let ask = |w| scope.spawn(move || self.ask_one(w, head, extends));
            let all: Vec<_> = self.all.iter().map(ask).collect();
            let joined = all.into_iter().map(|t| t.join().unwrap_or_default());
            joined.collect()
        });
        let mut checkpoint = head.checkpoint.clone();
        let mut keys = vec![];
        for (witness, answer) in self.all.iter().zip(answers) {
            let Some(answer) = answer else {
                continue;
            };
            match add_cosignatures(&checkpoint, &answer, &[&witness.key]) {
                Ok((signed, by)) if !by.is_empty() => {
                    checkpoint = signed;
                    keys.push(witness.key.text());
                }
                Ok(_) => tracing::warn!(
                    name = witness.name,
                    "this witness has answered without a signature of its key"
                ),
                Err(e) => tracing::warn!(name = witness.name, "this witness's answer: {e}"),
            }
        }
        (!keys.is_empty()).then_some(Cosigned {
            size: head.size,
            checkpoint,
            witnesses: keys,
        })
    }

    fn ask_one(
        &self,
        witness: &Asked,
        head: &Unsigned,
        extends: &(dyn Fn(u64) -> Option<Vec<Hash>> + Sync),
    ) -> Option<String> {
        let name = &witness.name;
        // The second time with the size that it named.
        for _ in 0..2 {
            let old = self.size_of(name);
            let Some(consistency) = extends(old) else {
                tracing::error!(
                    name,
                    "this witness has signed a head of {old} entries, and the log has {}: it was \
                     put back",
                    head.size
                );
                return None;
            };
            let request = AddCheckpoint {
                old,
                consistency,
                checkpoint: head.checkpoint.clone(),
            };
            let posted = self.post(witness, &request);
            match posted {
                Ok((200, lines)) => {
                    self.set_size(name, head.size);
                    return Some(lines);
                }
                Ok((409, body)) => {
                    let size = body.strip_suffix('\n').and_then(|s| s.parse().ok());
                    match size {
                        Some(size) if size != old => self.set_size(name, size),
                        _ => {
                            tracing::error!(
                                name,
                                "this witness has signed another head of {old} entries: the log \
                                 was rewritten, or somebody else signs with its key"
                            );
                            return None;
                        }
                    }
                }
                Ok((status, body)) => {
                    let said: String = body.chars().take(200).collect();
                    tracing::warn!(name, status, "this witness does not sign: {said:?}");
                    return None;
                }
                Err(e) => {
                    tracing::warn!(name, "this witness does not answer: {e}");
                    return None;
                }
            }
        }
        None
    }

    fn post(&self, witness: &Asked, request: &AddCheckpoint) -> Result<(u16, String), ureq::Error> {
        let mut answer = self.agent.post(&witness.url).send(request.text())?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(MOST);
        Ok((status, body.read_to_string()?))
    }

    fn size_of(&self, name: &str) -> u64 {
        let sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        sizes.get(name).copied().unwrap_or(0)
    }

    fn set_size(&self, name: &str, size: u64) {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        sizes.insert(name.to_owned(), size);
    }
}

#[cfg(test)]
mod tests;
