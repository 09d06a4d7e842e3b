//! Folders of format 4: one contribution of a handle stood. Its newest version is what the device
//! brought that the handle's row names, as with a handle that has one device now: nothing is
//! written anew but the format. Builds of before would leave out what several devices have brought,
//! so they do not open the folder any more.

use lethe_store::StoreError;
use lethe_store::sealed::{Batch, KeyName, SealedStore};

use super::FORMAT;
use super::tables::Format;

/// Writes the format.
pub(super) fn migrate(store: &SealedStore) -> Result<(), StoreError> {
    let format = Format { number: FORMAT };
    store.write(Batch::new().put(&KeyName::public(), "", &format)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use lethe_parts::content::{Content, Description};
    use lethe_parts::history::Interaction;
    use lethe_store::sled_backend::SledStorage;

    use super::super::Vault;
    use super::*;
    use crate::cells::CellSettings;
    use crate::{Handle, Offer, Options, Tally};

    const NOW: u64 = 20_000 * 86_400;

    fn open(folder: &Path) -> Tally {
        let options = Options {
            cells: CellSettings::off(),
            ..Options::default()
        };
        let content = Arc::new(Content::new(&vec![Description::default(); 5]));
        let opened = Tally::open(&SledStorage::engine, folder, content, options, NOW);
        opened.expect("opens")
    }

    fn bring(tally: &Tally, device: u8, items: &[u32], now: u64) {
        let event = |item: &u32| Interaction {
            item: *item,
            day: 19_900 + *item as i32,
            seen: true,
            half_stars: None,
            liked: true,
            hidden: false,
        };
        let events: Vec<Interaction> = items.iter().map(event).collect();
        let offer = Offer {
            handle: Handle([7; 16]),
            source: [device; 16],
            whole: true,
            events: &events,
        };
        tally.contribute(&offer, now).expect("is taken");
    }

    fn sums(tally: &Tally, now: u64) -> lethe_proto::ids::Digest {
        tally.open_cells(now).expect("opens cells");
        let folded = tally.refold(now).expect("folds");
        folded.expect("nothing changed").digest
    }

    #[test]
    fn a_folder_of_format_4_is_read_with_one_device_a_handle() {
        let dir = tempfile::tempdir().expect("tempdir");
        let tally = open(dir.path());
        bring(&tally, 1, &[0, 1, 3], NOW);
        drop(tally);
        // As builds of before left it: nobody has several devices.
        let vault = Vault::open(&SledStorage::engine, dir.path(), None).expect("opens");
        let handle = Handle([7; 16]);
        assert_eq!(vault.sources(&handle).expect("reads"), None);
        let format = Format { number: 4 };
        let batch = Batch::new().put(&KeyName::public(), "", &format);
        vault.store.write(batch.expect("encodes")).expect("writes");
        drop(vault);

        let tally = open(dir.path());
        bring(&tally, 2, &[1, 2], NOW + 1);
        let merged = sums(&tally, NOW + 1);
        drop(tally);
        let tally = open(dir.path());
        assert_eq!(sums(&tally, NOW + 2), merged);
        let other = tempfile::tempdir().expect("tempdir");
        let one = open(other.path());
        bring(&one, 1, &[0, 1, 2, 3], NOW);
        assert_eq!(sums(&one, NOW), merged);
    }
}
