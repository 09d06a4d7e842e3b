//! The local history: in memory in chronological order, on disk as a [`Log`].

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use crate::event::{EventId, LocalEvent};
use crate::feedback_of_lists::{KEPT, Told};
use crate::history::Erasure;
use crate::log::{Log, Record};
use crate::{ClientError, vault};

/// So many records that count no more may be in the file before it is written anew.
const DEAD: usize = 256;

/// An event with its name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) id: EventId,
    pub(crate) event: LocalEvent,
}

/// Events and outcomes of one device.
#[derive(Debug)]
pub(crate) struct Events {
    path: PathBuf,
    key: [u8; 32],
    log: Log,
    /// Random name of this history, sent with contributions.
    pub(crate) source: [u8; 16],
    next: u64,
    /// In chronological order; events of one second in the order in which they were recorded.
    list: Vec<Stored>,
    told: VecDeque<Told>,
    /// Records of the file that count no more.
    dead: usize,
}

fn random<const N: usize>() -> Result<[u8; N], ClientError> {
    lethe_seal::random().map_err(|e| ClientError::Internal(e.to_string()))
}

impl Events {
    /// Opens the history in `path`, or begins one.
    pub(crate) fn open(path: &Path, key: [u8; 32]) -> Result<Self, ClientError> {
        match Log::open(path, key)? {
            Some((log, records)) => Self::of(path, key, log, records),
            None => Self::create(path, key, vec![]),
        }
    }

    /// Begins a history with these events, in place of one that may be there.
    pub(crate) fn create(
        path: &Path,
        key: [u8; 32],
        events: Vec<LocalEvent>,
    ) -> Result<Self, ClientError> {
        let source = random()?;
        let mut records = vec![Record::Head(source, events.len() as u64)];
        records.extend((0..).zip(events).map(|(n, e)| Record::Event(EventId(n), e)));
        let log = Log::create(path, key, &records)?;
        Self::of(path, key, log, records)
    }

    fn of(path: &Path, key: [u8; 32], log: Log, records: Vec<Record>) -> Result<Self, ClientError> {
        let mut this = Self {
            path: path.to_owned(),
            key,
            log,
            source: [0; 16],
            next: 0,
            list: vec![],
            told: VecDeque::new(),
            dead: 0,
        };
        for record in records {
            this.apply(record);
        }
        if this.dead > DEAD {
            this.compact()?;
        }
        Ok(this)
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::Head(source, next) => {
                self.source = source;
                self.next = self.next.max(next);
            }
            Record::Event(id, event) => {
                self.next = self.next.max(id.0 + 1);
                let at = self.list.partition_point(|s| s.event.time <= event.time);
                self.list.insert(at, Stored { id, event });
            }
            Record::Undone(id) => {
                self.list.retain(|s| s.id != id);
                self.dead += 2;
            }
            Record::Told(told) => {
                self.told.push_back(told);
                if self.told.len() > KEPT {
                    self.told.pop_front();
                    self.dead += 1;
                }
            }
        }
    }

    fn write(&mut self, records: Vec<Record>) -> Result<(), ClientError> {
        self.log.append(&records)?;
        for record in records {
            self.apply(record);
        }
        Ok(())
    }

    /// Gives the file back to the system.
    pub(crate) fn close(&mut self) {
        self.log.close();
    }

    /// Writes the file anew, with what counts only.
    fn compact(&mut self) -> Result<(), ClientError> {
        let mut records = vec![Record::Head(self.source, self.next)];
        let event = |s: &Stored| Record::Event(s.id, s.event.clone());
        records.extend(self.list.iter().map(event));
        records.extend(self.told.iter().cloned().map(Record::Told));
        self.log = Log::create(&self.path, self.key, &records)?;
        self.dead = 0;
        Ok(())
    }

    pub(crate) fn list(&self) -> &[Stored] {
        &self.list
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &LocalEvent> + Clone {
        self.list.iter().map(|s| &s.event)
    }

    pub(crate) fn told(&self) -> impl Iterator<Item = &Told> {
        self.told.iter()
    }

    /// Adds events with one write; their names, in the same order.
    pub(crate) fn add(&mut self, events: Vec<LocalEvent>) -> Result<Vec<EventId>, ClientError> {
        if events.is_empty() {
            return Ok(vec![]);
        }
        let ids: Vec<EventId> = (self.next..).take(events.len()).map(EventId).collect();
        let record = |pair: (&EventId, LocalEvent)| Record::Event(*pair.0, pair.1);
        self.write(ids.iter().zip(events).map(record).collect())?;
        Ok(ids)
    }

    /// Takes an event back: this one, or the one that was recorded last. `None`: there is none.
    pub(crate) fn undo(&mut self, id: Option<EventId>) -> Result<Option<LocalEvent>, ClientError> {
        let found = match id {
            Some(id) => self.list.iter().find(|s| s.id == id),
            None => self.list.iter().max_by_key(|s| s.id),
        };
        let Some(found) = found.cloned() else {
            return Ok(None);
        };
        self.write(vec![Record::Undone(found.id)])?;
        Ok(Some(found.event))
    }

    pub(crate) fn tell(&mut self, told: Told) -> Result<(), ClientError> {
        self.write(vec![Record::Told(told)])?;
        if self.dead > DEAD + KEPT {
            self.compact()?;
        }
        Ok(())
    }

    /// How many events an erasure concerns.
    pub(crate) fn concerned(&self, what: &Erasure) -> usize {
        let hit = |e: &&LocalEvent| what.concerns(&e.item, e.time);
        self.iter().filter(hit).count()
    }

    /// Erases events, and what was done with lists that showed their items. Nothing of them is in
    /// the file any more, nor of what was taken back before.
    pub(crate) fn erase(&mut self, what: &Erasure) -> Result<(), ClientError> {
        self.list
            .retain(|s| !what.concerns(&s.event.item, s.event.time));
        self.told.retain(|t| !what.concerns(&t.item, t.time));
        self.compact()
    }

    /// Closes the file of an erased history.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.told.clear();
        self.source = [0; 16];
        vault::zero(&mut self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feedback_of_lists::Outcome;
    use crate::lists::ListId;

    #[test]
    fn events_come_back_in_order_and_erased_ones_do_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("history");
        let open = || Events::open(&path, [5; 32]).expect("opens");
        let mut events = open();
        let source = events.source;
        let ids = events
            .add(vec![
                LocalEvent::liked("late", 30),
                LocalEvent::rating("early", 4.5, 10),
                LocalEvent::viewed("middle", 12.0, 20),
            ])
            .expect("adds");
        let last = events.undo(None).expect("undoes").expect("one");
        assert_eq!(last.item, "middle");
        assert_eq!(
            events.undo(Some(ids[2])).expect("is fine"),
            None,
            "once only"
        );
        drop(events);
        let mut again = open();
        assert_eq!(again.source, source);
        let items: Vec<&str> = again.iter().map(|e| e.item.as_str()).collect();
        assert_eq!(items, ["early", "late"]);
        let what = Erasure {
            items: vec!["early".into()],
            from: None,
        };
        assert_eq!(again.concerned(&what), 1);
        let before = std::fs::metadata(&path).expect("is there").len();
        again.erase(&what).expect("erases");
        assert!(std::fs::metadata(&path).expect("is there").len() < before);
        let next = again.add(vec![LocalEvent::liked("new", 40)]).expect("adds");
        assert!(next[0] > ids[2], "no number is used twice");
        let (_, records) = Log::open(&path, [5; 32]).expect("opens").expect("is there");
        let text = format!("{records:?}");
        assert!(
            !text.contains("early") && !text.contains("middle"),
            "{text}"
        );
        assert_eq!(open().list().len(), 2);
    }

    #[test]
    fn many_undone_events_leave_the_file() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("history");
        let mut events = Events::open(&path, [5; 32]).expect("opens");
        for n in 0..200 {
            events.add(vec![LocalEvent::liked("x", n)]).expect("adds");
            events.undo(None).expect("undoes");
        }
        drop(events);
        Events::open(&path, [5; 32]).expect("opens");
        let (_, records) = Log::open(&path, [5; 32]).expect("opens").expect("is there");
        assert_eq!(records.len(), 1, "{records:?}");
    }

    #[test]
    fn the_newest_outcomes_are_kept() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("history");
        let mut events = Events::open(&path, [5; 32]).expect("opens");
        let told = |n: usize| Told {
            list: ListId::from_number(0),
            item: format!("i{n}"),
            outcome: Outcome::Clicked,
            time: n as i64,
        };
        let records = (0..KEPT + 50).map(|n| Record::Told(told(n))).collect();
        events.write(records).expect("writes");
        assert_eq!(events.told().count(), KEPT);
        assert_eq!(events.told().next().map(|t| t.time), Some(50));
        assert_eq!(
            Events::open(&path, [5; 32]).expect("opens").told().count(),
            KEPT
        );
    }
}
