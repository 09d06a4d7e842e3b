//! A thread that opens cells, and makes the next snapshot when one is due.

use std::time::Duration;

use lethe_ledger::{Command, Effects, SnapshotRef, Wake};
use lethe_parts::history::day_of;
use lethe_tally::{Finished, Served, Tally};

use super::Lists;
use super::keeper::Keeper;
use super::party::Party;
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
    /// Settings, titles or tags may have changed since the last snapshot. Whether cells were opened
    /// or renewed, the tally knows.
    pub(super) changed: bool,
    /// When the last one was published, in milliseconds of uptime.
    pub(super) last: Option<u64>,
    /// Its day.
    day: Option<i32>,
}

impl Publishing {
    /// At a start. Where a snapshot is served, the next is made all the same: settings, titles and
    /// tags may have changed. Not with noise, where each costs: the day of what is served is given
    /// then.
    pub(super) fn after_start(anybody_counts: bool, costly: Option<i32>) -> Self {
        Self {
            changed: anybody_counts && costly.is_none(),
            day: costly,
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
        let tally = match &self.keeper {
            Keeper::Embedded(tally) => tally,
            Keeper::Party(party) => return self.do_what_is_due_apart(shell, party),
        };
        let now = shell.clock.now();
        let seconds = now.unix_ms / 1000;
        {
            let _shared = fatal::read(&self.gate);
            self.see_to_the_log(shell)?;
            // What was left behind by a crash: deletions wait for a snapshot that is there.
            if let Some(snapshot) = self.newest().filter(|_| shell.state().lists_wait()) {
                shell.execute(Command::ListsPublished { snapshot }, vec![])?;
            }
            if shell.state().holds_serving() {
                return Ok(false);
            }
            tally.open_cells(seconds)?;
        }
        let day = day_of(i64::try_from(seconds).unwrap_or(i64::MAX));
        if !self.is_due(tally, now.uptime_ms, day) {
            return Ok(false);
        }
        let Some(job) = tally.job_within_budget(day, seconds)? else {
            return Ok(false);
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
            let finished = tally.finish(&done, shell.clock.now().unix_ms / 1000)?;
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
            shell.log_snapshot(&snapshot, self.key())?;
            say_published(shell, snapshot)?;
        }
        wake_everybody(shell);
        // Nobody waits for this: it saves the next start a fold.
        tally.keep_sums(&done)?;
        Ok(true)
    }

    /// The same with a tally of its own, which opens cells and publishes: what it serves is
    /// fetched, checked, and served from here. Nothing waits behind the network meanwhile.
    fn do_what_is_due_apart(&self, shell: &Shell, party: &Party) -> Result<bool, CoordinatorError> {
        let recalled = self.keeper.now().recalled;
        let done = self.fetch_and_serve(shell, party);
        // Also where something failed later: the tally has recalled what devices may hold.
        if self.keeper.now().recalled != recalled {
            self.keep_recalled()?;
            wake_everybody(shell);
        }
        done
    }

    fn fetch_and_serve(&self, shell: &Shell, party: &Party) -> Result<bool, CoordinatorError> {
        // Everybody who left is told with the opening, before anything of the tally's is believed.
        party.open()?;
        // Lists go on with the version before, if the tally does not take this one.
        if let Err(e) = self.teach(party) {
            shell.complain("send the catalogue to the tally", &e);
        }
        {
            let _shared = fatal::read(&self.gate);
            self.see_to_the_log(shell)?;
            if let Some(snapshot) = self.newest().filter(|_| shell.state().lists_wait()) {
                shell.execute(Command::ListsPublished { snapshot }, vec![])?;
            }
            if shell.state().holds_serving() {
                return Ok(false);
            }
        }
        let Some(fetched) = party.work()? else {
            return Ok(false);
        };
        let snapshot = {
            let _shared = fatal::read(&self.gate);
            // Somebody may be leaving: this may have been solved with them.
            if shell.state().holds_serving() {
                return Ok(false);
            }
            if fetched.number() <= self.keeper.now().recalled {
                // Somebody has left since: the number that is kept must not go back.
                self.look();
                return Ok(false);
            }
            // Before anybody sees the number.
            fatal::lock(&self.floor).set(fetched.number())?;
            let Some(snapshot) = party.install(fetched)? else {
                self.look();
                return Ok(false);
            };
            fatal::lock(&self.publishing).last = Some(shell.clock.now().uptime_ms);
            snapshot
        };
        shell.log_snapshot(&snapshot, self.key())?;
        say_published(shell, snapshot)?;
        wake_everybody(shell);
        Ok(true)
    }

    /// A snapshot that was published just before the end, or by a version without entries for
    /// them, is entered now: nobody is given it before.
    fn see_to_the_log(&self, shell: &Shell) -> Result<(), CoordinatorError> {
        match self.newest().filter(|_| self.serves) {
            Some(snapshot) if !shell.state().holds_serving() => {
                shell.log_snapshot(&snapshot, self.key())
            }
            _ => Ok(()),
        }
    }

    fn is_due(&self, tally: &Tally, uptime_ms: u64, day: i32) -> bool {
        let behind = tally.is_behind();
        let publishing = fatal::lock(&self.publishing);
        let changed = behind || publishing.changed;
        match tally.lists().served {
            Served::Out { .. } => true,
            Served::Nothing => changed,
            Served::Snapshot(_) => {
                let wait = self.config.publish_s.saturating_mul(1000);
                let waited = publishing.last.unwrap_or(0).saturating_add(wait) <= uptime_ms;
                // Tables are of a day: what was met lately changes with it.
                let stale = changed || publishing.day != Some(day);
                waited && stale && !tally.is_too_soon(day, self.config.publish_s)
            }
        }
    }
}

fn say_published(shell: &Shell, snapshot: SnapshotRef) -> Result<(), CoordinatorError> {
    tracing::info!(
        number = snapshot.number,
        people = snapshot.people,
        bytes = snapshot.bytes,
        "lists published"
    );
    shell.execute(Command::ListsPublished { snapshot }, vec![])?;
    Ok(())
}

/// Devices that wait hear that lists have changed.
fn wake_everybody(shell: &Shell) {
    shell.carry_out(Effects {
        wake: Wake {
            everybody: true,
            ..Wake::default()
        },
        ..Effects::default()
    });
}
