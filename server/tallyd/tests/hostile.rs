//! A coordinator that asks everything, in any order. A fuzz target, too:
//! `cargo bolero test -p lethe-tallyd --test hostile any_requests`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use bolero::check;
use common::{Asked, Disk, NOW, catalogue, handle};
use lethe_proto::ids::{EpochNo, RoundKey, ShardId};
use lethe_proto::masked::{MasksAsked, SealedSeed};
use lethe_proto::tally::{HeldOf, TOGETHER, TallyRefusal, TallyReply, TallyRequest};
use lethe_tally::cells::{Fold, Left, lint};
use lethe_tallyd::Service;

fn handles(who: u8) -> Vec<[u8; 16]> {
    (0..usize::from(who))
        .map(|n| handle((n % 97) as u8))
        .collect()
}

fn request(service: &Service, what: u8, who: u8, now: u64) -> TallyRequest {
    match what % 18 {
        0 => TallyRequest::Open {
            items: catalogue().digest(),
            floor: match who {
                0..200 => u64::from(who) / 8,
                _ => u64::MAX - u64::from(who),
            },
        },
        1 => TallyRequest::Tickets {
            handles: handles(who),
        },
        2..=4 => {
            let mut sent = service.sealed(who % 97, usize::from(what / 16) + 1, now);
            let sealed = &mut sent.brought.sealed;
            match who {
                250.. => sealed.ticket[0] ^= 1,
                240.. => sealed.envelope.truncate(usize::from(what)),
                _ => {}
            }
            TallyRequest::Bring {
                sealed: vec![sent.brought; 1 + usize::from(what / 64)],
            }
        }
        5 => TallyRequest::Leave {
            handles: handles(who % 4),
        },
        6 => TallyRequest::LeaveOlder {
            leavers: vec![(
                handle(who % 97),
                u64::from(who) * u64::from(what) * NOW / 3_000,
            )],
        },
        7 => TallyRequest::TakeDown {
            items: vec![u32::from(who / 16)],
        },
        8 => TallyRequest::Held {
            of: vec![
                HeldOf::Handle(handle(who)),
                HeldOf::Items(vec![u32::from(who)]),
            ],
        },
        9 | 10 => TallyRequest::Work,
        11 => TallyRequest::Tables {
            number: u64::from(who),
        },
        12 => TallyRequest::Refold,
        13 => TallyRequest::Search {
            handles: handles(who),
        },
        14 => TallyRequest::AuditedPeople {
            number: u64::from(who % 8),
            salt: [who; 32],
            from: u64::from(who) << (what % 56),
        },
        15 => TallyRequest::LeaveSums {
            lineage: [what % 3; 8],
            leavers: handles(who % 5).into_iter().map(|h| (h, 9)).collect(),
            left: u64::from(who),
        },
        16 => TallyRequest::Masks(MasksAsked {
            lineage: [what % 3; 8],
            round: RoundKey {
                epoch: EpochNo::FIRST,
                shard: ShardId(u16::from(who % 2)),
                generation: u32::from(who % 3),
                stage: 1,
                round: u16::from(what / 64),
            },
            left: u64::from(who),
            values: u32::from(who) * u32::from(what) * 1_000,
            seeds: handles(who)
                .into_iter()
                .map(|handle| SealedSeed {
                    handle,
                    envelope: vec![who; 70 + usize::from(who % 20)],
                })
                .collect(),
        }),
        _ => TallyRequest::Vouch {
            handles: vec![handle(who); usize::from(who) * TOGETHER / 200],
        },
    }
}

#[test]
fn any_requests() {
    let requests = check!().with_iterations(400).with_type::<Vec<(u8, u8)>>();
    requests.for_each(|requests| {
        let mut disk = Disk::new();
        disk.audits = true;
        disk.lists.publish_s = 0;
        let service = disk.open(NOW);
        // Enough newcomers for a few cells, whatever comes.
        let arrivals = (0..20).map(|who| (2, who));
        let all = arrivals.chain([(9, 0)]).chain(requests.iter().copied());
        let mut published: Vec<Fold> = vec![];
        for (at, (what, who)) in all.enumerate() {
            let now = NOW + 60 * at as u64;
            let request = request(&service, what, who, now);
            let name = format!("{request:?}");
            let reply = service.answer(request, now);
            if let TallyReply::Refused { code, message } = &reply {
                assert_ne!(*code, TallyRefusal::Internal, "{name}: {message}");
            }
            let served = service.state().served.map_or(0, |s| s.number);
            let before = published.last().map_or(0, |f| f.number);
            assert!(served == 0 || served >= before);
            if served > before {
                let fold = service.tally().fold(now).unwrap();
                published.push(Fold {
                    number: served,
                    ..fold
                });
            }
        }
        let settings = disk.lists.options().cells;
        assert_eq!(lint(&published, &Left::new(), &settings), Ok(()));
    });
}
