//! A witness over HTTP: what it signs, what it refuses, and what it knows after a restart.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use lethe_receipt::merkle::Tree;
use lethe_receipt::note::Signer;
use lethe_receipt::witness::{AddCheckpoint, Witness, add_cosignatures};
use lethe_witness::{Service, State, StateError, bind, serve};

fn log() -> Signer {
    Signer::from_seed("log.example", &[1; 32]).unwrap()
}

fn witness() -> Witness {
    let witness = Witness::from_seed("witness.example", &[2; 32]).unwrap();
    witness.with_ml_dsa(&[2; 32]).unwrap()
}

fn service(folder: &Path) -> Service {
    let logs = vec![log().verifier().clone()];
    let state = State::open(folder, &logs).unwrap();
    Service::new(witness(), logs, state)
}

fn request(tree: &Tree, old: u64) -> String {
    let request = AddCheckpoint {
        old,
        consistency: tree.consistency(old).unwrap_or_default(),
        checkpoint: log().checkpoint(tree.len(), &tree.root()),
    };
    request.text()
}

fn tree(n: u8) -> Tree {
    let mut tree = Tree::default();
    for i in 0..n {
        tree.push(&[i]);
    }
    tree
}

/// Status, head and body of the answer to a request.
fn send(addr: SocketAddr, raw: &[u8]) -> (u16, String, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(raw).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

fn post(addr: SocketAddr, body: &str) -> (u16, String, String) {
    let length = body.len();
    let head = format!(
        "POST /add-checkpoint HTTP/1.1\r\nhost: w\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n"
    );
    send(addr, [head.as_bytes(), body.as_bytes()].concat().as_slice())
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_are_signed_over_http_and_refused_as_the_specification_says() {
    let dir = tempfile::tempdir().unwrap();
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = tokio::spawn(serve(listener, Arc::new(service(dir.path()))));
    let asked = tokio::task::spawn_blocking(move || {
        let (status, _, lines) = post(addr, &request(&tree(3), 0));
        assert_eq!(status, 200, "{lines}");
        let head = log().checkpoint(3, &tree(3).root());
        let own = witness();
        let (_, keys) = add_cosignatures(&head, &lines, &own.verifiers()).unwrap();
        assert_eq!(keys.len(), 2, "Ed25519 and ML-DSA-44");
        let (status, head, body) = post(addr, &request(&tree(5), 0));
        assert_eq!((status, body.as_str()), (409, "3\n"));
        assert!(head.contains("content-type: text/x.tlog.size"), "{head}");
        assert_eq!(post(addr, &request(&tree(5), 3)).0, 200);
        assert_eq!(post(addr, "nonsense").0, 400);
        assert_eq!(post(addr, &"x".repeat(300 << 10)).0, 400, "too long");
        let unknown = request(&tree(6), 5).replace("log.example", "other.example");
        assert_eq!(post(addr, &unknown).0, 404);
        let get = b"GET /add-checkpoint HTTP/1.1\r\nhost: w\r\nconnection: close\r\n\r\n";
        assert_eq!(send(addr, get).0, 405);
        let elsewhere = b"GET / HTTP/1.1\r\nhost: w\r\nconnection: close\r\n\r\n";
        assert_eq!(send(addr, elsewhere).0, 404);
    });
    asked.await.unwrap();
    serving.abort();
}

#[test]
fn what_was_signed_is_known_after_a_restart_and_nobody_else_has_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let first = service(dir.path());
    assert_eq!(first.add(request(&tree(3), 0).as_bytes(), 5).status, 200);
    let logs = [log().verifier().clone()];
    let taken = State::open(dir.path(), &logs);
    assert!(matches!(taken, Err(StateError::Taken { .. })));
    drop(first);
    let second = service(dir.path());
    let mut other = Tree::default();
    other.push(b"another history");
    let split = second.add(request(&other, 0).as_bytes(), 6);
    assert_eq!((split.status, split.body.as_str()), (409, "3\n"));
    assert_eq!(second.add(request(&tree(4), 3).as_bytes(), 6).status, 200);
    drop(second);
    // A file that says nothing stops the witness.
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            std::fs::write(path, b"{\"size\":4}").unwrap();
        }
    }
    let damaged = State::open(dir.path(), &logs);
    assert!(matches!(damaged, Err(StateError::Damaged { .. })));
}

/// The race of the specification: of two heads that extend the same one, the second is refused.
#[test]
fn heads_that_come_together_are_signed_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let service = service(dir.path());
    assert_eq!(service.add(request(&tree(2), 0).as_bytes(), 1).status, 200);
    let answers: Vec<u16> = std::thread::scope(|scope| {
        let ask = |n: u8| {
            let service = &service;
            scope.spawn(move || service.add(request(&tree(n), 2).as_bytes(), 2).status)
        };
        let all: Vec<_> = (3..11).map(ask).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let signed = answers.iter().filter(|s| **s == 200).count();
    assert_eq!(signed, 1, "{answers:?}");
    assert!(
        answers.iter().all(|s| *s == 200 || *s == 409),
        "{answers:?}"
    );
}
