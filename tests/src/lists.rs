//! Devices without a model, which take part in the sums of the lists only, message by message.

use std::net::SocketAddr;

use lethe_parts::snapshot;
use lethe_parts::tables::Tables;
use lethe_proto::ids::Digest;
use lethe_proto::limits::MINOR;
use lethe_proto::lists::{
    Contributed, LIKED, ListState, SEEN, ServedTables, SharedEvent, SnapshotReply, Watched,
};
use lethe_proto::message::{Reply, Request};
use lethe_proto::tally::{
    ANSWER, CONTRIBUTION, Confided, SealedContribution, SealingTerms, bound_to, padded,
};
use lethe_receipt::note::VerifierKey;
use lethe_receipt::sealing::SealingStatement;
use lethe_seal::envelope::{PublicKey, Sealed, seal_to};
use lethe_tally::Statement;
use lethe_transport::TransportError;
use lethe_transport::client::{Connection, enrol};
use lethe_transport::identity::Invitation;

use crate::tiny::ITEMS;
use crate::world::Operator;

/// A snapshot as a device has it.
pub struct Got {
    /// What the tally signed.
    pub statement: Statement,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The tables.
    pub tables: Tables,
}

/// A device.
pub struct Lister {
    connection: Connection,
    /// Whose.
    pub subject: u32,
}

/// What a person contributes: some liked items, which depend on who it is.
pub fn events(subject: u32, count: u32) -> Vec<SharedEvent> {
    let event = |n: u32| SharedEvent {
        item: format!("i{}", (subject * 7 + n) % ITEMS),
        day: 19_000 + n as i32,
        half_stars: 8,
        flags: SEEN | LIKED,
    };
    (0..count).map(event).collect()
}

/// A contribution in an envelope for the tally.
pub fn seal(terms: &SealingTerms, body: &Contributed) -> Sealed {
    let key = VerifierKey::parse(&terms.key).expect("a key");
    let statement = SealingStatement::open(&terms.note, &key).expect("signed");
    let bound = bound_to(&terms.handle, &terms.ticket);
    let plain = padded(body).expect("is short");
    let key = PublicKey(statement.key);
    seal_to(&key, CONTRIBUTION, &bound, &plain, ANSWER).expect("seals")
}

impl Lister {
    /// Enrols, says hello and joins without samples.
    pub async fn new(addr: SocketAddr, operator: &Operator, subject: u32) -> Self {
        let this = Self::enrolled(addr, operator, subject).await;
        this.join().await;
        this
    }

    /// Enrols and says hello: it takes part in no epoch, and none waits for it.
    pub async fn enrolled(addr: SocketAddr, operator: &Operator, subject: u32) -> Self {
        let text = operator.invite(subject).await;
        let invitation = Invitation::parse(&text).expect("parses");
        let identity = enrol(addr, &invitation).await.expect("enrols");
        let authority = invitation.authority().expect("parses");
        let connection = Connection::open(addr, &authority, Some(&identity)).await;
        let this = Self {
            connection: connection.expect("connects"),
            subject,
        };
        this.hello().await;
        this
    }

    async fn hello(&self) {
        let hello = Request::Hello {
            build: "lister".into(),
            model: Digest::default(),
            minor: MINOR,
        };
        let reply = self.call(&hello).await;
        assert!(matches!(reply, Ok(Reply::Welcome { .. })), "{reply:?}");
    }

    /// Joins again, with what remains.
    pub async fn rejoin(&self) {
        self.join().await;
    }

    async fn join(&self) {
        let join = Request::Join {
            anchor: None,
            samples: 0,
            commitment: Digest::default(),
        };
        let reply = self.call(&join).await;
        assert!(matches!(reply, Ok(Reply::Joined { .. })), "{reply:?}");
    }

    /// One request.
    pub async fn call(&self, request: &Request) -> Result<Reply, TransportError> {
        self.connection.call(request).await
    }

    /// Contributes so many events.
    pub async fn contribute(&self, count: u32) -> Result<(), TransportError> {
        self.contribute_events(events(self.subject, count)).await
    }

    /// Contributes these events.
    pub async fn contribute_events(&self, events: Vec<SharedEvent>) -> Result<(), TransportError> {
        let contributed = Contributed {
            source: [self.subject as u8; 16],
            whole: true,
            events,
        };
        self.call(&Request::Contribute(contributed)).await.map(drop)
    }

    /// What this device contributes.
    pub fn body(&self, events: Vec<SharedEvent>) -> Contributed {
        Contributed {
            source: [self.subject as u8; 16],
            whole: true,
            events,
        }
    }

    /// What the tally needs to open a contribution; none: the coordinator holds the sums itself.
    pub async fn terms(&self) -> Result<Option<SealingTerms>, TransportError> {
        match self.call(&Request::Terms).await? {
            Reply::Terms(terms) => Ok(terms),
            other => panic!("{other:?}"),
        }
    }

    /// Seals a contribution as these terms say, brings it, and opens the answer.
    pub async fn bring(
        &self,
        terms: &SealingTerms,
        body: &Contributed,
    ) -> Result<Confided, TransportError> {
        let sealed = seal(terms, body);
        let request = Request::ContributeSealed(SealedContribution {
            ticket: terms.ticket,
            envelope: sealed.envelope,
        });
        match self.call(&request).await? {
            Reply::Confided(bytes) => {
                let plain = sealed.answer.open(&bytes).expect("for this device");
                Ok(Confided::from_bytes(&plain).expect("an answer"))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Contributes so many events, sealed.
    pub async fn contribute_sealed(&self, count: u32) -> Result<Confided, TransportError> {
        let terms = self.terms().await?.expect("a tally of its own");
        self.bring(&terms, &self.body(events(self.subject, count)))
            .await
    }

    /// Waits for work or news of lists.
    pub async fn watch(&self, lists: ListState) -> Watched {
        match self.call(&Request::Watch { lists }).await {
            Ok(Reply::Watched(watched)) => watched,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a snapshot after `recalled` is served.
    pub async fn served_after(&self, recalled: u64) -> ListState {
        let mut known = ListState::default();
        for _ in 0..1_000 {
            known = self.watch(known).await.lists;
            if known.served.is_some_and(|s| s > recalled) {
                return known;
            }
        }
        panic!("no snapshot is served: {known:?}");
    }

    /// Asks for the snapshot.
    pub async fn reply(&self, have: u64) -> SnapshotReply {
        let items = Digest::default();
        match self.call(&Request::Snapshot { have, items }).await {
            Ok(Reply::Snapshot(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// Fetches the snapshot whole and checks it.
    pub async fn fetch(&self) -> Option<Got> {
        let reply = self.reply(0).await;
        let ServedTables::Whole { note, bytes } = reply.tables else {
            return None;
        };
        let key = VerifierKey::parse(&reply.key).expect("a key");
        let statement = Statement::open(&note, &key).expect("signed");
        assert_eq!(statement.snapshot, snapshot::digest(&bytes));
        assert_eq!(reply.state.served, Some(statement.number));
        assert_eq!(reply.items.len(), ITEMS as usize);
        let tables = snapshot::decode(&bytes).expect("decodes");
        Some(Got {
            statement,
            bytes,
            tables,
        })
    }
}
