//! Answers requests of a coordinator. Everything that a request says is checked here: the
//! coordinator is the other party.
//!
//! One lock orders what must not overlap, `Service::gate`: whoever brings contributions shares it
//! from the moment when tickets are spent until they are stored; whoever leaves has it alone. So
//! no ticket of before somebody left brings them back. Solving holds no lock that either needs.

mod answers;
mod bring;
mod masks;
mod versions;
mod work;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use lethe_proto::catalogue::CatalogueEntry;
use lethe_proto::ids::Digest;
use lethe_proto::tally::{TallyRefusal, TallyReply, TallyRequest, TallyState};
use lethe_store::keys::{Folders, Keys};
use lethe_store::reserve::Reserve;
use lethe_store::sealed::Engine;
use lethe_tally::settings::ListsConfig;
use lethe_tally::{Catalogue, Served, Tally, TallyError, TextVectors};
use lethe_transport::identity::{Authority, Invitation};

use crate::TallydError;
use crate::door::hash_of;
use crate::evidence::Evidence;
use crate::office::{CatalogueRow, DoorRow, Office, lock};
use crate::sealing::Sealing;
use crate::sums::Sums;
use crate::tickets::Tickets;
use versions::Known;
use work::Publishing;

/// Folder of the tally, in the data folder.
const FOLDER: &str = "tally";
/// Statements about handles that may be asked for at once; one more each second. Each is an entry
/// of the log.
const VOUCHES: u64 = 256;
/// Seconds between two attempts to set space aside.
const SET_ASIDE_S: u64 = 60;

/// What a service is opened with.
pub struct Opening<'a> {
    /// Opens databases.
    pub engine: &'a Engine,
    /// Data folder.
    pub folder: &'a Path,
    /// Its keys.
    pub keys: Keys,
    /// Evidence folder.
    pub evidence: &'a Path,
    /// Items of the configured catalogue, in their order: version 1, or what was in force when the
    /// folder was written last.
    pub items: Vec<CatalogueEntry>,
    /// Their text vectors, if there are some.
    pub vectors: Option<TextVectors>,
    /// How lists are made.
    pub lists: ListsConfig,
    /// Whether an auditor is told digests of who counts.
    pub audits: bool,
    /// Space that is set aside for deletions, in bytes.
    pub reserve: u64,
    /// Seconds since 1970.
    pub now: u64,
}

/// A tally that answers a coordinator. To be shared by threads. It has no clock: `now` is always in
/// seconds since 1970.
pub struct Service {
    tally: Tally,
    /// Of the newest version.
    catalogue: RwLock<Arc<Catalogue>>,
    versions: Mutex<Known>,
    lists: ListsConfig,
    audits: bool,
    office: Office,
    gate: RwLock<()>,
    sealing: RwLock<Sealing>,
    tickets: Mutex<Tickets>,
    evidence: Mutex<Evidence>,
    door: Mutex<DoorRow>,
    publishing: Mutex<Publishing>,
    vouches: Mutex<Pace>,
    /// Who was in which sum of masks.
    sums: Mutex<Sums>,
    /// One at a time adds masks up.
    masking: Mutex<()>,
    /// One at a time makes snapshots.
    working: Mutex<()>,
    /// One at a time reads everything.
    reading: Mutex<()>,
    reserve: Reserve,
    /// When space was set aside last, or was to be.
    set_aside: Mutex<u64>,
    _locks: [File; 3],
}

/// How many more of something there may be.
struct Pace {
    left: u64,
    at: u64,
}

/// Why a request is not done.
pub(crate) struct Refused {
    code: TallyRefusal,
    message: String,
}

type Answer = Result<TallyReply, Refused>;

fn refused(code: TallyRefusal, message: impl Into<String>) -> Refused {
    let message = message.into();
    Refused { code, message }
}

fn invalid(message: impl Into<String>) -> Refused {
    refused(TallyRefusal::Invalid, message)
}

fn busy(message: impl Into<String>) -> Refused {
    refused(TallyRefusal::Busy, message)
}

impl From<TallyError> for Refused {
    fn from(why: TallyError) -> Self {
        match &why {
            TallyError::Bounds(_) | TallyError::Refused(_) => invalid(why.to_string()),
            other => failed(other),
        }
    }
}

/// What failed here: the log has it all, and the coordinator hears what it can act on.
fn failed(why: &dyn std::fmt::Display) -> Refused {
    tracing::error!("a request failed: {why}");
    // Paths and causes are nobody's business at the other party.
    refused(
        TallyRefusal::Internal,
        "the tally failed: its operator finds why in its log; ask again",
    )
}

impl From<TallydError> for Refused {
    fn from(why: TallydError) -> Self {
        match why {
            TallydError::Tally(why) => why.into(),
            why @ TallydError::TooManySums { .. } => busy(why.to_string()),
            other => failed(&other),
        }
    }
}

impl From<lethe_store::StoreError> for Refused {
    fn from(why: lethe_store::StoreError) -> Self {
        failed(&why)
    }
}

impl From<lethe_seal::SealError> for Refused {
    fn from(why: lethe_seal::SealError) -> Self {
        failed(&why)
    }
}

/// A panic under one of these locks leaves nothing half-changed that is not read again.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shared<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn alone<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Service({:?})", self.tally)
    }
}

impl Service {
    /// Opens the folders, or founds them.
    ///
    /// # Errors
    /// [`TallydError`]: another process has them, they are damaged, of another format, or of
    /// another catalogue, or the evidence folder is older than the data folder.
    pub fn open(opening: Opening<'_>) -> Result<Self, TallydError> {
        // Before anything is read: keys are written when a folder is opened.
        let locks = [
            lock(opening.folder, "lock")?,
            lock(opening.evidence, "lock-evidence")?,
            lock(opening.keys.folder(), "lock-keys")?,
        ];
        let reserve = Reserve::new(&opening.folder.join("reserve"), opening.reserve);
        let parts = match Parts::open(&opening) {
            Err(e) if e.is_full() && reserve.release() => {
                tracing::warn!("{e}; the space that was set aside is used now: make room");
                Parts::open(&opening)?
            }
            opened => opened?,
        };
        let Parts {
            tally,
            office,
            sealing,
            evidence,
            door,
            sums,
            counting,
            known,
        } = parts;
        let costly = tally.costly_day();
        let service = Self {
            tally,
            audits: opening.audits,
            office,
            gate: RwLock::new(()),
            sealing: RwLock::new(sealing),
            tickets: Mutex::new(Tickets::new(opening.lists.people as usize)),
            catalogue: RwLock::new(Arc::new(known.catalogue())),
            versions: Mutex::new(known),
            lists: opening.lists,
            evidence: Mutex::new(evidence),
            door: Mutex::new(door),
            publishing: Mutex::new(Publishing::after_start(counting, costly)),
            vouches: Mutex::new(Pace {
                left: VOUCHES,
                at: opening.now,
            }),
            sums: Mutex::new(sums),
            masking: Mutex::new(()),
            working: Mutex::new(()),
            reading: Mutex::new(()),
            reserve,
            set_aside: Mutex::new(opening.now),
            _locks: locks,
        };
        service.set_aside_space();
        Ok(service)
    }

    /// Writes all keys under fresh master keys, and destroys those before.
    ///
    /// # Errors
    /// The key source cannot be written: repeat it.
    pub fn rotate_master(&self) -> Result<(), TallydError> {
        self.office.rotate_master()?;
        Ok(self.tally.rotate_master()?)
    }

    /// Answers a request. Whoever calls it sees to it that `Open` comes first in a connection.
    pub fn answer(&self, request: TallyRequest, now: u64) -> TallyReply {
        let answered = match request {
            TallyRequest::Open { items, floor } => self.open_for(&items, floor, now),
            TallyRequest::Tickets { handles } => self.draw_tickets(&handles, now),
            TallyRequest::Bring { sealed } => self.bring(&sealed, now),
            TallyRequest::Leave { handles } => self.leave(&handles, now),
            TallyRequest::LeaveOlder { leavers } => self.leave_older(&leavers, now),
            TallyRequest::TakeDown { items } => self.take_down(&items, now),
            TallyRequest::Held { of } => self.held(&of, now),
            TallyRequest::Work => self.work(now),
            TallyRequest::State => Ok(TallyReply::State(self.state())),
            TallyRequest::Tables { number } => self.tables(number),
            TallyRequest::Status => self.status(now),
            TallyRequest::Refold => self.refold(now),
            TallyRequest::Search { handles } => self.search(&handles),
            TallyRequest::Audited => self.audited(now),
            TallyRequest::AuditedPeople { number, salt, from } => {
                self.audited_people(number, &salt, from, now)
            }
            TallyRequest::Vouch { handles } => self.vouch(&handles, now),
            TallyRequest::Masks(asked) => self.masks(&asked, now),
            TallyRequest::LeaveSums {
                lineage,
                leavers,
                left,
            } => self.forget_sums(lineage, &leavers, left),
            TallyRequest::Catalogue { at, changes, ends } => self.learn_version(at, changes, ends),
        };
        answered.unwrap_or_else(|Refused { code, message }| TallyReply::Refused { code, message })
    }

    /// What is served and recalled.
    pub fn state(&self) -> TallyState {
        self.tally.told_state()
    }

    /// Key that verifies snapshots, and all else that is signed (verifier key text).
    pub fn key(&self) -> String {
        self.tally.verifier().text()
    }

    /// Names the catalogue, as `Open` has to.
    pub fn items(&self) -> Digest {
        self.catalogue().digest()
    }

    /// Rounds of masked updates whose members are kept.
    pub fn summed_rounds(&self) -> usize {
        locked(&self.sums).rounds()
    }

    /// The tally itself, for tests and benches.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The authority that signs certificates.
    ///
    /// # Errors
    /// [`TallydError`]: the folder cannot be read.
    pub fn authority(&self) -> Result<Authority, TallydError> {
        self.office.authority()
    }

    /// Entries of the log of what was signed.
    pub fn log_entries(&self) -> u64 {
        locked(&self.evidence).entries()
    }

    /// Makes an invitation for a coordinator. It is used once; the coordinator of before is let in
    /// no more from then on.
    ///
    /// # Errors
    /// [`TallydError`]: it cannot be stored.
    pub fn invite(&self, now: u64) -> Result<Invitation, TallydError> {
        let secret: [u8; 32] = lethe_seal::random()?;
        let secret = lethe_receipt::hex::hex(&secret);
        let authority = self.authority()?;
        self.at_the_door(|door| {
            door.invite(&secret, now);
            Ok(())
        })?;
        Ok(Invitation::new(secret, &authority).with_log_key(self.key()))
    }

    /// Uses an invitation up. Returns the certificates of the coordinator of before.
    ///
    /// # Errors
    /// [`TallydError::NotInvited`], or it cannot be stored.
    pub fn enrol(
        &self,
        secret: &str,
        certificate: Digest,
        expires: u64,
    ) -> Result<Vec<Digest>, TallydError> {
        // Who guesses learns nothing from how long it takes: what is compared are hashes.
        let known = locked(&self.door)
            .invitations
            .contains_key(&hash_of(secret));
        match known {
            true => self.at_the_door(|door| door.enrol(secret, certificate, expires)),
            false => Err(TallydError::NotInvited),
        }
    }

    /// Exchanges a certificate for another.
    ///
    /// # Errors
    /// [`TallydError::NotKnown`], or it cannot be stored.
    pub fn renew(
        &self,
        current: Digest,
        certificate: Digest,
        expires: u64,
    ) -> Result<(), TallydError> {
        self.at_the_door(|door| door.renew(current, certificate, expires))
    }

    /// Whether a certificate may connect. Its first use ends the one that it replaces.
    pub fn admits(&self, certificate: &Digest) -> bool {
        {
            let door = locked(&self.door);
            match door.certificates.get(certificate) {
                None => return false,
                Some(row) if row.replaces.is_none() => return true,
                Some(_) => {}
            }
        }
        let ended = self.at_the_door(|door| {
            door.used(certificate);
            Ok(())
        });
        if let Err(e) = ended {
            tracing::warn!("a renewed certificate's predecessor stays for now: {e}");
        }
        locked(&self.door).admits(certificate)
    }

    /// Changes who may connect: written first.
    fn at_the_door<T>(
        &self,
        change: impl FnOnce(&mut DoorRow) -> Result<T, TallydError>,
    ) -> Result<T, TallydError> {
        let mut door = locked(&self.door);
        let mut next = door.clone();
        let result = change(&mut next)?;
        if next != *door {
            self.office.keep_door(&next)?;
            *door = next;
        }
        Ok(result)
    }

    /// Makes the next sealing key. The one before opens envelopes for one day more.
    ///
    /// # Errors
    /// [`TallydError`]: it cannot be stored.
    pub fn rotate(&self, now: u64) -> Result<(), TallydError> {
        let mut sealing = alone(&self.sealing);
        sealing.rotate(&self.office, self.tally.signer(), now)?;
        self.enter_all(&sealing)
    }

    fn enter_all(&self, sealing: &Sealing) -> Result<(), TallydError> {
        let mut evidence = locked(&self.evidence);
        let mut notes = sealing.notes();
        notes.try_for_each(|n| evidence.enter(n, &self.office, self.tally.signer()))
    }

    /// Does what time asks for: sealing keys end and are made. Whoever has a clock calls it now and
    /// then; requests do, too.
    ///
    /// # Errors
    /// [`TallydError`]: it cannot be stored; the next call tries again.
    pub fn tend(&self, now: u64) -> Result<(), TallydError> {
        {
            let mut sealing = alone(&self.sealing);
            sealing.expire(&self.office, now)?;
            if sealing.is_due(now) {
                sealing.rotate(&self.office, self.tally.signer(), now)?;
                self.enter_all(&sealing)?;
            }
        }
        let mut tried = locked(&self.set_aside);
        // A disk that is full is not filled again and again.
        if now.abs_diff(*tried) >= SET_ASIDE_S {
            *tried = now;
            self.set_aside_space();
        }
        Ok(())
    }

    fn set_aside_space(&self) {
        if let Err(e) = self.reserve.take() {
            tracing::warn!("no space is set aside for deletions: {e}");
        }
    }

    /// Does something that has to be done on a full disk, too.
    fn with_space<T, E: Into<TallydError>>(
        &self,
        what: impl Fn() -> Result<T, E>,
    ) -> Result<T, TallydError> {
        let done = what().map_err(Into::into);
        match done {
            Err(e) if e.is_full() && self.reserve.release() => {
                tracing::warn!("{e}; the space that was set aside is used now: make room");
                what().map_err(Into::into)
            }
            other => other,
        }
    }

    /// An older data folder may hold a snapshot that was recalled since as one that is served: the
    /// evidence folder then asks for a higher number. Call it after whatever recalls.
    fn keep_recalled(&self) -> Result<(), TallydError> {
        let mut evidence = locked(&self.evidence);
        let lists = self.tally.lists();
        if lists.recalled > 0 && !matches!(lists.served, Served::Snapshot(_)) {
            evidence.raise(lists.recalled + 1)?;
        }
        Ok(())
    }
}

/// What is opened in folders that are locked.
struct Parts {
    tally: Tally,
    office: Office,
    sealing: Sealing,
    evidence: Evidence,
    door: DoorRow,
    sums: Sums,
    counting: usize,
    known: Known,
}

impl Parts {
    fn open(opening: &Opening<'_>) -> Result<Self, TallydError> {
        let now = opening.now;
        let folders = |records: PathBuf, keys: Keys| Folders { records, keys };
        let own = folders(opening.folder.to_owned(), opening.keys.clone());
        let office = Office::open(opening.engine, own)?;
        let mut evidence = Evidence::open(opening.evidence, &office.log()?)?;
        let known = Known::open(opening, &office)?;
        let catalogue = known.catalogue();
        // Versions that were sent follow each other: their digests say so.
        let row = office.catalogue()?.filter(|_| !known.is_taught());
        if let Some(CatalogueRow { items, digest }) = row {
            catalogue.follows(items as usize, digest)?;
        }
        office.keep_catalogue(&CatalogueRow {
            items: catalogue.ids().len() as u64,
            digest: catalogue.digest(),
        })?;
        let tally = Tally::open(
            opening.engine,
            folders(opening.folder.join(FOLDER), opening.keys.within(FOLDER)),
            known.newest_content(),
            opening.lists.options(),
            now,
        )?;
        let signer = tally.signer();
        // A crash may have come between a snapshot and its entry.
        for note in tally.published()? {
            // Those that a restored backup has, the log has since long.
            evidence.enter(&note, &office, signer)?;
        }
        // An older data folder came back: devices have seen these numbers.
        tally.skip_to(evidence.number(), now)?;
        let mut sealing = Sealing::open(&office)?;
        sealing.expire(&office, now)?;
        // Or its newest sealing key is one that was replaced since.
        let newest = evidence.newest_sealing(signer.verifier());
        // One that the log lacks was made just before a crash.
        let own = sealing.note().filter(|own| evidence.holds(own));
        let is_old = own.is_some() && newest.as_deref() != own;
        if is_old || sealing.is_due(now) {
            sealing.rotate(&office, signer, now)?;
        }
        for note in sealing.notes() {
            evidence.enter(note, &office, signer)?;
        }
        evidence.publish(signer);
        let counting = tally.status(now)?.counting;
        if let Some(gives_away) = opening.lists.options().cells.gives_away() {
            tracing::warn!("{gives_away}");
        }
        Ok(Self {
            door: office.door()?,
            sums: Sums::open(&office)?,
            tally,
            office,
            sealing,
            evidence,
            counting,
            known,
        })
    }
}
