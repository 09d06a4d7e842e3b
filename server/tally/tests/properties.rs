//! Whatever people do, no two published folds tell on anybody. A fuzz target, too:
//! `cargo bolero test -p lethe-tally --test properties any_commands`.
#![allow(missing_docs, clippy::unwrap_used)]

use bolero::check;
use lethe_learn::seed::Seed;
use lethe_proto::ids::Digest;
use lethe_tally::cells::*;
use lethe_tally::{Fresh, Handle};

const SETTINGS: CellSettings = CellSettings {
    least: 4,
    most: 8,
    share: 20,
    changed: 2,
    wait: 3,
    people: 200,
};

fn handle(who: u8) -> Handle {
    Handle([who; 16])
}

fn command(what: u8, who: u8, at: usize, state: &State) -> Command {
    match what % 8 {
        0..4 => {
            let at = (at as u64).to_le_bytes();
            Command::Contribute {
                handle: handle(who),
                offered: Offered {
                    content: Digest::of(&[&at]),
                    source: [what / 8 % 2; 16],
                    events: u32::from(at[0]),
                    last: None,
                },
                fresh: Fresh(Digest::of(&[&at, &[who]]).0),
                refresh_s: 0,
            }
        }
        4 if what.is_multiple_of(3) => Command::LeaveOlder(vec![Leaver {
            handle: handle(who),
            before: u64::from(what),
        }]),
        4 => Command::Leave(vec![handle(who)]),
        5 => Command::OpenCell {
            secret: Seed::from_u64(1),
        },
        6 => match due(state).into_iter().find_map(|d| match d {
            Duty::Renew(cell) => Some(cell),
            _ => None,
        }) {
            Some(cell) => Command::Renew(cell),
            None => Command::LeaveStrays,
        },
        _ => Command::Publish {
            number: state.core().snapshot + 1,
            forgets: state.core().forgets,
            cells: state.cells().keys().copied().collect(),
            charge: 0,
        },
    }
}

#[test]
fn any_commands() {
    check!().with_type::<Vec<(u8, u8)>>().for_each(|commands| {
        let mut state = State::new(SETTINGS);
        let mut published = vec![];
        let mut left = Left::new();
        // Enough newcomers for a few cells, whatever comes.
        let arrivals = (0..40).map(|who| (0, who));
        let all = arrivals.chain(commands.iter().copied());
        for (at, (what, who)) in all.enumerate() {
            let command = command(what, who, at, &state);
            let fold = state.fold();
            let Ok(events) = decide(&state, &command, at as u64) else {
                continue;
            };
            for event in &events {
                apply(&mut state, event);
                match event {
                    Event::Left { number } => {
                        left.insert(*number, state.core().snapshot);
                    }
                    Event::Published { .. } => published.push(fold.clone()),
                    _ => {}
                }
            }
            assert!(state.is_consistent());
        }
        assert_eq!(lint(&published, &left, &SETTINGS), Ok(()));
    });
}

fn come(state: &mut State, who: std::ops::Range<u8>) {
    for who in who {
        let command = command(0, who, 0, state);
        execute(state, &command);
    }
}

fn execute(state: &mut State, command: &Command) -> Fold {
    let fold = state.fold();
    let events = decide(state, command, 0).unwrap();
    events.iter().for_each(|e| apply(state, e));
    fold
}

/// One of four leaves, one comes: in one draw of fourteen the three others would be together again,
/// and the two snapshots would differ by the one who left and the one who came.
#[test]
fn who_was_together_does_not_come_back_together() {
    let settings = CellSettings {
        wait: 2,
        ..SETTINGS
    };
    let mut opened = 0;
    for seed in 0..300 {
        let mut state = State::new(settings);
        let open = Command::OpenCell {
            secret: Seed::from_u64(seed),
        };
        come(&mut state, 0..8);
        execute(&mut state, &open);
        let publish = command(7, 0, 0, &state);
        let first = execute(&mut state, &publish);
        assert_eq!(first.people(), 4);
        let counts = first.cells.values().flat_map(|c| c.keys()).next().unwrap();
        let leaver = state.handle(*counts).unwrap();
        execute(&mut state, &Command::Leave(vec![leaver]));
        come(&mut state, 100..101);
        execute(&mut state, &open);
        let publish = command(7, 0, 0, &state);
        let second = execute(&mut state, &publish);
        opened += second.cells.len();
        assert_eq!(lint_pair(&first, &second, &settings), Ok(()), "seed {seed}");
    }
    assert_eq!(opened, 300);
}

/// Somebody who stays while the people around them leave is no growing row.
#[test]
fn the_newest_past_cells_are_remembered() {
    let mut state = State::new(SETTINGS);
    come(&mut state, 0..12);
    let members: Vec<_> = state.members().keys().take(4).copied().collect();
    for cell in (1..=70).map(lethe_tally::CellNo) {
        let members = members.clone();
        let events = [
            Event::Opened { cell, members },
            Event::Published {
                number: cell.0,
                cells: vec![cell],
                charge: 0,
            },
            Event::Dissolved { cell, at: 0 },
        ];
        events.iter().for_each(|e| apply(&mut state, e));
    }
    let past = &state.members()[&members[0]].past;
    assert_eq!(past.len(), 64);
    assert_eq!((past[0].0, past[63].0), (7, 70));
}

/// The lint finds what it is there for.
#[test]
fn the_lint_finds_faults() {
    let cell = |of: std::ops::Range<u64>, version: u32| -> std::collections::BTreeMap<_, _> {
        of.map(|n| (lethe_tally::Number(n), lethe_tally::Version(version)))
            .collect()
    };
    let no = lethe_tally::CellNo;
    let fold = |number, cells: Vec<(u64, _)>| Fold {
        number,
        cells: cells.into_iter().map(|(c, m)| (no(c), m)).collect(),
    };
    let nobody = Left::new();
    let whole = fold(1, vec![(1, cell(0..4, 1)), (2, cell(4..8, 1))]);
    let ok = [whole.clone(), fold(2, vec![(2, cell(4..8, 2))])];
    assert_eq!(lint(&ok, &nobody, &SETTINGS), Ok(()));
    let bad = |second: Fold| lint(&[whole.clone(), second], &nobody, &SETTINGS).unwrap_err();
    let small = bad(fold(2, vec![(2, cell(4..8, 1)), (3, cell(8..11, 1))]));
    assert!(matches!(small, Fault::Small { got: 3, .. }));
    let mended = bad(fold(2, vec![(1, cell(1..5, 1))]));
    assert!(matches!(mended, Fault::Mended { cell: 1, .. }));
    let mut one = cell(0..4, 1);
    one.extend(cell(0..1, 2));
    let few = bad(fold(2, vec![(1, one), (2, cell(4..8, 1))]));
    assert!(matches!(few, Fault::Few { got: 1, .. }));
    let older = bad(fold(2, vec![(1, cell(0..4, 0)), (2, cell(4..8, 1))]));
    assert!(matches!(older, Fault::Older { .. }));
    // One left, three of four came back with one other: two people make the difference.
    let apart = bad(fold(
        2,
        vec![(2, cell(4..8, 1)), (3, cell(1..4, 1)), (3, cell(0..0, 1))],
    ));
    assert!(matches!(apart, Fault::Small { .. } | Fault::Apart { .. }));
    let mut regrouped = cell(1..4, 1);
    regrouped.extend(cell(9..10, 1));
    let apart = bad(fold(2, vec![(2, cell(4..8, 1)), (3, regrouped)]));
    assert!(matches!(apart, Fault::Apart { got: 2, .. }));
    let gone = [
        whole.clone(),
        fold(2, vec![]),
        fold(3, vec![(1, cell(0..4, 1))]),
    ];
    let back = lint(&gone, &nobody, &SETTINGS).unwrap_err();
    assert!(matches!(back, Fault::Back { fold: 3, cell: 1 }));
    let left = Left::from([(lethe_tally::Number(5), 1)]);
    let leaver = lint(&ok, &left, &SETTINGS).unwrap_err();
    assert!(matches!(leaver, Fault::Leaver { fold: 2 }));
}

/// How many of 943 people wait after 200 have left one by one, each with a snapshot after it.
fn waiting_after_200(seed: u64) -> usize {
    let mut state = State::new(CellSettings::default());
    let secret = Seed::from_u64(seed);
    let handle = |who: u64| Handle(u128::from(who).to_le_bytes());
    for who in 0..943 {
        let offered = Offered {
            content: Digest::of(&[b"content"]),
            source: [1; 16],
            events: 1,
            last: None,
        };
        let fresh = Fresh(secret.derive("person", &[&u64::to_le_bytes(who)]).0);
        let come = Command::Contribute {
            handle: handle(who),
            offered,
            fresh,
            refresh_s: 0,
        };
        execute(&mut state, &come);
    }
    for leaver in 0..=200 {
        while !decide(&state, &Command::OpenCell { secret }, 0)
            .unwrap()
            .is_empty()
        {
            execute(&mut state, &Command::OpenCell { secret });
        }
        let publish = command(7, 0, 0, &state);
        execute(&mut state, &publish);
        if leaver < 200 {
            execute(&mut state, &Command::Leave(vec![handle(leaver)]));
        }
    }
    state.waiting()
}

/// That few of a new cell may have been together keeps nobody waiting here: fewer than 4n wait with
/// the rule and without it.
#[test]
fn the_rule_of_the_draw_costs_no_waiting() {
    let all: Vec<usize> = (0..20).map(waiting_after_200).collect();
    assert_eq!(all, [743 % 16 + 48; 20]);
}
