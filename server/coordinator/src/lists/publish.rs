//! A thread that opens cells, and makes the next snapshot when one is due.

use std::time::Duration;

use lethe_ledger::{Command, Effects, Wake};
use lethe_parts::history::day_of;
use lethe_tally::{Finished, Served, TallyError};

use super::Lists;
use crate::CoordinatorError;
use crate::fatal;
use crate::shell::Shell;

/// Longest time between two looks.
const BEAT: Duration = Duration::from_secs(1);
/// Wait after something failed.
const PAUSE: Duration = Duration::from_secs(1);

/// What the thread knows.
#[derive(Default)]
pub(super) struct Publishing {
    /// Somebody asked to look.
    look: bool,
    ended: bool,
    /// Cells were opened or renewed since the last snapshot.
    pub(super) changed: bool,
    /// When the last one was published, in milliseconds of uptime.
    pub(super) last: Option<u64>,
    /// Its day.
    day: Option<i32>,
    /// It was said that the noise's budget is spent.
    said: bool,
}

impl Publishing {
    /// At a start. Cells may have been opened just before the end, and were not published. Where a
    /// snapshot is served, the next is made all the same: settings, titles and tags may have
    /// changed. Not with noise, where each costs: the day of what is served is given then.
    pub(super) fn after_start(counting: usize, served: Option<i32>) -> Self {
        Self {
            changed: counting > 0 && served.is_none(),
            day: served,
            ..Self::default()
        }
    }
}

impl Lists {
    /// Something may be due.
    pub(crate) fn look(&self) {
        fatal::lock(&self.publishing).look = true;
        self.changed.notify_all();
    }

    /// The thread ends.
    pub(crate) fn end(&self) {
        fatal::lock(&self.publishing).ended = true;
        self.changed.notify_all();
    }

    /// False: the coordinator ends.
    fn wait_for_look(&self) -> bool {
        let publishing = fatal::lock(&self.publishing);
        let waits = |p: &mut Publishing| !p.look && !p.ended;
        let waited = self.changed.wait_timeout_while(publishing, BEAT, waits);
        let Ok((mut publishing, _)) = waited else {
            fatal::broken("a panic left the lists half changed");
        };
        publishing.look = false;
        !publishing.ended
    }

    /// Looks after cells and snapshots until the coordinator ends.
    pub(crate) fn look_after(&self, shell: &Shell) {
        while self.wait_for_look() {
            if let Err(e) = self.do_what_is_due(shell) {
                shell.complain("publish lists", &e);
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Opens cells and publishes, if that is due. Returns whether a snapshot was published.
    pub(crate) fn do_what_is_due(&self, shell: &Shell) -> Result<bool, CoordinatorError> {
        let now = shell.clock.now();
        let seconds = now.unix_ms / 1000;
        {
            let _shared = fatal::read(&self.gate);
            // What was left behind by a crash: deletions wait for a snapshot that is there.
            if let Some(snapshot) = self.newest().filter(|_| shell.state().lists_wait()) {
                shell.execute(Command::ListsPublished { snapshot }, vec![])?;
            }
            if shell.state().holds_serving() {
                return Ok(false);
            }
            let opened = self.tally.open_cells(seconds)?;
            fatal::lock(&self.publishing).changed |= opened > 0;
        }
        let day = day_of(i64::try_from(seconds).unwrap_or(i64::MAX));
        if !self.is_due(now.uptime_ms, day) {
            return Ok(false);
        }
        let job = match self.tally.job(day, seconds) {
            Err(TallyError::Budget { .. }) => {
                self.say_spent();
                return Ok(false);
            }
            job => job?,
        };
        let done = job.run()?;
        let published = {
            let _shared = fatal::read(&self.gate);
            // Somebody may be leaving: this was solved with them.
            if shell.state().holds_serving() {
                return Ok(false);
            }
            // Before anybody sees the number.
            fatal::lock(&self.floor).set(done.number())?;
            let finished = self.tally.finish(&done, shell.clock.now().unix_ms / 1000)?;
            if finished == Finished::TooLate {
                self.look();
                return Ok(false);
            }
            let mut publishing = fatal::lock(&self.publishing);
            publishing.changed = false;
            publishing.last = Some(shell.clock.now().uptime_ms);
            publishing.day = Some(day);
            drop(publishing);
            self.newest()
        };
        if let Some(snapshot) = published {
            tracing::info!(
                number = snapshot.number,
                people = snapshot.people,
                bytes = snapshot.bytes,
                "lists published"
            );
            shell.execute(Command::ListsPublished { snapshot }, vec![])?;
        }
        shell.carry_out(Effects {
            wake: Wake {
                everybody: true,
                ..Wake::default()
            },
            ..Effects::default()
        });
        // Nobody waits for this: it saves the next start a fold.
        self.tally.keep_sums(&done)?;
        Ok(true)
    }

    /// Once: what is served stays, and nothing newer comes.
    fn say_spent(&self) {
        let mut publishing = fatal::lock(&self.publishing);
        if !std::mem::replace(&mut publishing.said, true) {
            tracing::warn!(
                "the budget of [lists] noise is spent: no newer snapshot is published; after a \
                 deletion, lists have nobody in them; see docs/noise.md"
            );
        }
    }

    fn is_due(&self, uptime_ms: u64, day: i32) -> bool {
        let publishing = fatal::lock(&self.publishing);
        match self.tally.lists().served {
            Served::Out { .. } => true,
            Served::Nothing => publishing.changed,
            Served::Snapshot(_) => {
                let wait = self.config.publish_s.saturating_mul(1000);
                let waited = publishing.last.unwrap_or(0).saturating_add(wait) <= uptime_ms;
                // Tables are of a day: what was met lately changes with it.
                let stale = publishing.changed || publishing.day != Some(day);
                waited && stale
            }
        }
    }
}
