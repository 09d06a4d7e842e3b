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
    /// What stands for an invitation on a command line is neither its text nor a file.
    #[error(
        "{given:?} is no invitation (its text begins with lethe1:), and no file that can be read: \
         {source}"
    )]
    InvitationFile {
        /// What was given.
        given: String,
        /// Why the file cannot be read.
        source: std::io::Error,
    },
    /// The socket cannot be opened.
    #[error("cannot listen on {addr}: {source}; choose another address or stop what uses it")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The coordinator cannot be reached, or it refused the handshake.
    #[error("no connection to {place}: {why}")]
    Connect {
        /// Host and port, with the address that was tried where the host is a name.
        place: String,
        /// What happened.
        why: String,
    },
    /// What stands for a place on a command line or in a file is none.
    #[error(
        "{given:?}: {why}; expected HOST:PORT, such as recommend.example.org:4433, \
         203.0.113.7:4433 or [2001:db8::1]:4433"
    )]
    Place {
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The name of a host has no address.
    #[error("the host {host} is not found: {why}. Check the name, and this machine's name service")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        why: String,
    },
    /// The coordinator's certificate is not valid by this machine's clock.
    #[error(
        "this machine's clock says {now} (UTC), and by it the certificate of {addr} is not valid: \
         {why}. Set the clock; if it is right, the coordinator's is wrong"
    )]
    Clock {
        /// The address.
        addr: SocketAddr,
        /// What this machine's clock says.
        now: String,
        /// What was found.
        why: String,
    },
    /// The coordinator does not accept this machine's certificate at this time.
    #[error("{}", expired(*from, *until, *now))]
    Expired {
        /// First second of the certificate, since 1970.
        from: i64,
        /// Last second of it.
        until: i64,
        /// What this machine's clock says.
        now: i64,
    },
    /// The coordinator does not know this machine's certificate, or it was withdrawn.
    #[error(
        "the coordinator does not know this certificate, or it was withdrawn: a fresh invitation \
         (`lethe-admin invite`) is needed"
    )]
    Withdrawn,
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
            Self::Resolve { .. } => true,
            // Nothing is wrong with what is here: the local functions work.
            Self::Clock { .. } | Self::Expired { .. } => true,
            Self::Refused { code, .. } => matches!(code, Refusal::Busy),
            _ => false,
        }
    }
}

/// Seconds since 1970 as a time for people, UTC.
pub fn utc(seconds: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(seconds).map_or("?".into(), |t| {
        format!(
            "{:04}-{:02}-{:02} {:02}:{:02}",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute()
        )
    })
}

fn expired(from: i64, until: i64, now: i64) -> String {
    let life = format!("it is valid from {} until {} (UTC)", utc(from), utc(until));
    if now > until {
        return format!(
            "this certificate has expired: {life}. A device needs a fresh invitation \
             (`lethe-admin invite`); an operator asks another one, or the server's machine \
             (`lethe-server recover-admin`)"
        );
    }
    format!(
        "the coordinator says that this certificate is not valid now: {life}, and this machine's \
         clock says {}. One of the two clocks is wrong",
        utc(now)
    )
}
