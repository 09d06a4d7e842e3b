//! `POST /add-checkpoint` over plain HTTP; whoever offers it to others puts a proxy with TLS in
//! front. Requests are bounded in length and time, and connections in number.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use lethe_receipt::note::VerifierKey;
use lethe_receipt::witness::{AddCheckpoint, AddError, MAX_REQUEST, Witness};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::state::State;

/// Most connections at once.
const CONNECTIONS: usize = 64;
/// Longest wait for a request's head, and for its body.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(120);
/// What a conflict is answered with.
const SIZE: &str = "text/x.tlog.size";
const TEXT: &str = "text/plain; charset=utf-8";

/// A witness that answers requests.
#[derive(Debug)]
pub struct Service {
    witness: Witness,
    logs: Vec<VerifierKey>,
    /// Held from the check of a head until it is durable.
    state: Mutex<State>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Content type.
    pub kind: &'static str,
    /// The body.
    pub body: String,
}

impl Service {
    /// A witness of these logs.
    pub fn new(witness: Witness, logs: Vec<VerifierKey>, state: State) -> Self {
        Self {
            witness,
            logs,
            state: Mutex::new(state),
        }
    }

    /// Answers the body of an `add-checkpoint` request at a time in seconds since 1970.
    pub fn add(&self, body: &[u8], time: u64) -> Answer {
        let refused = |e: &AddError| Answer {
            status: e.status(),
            kind: TEXT,
            body: format!("{e}\n"),
        };
        let request = match AddCheckpoint::parse(body) {
            Ok(request) => request,
            Err(e) => return refused(&e),
        };
        // A panic under it leaves the state as it was: it is changed by one assignment.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of = String::new();
        let known = |origin: &str| {
            origin.clone_into(&mut of);
            state.seen(origin)
        };
        let (lines, seen) = match self.witness.add(&request, &self.logs, known, time) {
            Ok(signed) => signed,
            Err(AddError::Conflict { size }) => {
                return Answer {
                    status: 409,
                    kind: SIZE,
                    body: format!("{size}\n"),
                };
            }
            Err(e) => {
                if e == AddError::BadProof {
                    tracing::error!(
                        origin = of,
                        "a signed head does not extend the one that was signed before: keep it\n{}",
                        request.checkpoint
                    );
                }
                return refused(&e);
            }
        };
        let size = seen.size;
        if let Err(e) = state.keep(&of, seen) {
            tracing::error!("{e}");
            return Answer {
                status: 500,
                kind: TEXT,
                body: "the witness cannot write its state\n".into(),
            };
        }
        tracing::info!(origin = of, size, "signed");
        Answer {
            status: 200,
            kind: TEXT,
            body: lines,
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

/// Binds an address; port 0 takes a free one.
///
/// # Errors
/// The address cannot be bound.
pub async fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(addr).await
}

/// Answers requests until the future is dropped.
pub async fn serve(listener: TcpListener, service: Arc<Service>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!("{e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = service.clone();
        tokio::spawn(async move {
            let answers = service_fn(move |request| {
                let service = service.clone();
                async move { Ok::<_, Infallible>(answer(request, service).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(16 << 10);
            // Who hangs or speaks nonsense costs itself a connection.
            let served = http.serve_connection(TokioIo::new(stream), answers);
            let _ = tokio::time::timeout(LIFE, served).await;
            drop(permit);
        });
    }
}

async fn answer(request: Request<Incoming>, service: Arc<Service>) -> Response<Full<Bytes>> {
    let said = |status: u16, body: &str| Answer {
        status,
        kind: TEXT,
        body: body.to_owned(),
    };
    let post = *request.method() == Method::POST;
    let answer = match request.uri().path() {
        "/add-checkpoint" if post => {
            let body = Limited::new(request.into_body(), MAX_REQUEST).collect();
            match tokio::time::timeout(PATIENCE, body).await {
                Ok(Ok(body)) => {
                    let bytes = body.to_bytes();
                    // It waits for the disk.
                    let done = tokio::task::spawn_blocking(move || service.add(&bytes, now()));
                    done.await.unwrap_or_else(|_| said(500, "it failed\n"))
                }
                Ok(Err(_)) => said(400, "the body is too long, or was cut off\n"),
                Err(_) => said(408, "the body did not come in time\n"),
            }
        }
        "/add-checkpoint" => said(405, "POST only\n"),
        _ => said(404, "there is /add-checkpoint\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    let status = StatusCode::from_u16(answer.status);
    *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = HeaderValue::from_static(answer.kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
