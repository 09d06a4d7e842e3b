//! What the devices of a person have brought, as one contribution.

use lethe_parts::merge::{Most, Share, merge};

use super::change::Change;
use super::{Inner, Tally};
use crate::error::TallyError;
use crate::ids::Handle;
use crate::vault::{Source, VersionOf, content};

/// Devices of a handle whose contributions are kept. Few people have more at a time, and each is a
/// place for events that were made up.
const MOST: usize = 8;

/// What each device of a handle has brought last; the one that brought something least lately
/// first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Devices(Vec<Source>);

impl Devices {
    /// Whether this is what the device has brought last.
    pub(super) fn has_brought(&self, source: &[u8; 16], content: &[u8]) -> bool {
        let own = self.0.iter().find(|s| s.source == *source);
        own.is_some_and(|s| s.content == content)
    }

    /// The device itself, or the one that makes way for it; none: there is a place for it.
    fn makes_way(&self, source: &[u8; 16]) -> Option<usize> {
        let own = self.0.iter().position(|s| s.source == *source);
        own.or((self.0.len() >= MOST).then_some(0))
    }

    /// When something was brought last in the place of this device, in seconds since 1970.
    pub(super) fn last(&self, source: &[u8; 16]) -> Option<u64> {
        Some(self.0[self.makes_way(source)?].at)
    }

    /// After a device has brought something.
    pub(super) fn with(mut self, brought: Source) -> Self {
        if let Some(at) = self.makes_way(&brought.source) {
            self.0.remove(at);
        }
        self.0.push(brought);
        self
    }

    /// What counts of all of it.
    ///
    /// # Errors
    /// [`TallyError::Codec`]: something that is kept cannot be read.
    pub(super) fn merged(&self, most: &Most) -> Result<Share, TallyError> {
        let read = |s: &Source| -> Result<Share, TallyError> {
            let content = content::from_bytes(&s.content)?;
            Ok(Share {
                whole: content.whole,
                events: content.events,
            })
        };
        let shares: Result<Vec<Share>, TallyError> = self.0.iter().map(read).collect();
        Ok(merge(&shares?, most))
    }

    /// Everything, if there are several: what one has brought is its newest version.
    pub(super) fn several(self) -> Option<Vec<Source>> {
        (self.0.len() > 1).then_some(self.0)
    }
}

impl Tally {
    /// What the devices of a handle have brought, with what comes with this change.
    pub(super) fn devices(
        &self,
        inner: &Inner,
        change: &Change,
        handle: &Handle,
    ) -> Result<Devices, TallyError> {
        let person = inner.state.people().get(handle);
        let newest = inner.state.newest(handle);
        let (Some(person), Some(version)) = (person, newest) else {
            return Ok(Devices::default());
        };
        if let Some(coming) = change.sources.get(handle) {
            return Ok(Devices(coming.clone()));
        }
        if let Some(kept) = self.vault.sources(handle)? {
            return Ok(Devices(kept));
        }
        let coming = change.brought.iter().find(|b| b.handle == *handle);
        let content = match coming {
            Some(coming) => Some(coming.content.clone()),
            None => self.vault.sealed(&VersionOf {
                handle: *handle,
                version,
            })?,
        };
        let one = content.map(|content| Source {
            source: person.source,
            at: person.at,
            content,
        });
        Ok(Devices(one.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(source: u8, at: u64) -> Source {
        Source {
            source: [source; 16],
            at,
            content: vec![source],
        }
    }

    #[test]
    fn the_one_that_brought_something_least_lately_makes_way() {
        let mut devices = Devices::default();
        for n in 0..8 {
            assert_eq!(devices.last(&[n; 16]), None);
            devices = devices.with(source(n, u64::from(n)));
        }
        assert_eq!(devices.last(&[3; 16]), Some(3), "its own");
        devices = devices.with(source(0, 20));
        assert_eq!(devices.last(&[9; 16]), Some(1), "that of the first");
        devices = devices.with(source(9, 30));
        let names: Vec<u8> = devices.0.iter().map(|s| s.source[0]).collect();
        assert_eq!(names, [2, 3, 4, 5, 6, 7, 0, 9]);
        assert!(devices.has_brought(&[9; 16], &[9]));
        assert!(!devices.has_brought(&[9; 16], &[8]));
        assert!(!devices.has_brought(&[1; 16], &[1]));
    }
}
