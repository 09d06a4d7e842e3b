//! One request and its reply, on one stream of a connection.

use std::sync::Arc;

use lethe_proto::codec::{self, ADMIN, BACKWARD, CodecError, FORWARD, TALLY, UPDATE};
use lethe_proto::ids::Digest;
use lethe_proto::limits::{BEHIND, RPC_TIMEOUT, SMALL};
use lethe_proto::message::{Refusal, Reply, Request};
use tokio::runtime::Handle;
use tokio::time::{timeout, timeout_at};

use crate::TransportError;
use crate::frame::{self, Head, Kinds};
use crate::pace::{Credit, Crowded, Pace, Room, Turn, Turns, turn};
use crate::server::Handler;

/// A connection, and who is at its other end.
pub(crate) struct Line {
    connection: quinn::Connection,
    peer: Option<Digest>,
    turn: Arc<Turn>,
    credit: Credit,
}

impl Line {
    /// Reads the rest of a request, and how long it was.
    async fn read(
        &self,
        recv: &mut quinn::RecvStream,
        head: Head,
    ) -> Result<(Request, usize), TransportError> {
        let mut awaited = self.credit.grant(&self.connection, head.len);
        let bytes = frame::body(recv, head, |n| awaited.came(n)).await?;
        Ok((codec::decode_request(&bytes)?, bytes.len()))
    }
}

/// Room for all that comes, and for all that goes.
struct Traffic {
    coming: Room,
    going: Room,
    turns: Turns,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            coming: Room::coming(),
            going: Room::going(),
            turns: Turns::default(),
        }
    }
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
        Self {
            handler,
            runtime,
            traffic: Arc::default(),
        }
    }

    /// A connection of a peer.
    pub(crate) fn line(&self, connection: quinn::Connection, peer: Option<Digest>) -> Line {
        Line {
            connection,
            peer,
            turn: self.traffic.turns.of(peer.as_ref()),
            credit: Credit::default(),
        }
    }

    /// Does something there; `None` if it panicked.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        f: impl FnOnce(&dyn Handler) -> T + Send + 'static,
    ) -> Option<T> {
        let handler = self.handler.clone();
        self.runtime
            .spawn(async move { f(handler.as_ref()) })
            .await
            .ok()
    }

    /// `None` when the program is ending: the peer is to see a lost connection, not a refusal.
    async fn answer(&self, peer: Option<Digest>, request: Request, bytes: usize) -> Option<Reply> {
        let handler = self.handler.clone();
        match self
            .runtime
            .spawn(async move { handler.handle(peer, request, bytes).await })
            .await
        {
            Ok(reply) => Some(reply),
            Err(e) if e.is_cancelled() => None,
            Err(e) => Some(Reply::Refused {
                code: Refusal::Internal,
                message: format!("the request failed: {e}"),
            }),
        }
    }

    /// Reads a request and sends what it is answered with.
    pub(crate) async fn exchange(
        &self,
        line: Arc<Line>,
        send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) {
        let Some(reply) = self.reply(&line, &mut recv).await else {
            return;
        };
        // A peer that has no room for its answer is not told so: there is none for that either.
        let _ = self.send(&line, send, reply).await;
    }

    async fn send(
        &self,
        line: &Line,
        mut send: quinn::SendStream,
        reply: Reply,
    ) -> Result<(), Crowded> {
        let bytes = codec::payload_bytes(&reply);
        let _turn = turn(&line.turn.going, bytes).await?;
        let place = self.traffic.going.enter(bytes).await?;
        let write = async move {
            let frame = encode(&reply).ok()?;
            // What is being sent is there once.
            drop(reply);
            let (pace, mut sent) = (Pace::new(frame.len()), 0);
            while sent < frame.len() {
                sent += timeout_at(pace.due(sent), send.write(&frame[sent..]))
                    .await
                    .ok()?
                    .ok()?;
            }
            send.finish().ok()?;
            timeout(BEHIND, send.stopped()).await.ok()?.ok()
        };
        self.traffic.going.carry(place, write).await.map(drop)
    }

    /// `None` where there is nobody to answer.
    async fn reply(&self, line: &Line, recv: &mut quinn::RecvStream) -> Option<Reply> {
        let kinds = if line.peer.is_some() {
            Kinds::All
        } else {
            Kinds::Enrolment
        };
        let head = match timeout(RPC_TIMEOUT, frame::head(recv, kinds)).await.ok()? {
            Ok(head) => head,
            Err(e) => return refused(e),
        };
        let allowed = self.handler.longest(head.kind);
        if head.len > allowed {
            return refused(
                CodecError::TooLong {
                    kind: head.kind,
                    got: head.len,
                    allowed,
                }
                .into(),
            );
        }
        // Until it is answered, if it is none of those below.
        let mut asked = None;
        let enter = async {
            if !matches!(head.kind, FORWARD | BACKWARD | UPDATE | TALLY | ADMIN) {
                asked = turn(&line.turn.asked, head.len).await?;
            }
            let turn = turn(&line.turn.coming, head.len).await?;
            Ok((turn, self.traffic.coming.enter(head.len).await?))
        };
        let entered = tokio::select! {
            entered = enter => entered,
            // The peer does not wait any longer.
            _ = recv.received_reset(), if head.len > SMALL => return None,
        };
        let (turn, place) = match entered {
            Ok(entered) => entered,
            Err(Crowded) => return Some(busy()),
        };
        match self
            .traffic
            .coming
            .carry(place, line.read(recv, head))
            .await
        {
            Ok((Ok((request, bytes)), place)) => {
                // What has come makes way for the next, and has other room until it is answered.
                // Passes wait for each other, and those who answer bound how many of them wait; so
                // does a coordinator that asks its tally.
                let _held = match request {
                    Request::Forward { .. } | Request::Backward { .. } | Request::Tally(_) => {
                        drop(place);
                        None
                    }
                    Request::Update { .. } => match self.traffic.coming.keep(place).await {
                        Ok(kept) => Some(kept),
                        Err(Crowded) => return Some(busy()),
                    },
                    _ => match self.traffic.coming.set_aside(place) {
                        Ok(aside) => Some(aside),
                        Err(Crowded) => return Some(busy()),
                    },
                };
                drop(turn);
                self.answer(line.peer, request, bytes).await
            }
            Ok((Err(e), _)) => refused(e),
            Err(Crowded) => Some(busy()),
        }
    }
}

fn busy() -> Reply {
    let message = "too much is on its way from slow connections: try again in a minute".to_owned();
    Reply::Refused {
        code: Refusal::Busy,
        message,
    }
}

/// What is said of bytes that are no request.
fn refused(e: TransportError) -> Option<Reply> {
    let TransportError::Codec(e) = e else {
        return None;
    };
    let code = match e {
        CodecError::NotEnrolled { .. } => Refusal::Forbidden,
        _ => Refusal::Invalid,
    };
    Some(Reply::Refused {
        code,
        message: e.to_string(),
    })
}

fn encode(reply: &Reply) -> Result<Vec<u8>, CodecError> {
    codec::encode_reply(reply).or_else(|e| {
        codec::encode_reply(&Reply::Refused {
            code: Refusal::Internal,
            message: format!("the reply is too long: {e}"),
        })
    })
}
