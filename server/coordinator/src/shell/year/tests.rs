use super::*;

fn weeks(seed: u64, count: usize) -> (Year, Vec<Week>) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut year = Year::found(Plan::quick(seed, folder.path())).expect("founds");
    let weeks = (0..count).map(|_| year.week().expect("a week")).collect();
    // The folder is still used: it goes when the test has looked.
    let _kept = folder.keep();
    (year, weeks)
}

#[test]
fn weeks_pass_epochs_follow_and_everybody_who_leaves_has_a_receipt() {
    let (year, weeks) = weeks(1, 5);
    let last = weeks.last().expect("weeks");
    assert!(last.people > 130 && last.counting > 60, "{last:?}");
    assert!(last.serving >= 2 && last.retired >= 1, "{last:?}");
    assert!(last.catalogue == 2 && last.receipts > 4, "{last:?}");
    let asked: u64 = weeks.iter().flat_map(|w| w.asked.values()).sum();
    assert!(asked > 10);
    let whole: usize = weeks.iter().map(|w| w.whole_s.len()).sum();
    assert_eq!(whole as u64, last.receipts);
    assert!(year.verify_receipts().expect("verify") as u64 >= last.receipts);
    let records = year.records().expect("reads").0;
    assert!(records["value-receipts"].0 >= last.receipts, "{records:?}");
    std::fs::remove_dir_all(&year.plan.folder).expect("removes");
}

#[test]
fn the_same_seed_gives_the_same_weeks() {
    let told = |seed: u64| {
        let (year, weeks) = weeks(seed, 3);
        std::fs::remove_dir_all(&year.plan.folder).expect("removes");
        let told = weeks.into_iter().map(|w| Week {
            exact_s: vec![],
            folder: Folder::default(),
            ..w
        });
        format!("{:?}", told.collect::<Vec<_>>())
    };
    let first = told(3);
    assert_eq!(first, told(3));
    assert_ne!(first, told(4));
}
