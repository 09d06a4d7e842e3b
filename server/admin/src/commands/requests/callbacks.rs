//! Callbacks: every address of every request is told each status once, over HTTPS; what failed is
//! tried again next time.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use lethe_dsr::SigningKey;
use lethe_dsr::opendsr::{Signed, Status, StatusBody};
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::book::Book;
use super::{Reference, Signing, all};
use crate::desk::Desk;
use crate::output::error;

/// Longest call, in all.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    signing: Signing,
    /// Authorities that the addresses' certificates may come from, PEM, instead of the public ones.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Look again after so many seconds, for ever.
    #[arg(long)]
    every: Option<u64>,
}

fn agent(args: &Args) -> anyhow::Result<Agent> {
    let roots = match &args.ca {
        None => RootCerts::WebPki,
        Some(path) => {
            let text = std::fs::read(path).with_context(|| path.display().to_string())?;
            let mut certs: Vec<Certificate<'static>> = vec![];
            for item in parse_pem(&text) {
                if let PemItem::Certificate(c) = item.with_context(|| path.display().to_string())? {
                    certs.push(c);
                }
            }
            RootCerts::from(certs)
        }
    };
    let tls = TlsConfig::builder().root_certs(roots).build();
    // No redirects: the address is the one that the controller named.
    let config = Agent::config_builder()
        .https_only(true)
        .max_redirects(0)
        .timeout_global(Some(PATIENCE));
    Ok(config.tls_config(tls).build().new_agent())
}

pub(crate) async fn run(
    args: &Args,
    home: &Path,
    desk: &Desk,
    book: &Book,
) -> anyhow::Result<ExitCode> {
    let caller = Arc::new(Caller {
        agent: agent(args)?,
        key: args.signing.key()?,
        domain: args.signing.domain.clone(),
    });
    let Some(seconds) = args.every else {
        return Ok(if tell(&caller, desk, book).await? {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        });
    };
    loop {
        // A connection of its own each time: the coordinator may have been restarted meanwhile.
        let told = match Desk::open(home).await {
            Ok(desk) => tell(&caller, &desk, book).await,
            Err(e) => Err(e),
        };
        if let Err(e) = told {
            error(&format!("{e:#}; looking again in {seconds} s"));
        }
        tokio::time::sleep(Duration::from_secs(seconds.max(1))).await;
    }
}

struct Caller {
    agent: Agent,
    key: SigningKey,
    domain: String,
}

/// Tells who has not been told; whether somebody could not be.
async fn tell(caller: &Arc<Caller>, desk: &Desk, book: &Book) -> anyhow::Result<bool> {
    let mut failed = false;
    let known = book.read()?;
    for (key, found) in all(desk, &known).await? {
        let Some(booked) = known.get(&key) else {
            continue;
        };
        let Some(status) = found.status else {
            failed = true;
            error(&format!(
                "{:#}",
                found.known().err().context("a request without a status")?
            ));
            continue;
        };
        for url in found
            .reference
            .callbacks
            .iter()
            .filter(|u| booked.told.get(*u) != Some(&status))
        {
            let (caller, reference, to) = (caller.clone(), found.reference.clone(), url.clone());
            // On a thread of its own: the connection to the coordinator stays alive meanwhile.
            let called =
                tokio::task::spawn_blocking(move || caller.call(&reference, status, &to)).await?;
            match called {
                Ok(()) => {
                    let _lock = book.lock()?;
                    book.change(|all| {
                        if let Some(b) = all.get_mut(&key) {
                            b.told.insert(url.clone(), status);
                        }
                        Ok(())
                    })?;
                }
                Err(e) => {
                    failed = true;
                    error(&format!(
                        "{}: {url}: {e:#}; it is tried again",
                        found.reference.id
                    ));
                }
            }
        }
    }
    Ok(failed)
}

impl Caller {
    fn call(&self, r: &Reference, status: Status, url: &str) -> anyhow::Result<()> {
        let body = StatusBody::new(&r.id, &r.controller, status, r.due, Some(url))?;
        let signed = Signed::new(&body, &self.domain, &self.key)?;
        let mut request = self.agent.post(url);
        for (name, value) in signed.headers() {
            request = request.header(name, value);
        }
        let status = request.send(signed.body.as_bytes())?.status();
        anyhow::ensure!(status.is_success(), "answered {status}");
        Ok(())
    }
}
