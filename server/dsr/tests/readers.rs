//! Readers of other people's requests take any bytes. Fuzz targets, too: `cargo bolero test -p
//! lethe-dsr --test readers mutated_requests_never_panic`.
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_dsr::ddrf::{IdClaims, Identifier, Party, RequestClaims, receive, result_code};
use lethe_dsr::opendsr::{ErrorBody, Request};
use lethe_dsr::url::not_callable;
use lethe_dsr::{SigningKey, jws};

const NOW: i64 = 1_790_000_000;
const REQUEST: &[u8] = include_bytes!("corpus/opendsr.json");

fn edited(valid: &[u8], edits: &[(u16, u8)]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for (at, value) in edits.iter().take(16) {
        let i = usize::from(*at) % bytes.len();
        bytes[i] = *value;
    }
    bytes
}

fn read(bytes: &[u8]) {
    let done = Request::parse(bytes, NOW).and_then(|r| {
        for url in &r.status_callback_urls {
            assert_eq!(not_callable(url), None);
        }
        r.deletion("controller_customer_id")
    });
    // Whatever is wrong with a request is the request's fault, and has an answer.
    if let Err(e) = done {
        assert!(ErrorBody::of(&e).is_some(), "{e}");
    }
}

#[test]
fn the_corpus_is_a_request() {
    let request = Request::parse(REQUEST, NOW).unwrap();
    assert!(request.deletion("controller_customer_id").is_ok());
}

#[test]
fn mutated_requests_never_panic() {
    bolero::check!()
        .with_iterations(20_000)
        .with_type::<Vec<(u16, u8)>>()
        .for_each(|edits| read(&edited(REQUEST, edits)));
}

#[test]
fn any_bytes_never_panic() {
    bolero::check!()
        .with_iterations(20_000)
        .for_each(|bytes: &[u8]| {
            read(bytes);
            let text = String::from_utf8_lossy(bytes);
            let _ = not_callable(&text);
            let _ = not_callable(&format!("https://{text}"));
            assert!(receive(&text, &[], "customer", NOW).is_err());
        });
}

#[test]
fn mutated_tokens_never_panic_and_never_verify() {
    let key = SigningKey::from_pem(include_str!("../fixtures/test-ed25519.pem")).unwrap();
    let sub = || Identifier {
        identifier_value: "person-1".into(),
        identifier_type: "customer".into(),
        identifier_format: "raw".into(),
    };
    let id = IdClaims {
        version: "1.0".into(),
        jti: "j1".into(),
        iss: "shop.example".into(),
        sub: sub(),
        iat: NOW,
    };
    let request = RequestClaims {
        version: "1.0".into(),
        id_jwt: jws::sign(&id, &key, "k").unwrap(),
        jti: "j2".into(),
        iss: "shop.example".into(),
        sub: sub(),
        iat: NOW,
    };
    let token = jws::sign(&request, &key, "k").unwrap();
    let parties = [Party {
        domain: "shop.example".into(),
        keys: vec![key.jwk("k")],
        first_party: true,
    }];
    let verified = receive(&token, &parties, "customer", NOW).unwrap();
    bolero::check!()
        .with_iterations(3_000)
        .with_type::<Vec<(u16, u8)>>()
        .for_each(|edits| {
            let bytes = edited(token.as_bytes(), edits);
            let text = String::from_utf8_lossy(&bytes);
            match receive(&text, &parties, "customer", NOW) {
                // The last letter of a part has bits that say nothing.
                Ok(again) => assert_eq!(again.deletion, verified.deletion),
                Err(e) => assert!((1..=6).contains(&result_code(&e))),
            }
        });
}
