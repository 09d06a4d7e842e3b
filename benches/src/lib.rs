//! What the benches share: a real federation on loopback, on real data; and a lab without a network
//! ([`lab`]).

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use lethe_client::{Catalogue, Client, ClientModel, Cutoffs, ModelOptions, Options};
use lethe_coordinator::Coordinator;
use lethe_coordinator::config::ServerConfig;
use lethe_model::engine::Engine;
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::SubjectId;
use lethe_proto::message::{Reply, Request};
use lethe_recipe::Recipe;
use lethe_recsys::data::{DataSpec, Dataset, Event, load};
use lethe_transport::client::{Connection, enrol};
use lethe_transport::identity::Invitation;

pub mod figures;
pub mod lab;
pub mod lists;
pub mod rows;

/// A coordinator in this process, its operator, and what clients share.
pub struct Federation {
    /// The coordinator; its folder is removed with it.
    pub coordinator: Coordinator,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Connection of the operator.
    pub operator: Connection,
    /// Its recipe.
    pub recipe: Recipe,
    /// MovieLens-100K.
    pub data: Dataset,
    model: Arc<ClientModel>,
    catalogue: Arc<Catalogue>,
    dir: tempfile::TempDir,
}

/// A connection that enrols with this invitation.
pub async fn connect(addr: SocketAddr, text: &str) -> anyhow::Result<Connection> {
    let invitation = Invitation::parse(text)?;
    let identity = enrol(addr, &invitation).await?;
    Ok(Connection::open(addr, &invitation.authority()?, Some(&identity)).await?)
}

impl Federation {
    /// Starts a coordinator with this recipe (TOML) that trains once `subjects` have joined.
    pub async fn start(recipe: &str, subjects: usize) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let files = lethe_assets::fetch(&lethe_assets::default_home()?, &mut |_| {})?;
        let data = load(
            &files.movielens,
            &DataSpec::of_folder(&files.movielens)?,
            false,
        )?;
        let mut config = ServerConfig::parse(&format!(
            "listen = \"127.0.0.1:0\"\ndata_dir = {:?}\nmodel = {:?}\ncatalogue = \
             {:?}\nmin_subjects = {subjects}\n",
            dir.path().join("server"),
            files.model,
            files.movielens
        ))?;
        config.recipe = recipe.parse()?;
        let recipe = Recipe::from_toml(recipe)?;
        let coordinator = Coordinator::open(config)?;
        let invitation = coordinator
            .first_admin()?
            .context("a fresh coordinator invites")?
            .text();
        let addr = coordinator.listen()?;
        let operator = connect(addr, &invitation).await?;
        let options = ModelOptions {
            split: recipe.split,
            compute: recipe.compute,
        };
        let model = ClientModel::load_on(&Engine::from_env()?, &files.model, options)?;
        Ok(Self {
            catalogue: Catalogue::load(&files.movielens)?,
            coordinator,
            addr,
            operator,
            recipe,
            data,
            model,
            dir,
        })
    }

    /// An invitation for a subject.
    pub async fn invite(&self, subject: &str) -> anyhow::Result<String> {
        let request = AdminRequest::Invite {
            subject: Some(SubjectId::new(subject)?),
        };
        match self.operator.call(&Request::Admin(request)).await? {
            Reply::Admin(AdminReply::Invited { token }) => Ok(token),
            other => bail!("the coordinator did not invite: {other:?}"),
        }
    }

    /// The first `n` events of a user, in order of time.
    pub fn events(&self, user: u32, n: usize) -> Vec<Event> {
        let mut events: Vec<Event> = self
            .data
            .events
            .iter()
            .filter(|e| e.user == user)
            .cloned()
            .collect();
        events.sort_by_key(|e| e.time);
        events.truncate(n);
        events
    }

    /// A client with these events of a user, joined; the first `train` of them train.
    pub async fn client(
        &self,
        user: u32,
        events: &[Event],
        train: usize,
    ) -> anyhow::Result<Client> {
        let cutoffs = Cutoffs {
            train,
            validate: events.len(),
        };
        let folder = self.dir.path().join(format!("client-{user}"));
        let invitation = self.invite(&user.to_string()).await?;
        let options = Options::new(self.catalogue.clone())
            .server(self.addr)
            .model(self.model.clone())
            .invitation(invitation)
            .cutoffs(cutoffs);
        let client = Client::open(folder, options)?;
        let event = |e: &Event| {
            let item = &self.data.items[e.item as usize].id;
            self.catalogue.thumb(item, e.liked, e.time)
        };
        client.record_all(events.iter().map(event))?;
        client.join().await?;
        Ok(client)
    }
}

/// Path of the downloaded base model.
pub fn model() -> anyhow::Result<Box<dyn lethe_model::source::WeightSource>> {
    let files = lethe_assets::fetch(&lethe_assets::default_home()?, &mut |_| {})?;
    Ok(lethe_model::source::open(Path::new(&files.model))?)
}

/// Processor seconds of this process so far: what a computation costs also on a machine that does
/// other things. Where the system does not tell (not Linux), seconds of the clock.
pub fn cpu_seconds() -> f64 {
    static START: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    let clock = START.elapsed().as_secs_f64();
    cpu_seconds_of("self").unwrap_or(clock)
}

/// Processor seconds of a process so far, by its number or `self`; none: there is no such process,
/// or the system does not tell.
pub fn cpu_seconds_of(process: &str) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // After the name, which may hold anything: the 12th and 13th fields are user and system time in
    // hundredths.
    let rest = stat.rsplit(')').next()?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}
