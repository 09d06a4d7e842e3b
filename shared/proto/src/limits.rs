//! Every size, count and wait that a peer controls, in one place.

use std::time::Duration;

/// Version of the protocol; also in the ALPN.
pub const VERSION: u8 = 7;
/// Minor version: what it adds to the version is left out, or skipped, where a peer has an older
/// one. 1: declined rounds. 2: contributions and snapshots. 3: contributions that are sealed to a
/// tally of its own. 4: updates under masks. 5: epochs that follow one another, versions of the
/// catalogue, how a person stands ([`crate::people`]). 6: proofs that the log holds what is served.
/// 7: which keys the log has had.
pub const MINOR: u16 = 7;
/// Application protocol of the TLS handshake.
pub const ALPN: &[u8] = b"lethe/7";
/// Longest subject or item identifier, in bytes.
pub const MAX_ID: usize = 128;
/// Longest reference that comes with a request, in bytes.
pub const MAX_REFERENCE: usize = 96 << 10;
/// Most texts that one search of the records looks for.
pub const MAX_SCAN_TEXTS: usize = 64;
/// Longest of them, in bytes.
pub const MAX_SCAN_TEXT: usize = 4 << 10;
/// About how many bytes a page of a list has.
pub const PAGE: usize = 1 << 20;
/// Longest message whose body is small (everything but activations, adapters and tables).
pub const MAX_SMALL: usize = 64 << 10;
/// Longest message that carries activations or their gradients.
pub const MAX_ACTIVATIONS: usize = 32 << 20;
/// Longest message that carries adapters.
pub const MAX_ADAPTER: usize = 64 << 20;
/// Most tokens in one forward pass.
pub const MAX_TOKENS: usize = 4096;
/// Most validation rows in one report.
pub const MAX_ROWS: usize = 256;
/// Longest recipe that an operator sends, in bytes.
pub const MAX_RECIPE: usize = 32 << 10;
/// Most shards.
pub const MAX_SHARDS: usize = 256;
/// How long the coordinator may hold a poll before it answers "nothing to do".
pub const MAX_POLL_WAIT: Duration = Duration::from_secs(10);
/// How long a client's part of a round is kept after its connection was lost.
pub const RESUME: Duration = Duration::from_secs(40);
/// Longest wait for a reply before a caller gives up.
pub const RPC_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest life of a connection without a certificate.
pub const ENROL_TIMEOUT: Duration = Duration::from_secs(20);
/// Most connections without a certificate at once.
pub const MAX_UNAUTHENTICATED: usize = 64;
/// Most of them from one address.
pub const MAX_UNAUTHENTICATED_PER_ADDRESS: usize = 32;
/// Longest TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most concurrent streams a peer may open on a connection.
pub const MAX_STREAMS: u32 = 8;
/// Most connections with one certificate.
pub const MAX_CONNECTIONS_PER_PEER: usize = 4;
/// What a connection may send before the coordinator has made room for it, in bytes. A thousand
/// devices send that much at the same moment: it has to fit into the socket's buffer (4 MiB), or
/// packets are lost and sent again much later.
pub const UNASKED: u64 = 4 << 10;
/// Messages up to this length come and go without waiting for room.
pub const SMALL: usize = 8 << 10;
/// Room for larger messages on their way to the coordinator, in bytes: what the socket's buffer
/// holds. A message that is larger takes all of it.
pub const COMING: usize = 4 << 20;
/// Room for updates that have come and are not stored yet.
pub const KEPT: usize = 16 << 20;
/// Room for other messages that have come and are being answered: contributions, errors measured,
/// what operators ask.
pub const ASIDE: usize = 16 << 20;
/// Room for larger messages on their way to devices, each of which has a buffer of its own.
pub const GOING: usize = 16 << 20;
/// Room for those of slow peers, in each direction.
pub const SLOW: usize = 128 << 20;
/// After how long a peer is slow.
pub const LINGER: Duration = Duration::from_millis(200);
/// How long a slow one may wait for room among its like before it is cut off.
pub const CROWDED: Duration = Duration::from_secs(5);
/// Longest wait of a large message for room.
pub const ROOM_WAIT: Duration = Duration::from_secs(60);
/// What a message may send ahead of what was read of it, in bytes.
pub const AHEAD: u64 = 512 << 10;
/// How far a message may be behind an even pace that would end it within [`RPC_TIMEOUT`].
pub const BEHIND: Duration = Duration::from_secs(40);
/// Most handshakes in progress.
pub const MAX_INCOMING: usize = 512;
/// Most of them from one address: the others are for everybody else.
pub const MAX_INCOMING_PER_ADDRESS: usize = MAX_INCOMING / 2;
/// Handshakes that one address may begin at once: all phones behind one, after a restart.
pub const HANDSHAKES: u32 = 1024;
/// And how long until one more.
pub const HANDSHAKE_PERIOD: Duration = Duration::from_millis(20);
/// Longest wait of a handshake for its turn.
pub const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);
/// Most training samples that a person may claim to hold.
pub const MAX_SAMPLES: u32 = 1 << 20;
/// Largest mean training loss of an update, in nats: more is no result of training on two answers.
pub const MAX_LOSS: f32 = 100.0;
