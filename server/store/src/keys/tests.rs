//! The forms of the key source, and what comes out of a data folder.

use std::path::Path;

use super::*;
use crate::keyring::{Keyring, Notes, take_over};

mod found;

fn phrase(dir: &Path, text: &str) -> KeysConfig {
    let file = dir.join(format!("phrase-{}", text.len()));
    fs::write(&file, text).expect("writes");
    KeysConfig {
        folder: Some(dir.join("keys")),
        passphrase_file: Some(file),
        ..KeysConfig::default()
    }
}

/// A vault made of files, as docs/keys.md has one.
fn vault(dir: &Path) -> KeysConfig {
    let program = dir.join("vault.sh");
    let vault = dir.join("vault");
    fs::create_dir_all(&vault).expect("creates");
    let script = format!(
        "#!/bin/sh\nset -e\ncd {}\ncase \"$1\" in\nget) [ -e \"$2\" ] || exit 3; cat \"$2\";;\n\
         put) cat > \"$2.next\"; mv \"$2.next\" \"$2\";;\ndestroy) rm -f \"$2\";;\nlist) ls;;\n\
         *) echo \"no such call\" >&2; exit 2;;\nesac\n",
        vault.display()
    );
    fs::write(&program, script).expect("writes");
    KeysConfig {
        folder: Some(dir.join("keys")),
        command: vec!["/bin/sh".into(), program.display().to_string()],
        ..KeysConfig::default()
    }
}

fn plain(dir: &Path) -> KeysConfig {
    KeysConfig {
        folder: Some(dir.join("keys")),
        ..KeysConfig::default()
    }
}

/// Whether a file somewhere in a folder has these bytes in it.
fn holds(folder: &Path, bytes: &[u8]) -> bool {
    fs::read_dir(folder).expect("reads").any(|entry| {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            return holds(&path, bytes);
        }
        let content = fs::read(&path).expect("reads");
        content.windows(bytes.len()).any(|w| w == bytes)
    })
}

#[test]
fn h1_every_form_keeps_replaces_and_destroys_secrets_and_keyrings() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    for (n, config) in [plain, vault].map(|f| f(dir.path())).iter().enumerate() {
        let _ = fs::remove_dir_all(dir.path().join("keys"));
        let keys = Keys::open(config, &data).expect("opens");
        forms(&keys, n);
    }
    let _ = fs::remove_dir_all(dir.path().join("keys"));
    let config = phrase(dir.path(), "a long passphrase\r\n");
    let keys = Keys::open(&config, &data).expect("opens");
    forms(&keys, 2);
}

fn forms(keys: &Keys, n: usize) {
    assert_eq!(keys.secret("log-1").expect("asks"), None, "form {n}");
    keys.keep("log-1", b"one").expect("keeps");
    keys.keep("log-2", b"two").expect("keeps");
    keys.keep("log-2", b"2").expect("replaces");
    let secret = keys.secret("log-2").expect("asks").expect("is there");
    assert_eq!(*secret, b"2", "form {n}");
    assert_eq!(keys.numbers("log").expect("lists"), [1, 2]);
    let inner = keys.within("tally");
    assert_eq!(inner.secret("log-1").expect("asks"), None);
    inner.keep("log-1", b"another").expect("keeps");
    keys.destroy("log-1").expect("destroys");
    keys.destroy("log-1").expect("repeats");
    assert_eq!(keys.numbers("log").expect("lists"), [2]);
    assert_eq!(inner.numbers("log").expect("lists"), [1]);
    assert!(keys.keep("Log", b"x").is_err(), "no name");
    assert!(keys.keep("log-3", &[0; LONGEST + 1]).is_err(), "too long");
    for keys in [keys, &inner] {
        let mut ring = Keyring::open(keys, None).expect("opens");
        ring.ensure(&["a", "b"]).expect("makes");
        assert_eq!(ring.destroy(&["a"], &Notes::new()).expect("destroys"), 1);
        let again = Keyring::open(keys, None).expect("opens");
        assert!(again.get("a").is_none() && again.get("b").is_some());
        assert_eq!(again.get("b"), ring.get("b"), "form {n}");
    }
}

#[test]
fn h1_what_is_under_a_passphrase_is_not_in_the_folder_and_another_one_opens_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    let secret = b"a secret that nobody would write by chance";
    // First as plain files, as it was before somebody thought of a passphrase.
    let keys = Keys::open(&plain(dir.path()), &data).expect("opens");
    keys.keep("authority-1", secret).expect("keeps");
    let mut ring = Keyring::open(&keys, None).expect("opens");
    ring.ensure(&["a"]).expect("makes");
    let master = fs::read(dir.path().join("keys/master-1")).expect("a plain file");
    assert!(holds(&dir.path().join("keys"), secret));
    // From then on everything that opens something is sealed.
    let config = phrase(dir.path(), "a long passphrase\n");
    let keys = Keys::open(&config, &data).expect("opens");
    let again = Keyring::open(&keys, None).expect("opens");
    assert_eq!(again.get("a"), ring.get("a"));
    for gone in [&secret[..], &master] {
        assert!(!holds(&dir.path().join("keys"), gone));
    }
    let kept = Keys::open(&config, &data).expect("opens");
    let kept = kept.secret("authority-1").expect("asks").expect("is there");
    assert_eq!(*kept, secret);
    let other = phrase(dir.path(), "another passphrase\n");
    let e = Keys::open(&other, &data)
        .expect_err("another one")
        .to_string();
    assert!(e.contains("another one than"), "{e}");
    let e = Keys::open(&plain(dir.path()), &data).expect("opens the folder");
    let e = e.secret("authority-1").expect_err("sealed").to_string();
    assert!(e.contains("passphrase_file"), "{e}");
    let short = phrase(dir.path(), "short");
    assert!(Keys::open(&short, &data).is_err());
    // What is beside the secrets is bounded before anything is computed with it.
    let made = dir.path().join("keys/passphrase.json");
    let text = fs::read_to_string(&made).expect("reads");
    for (from, to) in [
        ("65536", "4294967295"),
        ("argon2id", "md5"),
        ("\"passes\": 3", "\"passes\": 4000000"),
        ("\"salt\": \"", "\"salt\": \"00"),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text);
        fs::write(&made, changed).expect("writes");
        let e = Keys::open(&config, &data).expect_err(to);
        assert!(matches!(e, StoreError::Keys { .. }), "{e}");
    }
}

#[test]
fn h1_a_command_that_fails_or_lies_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let says = |script: &str| {
        let command = ["/bin/sh", "-c", script, "vault"].map(str::to_owned);
        let config = KeysConfig {
            folder: Some(dir.path().join("keys")),
            command: command.to_vec(),
            ..KeysConfig::default()
        };
        Keys::open(&config, &dir.path().join("data")).expect("opens")
    };
    let e = says("echo locked >&2; exit 9")
        .secret("log-1")
        .expect_err("fails");
    assert!(e.to_string().contains("code 9: locked"), "{e}");
    assert_eq!(says("exit 3").secret("log-1").expect("there is none"), None);
    for script in ["echo '!!'", "true", "head -c 3000000 /dev/zero"] {
        assert!(says(script).secret("log-1").is_err(), "{script}");
    }
    // It forgets what it was given, or keeps what it was to destroy.
    let e = says("case $1 in get) exit 3;; *) cat;; esac").keep("log-1", b"x");
    assert!(e.is_err());
    let e = says("case $1 in get) echo eA==;; *) true;; esac").destroy("log-1");
    assert!(e.is_err());
    let none = KeysConfig {
        command: vec!["/nonexistent/lethe-keys".into()],
        folder: Some(dir.path().join("keys")),
        ..KeysConfig::default()
    };
    let keys = Keys::open(&none, &dir.path().join("data")).expect("is asked later");
    let e = keys.secret("log-1").expect_err("is not there").to_string();
    assert!(e.contains("/nonexistent/lethe-keys"), "{e}");
}

#[test]
fn h1_tables_that_do_not_fit_are_refused() {
    let data = Path::new("/var/lib/lethe/data");
    let inside = KeysConfig {
        folder: Some(data.join("keys")),
        ..KeysConfig::default()
    };
    let both = KeysConfig {
        passphrase_env: Some("X".into()),
        command: vec!["true".into()],
        ..KeysConfig::default()
    };
    for (config, why) in [(inside, "outside"), (both, "expected one of")] {
        let e = Keys::open(&config, data).expect_err(why).to_string();
        assert!(e.contains(why), "{e}");
    }
    let unset = KeysConfig {
        folder: Some(std::env::temp_dir()),
        passphrase_env: Some("LETHE_NO_SUCH_VARIABLE".into()),
        ..KeysConfig::default()
    };
    let e = Keys::open(&unset, data).expect_err("not set").to_string();
    assert!(e.contains("LETHE_NO_SUCH_VARIABLE"), "{e}");
    let default = folder_of(&KeysConfig::default(), data);
    assert_eq!(default, Path::new("/var/lib/lethe/data-keys"));
}

#[test]
fn h1_keys_of_an_earlier_build_leave_the_data_folder_whenever_it_was_cut_off() {
    let dir = tempfile::tempdir().expect("tempdir");
    let old = dir.path().join("data/keys");
    let mut before = Keyring::open(&Keys::in_folder(&old), None).expect("opens");
    before
        .ensure(&[crate::sealed::INDEX_KEY, "a", "b"])
        .expect("makes");
    before.ensure(&["c"]).expect("makes");
    let backup = dir.path().join("backup");
    copy(&old, &backup);
    let keys = Keys::open(&plain(dir.path()), &dir.path().join("data")).expect("opens");
    take_over(&old, &keys).expect("moves");
    assert!(old.is_file(), "it says where they are");
    let mut ring = Keyring::open(&keys, None).expect("opens");
    let all = |r: &Keyring| {
        r.iter()
            .map(|(n, k)| (n.clone(), k.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(all(&ring), all(&before));
    assert_eq!(ring.made(), 4);
    // A backup from before comes back with its keys: they are overwritten, and bring nobody back.
    ring.destroy(&["a"], &Notes::new()).expect("destroys");
    fs::remove_file(&old).expect("is there");
    copy(&backup, &old);
    take_over(&old, &keys).expect("removes");
    assert!(old.is_file());
    let ring = Keyring::open(&keys, None).expect("opens");
    assert!(ring.get("a").is_none() && ring.get("b").is_some());
    // Cut off: the new keyring is half there, or the old one is half gone.
    for lost in ["master-1", "keyring-1"] {
        let there = dir.path().join(format!("there-{lost}"));
        let config = KeysConfig {
            folder: Some(there.clone()),
            ..KeysConfig::default()
        };
        let keys = Keys::open(&config, &dir.path().join("data")).expect("opens");
        fs::write(there.join("keyring-2"), b"cut off").expect("writes");
        fs::remove_file(&old).expect("is there");
        copy(&backup, &old);
        take_over(&old, &keys).expect("begins again");
        fs::remove_file(&old).expect("is there");
        copy(&backup, &old);
        for copy in ["", ".copy"] {
            fs::remove_file(old.join(format!("{lost}{copy}"))).expect("is there");
        }
        take_over(&old, &keys).expect("goes on");
        assert!(old.is_file());
        let ring = Keyring::open(&keys, None).expect("opens");
        assert_eq!(all(&ring), all(&before), "{lost}");
    }
    // Keys of another folder are in the place.
    let there = dir.path().join("another");
    let other = Keys::in_folder(&there);
    let mut ring = Keyring::open(&other, None).expect("opens");
    ring.ensure(&[crate::sealed::INDEX_KEY]).expect("makes");
    fs::remove_file(&old).expect("is there");
    copy(&backup, &old);
    let e = take_over(&old, &other)
        .expect_err("another folder")
        .to_string();
    assert!(e.contains("another data folder") && old.is_dir(), "{e}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("creates");
    for entry in fs::read_dir(from).expect("reads") {
        let entry = entry.expect("entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
    }
}

#[test]
fn h1_an_older_copy_of_the_keyring_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    fs::create_dir_all(&data).expect("creates");
    let keys = Keys::open(&plain(dir.path()), &data).expect("opens");
    let mut ring = Keyring::open(&keys, Some(&data)).expect("opens");
    ring.ensure(&["a", "b"]).expect("makes");
    let backup = dir.path().join("backup");
    copy(keys.folder(), &backup);
    ring.destroy(&["a"], &Notes::new()).expect("destroys");
    drop(ring);
    Keyring::open(&keys, Some(&data)).expect("opens");
    fs::remove_dir_all(keys.folder()).expect("is there");
    copy(&backup, keys.folder());
    let e = Keyring::open(&keys, Some(&data)).expect_err("an older copy");
    assert!(
        matches!(
            e,
            StoreError::OldKeys {
                has: 1,
                seen: 2,
                ..
            }
        ),
        "{e}"
    );
    let older = dir.path().join("older");
    fs::create_dir_all(&older).expect("creates");
    Keyring::open(&keys, Some(&older)).expect("an older data folder has seen less");
}
