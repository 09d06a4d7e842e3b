use std::net::SocketAddr;

use lethe_proto::codec::CodecError;
use lethe_proto::message::Refusal;
use thiserror::Error;

/// Why a connection or a call failed.
#[derive(Debug, Error)]
pub enum TransportError {
    /// A key or certificate cannot be made or read.
    #[error("certificate: {0}")]
    Certificate(String),
    /// The invitation does not parse.
    #[error(
        "the invitation does not parse: it must be the whole text printed by `lethe-admin \
         invite`, beginning with lethe1:"
    )]
    Invitation,
    /// The socket cannot be opened.
    #[error("cannot listen on {addr}: {source}; choose another address or stop what uses it")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The coordinator cannot be reached, or it refused the handshake.
    #[error("no connection to {addr}: {why}")]
    Connect {
        /// The address.
        addr: SocketAddr,
        /// What happened.
        why: String,
    },
    /// The connection was lost during a call.
    #[error("connection lost: {0}")]
    Lost(String),
    /// No answer in time.
    #[error("no answer within {seconds} s")]
    Timeout {
        /// The bound.
        seconds: u64,
    },
    /// The peer sent something that is not a message.
    #[error("the peer sent no valid message: {0}")]
    Codec(#[from] CodecError),
    /// The coordinator refused the request.
    #[error("refused ({code:?}): {message}")]
    Refused {
        /// Code.
        code: Refusal,
        /// Expected, got, what to do.
        message: String,
    },
    /// The coordinator answered with another kind of reply.
    #[error(
        "the coordinator answered a {asked} request with another kind of reply: versions differ"
    )]
    UnexpectedReply {
        /// The request.
        asked: &'static str,
    },
}

impl TransportError {
    /// Whether trying again on a new connection may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Lost(_) | Self::Timeout { .. } => true,
            Self::Refused { code, .. } => matches!(code, Refusal::Busy),
            _ => false,
        }
    }
}
