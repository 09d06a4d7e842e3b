use super::*;

fn item(id: &str, title: &str, tags: &[&str]) -> CatalogueEntry {
    CatalogueEntry {
        id: id.into(),
        title: Some(title.into()),
        year: None,
        tags: tags.iter().map(|t| (*t).to_owned()).collect(),
        was: vec![],
    }
}

fn three() -> [CatalogueEntry; 3] {
    [
        item("a", "Anna", &["x"]),
        item("b", "Ben", &["x"]),
        item("c", "Carl", &["y"]),
    ]
}

fn pair(old: &str, new: &str) -> (String, String) {
    (old.into(), new.into())
}

#[test]
fn places_never_move() {
    let mut versions = Versions::founded(three()).expect("founds");
    let first = versions.digest();
    // a is renamed, b goes, c has another title and tags, d is new and is listed first.
    let folder = [
        item("d", "Dora", &["y"]),
        item("e", "Anna", &["x"]),
        item("c", "Carla", &["z"]),
    ];
    let renamed = [pair("a", "e")];
    let changes = difference(versions.entries(), 2, &folder, &renamed).expect("differs");
    let said = Difference::of(versions.entries(), &changes);
    assert_eq!(
        said.summary(),
        "1 added, 1 renamed, 1 retitled, 1 retagged, 1 removed"
    );
    versions.apply(changes).expect("applies");
    let place = |name: &str| versions.place(name);
    assert_eq!(
        ["a", "e", "b", "c", "d"].map(place),
        [0, 0, 1, 2, 3].map(Some)
    );
    assert_eq!(
        versions.entries()[1].title,
        None,
        "it has left, and keeps its place"
    );
    assert_eq!(
        versions.at(1),
        three(),
        "the version of before is still known"
    );
    assert_eq!(versions.version_of(&first), Some(1));
    assert_ne!(versions.digest(), first);
    // The same folder once more changes nothing, with its renames in it.
    let again = difference(versions.entries(), 3, &folder, &renamed).expect("differs");
    assert_eq!(again, []);
    assert_eq!(versions.apply(again), Err(CatalogueError::Nothing(3)));
    // What has left comes back to its place.
    let mut back = folder.to_vec();
    back.push(item("b", "Ben", &["x"]));
    let changes = difference(versions.entries(), 3, &back, &renamed).expect("differs");
    assert_eq!(Difference::of(versions.entries(), &changes).restored, ["b"]);
    versions.apply(changes).expect("applies");
    assert_eq!(versions.place("b"), Some(1));
    // All changes together give the same.
    let all = versions.since(0).to_vec();
    assert_eq!(Versions::of(all), Ok(versions));
}

#[test]
fn names_change_one_after_the_other_and_are_given_to_nobody_else() {
    let mut versions = Versions::founded(three()).expect("founds");
    let with = |first: &str| {
        [
            item(first, "Anna", &["x"]),
            three()[1].clone(),
            three()[2].clone(),
        ]
    };
    let chain = [pair("a", "e"), pair("e", "f")];
    let changes = difference(versions.entries(), 2, &with("f"), &chain).expect("differs");
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].entry.was, ["a", "e"]);
    versions.apply(changes).expect("applies");
    let differ = |items: &[CatalogueEntry], renamed: &[(String, String)]| {
        difference(versions.entries(), 3, items, renamed)
    };
    // The former name of another item.
    let mut taken = with("f").to_vec();
    taken.push(item("a", "Another Anna", &[]));
    assert!(matches!(
        differ(&taken, &[]),
        Err(CatalogueError::Name { taken: 0, .. })
    ));
    // Two items cannot become one.
    let into_b = differ(&with("f"), &[pair("f", "b")]);
    assert!(matches!(into_b, Err(CatalogueError::Name { taken: 1, .. })));
    for (wrong, why) in [
        (pair("nobody", "g"), "no item"),
        (pair("f", "g"), "does not list"),
    ] {
        let refused = differ(&with("f"), &[wrong]).expect_err("names nothing");
        assert!(refused.to_string().contains(why), "{refused}");
    }
}

#[test]
fn what_is_no_version_is_refused_and_changes_nothing() {
    let good = Versions::founded(three()).expect("founds");
    let change = |version, place, entry: CatalogueEntry| CatalogueChange {
        version,
        place,
        entry,
    };
    let long = "x".repeat(MAX_TITLE + 1);
    let mut renamed = item("z", "Anna", &["x"]);
    renamed.was = vec!["q".into()];
    let mut gone = item("d", "Dora", &[]);
    gone.title = None;
    let wrong = [
        vec![],
        vec![change(3, 3, item("d", "Dora", &[]))],
        vec![change(2, 4, item("d", "Dora", &[]))],
        vec![
            change(2, 3, item("d", "Dora", &[])),
            change(2, 3, item("e", "E", &[])),
        ],
        vec![
            change(2, 1, item("b", "B", &[])),
            change(2, 0, item("a", "A", &[])),
        ],
        vec![change(2, 0, three()[0].clone())],
        vec![change(2, 0, item("z", "Anna", &["x"]))],
        vec![change(2, 0, renamed)],
        vec![change(2, 3, item("a", "Another", &[]))],
        vec![change(2, 3, item("d", &long, &[]))],
        vec![change(2, 3, item("d", " ", &[]))],
        vec![change(2, 3, item("", "Nobody", &[]))],
        vec![change(2, 3, item("d", "Dora", &["t"; MAX_TAGS + 1]))],
        vec![change(2, 3, gone)],
    ];
    for (at, changes) in wrong.into_iter().enumerate() {
        let mut versions = good.clone();
        let refused = versions.apply(changes);
        assert!(refused.is_err(), "{at}");
        assert_eq!(versions, good, "{at}");
    }
}

#[test]
fn pages_hold_about_as_much_as_they_may_and_at_least_one() {
    let all = [PAGE_BYTES * 2, PAGE_BYTES - 1, 1, 1];
    let of = |from| page(&all, from, |n| *n);
    assert_eq!(of(0), [PAGE_BYTES * 2]);
    assert_eq!(of(1), [PAGE_BYTES - 1, 1]);
    assert_eq!(of(3), [1]);
    assert!(of(4).is_empty());
    assert!(of(u64::MAX).is_empty());
}
