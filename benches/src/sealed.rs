//! What sealed contributions cost a tally of its own: tickets; envelopes opened, checked and stored
//! on a real disk; and everybody folded. Made-up people, each with the most events.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use lethe_proto::catalogue::CatalogueEntry;
use lethe_proto::lists::{Contributed, LIKED, SEEN, SharedEvent};
use lethe_proto::tally::{
    ANSWER, BringAnswer, Brought, CONTRIBUTION, Confided, SealedContribution, TOGETHER_BYTES,
    TallyReply, TallyRequest, bound_to, padded,
};
use lethe_receipt::note::VerifierKey;
use lethe_receipt::sealing::SealingStatement;
use lethe_seal::envelope::{AnswerKey, PublicKey, seal_to};
use lethe_store::sled_backend::SledStorage;
use lethe_tally::settings::ListsConfig;
use lethe_tallyd::{Opening, Service};
use serde_json::json;

const DAY: i32 = 20_000;
const NOW: u64 = DAY as u64 * 86_400;

/// Measures sealed contributions.
#[derive(Parser)]
#[command(
    name = "bench-sealed",
    about = "Sealed contributions in a tally of its own: opened, stored, folded"
)]
struct Args {
    /// Made-up people.
    #[arg(long, default_value_t = 4_096)]
    people: u32,
    /// Events of each.
    #[arg(long, default_value_t = 200)]
    events: u32,
    /// Items of the catalogue.
    #[arg(long, default_value_t = 2_000)]
    items: u32,
    /// Where the tally's folder is made; the system's folder for temporary files when absent.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// One device's contribution.
struct Sent {
    brought: Brought,
    answer: AnswerKey,
}

fn handle(who: u32) -> [u8; 16] {
    let mut handle = [7; 16];
    handle[..4].copy_from_slice(&who.to_le_bytes());
    handle
}

fn id(item: u32) -> String {
    format!("item-{item:06}")
}

fn body(args: &Args, who: u32) -> Contributed {
    let event = |n: u32| SharedEvent {
        item: id((who.wrapping_mul(7_919) + n * 31) % args.items),
        day: DAY - 400 + n as i32,
        half_stars: 2 + (n % 9) as u8,
        flags: if n.is_multiple_of(3) {
            SEEN
        } else {
            SEEN | LIKED
        },
    };
    Contributed {
        source: [1; 16],
        whole: false,
        events: (0..args.events).map(event).collect(),
    }
}

fn open(args: &Args, folder: &std::path::Path) -> anyhow::Result<Service> {
    let items = (0..args.items).map(id).map(|id| CatalogueEntry {
        title: Some(id.clone()),
        id,
        ..CatalogueEntry::default()
    });
    let lists = ListsConfig {
        clip: args.events,
        ..ListsConfig::default()
    };
    Ok(Service::open(Opening {
        keys: lethe_store::keys::Keys::in_folder(&folder.join("keys")),
        engine: &SledStorage::engine,
        folder: &folder.join("data"),
        evidence: &folder.join("evidence"),
        items: items.collect(),
        vectors: None,
        lists,
        audits: false,
        reserve: 0,
        now: NOW,
    })?)
}

fn tickets(service: &Service, who: &[u32]) -> anyhow::Result<Vec<[u8; 32]>> {
    let handles = who.iter().map(|w| handle(*w)).collect();
    match service.answer(TallyRequest::Tickets { handles }, NOW) {
        TallyReply::Tickets(tickets) => Ok(tickets),
        other => bail!("expected tickets, got {other:?}"),
    }
}

fn seal(args: &Args, key: &PublicKey, who: u32, ticket: [u8; 32]) -> anyhow::Result<Sent> {
    let handle = handle(who);
    let aad = bound_to(&handle, &ticket);
    let plain = padded(&body(args, who))?;
    let sealed = seal_to(key, CONTRIBUTION, &aad, &plain, ANSWER)?;
    Ok(Sent {
        brought: Brought {
            handle,
            sealed: SealedContribution {
                ticket,
                envelope: sealed.envelope,
            },
        },
        answer: sealed.answer,
    })
}

fn sealing_key(service: &Service) -> anyhow::Result<PublicKey> {
    let items = service.items();
    match service.answer(TallyRequest::Open { items, floor: 0 }, NOW) {
        TallyReply::Opened(terms) => {
            let key = VerifierKey::parse(&terms.key)?;
            Ok(PublicKey(SealingStatement::open(&terms.note, &key)?.key))
        }
        other => bail!("expected terms, got {other:?}"),
    }
}

/// Brings them as a coordinator does: about 8 MiB together.
fn bring(service: &Service, sent: &[Sent]) -> anyhow::Result<()> {
    let bytes = sent.first().map_or(1, |s| s.brought.sealed.envelope.len());
    let together = (TOGETHER_BYTES / bytes).clamp(1, lethe_proto::tally::TOGETHER);
    for chunk in sent.chunks(together) {
        let sealed = chunk.iter().map(|s| s.brought.clone()).collect();
        let TallyReply::Answers(answers) = service.answer(TallyRequest::Bring { sealed }, NOW)
        else {
            bail!("expected answers");
        };
        for (one, answer) in chunk.iter().zip(&answers) {
            let BringAnswer::Sealed(bytes) = answer else {
                bail!("an envelope does not open");
            };
            let opened = one.answer.open(bytes).context("an answer does not open")?;
            let said = Confided::from_bytes(&opened)?;
            ensure!(
                said == Confided::Taken,
                "expected it to be taken, got {said:?}"
            );
        }
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let folder = match &args.folder {
        Some(path) => tempfile::tempdir_in(path)?,
        None => tempfile::tempdir()?,
    };
    let service = open(&args, folder.path())?;
    let key = sealing_key(&service)?;
    let who: Vec<u32> = (0..args.people).collect();
    let mut drawn = vec![];
    let began = Instant::now();
    for chunk in who.chunks(lethe_proto::tally::TOGETHER) {
        drawn.extend(tickets(&service, chunk)?);
    }
    let ticket_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let sealed = who.iter().zip(drawn).map(|w| seal(&args, &key, *w.0, w.1));
    let sealed: Vec<Sent> = sealed.collect::<anyhow::Result<_>>()?;
    let seal_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    bring(&service, &sealed)?;
    let bring_s = began.elapsed().as_secs_f64();
    service.tally().open_cells(NOW)?;
    let began = Instant::now();
    let folded = service
        .tally()
        .refold(NOW)?
        .context("nothing changes meanwhile")?;
    let fold_s = began.elapsed().as_secs_f64();
    ensure!(folded.people > 0, "more people make a cell");
    let people = f64::from(args.people);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let figures = json!({
        "people": args.people,
        "events each": args.events,
        "items": args.items,
        "threads": threads,
        "envelope, bytes": sealed.first().map(|s| s.brought.sealed.envelope.len()),
        "tickets a second": (people / ticket_s).round(),
        "sealed a second, on one thread": (people / seal_s).round(),
        "opened, checked and stored a second": (people / bring_s).round(),
        "read again and folded a second": (f64::from(folded.people) / fold_s).round(),
        "both, a second": (1.0 / (bring_s / people + fold_s / f64::from(folded.people))).round(),
    });
    let text = serde_json::to_string_pretty(&figures)? + "\n";
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
