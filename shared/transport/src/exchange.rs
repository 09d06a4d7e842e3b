//! One request and its reply, on one stream of a connection.

use std::sync::Arc;

use lethe_proto::codec::{self, CodecError};
use lethe_proto::ids::Digest;
use lethe_proto::limits::RPC_TIMEOUT;
use lethe_proto::message::{Refusal, Reply, Request};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::TransportError;
use crate::frame::{self, Head, Kinds};
use crate::pace::{Credit, Room};
use crate::server::Handler;

/// A connection, and who is at its other end.
pub(crate) struct Line {
    connection: quinn::Connection,
    peer: Option<Digest>,
    credit: Credit,
}

impl Line {
    pub(crate) fn new(connection: quinn::Connection, peer: Option<Digest>) -> Self {
        Self { connection, peer, credit: Credit::default() }
    }

    /// Reads the rest of a request, and how long it was.
    async fn read(&self, recv: &mut quinn::RecvStream, head: Head) -> Result<(Request, usize), TransportError> {
        let mut awaited = self.credit.grant(&self.connection, head.len);
        let bytes = frame::body(recv, head, |n| awaited.came(n)).await?;
        Ok((codec::decode_request(&bytes)?, bytes.len()))
    }
}

/// Room for all that comes, and for all that goes.
#[derive(Default)]
struct Traffic {
    coming: Room,
    going: Room,
}

/// A handler with the runtime that its work is done on.
#[derive(Clone)]
pub(crate) struct Desk {
    handler: Arc<dyn Handler>,
    runtime: Handle,
    traffic: Arc<Traffic>,
}

impl Desk {
    pub(crate) fn new(handler: Arc<dyn Handler>, runtime: Handle) -> Self {
        Self { handler, runtime, traffic: Arc::default() }
    }

    /// Does something there; `None` if it panicked.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        f: impl FnOnce(&dyn Handler) -> T + Send + 'static,
    ) -> Option<T> {
        let handler = self.handler.clone();
        self.runtime.spawn(async move { f(handler.as_ref()) }).await.ok()
    }

    /// `None` when the program is ending: the peer is to see a lost connection, not a refusal.
    async fn answer(&self, peer: Option<Digest>, request: Request, bytes: usize) -> Option<Reply> {
        let handler = self.handler.clone();
        match self.runtime.spawn(async move { handler.handle(peer, request, bytes).await }).await {
            Ok(reply) => Some(reply),
            Err(e) if e.is_cancelled() => None,
            Err(e) => Some(Reply::Refused { code: Refusal::Internal, message: format!("the request failed: {e}") }),
        }
    }

    /// Reads a request and sends what it is answered with.
    pub(crate) async fn exchange(&self, line: Arc<Line>, (mut send, mut recv): (quinn::SendStream, quinn::RecvStream)) {
        let Some(reply) = self.reply(&line, &mut recv).await else { return };
        let bytes = codec::payload_bytes(&reply);
        let write = async move {
            let frame = encode(&reply);
            // What is being sent is there once.
            drop(reply);
            if let Ok(frame) = frame {
                let _ = send.write_chunk(frame.into()).await;
                let _ = send.finish();
                let _ = send.stopped().await;
            }
        };
        let _ = self.traffic.going.carry(bytes, timeout(RPC_TIMEOUT, write)).await;
    }

    /// `None` where there is nobody to answer.
    async fn reply(&self, line: &Line, recv: &mut quinn::RecvStream) -> Option<Reply> {
        let kinds = if line.peer.is_some() { Kinds::All } else { Kinds::Enrolment };
        let head = match timeout(RPC_TIMEOUT, frame::head(recv, kinds)).await.ok()? {
            Ok(head) => head,
            Err(e) => return refused(e),
        };
        let come = timeout(RPC_TIMEOUT, line.read(recv, head));
        let (came, place) = self.traffic.coming.carry(head.len, come).await?;
        match came.ok()? {
            Ok((request, bytes)) => {
                // An update keeps its room until it is stored. Other requests may wait for each other, and must not do so with what
                // others need.
                let _place = place.filter(|_| matches!(request, Request::Update { .. }));
                self.answer(line.peer, request, bytes).await
            }
            Err(e) => refused(e),
        }
    }
}

/// What is said of bytes that are no request.
fn refused(e: TransportError) -> Option<Reply> {
    let TransportError::Codec(e) = e else { return None };
    let code = match e {
        CodecError::NotEnrolled { .. } => Refusal::Forbidden,
        _ => Refusal::Invalid,
    };
    Some(Reply::Refused { code, message: e.to_string() })
}

fn encode(reply: &Reply) -> Result<Vec<u8>, CodecError> {
    codec::encode_reply(reply).or_else(|e| {
        codec::encode_reply(&Reply::Refused { code: Refusal::Internal, message: format!("the reply is too long: {e}") })
    })
}
