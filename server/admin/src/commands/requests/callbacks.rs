//! Callbacks: every address of every request is told each status once, over HTTPS; what failed is tried again next time.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use lethe_dsr::SigningKey;
use lethe_dsr::opendsr::{Signed, Status, StatusBody};
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::{Book, Found, Signing, all};
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
    let config = Agent::config_builder().https_only(true).max_redirects(0).timeout_global(Some(PATIENCE));
    Ok(config.tls_config(tls).build().new_agent())
}

pub(crate) async fn run(args: &Args, desk: &Desk, book: &mut Book) -> anyhow::Result<ExitCode> {
    let (agent, key) = (agent(args)?, args.signing.key()?);
    loop {
        let failed = tell(&agent, &key, &args.signing.domain, desk, book).await?;
        match args.every {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds.max(1))).await,
            None if failed => return Ok(ExitCode::FAILURE),
            None => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// Tells who has not been told; whether somebody could not be.
async fn tell(agent: &Agent, key: &SigningKey, domain: &str, desk: &Desk, book: &mut Book) -> anyhow::Result<bool> {
    let mut failed = false;
    for (id, found) in all(desk, book).await? {
        for url in &found.reference.callbacks {
            let Some(booked) = book.requests.get(&id) else { continue };
            if booked.told.get(url) == Some(&found.status) {
                continue;
            }
            match call(agent, key, domain, &found, url) {
                Ok(()) => {
                    note(book, &id, url, found.status)?;
                }
                Err(e) => {
                    failed = true;
                    error(&format!("{id}: {url}: {e:#}; it is tried again"));
                }
            }
        }
    }
    Ok(failed)
}

fn note(book: &mut Book, id: &str, url: &str, status: Status) -> anyhow::Result<()> {
    if let Some(b) = book.requests.get_mut(id) {
        b.told.insert(url.to_owned(), status);
    }
    book.save()
}

fn call(agent: &Agent, key: &SigningKey, domain: &str, found: &Found, url: &str) -> anyhow::Result<()> {
    let r = &found.reference;
    let body = StatusBody::new(&r.id, &r.controller, found.status, r.due, Some(url))?;
    let signed = Signed::new(&body, domain, key)?;
    let mut request = agent.post(url);
    for (name, value) in signed.headers() {
        request = request.header(name, value);
    }
    let status = request.send(signed.body.as_bytes())?.status();
    anyhow::ensure!(status.is_success(), "answered {status}");
    Ok(())
}
