//! Sums whose writing fails cost time, and nothing else.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{DAY, Disk, NOW, events, handle, offer};
use lethe_tally::Finished;

#[test]
fn sums_that_could_not_be_kept_are_no_obstacle() {
    for written in [false, true] {
        let disk = Disk::default();
        let tally = disk.open();
        for who in 0..40 {
            let events = events(who, 8);
            tally.contribute(&offer(handle(who), &events), NOW).unwrap();
        }
        tally.open_cells(NOW).unwrap();
        // The first time something is kept; the second time it stands in the way.
        tally.publish(DAY, NOW).unwrap();
        let done = tally.job(DAY, NOW).unwrap().run().unwrap();
        let finished = tally.finish(&done, NOW).unwrap();
        assert!(matches!(finished, Finished::Published(_)));
        disk.fail_after(0, written);
        tally.keep_sums(&done).unwrap_err();
        let refolded = tally.refold(NOW).unwrap().unwrap();
        assert_eq!(refolded.memory, Some(true));
        assert_ne!(refolded.folder, Some(false));
        assert!(tally.keep_sums(&done).unwrap());
        let refolded = tally.refold(NOW).unwrap().unwrap();
        assert_eq!(refolded.folder, Some(true));
    }
}
