//! Requests of privacy platforms, from their files to their signed answers, with the admin tool as
//! people use it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lethe_dsr::ddrf::{AckClaims, IdClaims, Identifier, Party, RequestClaims};
use lethe_dsr::{SigningKey, jws};
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_tests::world::{Operator, World};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../server/dsr/fixtures")
        .join(name)
}

fn key(name: &str) -> SigningKey {
    SigningKey::from_pem(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

/// An operator at a shell, with the formats of privacy platforms.
struct Desk(lethe_tests::desk::Desk);

impl Desk {
    async fn enrol(world: &World, op: &Operator, addr: SocketAddr, name: &str) -> Self {
        let program = env!("CARGO_BIN_EXE_admin-process");
        Self(lethe_tests::desk::Desk::enrolled(program, world, op, addr, name).await)
    }

    /// Exit code, standard output, standard error.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let said = self.0.run(args);
        (said.code, said.out, said.err)
    }

    fn file(&self, name: &str, content: &str) -> String {
        self.0.file(name, content)
    }

    /// An OpenDSR command; its answer's body, whose signature holds.
    fn opendsr(&self, args: &[&str]) -> Value {
        let pem = fixture("test-rsa.pem").to_string_lossy().into_owned();
        // The endpoint of these tests is on this machine.
        let inside: &[&str] = match args[0] {
            "receive" => &["--allow-private-callbacks"],
            _ => &[],
        };
        let (code, out, err) = self.run(
            &[
                &["opendsr"],
                args,
                inside,
                &["--domain", "lethe.example", "--key", &pem],
            ]
            .concat(),
        );
        assert_eq!(code, 0, "{err}");
        let signed: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(signed["domain"], "lethe.example");
        checked(
            signed["body"].as_str().unwrap(),
            signed["signature"].as_str().unwrap(),
        )
    }
}

fn checked(body: &str, signature: &str) -> Value {
    let signature = STANDARD.decode(signature).unwrap();
    assert!(
        key("test-rsa.pem")
            .jwk("k")
            .verify(body.as_bytes(), &signature)
            .unwrap(),
        "signed by us"
    );
    serde_json::from_str(body).unwrap()
}

fn request(id: u8, subject: &str, callback: &str) -> (String, String) {
    let id = format!("a7551968-d5d6-44b2-9831-815ac90177{id:02}");
    let body = json!({
        "regulation": "gdpr", "subject_request_id": id, "subject_request_type": "erasure",
        "submitted_time": "2026-01-20T15:00:00Z", "api_version": "2.0",
        "status_callback_urls": [callback],
        "subject_identities": [{
            "identity_type": "controller_customer_id",
            "identity_value": subject,
            "identity_format": "raw",
        }],
    });
    (id, body.to_string())
}

/// A controller's callback endpoint over TLS; the first call fails.
fn endpoint() -> (String, String, Receiver<(String, String)>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let pem = made.cert.pem();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "https://localhost:{}/callbacks",
        listener.local_addr().unwrap().port()
    );
    let (send, receive) = channel();
    let (config, send) = (Arc::new(config), Mutex::new(send));
    std::thread::spawn(move || {
        for (i, stream) in listener.incoming().enumerate() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = rustls::StreamOwned::new(connection, stream.unwrap());
            let (mut length, mut signature) = (0, String::new());
            let mut reader = BufReader::new(&mut tls);
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                let (name, value) = line.split_once(':').unwrap_or((&line, ""));
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.trim().parse().unwrap(),
                    "x-opendsr-signature" => signature = value.trim().to_owned(),
                    _ => {}
                }
                line.clear();
            }
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_err() {
                continue;
            }
            let answer = if i == 0 { "503 Busy" } else { "202 Accepted" };
            let _ = tls.write_all(
                format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    .as_bytes(),
            );
            tls.conn.send_close_notify();
            let _ = tls.flush();
            if i > 0 {
                send.lock()
                    .unwrap()
                    .send((String::from_utf8(body).unwrap(), signature))
                    .unwrap();
            }
        }
    });
    (url, pem, receive)
}

#[tokio::test(flavor = "multi_thread")]
async fn opendsr_requests_are_taken_answered_and_called_back() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let desk = Desk::enrol(&world, &op, addr, "desk").await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let (url, ca, calls) = endpoint();
    let ca = desk.file("ca.pem", &ca);

    let (id, body) = request(1, "person-1", &url);
    let file = desk.file("request.json", &body);
    let answer = desk.opendsr(&["receive", &file, "--controller", "shop"]);
    assert_eq!(
        (&answer["subject_request_id"], &answer["controller_id"]),
        (&json!(id), &json!("shop"))
    );
    assert_eq!(answer["expected_completion_time"], "2026-02-19T15:00:00Z");
    assert_eq!(
        STANDARD
            .decode(answer["encoded_request"].as_str().unwrap())
            .unwrap(),
        body.as_bytes()
    );
    assert!(op.lineage(1).await.is_err(), "deleted");
    op.deleted(1).await;
    assert_eq!(
        desk.opendsr(&["status", &id])["request_status"],
        "completed"
    );
    // A controller that did not get the answer asks again: nothing happens twice.
    assert_eq!(
        desk.opendsr(&["receive", &file, "--controller", "shop"]),
        answer
    );
    let AdminReply::Deletions(all) = op.ask(AdminRequest::Deletions { after: 0 }).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(
        (all.len(), all[0].due_at),
        (1, 1_771_513_200),
        "due 30 days after the person asked"
    );
    // Nor is its id good for anybody else.
    let (_, other) = request(1, "person-4", &url);
    let (code, _, err) = desk.run(&[
        "opendsr",
        "receive",
        &desk.file("other.json", &other),
        "--allow-private-callbacks",
        "--controller",
        "shop",
        "--domain",
        "lethe.example",
        "--key",
        &fixture("test-rsa.pem").to_string_lossy(),
    ]);
    assert!(code == 1 && err.contains("another person"), "{err}");
    assert!(op.lineage(4).await.is_ok());
    // Somebody who is not known here.
    let (unknown, body) = request(2, "nobody", &url);
    desk.opendsr(&[
        "receive",
        &desk.file("unknown.json", &body),
        "--controller",
        "shop",
    ]);
    assert_eq!(
        desk.opendsr(&["status", &unknown])["request_status"],
        "completed"
    );

    // Each is called back once; what failed is tried again.
    let pem = fixture("test-rsa.pem").to_string_lossy().into_owned();
    let call = [
        "opendsr",
        "callbacks",
        "--allow-private-callbacks",
        "--domain",
        "lethe.example",
        "--key",
        &pem,
        "--ca",
        &ca,
    ];
    // Not without leave, since they are inside of a network (the audit's M7).
    let strict: Vec<&str> = call
        .iter()
        .copied()
        .filter(|a| !a.contains("private"))
        .collect();
    let (code, _, err) = desk.run(&strict);
    assert_eq!(code, 1);
    assert!(
        err.contains("--allow-private-callbacks") && !err.contains("person-1"),
        "{err}"
    );
    let (id_again, body) = request(1, "person-1", &url);
    let again = desk.file("again.json", &body);
    let receive = ["opendsr", "receive", &again, "--controller", "shop"];
    let signed = ["--domain", "lethe.example", "--key", &pem];
    let (code, _, err) = desk.run(&[&receive[..], &signed[..]].concat());
    assert!(code == 1 && err.contains("localhost"), "{id_again}: {err}");
    let (code, _, err) = desk.run(&call);
    assert_eq!(code, 1, "the first call fails");
    assert!(err.contains("503") && !err.contains("person-1"), "{err}");
    for _ in 0..2 {
        assert_eq!(desk.run(&call).0, 0);
    }
    let mut told: Vec<String> = vec![];
    while let Ok((body, signature)) = calls.try_recv() {
        let body = checked(&body, &signature);
        assert_eq!(
            (&body["status_callback_url"], &body["request_status"]),
            (&json!(url), &json!("completed"))
        );
        told.push(body["subject_request_id"].as_str().unwrap().to_owned());
    }
    told.sort();
    assert_eq!(told, [id.clone(), unknown]);
    let book = std::fs::read_to_string(desk.0.home.join("requests.json")).unwrap();
    assert!(
        !book.contains("person-1") && !book.contains("nobody"),
        "the book names nobody"
    );
    assert!(
        !book.contains("localhost"),
        "addresses are not kept after the last answer"
    );

    // While others have to agree, a request is pending and can be cancelled.
    assert_eq!(
        op.ask(AdminRequest::Policy { approvals: Some(2) })
            .await
            .unwrap(),
        AdminReply::Policy { approvals: 2 }
    );
    let (pending, body) = request(3, "person-2", &url);
    desk.opendsr(&[
        "receive",
        &desk.file("pending.json", &body),
        "--controller",
        "shop",
    ]);
    assert_eq!(
        desk.opendsr(&["status", &pending])["request_status"],
        "pending"
    );
    assert_eq!(
        desk.opendsr(&["cancel", &pending])["subject_request_id"],
        json!(pending)
    );
    assert_eq!(
        desk.opendsr(&["status", &pending])["request_status"],
        "cancelled"
    );
    assert!(op.lineage(2).await.is_ok());
    assert_ne!(
        desk.run(&[
            "opendsr",
            "cancel",
            &id,
            "--domain",
            "lethe.example",
            "--key",
            &pem
        ])
        .0,
        0,
        "completed"
    );
    fleet.abort();
}

/// Case 18 of the field test: a controller's program has to tell refusals apart.
#[tokio::test(flavor = "multi_thread")]
async fn opendsr_refusals_have_the_error_object_of_the_specification() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    op.invite(1).await;
    let desk = Desk::enrol(&world, &op, addr, "desk").await;
    let pem = fixture("test-rsa.pem").to_string_lossy().into_owned();
    let out = desk.file("answer.json", "");
    let receive = |change: &dyn Fn(&mut Value)| {
        let (_, body) = request(7, "person-1", "https://controller.example/cb");
        let mut body: Value = serde_json::from_str(&body).unwrap();
        change(&mut body);
        std::fs::remove_file(&out).ok();
        let file = desk.file("request.json", &body.to_string());
        let (code, said, err) = desk.run(&[
            "--json",
            "opendsr",
            "receive",
            &file,
            "--controller",
            "shop",
            "--domain",
            "lethe.example",
            "--key",
            &pem,
            "--out",
            &out,
        ]);
        let written = std::fs::read_to_string(&out).unwrap_or_default();
        (code, said, written, err)
    };
    for (field, value, reason) in [
        ("api_version", json!("3.0"), "UnsupportedVersion"),
        (
            "subject_request_type",
            json!("access"),
            "UnsupportedRequestType",
        ),
        (
            "submitted_time",
            json!("2026-01-20T15:00:00+0000"),
            "InvalidTime",
        ),
        (
            "status_callback_urls",
            json!(["https://example controller.com/cb"]),
            "InvalidCallback",
        ),
        ("subject_identities", json!([]), "UnsupportedIdentityType"),
        ("subject_request_id", json!(7), "MalformedRequest"),
    ] {
        let (code, said, written, err) = receive(&|v| v[field] = value.clone());
        assert_eq!(code, 1, "{field}: {err}");
        let object: Value = serde_json::from_str(&written).expect(&err);
        assert_eq!(object["error"]["code"], 400, "{written}");
        assert_eq!(object["error"]["errors"][0]["reason"], reason, "{written}");
        let printed: Value = serde_json::from_str(&said).expect(&said);
        assert_eq!(printed, object, "--json prints it, too");
    }
    let AdminReply::Deletions(all) = op.ask(AdminRequest::Deletions { after: 0 }).await.unwrap()
    else {
        panic!()
    };
    assert!(all.is_empty(), "nothing was done");
    let (code, said, err) = desk.run(&[
        "opendsr",
        "status",
        "a7551968-d5d6-44b2-9831-815ac9017799",
        "--domain",
        "lethe.example",
        "--key",
        &pem,
    ]);
    assert_eq!(code, 1, "{err}");
    let object: Value = serde_json::from_str(&said).expect(&said);
    assert_eq!(object["error"]["code"], 404);
    // Named raw and hashed, and callbacks that are null: taken.
    let (code, _, written, err) = receive(&|v| {
        v["status_callback_urls"] = json!(null);
        let mut hashed = v["subject_identities"][0].clone();
        hashed["identity_format"] = json!("sha256");
        hashed["identity_value"] = json!("ca97");
        v["subject_identities"].as_array_mut().unwrap().push(hashed);
    });
    assert_eq!(code, 0, "{err}");
    let signed: Value = serde_json::from_str(&written).unwrap();
    assert!(signed["body"].is_string(), "{written}");
}

#[tokio::test(flavor = "multi_thread")]
async fn iab_tokens_are_verified_acknowledged_and_completed() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let desk = Desk::enrol(&world, &op, addr, "desk").await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let (first, exchange) = (key("test-p256.pem"), key("test-ed25519.pem"));
    let party = |domain: &str, key: &SigningKey, first_party| Party {
        domain: domain.into(),
        keys: vec![key.jwk("k")],
        first_party,
    };
    let partners = json!([
        party("shop.example", &first, true),
        party("exchange.example", &exchange, false)
    ])
    .to_string();
    let partners = desk.file("partners.json", &partners);
    let iat = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64;
    let token = |jti: &str, kind: &str| {
        let sub = Identifier {
            identifier_value: "person-3".into(),
            identifier_type: kind.into(),
            identifier_format: "plaintext".into(),
        };
        let (version, iss) = ("1.0".to_owned(), "shop.example".to_owned());
        let id = IdClaims {
            version: version.clone(),
            jti: "origin".into(),
            iss,
            sub: sub.clone(),
            iat,
        };
        let id_jwt = jws::sign(&id, &first, "k").unwrap();
        let rq = RequestClaims {
            version,
            id_jwt,
            jti: jti.into(),
            iss: "exchange.example".into(),
            sub,
            iat,
        };
        jws::sign(&rq, &exchange, "k").unwrap()
    };
    let pem = fixture("test-rsa.pem").to_string_lossy().into_owned();
    let us = ["--domain", "lethe.example", "--key", &pem];
    let receive = |token: &str| {
        let file = desk.file("token", token);
        let (code, out, _) = desk.run(
            &[
                &["iab-ddrf", "receive", &file, "--partners", &partners],
                &us[..],
            ]
            .concat(),
        );
        let ack: AckClaims = jws::verify(out.trim(), &[key("test-rsa.pem").jwk("lethe")]).unwrap();
        assert_eq!(
            (ack.rq_jwt.as_str(), ack.iss.as_str()),
            (token, "lethe.example")
        );
        (code, ack.result)
    };
    assert_eq!(
        receive(&token("t1", "email")),
        (1, 4),
        "an identifier type that is not known here"
    );
    assert!(op.lineage(3).await.is_ok());
    let good = token("t2", "customer");
    assert_eq!(receive(&good), (0, 0));
    assert_eq!(receive(&good), (0, 0), "again: acknowledged, and done once");
    assert_eq!(
        receive(&token("t3", "customer")),
        (0, 0),
        "the same first party's request, by another way"
    );
    assert!(op.lineage(3).await.is_err());
    op.deleted(1).await;
    let (code, out, err) = desk.run(&[&["iab-ddrf", "complete", "origin"], &us[..]].concat());
    assert_eq!(code, 0, "{err}");
    let ack: AckClaims = jws::verify(out.trim(), &[key("test-rsa.pem").jwk("lethe")]).unwrap();
    assert_eq!((ack.result, ack.rq_jwt), (0, good));
    assert!(ack.text.unwrap().starts_with("completed: deletion 1"));
    let (_, out, _) = desk.run(
        &[
            &[
                "iab-ddrf",
                "publish",
                "--endpoint",
                "https://lethe.example/ddr",
            ],
            &us[..],
        ]
        .concat(),
    );
    let resource: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (
            &resource["publicKey"][0]["alg"],
            &resource["identifiers"][0]["type"]
        ),
        (&json!("RS256"), &json!("customer"))
    );
    fleet.abort();
}
