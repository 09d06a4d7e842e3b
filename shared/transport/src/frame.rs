//! Frames on a stream: the header is checked against its type's limit before the body is read.

use lethe_proto::codec::{CodecError, ENROL, HEADER, decode_header};
use quinn::RecvStream;
use tokio::time::timeout_at;

use crate::TransportError;
use crate::pace::Pace;

/// What a peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kinds {
    /// Any message.
    All,
    /// Only a request to enrol: the peer has no certificate yet.
    Enrolment,
}

/// Bytes of a body before which a claimed length costs nothing; all of it has a place from then on.
const EARNEST: usize = 4 << 10;

/// A header, and its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    bytes: [u8; HEADER],
    /// Type.
    pub(crate) kind: u16,
    /// Length of the body.
    pub(crate) len: usize,
}

fn lost(e: &dyn std::fmt::Display) -> TransportError {
    TransportError::Lost(e.to_string())
}

/// Reads a frame's header.
pub(crate) async fn head(stream: &mut RecvStream, kinds: Kinds) -> Result<Head, TransportError> {
    let mut bytes = [0; HEADER];
    stream.read_exact(&mut bytes).await.map_err(|e| lost(&e))?;
    let header = decode_header(&bytes)?;
    if kinds == Kinds::Enrolment && header.kind != ENROL {
        return Err(CodecError::NotEnrolled { got: header.kind }.into());
    }
    Ok(Head {
        bytes,
        kind: header.kind,
        len: header.len,
    })
}

/// Reads the body after a header: the whole frame, at an even pace or not at all. `came` hears of
/// the length of every piece.
pub(crate) async fn body(
    stream: &mut RecvStream,
    head: Head,
    mut came: impl FnMut(usize),
) -> Result<Vec<u8>, TransportError> {
    let mut bytes = head.bytes.to_vec();
    let (pace, mut left) = (Pace::new(head.len), head.len);
    while left > 0 {
        let chunk = timeout_at(pace.due(head.len - left), stream.read_chunk(left, true)).await;
        let chunk = chunk
            .map_err(|_| lost(&"the message comes too slowly"))?
            .map_err(|e| lost(&e))?;
        let chunk = chunk
            .ok_or_else(|| TransportError::Lost("the stream ended inside a message".into()))?;
        left -= chunk.bytes.len();
        came(chunk.bytes.len());
        bytes.extend_from_slice(&chunk.bytes);
        if bytes.len() > EARNEST {
            // Once, and without what doubling would waste.
            bytes.reserve_exact(left);
        }
    }
    Ok(bytes)
}

/// Reads one frame.
pub(crate) async fn read(stream: &mut RecvStream, kinds: Kinds) -> Result<Vec<u8>, TransportError> {
    let head = head(stream, kinds).await?;
    body(stream, head, |_| {}).await
}
