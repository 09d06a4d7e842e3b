//! A training step over QUIC against the same step in one process.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use lethe_client::encode::Encoder;
use lethe_client::{ClientBuilder, ClientModel, Cutoffs, Done, LocalEvent, ModelOptions};
use lethe_coordinator::Coordinator;
use lethe_coordinator::config::ServerConfig;
use lethe_learn::seed::Seed;
use lethe_model::frozen::Recomputed;
use lethe_model::kernels::panels::Compute;
use lethe_model::lora::{Adapter, AdapterShape};
use lethe_model::source::open;
use lethe_model::split::{DeviceModel, LocalMiddle, SplitSpec, descend};
use lethe_model::train::{Sample, Trainer};
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::SubjectId;
use lethe_proto::message::{Reply, Request};
use lethe_recipe::Recipe;
use lethe_recsys::data::{DataSpec, load};
use lethe_recsys::prompt::Template;
use lethe_recsys::samples::prompt;
use lethe_transport::client::{Connection, enrol};
use serde_json::json;

use crate::serve;

/// Samples of a step: events after the first ten, each with the ten before it.
const SAMPLES: usize = 16;
const HISTORY: usize = 10;

/// `unsplit` runs the step in this process, `split` has the client do it with a coordinator over loopback.
pub(crate) fn measure(compute: Compute) -> anyhow::Result<()> {
    let runtime = Arc::new(tokio::runtime::Builder::new_multi_thread().enable_all().build()?);
    let dir = tempfile::tempdir()?;
    let files = lethe_assets::fetch(&lethe_assets::default_home()?, &mut |_| {})?;
    let name = if compute == Compute::Bf16 { "bf16" } else { "f32" };
    let keys = format!(
        "shards = 1\nanchors = 1\nslices = 1\nrounds = 1000\ncohort = 1\ncompute = \"{name}\"\n\
         [local]\nsamples = {SAMPLES}\nbatch = {SAMPLES}\n"
    );
    let recipe = Recipe::from_toml(&keys)?;
    let data = load(&files.movielens, &DataSpec::of_folder(&files.movielens)?, false)?;
    let mut events: Vec<_> = data.events.iter().filter(|e| e.user == 0).collect();
    events.sort_by_key(|e| e.time);
    events.truncate(HISTORY + SAMPLES);

    let mut config = ServerConfig::parse(&format!(
        "listen = \"127.0.0.1:0\"\ndata_dir = {:?}\nmodel = {:?}\ncatalogue = {:?}\nmin_subjects = 1\n",
        dir.path().join("server"),
        files.model,
        files.movielens
    ))?;
    config.recipe = keys.parse()?;
    let coordinator = Coordinator::open(config)?;
    let invitation = coordinator.first_admin()?.context("a fresh coordinator invites")?;
    let options = ModelOptions { split: recipe.split, compute };
    let model = ClientModel::load(&files.model, &files.movielens, options)?;
    let mut client = runtime.block_on(async {
        let addr = coordinator.listen()?;
        let identity = enrol(addr, &invitation).await?;
        let operator = Connection::open(addr, &invitation.authority()?, Some(&identity)).await?;
        let invite = AdminRequest::Invite { subject: Some(SubjectId::new("0")?) };
        let Reply::Admin(AdminReply::Invited { token }) = operator.call(&Request::Admin(invite)).await? else {
            bail!("the coordinator did not invite");
        };
        let cutoffs = Cutoffs { train: events.len(), validate: events.len() };
        let builder = ClientBuilder::new(dir.path().join("client"), addr).invitation(token).cutoffs(cutoffs);
        let mut client = builder.build(model).await?;
        client.record_all(events.iter().map(|e| LocalEvent {
            item: data.items[e.item as usize].id.clone(),
            liked: e.liked,
            time: e.time,
        }))?;
        client.join().await?;
        anyhow::Ok(client)
    })?;

    let source = open(&files.model)?;
    let encoder = Encoder::new(source.tokenizer()?, Template::movie())?;
    let whole = SplitSpec { k_in: 0, k_out: source.config().layers };
    let device = DeviceModel::load(source.as_ref(), whole, compute)?;
    let shape = AdapterShape::new(source.config(), &recipe.lora, |_| true);
    let mut adapter = Adapter::init(&shape, &Seed::from_u64(1));
    let mut grads = vec![0.0; adapter.data.len()];
    let segment = DeviceModel::load_middle(source.as_ref(), whole, compute)?;
    let mut middle = LocalMiddle::new(segment, adapter.select(|_| false));
    let sample = |i: usize| -> anyhow::Result<Sample> {
        let history: Vec<(u32, bool)> = events[i - HISTORY..i].iter().map(|e| (e.item, e.liked)).collect();
        Ok(encoder.sample(&prompt(&data, &history, events[i].item), events[i].liked)?)
    };
    let samples: Vec<Sample> = (HISTORY..events.len()).map(sample).collect::<anyhow::Result<_>>()?;

    let (answers, packing) = (encoder.answers, recipe.packing);
    let trainer = Trainer { device: &device, answers, packing, frozen: &Recomputed };
    serve(|command| {
        let started = Instant::now();
        if command == "split" {
            let done = runtime.block_on(client.step())?;
            anyhow::ensure!(done == Done::Trained, "the coordinator asked for {done:?}");
        } else {
            trainer.accumulate(&samples, &adapter, &mut grads, &mut middle)?;
            descend(&mut adapter.data, &mut grads, recipe.local.lr);
        }
        Ok(json!({ "seconds": started.elapsed().as_secs_f64() }))
    })
}
