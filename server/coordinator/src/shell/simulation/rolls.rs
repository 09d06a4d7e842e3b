//! Epochs that follow one another while everything goes wrong: an operator starts one, or the rule
//! does; another operator gives it up; a database of it is damaged.

use lethe_learn::seed::{Seed, Stream};
use lethe_ledger::{AskedBy, Command, EpochNo};

use super::super::{Wanted, fresh};
use super::begin::operator;
use super::world::{Event, QUIET, Simulation};
use crate::config::RollConfig;

/// Whether epochs follow one another in this seed.
fn is_on(seed: u64) -> bool {
    seed % 3 == 1
}

/// What a seed's epochs are drawn from: nothing else of the seed depends on it.
fn dice(seed: u64, what: &str) -> Stream {
    Seed::from_u64(seed).derive(what, &[]).rng()
}

/// The table `[roll]` of a seed.
pub(super) fn config(seed: u64) -> RollConfig {
    let mut dice = dice(seed, "rule of rolls");
    let seconds = 3 + dice.below(40);
    RollConfig {
        // Whoever comes too late makes the next epoch due: looked at once a minute.
        new_people: (is_on(seed) && dice.below(3) == 0).then_some(0.1),
        join_hours: seconds as f64 / 3600.0,
        ..RollConfig::default()
    }
}

impl Simulation {
    /// Draws when epochs are started and given up.
    pub(super) fn begin_rolls(&mut self) {
        if !is_on(self.seed) {
            return;
        }
        let mut dice = dice(self.seed, "rolls");
        let sometime = |dice: &mut Stream| 3000 + dice.below(QUIET as usize - 4000) as u64;
        let first = sometime(&mut dice);
        let second = sometime(&mut dice);
        let cancel = sometime(&mut dice);
        let damage = sometime(&mut dice);
        self.at(first, Event::Roll);
        if dice.below(3) == 0 {
            self.at(second, Event::Roll);
        }
        if dice.below(4) == 0 {
            self.at(cancel, Event::CancelRoll);
        }
        if dice.below(6) == 0 {
            let gone = dice.below(2) == 0;
            self.at(damage, Event::Damage("shards/2-0", gone));
        }
    }

    /// An operator asks for the next epoch, until one is served that it can follow.
    pub(super) fn roll(&mut self) {
        let again = self.now + 2500;
        let Some(shell) = self.shell.clone() else {
            return self.at(again, Event::Roll);
        };
        let asked = AskedBy {
            by: operator(0),
            fresh: fresh().unwrap(),
        };
        let wanted = Wanted {
            recipe: None,
            base: None,
        };
        let started = shell
            .next_kit(wanted)
            .and_then(|kit| shell.start_epoch(kit, asked, |_, _| Ok(())));
        self.note(match &started {
            Ok(no) => format!("{} starts {no}", self.now),
            Err(e) => format!("{} starts no epoch: {e}", self.now),
        });
        match started {
            Ok(_) => self.count.one("rolls"),
            // The write may have happened all the same: then the next try says so.
            Err(_) if again < QUIET => self.at(again, Event::Roll),
            Err(_) => {}
        }
    }

    pub(super) fn cancel_roll(&mut self) {
        let Some(shell) = self.shell.clone() else {
            return;
        };
        let rolling = shell.state().rolling();
        let Some(epoch) = rolling else {
            return;
        };
        let asked = Some(AskedBy {
            by: operator(1),
            fresh: fresh().unwrap(),
        });
        let done = shell.execute(Command::DropEpoch { epoch, asked }, vec![]);
        self.note(format!("{} gives up {epoch}: {}", self.now, done.is_ok()));
        shell.let_go();
    }

    /// Whether there is a second epoch, whose databases may be damaged.
    pub(super) fn has_second_epoch(&self) -> bool {
        let second = EpochNo(2);
        self.shell.as_ref().is_some_and(|shell| {
            let state = shell.state();
            state.epoch(second).is_some() && !state.ended(second)
        })
    }

    /// How epochs ended, for whoever asks whether anything happened at all.
    pub(super) fn count_epochs(&mut self) {
        let Some(shell) = self.shell.clone() else {
            return;
        };
        let state = shell.state();
        let lives = state.epochs().keys().filter_map(|no| state.life(*no));
        for life in lives {
            let retired = u64::from(life.retired.is_some());
            self.count.add("epochs retired", retired);
            let dropped = u64::from(life.dropped.is_some());
            self.count.add("epochs given up", dropped);
        }
    }
}
