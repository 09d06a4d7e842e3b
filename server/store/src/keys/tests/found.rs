//! What a review of the keys found, and could not be found by what was tested before.

use super::*;

/// A keyring with these keys, in a folder.
fn made(folder: &Path, names: &[&str]) -> Keyring {
    let mut ring = Keyring::open(&Keys::in_folder(folder), None).expect("opens");
    ring.ensure(names).expect("makes");
    ring
}

#[cfg(unix)]
#[test]
fn h1_a_folder_of_keys_under_another_name_is_not_overwritten() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    fs::create_dir_all(&data).expect("creates");
    let elsewhere = dir.path().join("elsewhere");
    let before = made(&elsewhere, &["a"]);
    symlink(&elsewhere, data.join("keys")).expect("links");
    // The operator names the folder that the link leads to.
    let config = KeysConfig {
        folder: Some(elsewhere.clone()),
        ..KeysConfig::default()
    };
    let keys = Keys::open(&config, &data).expect("opens");
    take_over(&data.join("keys"), &keys).expect("it is where it belongs");
    let ring = Keyring::open(&keys, None).expect("opens");
    assert_eq!(ring.get("a"), before.get("a"));
    // Through a link the folder lies in the data folder all the same.
    let inside = data.join("inside");
    fs::create_dir_all(&inside).expect("creates");
    symlink(&data, dir.path().join("link")).expect("links");
    let config = KeysConfig {
        folder: Some(dir.path().join("link/inside")),
        ..KeysConfig::default()
    };
    let refused = Keys::open(&config, &data).expect_err("inside").to_string();
    assert!(refused.contains("lies in the data folder"), "{refused}");
}

#[cfg(unix)]
#[test]
fn h1_a_link_in_the_place_of_the_old_keys_stays_and_the_keys_are_moved() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    fs::create_dir_all(&data).expect("creates");
    let mounted = dir.path().join("mounted");
    let before = made(&mounted, &["a"]);
    std::os::unix::fs::symlink(&mounted, data.join("keys")).expect("links");
    let keys = Keys::open(&plain(dir.path()), &data).expect("opens");
    for _ in 0..2 {
        take_over(&data.join("keys"), &keys).expect("moves");
        let ring = Keyring::open(&keys, None).expect("opens");
        assert_eq!(ring.get("a"), before.get("a"));
        assert_eq!(fs::read_dir(&mounted).expect("reads").count(), 0);
    }
}

#[test]
fn a_slash_at_the_end_of_the_data_folder_changes_nothing() {
    let default = folder_of(&KeysConfig::default(), Path::new("/var/lib/lethe/data/"));
    assert_eq!(default, Path::new("/var/lib/lethe/data-keys"));
}

#[test]
fn h1_a_backup_of_an_earlier_build_never_replaces_keys_that_do_not_open() {
    let dir = tempfile::tempdir().expect("tempdir");
    let old = dir.path().join("data/keys");
    made(&old, &[crate::sealed::INDEX_KEY, "a"]);
    let keys = Keys::open(&plain(dir.path()), &dir.path().join("data")).expect("opens");
    let mut ring = Keyring::open(&keys, None).expect("opens");
    ring.ensure(&[crate::sealed::INDEX_KEY, "b"])
        .expect("makes");
    keys.keep("authority-1", b"whoever").expect("keeps");
    for copy in ["", ".copy"] {
        fs::write(keys.folder().join(format!("master-1{copy}")), [0; 32]).expect("writes");
    }
    let refused = take_over(&old, &keys).expect_err("they are damaged");
    assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused}");
    assert!(old.is_dir() && keys.folder().join("keyring-1").exists());
}

#[test]
fn h1_a_rotation_that_failed_half_way_takes_no_key_along() {
    // The files of a generation, in the order in which they are written.
    let files = ["master-2", "keyring-2", "master-2.copy", "keyring-2.copy"];
    for file in files {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ring = made(dir.path(), &["a"]);
        let blocked = dir.path().join(file);
        fs::create_dir(&blocked).expect("creates");
        assert!(ring.rotate().is_err(), "{file}");
        fs::remove_dir(&blocked).expect("is there");
        // Somebody comes, and then the process ends.
        ring.ensure(&["b"]).expect("makes");
        let kept = ring.get("b").cloned();
        drop(ring);
        let again = Keyring::open(&Keys::in_folder(dir.path()), None).expect("opens");
        assert!(again.get("a").is_some(), "{file}");
        assert_eq!(again.get("b").cloned(), kept, "{file}");
    }
}

#[test]
fn notes_of_who_was_withdrawn_are_dropped_and_other_keys_stay() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ring = made(dir.path(), &["a", "b"]);
    let notes = ["a", "b"].map(|n| (n.to_owned(), n.as_bytes().to_vec()));
    ring.destroy(&["a", "b"], &Notes::from(notes))
        .expect("destroys");
    ring.ensure(&["a", "b"]).expect("makes");
    ring.drop_notes(&["a", "nobody"]).expect("drops");
    let again = Keyring::open(&Keys::in_folder(dir.path()), None).expect("opens");
    assert_eq!(again.notes().keys().collect::<Vec<_>>(), ["b"]);
    assert!(again.get("a").is_some() && again.get("b").is_some());
}

#[cfg(unix)]
#[test]
fn h1_a_command_that_leaves_its_output_open_does_not_hold_the_server() {
    let dir = tempfile::tempdir().expect("tempdir");
    let command = ["/bin/sh", "-c", "sleep 60 & exit 3", "vault"];
    let config = KeysConfig {
        folder: Some(dir.path().join("keys")),
        command: command.map(str::to_owned).to_vec(),
        ..KeysConfig::default()
    };
    let keys = Keys::open(&config, &dir.path().join("data"));
    // Opening asks what is there, too.
    let said = keys.and_then(|k| k.secret("log-1")).expect_err("open");
    assert!(said.to_string().contains("still open"), "{said}");
}

#[test]
fn h1_the_salt_of_a_passphrase_is_there_twice_and_its_loss_is_named() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    let config = phrase(dir.path(), "a long passphrase\n");
    let keys = Keys::open(&config, &data).expect("opens");
    keys.keep("log-1", b"secret").expect("keeps");
    let made = keys.folder().join("passphrase.json");
    let copy = keys.folder().join("passphrase.json.copy");
    for lost in [&made, &copy] {
        fs::remove_file(lost).expect("is there");
        let keys = Keys::open(&config, &data).expect("opens with the other one");
        let secret = keys.secret("log-1").expect("asks").expect("is there");
        assert_eq!(*secret, b"secret");
        assert!(lost.exists(), "it is there twice again");
    }
    for damaged in [&made, &copy] {
        fs::write(damaged, b"{").expect("writes");
        Keys::open(&config, &data).expect("opens with the other one");
        assert_eq!(
            fs::read(&made).expect("reads"),
            fs::read(&copy).expect("reads")
        );
    }
    for lost in [&made, &copy] {
        fs::remove_file(lost).expect("is there");
    }
    let said = Keys::open(&config, &data).expect_err("lost").to_string();
    assert!(
        said.contains("passphrase.json") && said.contains("lost"),
        "{said}"
    );
    assert!(!made.exists(), "no other salt is made");
}
