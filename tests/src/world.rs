//! A small federation over real QUIC on loopback: coordinator, clients, an operator.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lethe_client::{Catalogue, Client, ClientModel, ModelOptions, Options};
use lethe_coordinator::config::ServerConfig;
use lethe_coordinator::lists::{CellsConfig, NoiseConfig, Per, Sums};
use lethe_coordinator::{Coordinator, CoordinatorError};
use lethe_proto::admin::{
    AdminReply, AdminRequest, CoordinatorStatus, DeletionPhase, DeletionState, ListsStatus,
    ReplayState, SubjectLineage,
};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::{ShardId, SubjectId};
use lethe_proto::message::{Reply, Request};
use lethe_transport::client::{Connection, enrol};
use lethe_transport::identity::Invitation;
use tokio::task::JoinHandle;

use crate::tiny;

/// Longest time that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Recipe of the tiny federation; `extra` replaces keys.
pub fn recipe(extra: &str) -> toml::Table {
    let mut table: toml::Table =
        "shards = 2\nanchors = 1\nslices = 2\nrounds = 2\ncohort = 3\ndeadline_s = 60\n\
         server_lr = 0.01\nsplit = { k_in = 1, k_out = 1 }\nlocal = { samples = 2, batch = 2 }\n"
            .parse()
            .expect("valid");
    table.extend(extra.parse::<toml::Table>().expect("valid"));
    table
}

/// Files of a federation, and who is in it.
pub struct World {
    /// Removed at the end.
    pub dir: tempfile::TempDir,
    /// Subjects `0..subjects`.
    pub subjects: u32,
    model: Arc<ClientModel>,
    catalogue: Arc<Catalogue>,
}

impl World {
    /// Writes the model and the catalogue.
    pub fn new(subjects: u32) -> Self {
        Self::with_recipe(subjects, "")
    }

    /// For a recipe that decides how clients load the model.
    pub fn with_recipe(subjects: u32, extra: &str) -> Self {
        let recipe = lethe_recipe::Recipe::from_toml(&recipe(extra).to_string()).expect("valid");
        let dir = tempfile::tempdir().expect("tempdir");
        tiny::write_model(&dir.path().join("model")).expect("writes");
        tiny::write_catalogue(&dir.path().join("data")).expect("writes");
        let (model, data) = (dir.path().join("model"), dir.path().join("data"));
        let options = ModelOptions {
            split: recipe.split,
            compute: recipe.compute,
        };
        Self {
            model: ClientModel::load(&model, options).expect("loads"),
            catalogue: Catalogue::load(&data).expect("loads"),
            dir,
            subjects,
        }
    }

    /// Configuration of a coordinator in this world.
    pub fn config(&self, extra: &str) -> ServerConfig {
        let mut config = ServerConfig::parse(&format!(
            "listen = \"127.0.0.1:0\"\ndata_dir = {:?}\nmodel = {:?}\ncatalogue = \
             {:?}\nmin_subjects = {}\n\
             reserve_mib = 0\nquarantine_hours = 0\naccept_recoverable_keys = true\n",
            self.dir.path().join("server"),
            self.dir.path().join("model"),
            self.dir.path().join("data"),
            self.subjects
        ))
        .expect("valid");
        config.recipe = recipe(extra);
        config
    }

    /// The same with lists, of people who come and go in pairs.
    pub fn config_with_lists(&self, extra: &str) -> ServerConfig {
        let mut config = self.config(extra);
        config.sums = Sums::Embedded;
        config.lists.cell = 2;
        config.lists.changed = 2;
        config.lists.publish_s = 0;
        config.lists.refresh_s = 0;
        config
    }

    /// The same, and everybody counts at once, by themselves.
    pub fn config_without_cells(&self) -> ServerConfig {
        let mut config = self.config_with_lists("");
        config.lists.cells = CellsConfig::Off;
        config
    }

    /// The same as [`Self::config_with_lists`] with noise on the sums: so much epsilon a snapshot.
    pub fn config_with_noise(&self, epsilon: f64) -> ServerConfig {
        let mut config = self.config_with_lists("");
        config.lists.noise = Some(noise(epsilon));
        config
    }

    /// Starts a coordinator in this process.
    pub async fn start(&self, extra: &str) -> (Coordinator, SocketAddr) {
        self.start_with(self.config(extra)).await
    }

    /// Starts a coordinator with this configuration.
    pub async fn start_with(&self, config: ServerConfig) -> (Coordinator, SocketAddr) {
        let data_dir = config.data_dir.clone();
        let started = Instant::now();
        let coordinator = loop {
            match Coordinator::open(config.clone()) {
                // The last one's polls may wait for work yet; its folders are free when they end.
                Err(CoordinatorError::InUse { .. }) if started.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                opened => break opened.expect("opens"),
            }
        };
        if let Some(i) = coordinator.first_admin().expect("invites") {
            std::fs::write(data_dir.join("admin-invitation"), i.text()).expect("writes");
        }
        let addr = coordinator.listen().expect("listens");
        (coordinator, addr)
    }

    /// The operator, enrolled with the coordinator's first invitation.
    pub async fn operator(&self, addr: SocketAddr) -> Operator {
        self.operator_at(&self.dir.path().join("server"), addr)
            .await
    }

    /// The operator of a coordinator with another data folder.
    pub async fn operator_at(&self, data_dir: &Path, addr: SocketAddr) -> Operator {
        let text = std::fs::read_to_string(data_dir.join("admin-invitation")).expect("invitation");
        let invitation = Invitation::parse(&text).expect("parses");
        let identity = enrol(addr, &invitation).await.expect("enrols");
        let authority = invitation.authority().expect("parses");
        Operator {
            connection: Connection::open(addr, &authority, Some(&identity))
                .await
                .expect("connects"),
            authority,
            identity,
        }
    }

    /// Starts a coordinator process of the program `binary`; what it writes to standard error goes
    /// to `log`.
    pub fn spawn(
        &self,
        binary: &Path,
        config: &ServerConfig,
        log: &Path,
    ) -> (std::process::Child, SocketAddr) {
        let path = self.dir.path().join("server.toml");
        std::fs::write(&path, toml::to_string(config).expect("serialises")).expect("writes");
        let address = config.data_dir.join("address");
        let _ = std::fs::remove_file(&address);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("opens");
        let mut command = std::process::Command::new(binary);
        let child = command
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("starts");
        let (started, mut addr) = (Instant::now(), None);
        while addr.is_none() && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
            addr = std::fs::read_to_string(&address)
                .ok()
                .and_then(|t| t.parse().ok());
        }
        (child, addr.expect("the coordinator starts"))
    }

    /// What clients share.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        self.catalogue.clone()
    }

    /// The device's part of the language model.
    pub fn model(&self) -> Arc<ClientModel> {
        self.model.clone()
    }

    /// What clients of a coordinator at `addr` are opened with.
    pub fn options(&self, addr: SocketAddr) -> Options {
        Options::new(self.catalogue.clone())
            .server(addr)
            .model(self.model.clone())
    }

    /// A subject's client, enrolled with a fresh invitation, joined with its history.
    pub async fn joined(&self, op: &Operator, subject: u32, options: Options) -> Client {
        let options = options.invitation(op.invite(subject).await);
        let client = Client::open(self.client_folder(subject), options).expect("opens");
        client.connect().await.expect("enrols");
        client.record_all(tiny::history(subject)).expect("records");
        client.join().await.expect("joins");
        client
    }

    /// Folder of a subject's client.
    pub fn client_folder(&self, subject: u32) -> PathBuf {
        self.dir.path().join(format!("client-{subject}"))
    }

    /// A client with its history, enrolled (if it was not) but not joined.
    pub async fn client(&self, addr: SocketAddr, operator: &Operator, subject: u32) -> Client {
        let mut options = self.options(addr);
        // `state`: a folder of an earlier build.
        let folder = self.client_folder(subject);
        let known = ["identity", "state"].map(|name| folder.join(name).exists());
        if known == [false, false] {
            options = options.invitation(operator.invite(subject).await);
        }
        let client = Client::open(self.client_folder(subject), options).expect("opens");
        client.connect().await.expect("connects");
        if client.history().is_empty() {
            client.record_all(tiny::history(subject)).expect("records");
        }
        client
    }

    /// All clients, joined, each looking for work until the fleet is stopped.
    pub async fn fleet(&self, addr: SocketAddr, operator: &Operator) -> Fleet {
        let mut fleet = Fleet::default();
        for s in 0..self.subjects {
            let client = self.client(addr, operator, s).await;
            client.join().await.expect("joins");
            fleet.add(client);
        }
        fleet
    }
}

/// Clients at work.
#[derive(Default)]
pub struct Fleet {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Client>>,
}

impl Fleet {
    /// Lets a client look for work; errors (a lost coordinator, a revoked certificate) are tried
    /// again.
    pub fn add(&mut self, client: Client) {
        let stop = self.stop.clone();
        self.tasks.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if client.step().await.is_err() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            client
        }));
    }

    /// Stops at once, as if all devices went away.
    pub fn abort(self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }

    /// Like [`Self::stop`], without the client that was deleted (its steps fail for ever).
    pub async fn stop_but(mut self, deleted: usize) -> Vec<Client> {
        self.tasks.remove(deleted).abort();
        self.stop().await
    }

    /// Stops after the current step and gives the clients back.
    pub async fn stop(self) -> Vec<Client> {
        self.stop.store(true, Ordering::Relaxed);
        let mut clients = vec![];
        for t in self.tasks {
            clients.push(t.await.expect("a client's task ends"));
        }
        clients
    }
}

/// An operator's connection.
pub struct Operator {
    connection: Connection,
    authority: Vec<u8>,
    identity: lethe_transport::identity::Identity,
}

/// An operator's identity that is not connected.
pub struct Renewed {
    authority: Vec<u8>,
    identity: lethe_transport::identity::Identity,
}

impl Renewed {
    /// Connects.
    pub async fn connect(self, addr: SocketAddr) -> Operator {
        let connection = Connection::open(addr, &self.authority, Some(&self.identity)).await;
        Operator {
            connection: connection.expect("connects"),
            authority: self.authority,
            identity: self.identity,
        }
    }
}

impl Operator {
    /// Like [`Self::ask_for`], given up when the coordinator is killed.
    pub async fn ask_within(
        &self,
        requests: Vec<DeletionRequest>,
        time: Duration,
    ) -> Option<Vec<u64>> {
        tokio::time::timeout(time, self.ask_for(requests))
            .await
            .ok()?
            .ok()
    }

    /// Another operator.
    pub async fn colleague(&self, addr: SocketAddr) -> Self {
        let token = match self
            .ask(AdminRequest::Invite { subject: None })
            .await
            .expect("invites")
        {
            AdminReply::Invited { token } => token,
            other => panic!("{other:?}"),
        };
        let invitation = Invitation::parse(&token).expect("parses");
        let identity = enrol(addr, &invitation).await.expect("enrols");
        let authority = invitation.authority().expect("parses");
        let connection = Connection::open(addr, &authority, Some(&identity))
            .await
            .expect("connects");
        Self {
            connection,
            authority,
            identity,
        }
    }

    /// The same operator with a renewed certificate, which is not used yet.
    pub async fn renewed(&self) -> Renewed {
        Renewed {
            authority: self.authority.clone(),
            identity: self.connection.renew().await.expect("renews"),
        }
    }

    /// Another operator, with this token.
    pub async fn enrolled_with(&self, addr: SocketAddr, token: &str) -> Self {
        let invitation = Invitation::parse(token).expect("parses");
        let identity = enrol(addr, &invitation).await.expect("enrols");
        let authority = self.authority.clone();
        Renewed {
            authority,
            identity,
        }
        .connect(addr)
        .await
    }

    /// Connects again, if it may: a call shows what the coordinator says to the certificate.
    pub async fn try_reconnect(
        &self,
        addr: SocketAddr,
    ) -> Result<(), lethe_transport::TransportError> {
        let again = Connection::open(addr, &self.authority, Some(&self.identity)).await?;
        again.call(&Request::Admin(AdminRequest::Status)).await?;
        Ok(())
    }

    /// Connects again, to a restarted coordinator.
    pub async fn reconnect(&self, addr: SocketAddr) -> Self {
        let connection = Connection::open(addr, &self.authority, Some(&self.identity))
            .await
            .expect("connects");
        Self {
            connection,
            authority: self.authority.clone(),
            identity: self.identity.clone(),
        }
    }

    /// One request.
    pub async fn ask(
        &self,
        request: AdminRequest,
    ) -> Result<AdminReply, lethe_transport::TransportError> {
        match self.connection.call(&Request::Admin(request)).await? {
            Reply::Admin(r) => Ok(r),
            other => panic!("{other:?}"),
        }
    }

    /// An invitation for a subject.
    pub async fn invite(&self, subject: u32) -> String {
        self.invite_named(id(subject).as_str()).await
    }

    /// An invitation for a subject of any name.
    pub async fn invite_named(&self, subject: &str) -> String {
        let subject = Some(SubjectId::new(subject).expect("a valid id"));
        match self
            .ask(AdminRequest::Invite { subject })
            .await
            .expect("invites")
        {
            AdminReply::Invited { token } => token,
            other => panic!("{other:?}"),
        }
    }

    /// The coordinator's state.
    pub async fn status(&self) -> CoordinatorStatus {
        match self.ask(AdminRequest::Status).await.expect("answers") {
            AdminReply::Status(s) => s,
            other => panic!("{other:?}"),
        }
    }

    /// How lists are.
    pub async fn lists(&self) -> ListsStatus {
        match self.ask(AdminRequest::Lists).await.expect("answers") {
            AdminReply::Lists(Some(lists)) => lists,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until `ready`.
    pub async fn wait_for(
        &self,
        what: &str,
        ready: impl Fn(&CoordinatorStatus) -> bool,
    ) -> CoordinatorStatus {
        let started = Instant::now();
        loop {
            let s = self.status().await;
            if ready(&s) {
                return s;
            }
            assert!(started.elapsed() < PATIENCE, "{what} did not happen: {s:?}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Waits until a release is served and measured.
    pub async fn trained(&self) -> CoordinatorStatus {
        self.wait_for("training", |s| {
            s.release > 0 && s.validated && s.shards.iter().all(|k| k.done)
        })
        .await
    }

    /// Asks for a deletion; its number.
    pub async fn ask_to_forget(
        &self,
        subject: u32,
        items: &[&str],
    ) -> Result<u64, lethe_transport::TransportError> {
        let items: Vec<String> = items.iter().map(|s| (*s).to_owned()).collect();
        let subject = id(subject);
        let request = match items.is_empty() {
            true => DeletionRequest::Erase { subject },
            false => DeletionRequest::EraseItems { subject, items },
        };
        Ok(self.ask_for(vec![request]).await?[0])
    }

    /// Asks for a batch; the numbers.
    pub async fn ask_for(
        &self,
        requests: Vec<DeletionRequest>,
    ) -> Result<Vec<u64>, lethe_transport::TransportError> {
        match self
            .ask(AdminRequest::Forget {
                requests,
                dry_run: false,
                asked: 0,
                reference: String::new(),
                confirmed: false,
            })
            .await?
        {
            AdminReply::Planned { ids, .. } => Ok(ids),
            other => panic!("{other:?}"),
        }
    }

    /// The plan of a batch.
    pub async fn plan_for(&self, requests: Vec<DeletionRequest>) -> String {
        match self
            .ask(AdminRequest::Forget {
                requests,
                dry_run: true,
                asked: 0,
                reference: String::new(),
                confirmed: false,
            })
            .await
            .expect("plans")
        {
            AdminReply::Planned { text, .. } => text,
            other => panic!("{other:?}"),
        }
    }

    /// What a subject's data is in.
    pub async fn lineage(
        &self,
        subject: u32,
    ) -> Result<SubjectLineage, lethe_transport::TransportError> {
        match self
            .ask(AdminRequest::LineageOfSubject {
                subject: id(subject),
            })
            .await?
        {
            AdminReply::Subject(s) => Ok(s),
            other => panic!("{other:?}"),
        }
    }

    /// All shards retrained from nothing give what is served.
    pub async fn replays_equal(&self) {
        for shard in 0..self.status().await.shards.len() as u16 {
            let (replayed, live) = self.replay(ShardId(shard)).await.hashes.expect("ended");
            assert_eq!(replayed, live, "shard {shard}");
        }
    }

    /// Waits until a deletion is done.
    pub async fn deleted(&self, id: u64) -> DeletionState {
        let started = Instant::now();
        loop {
            match self
                .ask(AdminRequest::Deletion { id })
                .await
                .expect("answers")
            {
                AdminReply::Deletion(d) if d.phase == DeletionPhase::Done => return d,
                other => assert!(
                    started.elapsed() < PATIENCE,
                    "the deletion did not finish: {other:?}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Deletes and waits for the receipt.
    pub async fn forget(&self, subject: u32, items: &[&str]) -> DeletionState {
        let id = self.ask_to_forget(subject, items).await.expect("accepted");
        self.deleted(id).await
    }

    /// Replays a shard to its end.
    pub async fn replay(&self, shard: ShardId) -> ReplayState {
        self.ask(AdminRequest::Replay { shard })
            .await
            .expect("starts");
        let started = Instant::now();
        loop {
            match self
                .ask(AdminRequest::ReplayStatus { shard })
                .await
                .expect("answers")
            {
                AdminReply::Replay(s) if s.hashes.is_some() => return s,
                _ => assert!(started.elapsed() < PATIENCE, "the replay did not finish"),
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// The receipt of a deletion.
    pub async fn receipt(&self, deletion: u64) -> Vec<u8> {
        match self
            .ask(AdminRequest::Receipt { id: deletion })
            .await
            .expect("has a receipt")
        {
            AdminReply::Receipt(text) => text.into_bytes(),
            other => panic!("{other:?}"),
        }
    }
}

/// Noise of so much epsilon a snapshot, with a budget that lasts.
pub fn noise(epsilon: f64) -> NoiseConfig {
    NoiseConfig {
        epsilon,
        delta: 1e-6,
        per: Per::Release,
        budget: 1_000.0,
    }
}

/// Identifier of a subject.
pub fn id(subject: u32) -> SubjectId {
    SubjectId::new(format!("person-{subject}")).expect("a valid id")
}

/// A coordinator's folders copied into another one, as if it had been killed: its keys and its
/// evidence as they are now, and this data folder, which may be an older one. Returns the
/// configuration of a coordinator on the copies.
pub fn copied(config: &ServerConfig, data: &Path, to: &Path) -> ServerConfig {
    copy_folder(data, &to.join("data"));
    copy_folder(&config.evidence(), &to.join("evidence"));
    copy_folder(&config.keys_dir(), &to.join("keys"));
    let mut config = config.clone();
    config.data_dir = to.join("data");
    config.evidence_dir = Some(to.join("evidence"));
    config.keys.folder = Some(to.join("keys"));
    config
}

/// Copies a folder with all below it; a file that vanishes meanwhile is not part of the copy.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("creates");
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_folder(&source, &target);
        } else {
            let _ = std::fs::copy(&source, &target);
        }
    }
}

/// Ends a process as a power cut does.
pub fn kill(child: &mut std::process::Child) {
    child.kill().expect("is running");
    child.wait().expect("ends");
}

/// An older copy of a folder takes its place.
pub fn put_back(backup: &Path, folder: &Path) {
    std::fs::remove_dir_all(folder).expect("is there");
    copy_folder(backup, folder);
}

/// Whether a file below a folder has these bytes in it.
pub fn holds(folder: &Path, bytes: &[u8]) -> bool {
    all_bytes(folder).windows(bytes.len()).any(|w| w == bytes)
}

/// Every byte below a folder, for scans.
pub fn all_bytes(folder: &Path) -> Vec<u8> {
    let mut out = vec![];
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            out.extend(all_bytes(&path))
        } else {
            out.extend(std::fs::read(path).unwrap_or_default())
        }
    }
    out
}
