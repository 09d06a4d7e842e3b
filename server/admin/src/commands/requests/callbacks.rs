//! Callbacks: every address of every request is told each status once, over HTTPS; what failed is
//! tried again next time.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use lethe_dsr::opendsr::{Signed, Status, StatusBody};
use lethe_dsr::{SigningKey, callback};
use ureq::Agent;
use ureq::config::Config;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
// The trait may change with a minor version: the compiler says so.
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

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
    /// Call addresses inside of a network, too: private, loopback and link-local ones. A proxy that
    /// the environment names is used then; without this there is none, since what it calls cannot
    /// be checked.
    #[arg(long)]
    allow_private_callbacks: bool,
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
        .timeout_global(Some(PATIENCE))
        .tls_config(tls);
    if args.allow_private_callbacks {
        return Ok(config.build().new_agent());
    }
    // A proxy would look the name up by itself.
    let config = config.proxy(None).build();
    let resolver = PublicOnly(DefaultResolver::default());
    Ok(Agent::with_parts(
        config,
        DefaultConnector::default(),
        resolver,
    ))
}

/// Gives the addresses of a name only if all of them are public: what is connected to is what was
/// checked, whatever the name stands for a moment later.
#[derive(Debug)]
struct PublicOnly(DefaultResolver);

impl Resolver for PublicOnly {
    fn resolve(
        &self,
        uri: &ureq::http::Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.0.resolve(uri, config, timeout)?;
        match found.iter().find(|a| !callback::is_public(a.ip())) {
            None => Ok(found),
            Some(inside) => {
                let why = format!(
                    "its host stands for {}, which is not an address of the public internet; \
                     `--allow-private-callbacks` allows it",
                    inside.ip()
                );
                Err(ureq::Error::Io(std::io::Error::other(why)))
            }
        }
    }
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
        inside: args.allow_private_callbacks,
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
        let told = match Desk::open(home, None).await {
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
    /// Addresses inside of a network are called, too.
    inside: bool,
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
            .filter(|u| book.told(booked, u) != Some(status))
        {
            let (caller, reference, to) = (caller.clone(), found.reference.clone(), url.clone());
            // On a thread of its own: the connection to the coordinator stays alive meanwhile.
            let called =
                tokio::task::spawn_blocking(move || caller.call(&reference, status, &to)).await?;
            match called {
                Ok(()) => {
                    let _lock = book.lock()?;
                    book.tell(&key, url, status)?;
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
        if !self.inside {
            // Also what earlier versions have taken.
            callback::check(url)?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn args(inside: bool) -> Args {
        Args {
            signing: Signing {
                domain: "lethe.example".into(),
                key: PathBuf::new(),
            },
            ca: None,
            allow_private_callbacks: inside,
            every: None,
        }
    }

    #[test]
    fn m7_a_name_that_stands_for_an_address_inside_is_not_called() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = listener.local_addr().expect("bound").port();
        listener.set_nonblocking(true).expect("sets");
        // As a public name would that its owner has pointed inside.
        let url = format!("https://localhost:{port}/");
        let strict = agent(&args(false)).expect("an agent");
        let e = strict.post(&url).send("x").expect_err("is refused");
        assert!(
            e.to_string()
                .contains("not an address of the public internet"),
            "{e}"
        );
        let e = listener.accept().expect_err("nobody has connected");
        assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock);
        // With leave it is tried (and is no TLS).
        let calling = std::thread::spawn(move || {
            let lax = agent(&args(true)).expect("an agent");
            lax.post(&url)
                .send("x")
                .expect_err("speaks no TLS")
                .to_string()
        });
        let begun = std::time::Instant::now();
        while listener.accept().is_err() {
            assert!(begun.elapsed() < PATIENCE, "nobody connects");
            std::thread::sleep(Duration::from_millis(5));
        }
        let e = calling.join().expect("ends");
        assert!(!e.contains("public internet"), "{e}");
    }
}
