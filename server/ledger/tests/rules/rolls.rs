//! Epochs that follow one another: when one begins, who trains from when on, what a rule does.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use lethe_ledger::*;
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::epochs::{EpochPhase, Lacks, TrainsFrom};
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::{Erased, Refusal};

use crate::common::{House, digest, terms};

/// An hour, in seconds.
const HOUR: u64 = 3600;
const BEGIN: u64 = 1_800_000_000;

/// People of numbers, of whom all in the first epoch are served.
struct World {
    house: House,
}

fn name(n: usize) -> SubjectId {
    SubjectId::new(format!("p{n:02}")).unwrap()
}

fn one_round() -> Terms {
    Terms {
        slices: 1,
        rounds: 1,
        cohort: 2,
        ..terms()
    }
}

impl World {
    /// Ten people, all in the first epoch, which is served.
    fn served(roll: Roll) -> Self {
        let names: Vec<String> = (0..10).map(|n| name(n).to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut world = Self {
            house: House::with(one_round(), &names),
        };
        world.rules(10, roll);
        world.house.settle();
        assert_eq!(world.state().core().serving, Some(EpochNo(1)));
        world.rules(4, roll);
        world
    }

    fn state(&self) -> &State {
        &self.house.state
    }

    fn rules(&mut self, min_subjects: usize, roll: Roll) {
        self.house.state.set_rules(Rules {
            min_subjects,
            roll,
            ..Rules::default()
        });
    }

    fn now(&self) -> Now {
        self.house.now
    }

    fn run(&mut self, command: Command) -> Result<Vec<Event>, Refused> {
        self.house.run(command)
    }

    fn settle(&mut self) {
        self.house.settle();
    }

    /// An operator asks for the next epoch.
    fn next(&mut self) -> Result<Vec<Event>, Refused> {
        let asked = AskedBy {
            by: digest("operator a"),
            fresh: self.house.fresh(),
        };
        self.house.try_to_found(one_round(), Some(asked))
    }

    fn certificate(&self, n: usize) -> Digest {
        digest(&format!("{} phone", name(n)))
    }

    fn enrol(&mut self, n: usize) {
        self.house.device(name(n).as_str(), "phone");
    }

    fn join(&mut self, n: usize, epoch: u32, samples: u32) -> Result<Vec<Event>, Refused> {
        let device = self.certificate(n);
        let commitment = digest(&format!("{n} {epoch}"));
        self.house.join_with(device, epoch, commitment, samples)
    }

    fn phases(&self) -> Vec<EpochPhase> {
        let all = self.state().epoch_states().epochs;
        all.iter().map(|e| e.phase).collect()
    }
}

#[test]
fn an_epoch_follows_another_and_the_switch_is_one_event() {
    let mut w = World::served(Roll::default());
    w.enrol(10);
    w.join(10, 1, 8).unwrap();
    let next = TrainsFrom::NextEpoch { at: None };
    assert_eq!(w.state().trains_from(&name(10)), next, "came later");
    let (new, all) = w.state().newcomers();
    assert_eq!((new, all), (1, 11));

    w.next().unwrap();
    assert_eq!(w.state().rolling(), Some(EpochNo(2)));
    let refused = w.next().unwrap_err();
    assert_eq!(refused.code, Refusal::Busy);
    assert!(
        refused.message.contains("0 people have joined"),
        "{refused}"
    );
    for n in [10, 0, 1, 2, 3, 4, 5, 6] {
        w.join(n, 2, 9).unwrap();
        w.settle();
    }
    let until = BEGIN + Roll::default().join_ms / 1000;
    assert_eq!(
        w.state().trains_from(&name(10)),
        TrainsFrom::WithEpoch {
            epoch: EpochNo(2),
            at_latest: Some(until)
        }
    );
    let now = TrainsFrom::Now { epoch: EpochNo(1) };
    assert_eq!(
        w.state().trains_from(&name(0)),
        now,
        "in the one that is served"
    );
    assert_eq!(w.phases(), [EpochPhase::Serving, EpochPhase::Joining]);
    // Eleven have a place in the first epoch: nine tenths of them are ten.
    assert_eq!(w.state().enough(), 10);
    w.join(7, 2, 9).unwrap();
    w.join(8, 2, 9).unwrap();
    w.settle();
    assert_eq!(w.phases(), [EpochPhase::Retired, EpochPhase::Serving]);
    // Of the releases of before it is not kept whose data was in them.
    let (first, release) = w.state().releases().first_key_value().unwrap();
    assert_eq!(release.epoch, EpochNo(1));
    assert!(release.shards.iter().all(|s| s.census.is_empty()));
    let refused = w.state().release_lineage(*first).unwrap_err();
    assert!(refused.message.contains("has ended"), "{refused}");
    let now = TrainsFrom::Now { epoch: EpochNo(2) };
    assert_eq!(w.state().trains_from(&name(10)), now);
    let next = TrainsFrom::NextEpoch { at: None };
    assert_eq!(w.state().trains_from(&name(9)), next, "was away");
    let release = w.state().current_release().unwrap().1;
    assert_eq!(release.epoch, EpochNo(2));
    let learned = &w.state().epoch(EpochNo(2)).unwrap().shards[0].run;
    assert_eq!(release.digests(), [learned.hash]);
    assert!(w.state().may_found().is_ok());
}

#[test]
fn nobody_waits_longer_than_the_rule_says() {
    let roll = Roll {
        join_ms: 2 * HOUR * 1000,
        ..Roll::default()
    };
    let mut w = World::served(roll);
    w.next().unwrap();
    for n in 0..5 {
        w.join(n, 2, 8).unwrap();
    }
    w.settle();
    assert_eq!(w.phases(), [EpochPhase::Serving, EpochPhase::Joining]);
    w.house.wait(2 * HOUR);
    w.settle();
    assert_eq!(w.phases(), [EpochPhase::Retired, EpochPhase::Serving]);

    // The next one lacks people, and is given up; what is served stays.
    w.next().unwrap();
    for n in 0..3 {
        w.join(n, 3, 8).unwrap();
    }
    w.house.wait(2 * HOUR - 1);
    w.settle();
    assert_eq!(w.state().rolling(), Some(EpochNo(3)));
    w.house.wait(1);
    w.settle();
    assert_eq!(w.phases()[2], EpochPhase::Dropped);
    assert_eq!(w.state().core().serving, Some(EpochNo(2)));
    let refused = w.join(4, 3, 8).unwrap_err();
    assert_eq!(refused.code, Refusal::Invalid);
    assert_eq!(w.state().joining(), Some(EpochNo(2)));
    assert!(w.state().may_found().is_ok());
}

#[test]
fn an_operator_gives_up_an_epoch_that_is_trained() {
    let mut w = World::served(Roll::default());
    w.next().unwrap();
    for n in 0..9 {
        w.join(n, 2, 8).unwrap();
    }
    let begin = Command::BeginEpoch { epoch: EpochNo(2) };
    w.run(begin).unwrap();
    assert_eq!(w.phases(), [EpochPhase::Serving, EpochPhase::Training]);
    let asked = AskedBy {
        by: digest("operator a"),
        fresh: Fresh::default(),
    };
    let drop = |epoch| Command::DropEpoch {
        epoch: EpochNo(epoch),
        asked: Some(asked),
    };
    assert_eq!(w.run(drop(1)).unwrap_err().code, Refusal::Invalid);
    w.run(drop(2)).unwrap();
    w.settle();
    assert_eq!(w.phases(), [EpochPhase::Serving, EpochPhase::Dropped]);
    assert_eq!(w.run(drop(2)).unwrap_err().code, Refusal::Invalid);
    let lines: Vec<&str> = w
        .state()
        .actions()
        .values()
        .map(|a| &*a.action.what)
        .collect();
    let [.., started, given_up] = &lines[..] else {
        panic!("{lines:?}");
    };
    assert!(started.starts_with("start epoch 2 with recipe"));
    assert_eq!(*given_up, "give up epoch 2");
    // A deletion plans for what is alive only.
    let request = DeletionRequest::Erase { subject: name(0) };
    let plans = w.state().dry_run(&[request], false, w.now()).unwrap();
    assert_eq!(plans.len(), 1);
}

#[test]
fn a_rule_founds_the_next_epoch() {
    let days = Roll {
        every_ms: Some(30 * 24 * HOUR * 1000),
        ..Roll::default()
    };
    let mut w = World::served(days);
    let at = BEGIN + 30 * 24 * HOUR;
    assert_eq!(w.state().epoch_states().next, Some(at));
    w.enrol(10);
    let next = TrainsFrom::NextEpoch { at: Some(at) };
    assert_eq!(w.state().trains_from(&name(10)), next);
    assert!(!w.state().roll_is_due(w.now()));
    w.house.wait(30 * 24 * HOUR);
    assert!(w.state().roll_is_due(w.now()));
    w.next().unwrap();
    assert!(!w.state().roll_is_due(w.now()), "one follows another");

    let people = Roll {
        new_people: Some(0.2),
        ..Roll::default()
    };
    let mut w = World::served(people);
    w.enrol(10);
    w.join(10, 1, 8).unwrap();
    w.enrol(11);
    // Somebody with too short a history is a newcomer, too: they may have more by then.
    w.join(11, 1, 0).unwrap();
    assert_eq!(w.state().newcomers(), (2, 12));
    assert!(!w.state().roll_is_due(w.now()));
    let subject = name(0);
    let secret = digest("nobody");
    w.run(Command::Invite { subject, secret }).unwrap();
    assert!(
        !w.state().roll_is_due(w.now()),
        "who was invited has not joined"
    );
    let people = Roll {
        new_people: Some(2.0 / 12.0),
        ..Roll::default()
    };
    w.rules(4, people);
    assert!(w.state().roll_is_due(w.now()));
}

#[test]
fn devices_say_what_they_lack() {
    let mut w = World::served(Roll::default());
    w.next().unwrap();
    let lacks = |w: &World, n: usize, lacks| Command::Lacks {
        device: w.certificate(n),
        epoch: EpochNo(2),
        lacks,
    };
    let first = lacks(&w, 0, Lacks::Model);
    assert_eq!(w.run(first.clone()).unwrap().len(), 1);
    assert_eq!(w.run(first).unwrap(), [], "once");
    let second = lacks(&w, 1, Lacks::Model);
    w.run(second).unwrap();
    let third = lacks(&w, 2, Lacks::Layers);
    w.run(third).unwrap();
    let nobody = lacks(&w, 11, Lacks::Layers);
    assert_eq!(w.run(nobody).unwrap(), [], "not enrolled");
    let shown = |w: &World| w.state().epoch_states().epochs[1].lacks.clone();
    assert_eq!(shown(&w), [(Lacks::Model, 2), (Lacks::Layers, 1)]);
    // An app that has loaded the model joins, and lacks nothing any more.
    w.join(1, 2, 8).unwrap();
    assert_eq!(shown(&w), [(Lacks::Model, 1), (Lacks::Layers, 1)]);
}

#[test]
fn an_epoch_does_not_begin_while_somebody_is_between_two_joins() {
    let mut w = World::served(Roll::default());
    w.next().unwrap();
    for n in 0..8 {
        w.join(n, 2, 8).unwrap();
    }
    w.house.ask(DeletionRequest::Withdraw {
        subject: name(0),
        from: 1_700_000_000,
    });
    w.settle();
    let pending = w.state().profile(&name(0)).unwrap().erase.clone();
    let erased = Command::Erased {
        device: w.certificate(0),
        task: pending.unwrap().task,
        outcome: Erased::Done { removed: vec![] },
    };
    w.run(erased).unwrap();
    // It joins the older epoch first. Before it joins the newer one too, the ninth of ten does.
    let device = w.certificate(0);
    let remains = digest("what remains");
    w.house.join_with(device, 1, remains, 7).unwrap();
    w.join(8, 2, 8).unwrap();
    w.settle();
    assert_eq!(w.phases(), [EpochPhase::Serving, EpochPhase::Joining]);
    w.house.join_with(device, 2, remains, 7).unwrap();
    w.settle();
    assert_eq!(w.phases(), [EpochPhase::Retired, EpochPhase::Serving]);
    assert_eq!(w.state().epoch_states().epochs[1].trains, 9);
}

#[test]
fn a_deletion_is_done_while_the_epoch_that_follows_is_trained() {
    let mut w = World::served(Roll::default());
    w.next().unwrap();
    for n in 0..10 {
        w.join(n, 2, 8).unwrap();
    }
    // Nobody answers in the new epoch: its round is open, and nothing of it is served.
    w.house.only = Some(EpochNo(1));
    w.settle();
    let subject = name(3);
    let request = DeletionRequest::Erase { subject };
    w.house.ask(request);
    w.settle();
    assert_eq!(w.phases(), [EpochPhase::Serving, EpochPhase::Training]);
    let deletion = w.state().deletions().get(&1).unwrap();
    let about: Vec<u32> = deletion
        .rolled_back
        .iter()
        .map(|r| r.shard.epoch.0)
        .collect();
    assert_eq!(about, [1, 2]);
    assert_eq!(deletion.phase, DeletionPhase::Done);
    w.house.only = None;
    w.house.keeps = true;
    w.settle();
    assert_eq!(w.phases(), [EpochPhase::Retiring, EpochPhase::Serving]);
    w.house.keeps = false;
    w.settle();
    assert_eq!(w.phases(), [EpochPhase::Retired, EpochPhase::Serving]);
    assert!(w.state().subject_lineage(&name(3)).is_err());
}

#[test]
fn nothing_is_founded_before_the_older_epoch_is_retired() {
    let mut w = World::served(Roll::default());
    w.next().unwrap();
    for n in 0..10 {
        w.join(n, 2, 8).unwrap();
    }
    // The old one is not retired: its keys are not destroyed yet.
    w.house.keeps = true;
    w.settle();
    assert_eq!(w.state().core().serving, Some(EpochNo(2)));
    assert_eq!(w.state().living().count(), 2);
    let refused = w.next().unwrap_err();
    assert_eq!(refused.code, Refusal::Busy);
    assert!(
        refused.message.contains("epoch 1 is not retired yet"),
        "{refused}"
    );
    assert!(!w.state().roll_is_due(w.now()));
    w.house.keeps = false;
    w.settle();
    w.next().unwrap();
}

#[test]
fn an_older_client_gets_work_of_an_epoch_that_it_has_the_data_of() {
    let mut w = World::served(Roll::default());
    let train = |epoch| Work::Train {
        run: RunKey {
            epoch: EpochNo(epoch),
            shard: lethe_proto::ids::ShardId(0),
            generation: 1,
            stage: 1,
            round: 0,
        },
        start: None,
        counted: None,
        seed: lethe_learn::seed::Seed::from_u64(1),
        deadline_ms: 1,
    };
    assert!(w.state().fits_older(&name(0), &train(1)));
    w.next().unwrap();
    w.join(0, 2, 9).unwrap();
    assert!(w.state().fits_older(&name(0), &train(2)), "joined last");
    assert!(
        !w.state().fits_older(&name(0), &train(1)),
        "it would train the first on what it joined the second with"
    );
    assert!(w.state().fits_older(&name(0), &Work::Erase { task: 1 }));
    let (release, _) = w.state().current_release().unwrap();
    let shards = vec![];
    let measure = Work::Validate { release, shards };
    assert!(!w.state().fits_older(&name(0), &measure));
    assert!(w.state().fits_older(&name(1), &measure), "has not followed");
}

#[test]
fn who_can_measure_nothing_is_asked_once_for_a_release() {
    let mut w = World::served(Roll::default());
    let (release, _) = w.state().current_release().unwrap();
    let asked = |w: &World| {
        let work = w.state().work_for(&w.certificate(0), w.now());
        matches!(work, Some(Work::Validate { .. }))
    };
    assert!(asked(&w));
    let nothing = |w: &World, release| Command::Errors {
        device: w.certificate(0),
        release,
        rows: vec![],
        values: vec![],
    };
    let says = nothing(&w, release);
    w.run(says).unwrap();
    assert!(!asked(&w));
    assert!(w.state().validation_due(&name(1)).is_some());
    // The app may have loaded a model since: the next release is another question.
    w.next().unwrap();
    for n in 0..10 {
        w.join(n, 2, 8).unwrap();
    }
    w.settle();
    assert!(asked(&w));
    let late = nothing(&w, release);
    assert_eq!(w.run(late).unwrap_err().code, Refusal::StaleRelease);
}

#[test]
fn a_hold_ends_with_its_epoch() {
    let mut w = World::served(Roll::default());
    let shard = ShardKey {
        epoch: EpochNo(1),
        shard: lethe_proto::ids::ShardId(0),
    };
    w.run(Command::HoldShard {
        shard,
        by: digest("operator a"),
        fresh: Fresh::default(),
    })
    .unwrap();
    assert_eq!(w.state().held_shards(w.now()).len(), 1);
    w.next().unwrap();
    for n in 0..10 {
        w.join(n, 2, 8).unwrap();
    }
    w.settle();
    assert_eq!(w.phases(), [EpochPhase::Retired, EpochPhase::Serving]);
    assert_eq!(w.state().held_shards(w.now()), []);
}
