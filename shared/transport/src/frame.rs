//! Frames on a stream: the header is checked against its type's limit before the body is read.

use lethe_proto::codec::{CodecError, ENROL, HEADER, decode_header};
use quinn::RecvStream;

use crate::TransportError;

/// What a peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kinds {
    /// Any message.
    All,
    /// Only a request to enrol: the peer has no certificate yet.
    Enrolment,
}

/// Reads one frame and the end of the stream.
pub(crate) async fn read(stream: &mut RecvStream, kinds: Kinds) -> Result<Vec<u8>, TransportError> {
    let lost = |e: &dyn std::fmt::Display| TransportError::Lost(e.to_string());
    let mut head = [0; HEADER];
    stream.read_exact(&mut head).await.map_err(|e| lost(&e))?;
    let header = decode_header(&head)?;
    if kinds == Kinds::Enrolment && header.kind != ENROL {
        return Err(CodecError::NotEnrolled { got: header.kind }.into());
    }
    let mut bytes = head.to_vec();
    // Grows as bytes arrive, so a peer that only claims a length costs nothing.
    let mut left = header.len;
    while left > 0 {
        let chunk = stream.read_chunk(left, true).await.map_err(|e| lost(&e))?;
        let chunk = chunk.ok_or_else(|| TransportError::Lost("the stream ended inside a message".into()))?;
        left -= chunk.bytes.len();
        bytes.extend_from_slice(&chunk.bytes);
    }
    Ok(bytes)
}
