use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::SubjectId;
use serde_json::json;

use crate::ddrf::{self, AckClaims, IdClaims, Identifier, Party, Recipient, RequestClaims};
use crate::opendsr::{ErrorBody, Request, Signed, Status, StatusBody};
use crate::{DsrError, SigningKey, jws};

const KEYS: [&str; 3] = [
    include_str!("../fixtures/test-rsa.pem"),
    include_str!("../fixtures/test-p256.pem"),
    include_str!("../fixtures/test-ed25519.pem"),
];
const NOW: i64 = 1_790_000_000;

fn key(i: usize) -> SigningKey {
    SigningKey::from_pem(KEYS[i]).expect("a key")
}

fn erase(s: &str) -> DeletionRequest {
    DeletionRequest::Erase {
        subject: SubjectId::new(s).expect("valid"),
    }
}

fn request() -> serde_json::Value {
    json!({
        "regulation": "gdpr",
        "subject_request_id": "a7551968-d5d6-44b2-9831-815ac9017798",
        "subject_request_type": "erasure",
        "submitted_time": "2026-09-20T15:00:00Z",
        "subject_identities": [
            {
                "identity_type": "email",
                "identity_value": "a@example.com",
                "identity_format": "raw",
            },
            {
                "identity_type": "controller_customer_id",
                "identity_value": "person-1",
                "identity_format": "raw",
            },
        ],
        "api_version": "2.0",
        "status_callback_urls": ["https://controller.example/callbacks"],
        "extensions": { "other.example": { "x": 1 } },
    })
}

fn parse(v: &serde_json::Value) -> Result<Request, DsrError> {
    Request::parse(v.to_string().as_bytes(), NOW)
}

#[test]
fn a_request_becomes_a_deletion_and_its_answer_is_signed() {
    let body = request().to_string();
    let r = Request::parse(body.as_bytes(), NOW).expect("parses");
    assert_eq!(
        r.deletion("controller_customer_id").expect("known"),
        erase("person-1")
    );
    let answer = r
        .response(body.as_bytes(), "shop", NOW, NOW + 86_400)
        .expect("times");
    assert_eq!(
        (answer.received_time.as_str(), answer.controller_id.as_str()),
        ("2026-09-21T14:13:20Z", "shop")
    );
    for i in 0..3 {
        let signed = Signed::new(&answer, "lethe.example", &key(i)).expect("signs");
        let signature = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            &signed.signature,
        );
        let public = key(i).jwk("k");
        let bytes = signature.expect("base64");
        assert!(
            public
                .verify(signed.body.as_bytes(), &bytes)
                .expect("a key")
        );
        assert!(
            !public
                .verify(signed.body.replace("shop", "shoq").as_bytes(), &bytes)
                .expect("a key")
        );
        assert!(
            !key((i + 1) % 3)
                .jwk("k")
                .verify(signed.body.as_bytes(), &bytes)
                .expect("a key")
        );
    }
    let status = StatusBody::new(
        &r.subject_request_id,
        "shop",
        Status::InProgress,
        NOW,
        Some("https://x"),
    )
    .expect("ok");
    assert!(
        serde_json::to_string(&status)
            .expect("json")
            .contains(r#""request_status":"in_progress""#)
    );
}

#[test]
fn requests_that_are_not_for_us_are_refused_with_the_reason() {
    let refused = |field: &str, value: serde_json::Value| {
        let mut v = request();
        v[field] = value;
        let done = parse(&v).and_then(|r| r.deletion("controller_customer_id"));
        done.expect_err(field).to_string()
    };
    assert!(
        refused(
            "subject_request_id",
            json!("A7551968-D5D6-44B2-9831-815AC9017798")
        )
        .contains("lower case")
    );
    assert!(
        refused(
            "subject_request_id",
            json!("a7551968-d5d6-14b2-9831-815ac9017798")
        )
        .contains("version 4")
    );
    assert!(refused("subject_request_type", json!("access")).contains("only erasure"));
    assert!(refused("submitted_time", json!("2027-01-01T00:00:00Z")).contains("future"));
    assert!(refused("submitted_time", json!("yesterday")).contains("yesterday"));
    assert!(
        refused("status_callback_urls", json!(["http://controller.example"])).contains("https")
    );
    assert!(refused("subject_identities", json!([])).contains("controller_customer_id"));
    let hashed = json!([{
        "identity_type": "controller_customer_id",
        "identity_value": "x",
        "identity_format": "sha256",
    }]);
    assert!(refused("subject_identities", hashed).contains("sha256"));
    assert!(refused("api_version", json!("3.0")).contains("3.0"));
    assert!(Request::parse(&vec![b' '; 300 << 10], NOW).is_err());
}

/// A request of which one field is another.
fn with(field: &str, value: serde_json::Value) -> Result<DeletionRequest, DsrError> {
    let mut v = request();
    v[field] = value;
    parse(&v)?.deletion("controller_customer_id")
}

fn named(value: &str, format: &str) -> serde_json::Value {
    json!({
        "identity_type": "controller_customer_id",
        "identity_value": value,
        "identity_format": format,
    })
}

#[test]
fn the_raw_name_counts_where_a_person_is_named_hashed_too() {
    let sha = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";
    for identities in [
        json!([named("a", "raw"), named(sha, "sha256")]),
        json!([named(sha, "sha256"), named("a", "raw")]),
        json!([named("a", "raw"), named("a", "raw")]),
    ] {
        let done = with("subject_identities", identities).expect("one person");
        assert_eq!(done, erase("a"));
    }
    let two = json!([named("a", "raw"), named("b", "raw")]);
    let e = with("subject_identities", two).expect_err("two people");
    assert!(e.to_string().contains("one person to a request"), "{e}");
}

#[test]
fn lists_that_are_null_are_empty() {
    assert_eq!(
        with("status_callback_urls", json!(null)).expect("none"),
        erase("person-1")
    );
    let e = with("subject_identities", json!(null)).expect_err("nobody");
    assert!(matches!(e, DsrError::IdentityType { .. }));
}

#[test]
fn refusals_are_error_objects_that_tell_cases_apart() {
    for (field, value, reason) in [
        ("api_version", json!("3.0"), "UnsupportedVersion"),
        (
            "subject_request_type",
            json!("access"),
            "UnsupportedRequestType",
        ),
        (
            "submitted_time",
            json!("2026-09-20T15:00:00+0000"),
            "InvalidTime",
        ),
        ("subject_identities", json!([]), "UnsupportedIdentityType"),
        (
            "subject_identities",
            json!([named("x", "md5")]),
            "UnsupportedIdentityFormat",
        ),
        (
            "status_callback_urls",
            json!(["https://a b/"]),
            "InvalidCallback",
        ),
        (
            "status_callback_urls",
            json!("https://a/"),
            "MalformedRequest",
        ),
        ("subject_request_id", json!("7"), "MalformedRequest"),
    ] {
        let e = with(field, value).expect_err(field);
        let body = ErrorBody::of(&e).expect("the request's fault");
        assert_eq!(body.error.code, 400);
        assert_eq!(body.error.errors[0].reason, reason, "{field}");
        assert_eq!(body.error.message, e.to_string());
        let json = serde_json::to_value(&body).expect("JSON");
        assert_eq!(json["error"]["errors"][0]["domain"], "Validation");
    }
    assert!(ErrorBody::of(&DsrError::Key("none".into())).is_none());
}

fn tokens(first: usize, requester: usize) -> (String, Vec<Party>) {
    let sub = |v: &str| Identifier {
        identifier_value: v.into(),
        identifier_type: "customer".into(),
        identifier_format: "raw".into(),
    };
    let id = IdClaims {
        version: "1.0".into(),
        jti: "j1".into(),
        iss: "shop.example".into(),
        sub: sub("person-1"),
        iat: NOW,
    };
    let id_jwt = jws::sign(&id, &key(first), "first").expect("signs");
    let rq = RequestClaims {
        version: "1.0".into(),
        id_jwt,
        jti: "j2".into(),
        iss: "exchange.example".into(),
        sub: sub("person-1"),
        iat: NOW,
    };
    let party = |domain: &str, i: usize, kid: &str| Party {
        domain: domain.into(),
        keys: vec![key(i).jwk(kid)],
        first_party: kid == "first",
    };
    let parties = vec![
        party("shop.example", first, "first"),
        party("exchange.example", requester, "rq"),
    ];
    (
        jws::sign(&rq, &key(requester), "rq").expect("signs"),
        parties,
    )
}

#[test]
fn a_token_is_verified_along_its_chain_and_acknowledged() {
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        let (token, parties) = tokens(a, b);
        let v = ddrf::receive(&token, &parties, "customer", NOW + 5).expect("verifies");
        assert_eq!(
            (v.deletion, v.request.jti.as_str(), v.origin.jti.as_str()),
            (erase("person-1"), "j2", "j1")
        );
        let key = key(a);
        let us = Recipient {
            domain: "lethe.example",
            key: &key,
            kid: "us",
        };
        let ack = us.acknowledge(&token, "j3", NOW, 0, None).expect("signs");
        let claims: AckClaims = jws::verify(&ack, &[key.jwk("us")]).expect("verifies");
        assert_eq!(
            (claims.rq_jwt, claims.result, claims.iss.as_str()),
            (token, 0, "lethe.example")
        );
    }
}

#[test]
fn what_is_wrong_with_a_token_has_its_code() {
    let (token, parties) = tokens(0, 1);
    let code = |token: &str, parties: &[Party], known: &str, now: i64| {
        ddrf::result_code(&ddrf::receive(token, parties, known, now).expect_err("refused"))
    };
    assert_eq!(code("abc", &parties, "customer", NOW), 1);
    assert_eq!(code(&token, &parties, "email", NOW), 4);
    assert_eq!(code(&token, &parties, "customer", NOW - 3600), 6);
    assert_eq!(
        code(&token, &parties, "customer", NOW + ddrf::MAX_AGE + 1),
        6
    );
    assert_eq!(
        code(&token, &parties[..1], "customer", NOW),
        3,
        "no keys of the requester"
    );
    assert_eq!(
        code(&token, &parties[1..], "customer", NOW),
        3,
        "no keys of the first party"
    );
    let mut unmarked = parties.clone();
    unmarked[0].first_party = false;
    assert_eq!(
        code(&token, &unmarked, "customer", NOW),
        3,
        "nobody's customers"
    );
    let claims: RequestClaims = jws::unverified(&token).expect("claims");
    let sub = Identifier {
        identifier_value: "person-2".into(),
        ..claims.sub.clone()
    };
    let other = jws::sign(&RequestClaims { sub, ..claims }, &key(1), "rq").expect("signs");
    assert_eq!(
        code(&other, &parties, "customer", NOW),
        5,
        "somebody else than the first party named"
    );
    let mut odd = parties.clone();
    let mut strange = odd[1].keys[0].clone();
    (strange.crv, strange.kid) = (Some("P-384".into()), None);
    odd[1].keys.insert(0, strange);
    assert!(
        ddrf::receive(&token, &odd, "customer", NOW).is_ok(),
        "a key of another kind is skipped"
    );
    let mut swapped = parties.clone();
    (swapped[0].keys, swapped[1].keys) = (parties[1].keys.clone(), parties[0].keys.clone());
    swapped
        .iter_mut()
        .for_each(|p| p.keys.iter_mut().for_each(|k| k.kid = None));
    assert_eq!(
        code(&token, &swapped, "customer", NOW),
        2,
        "somebody else's key"
    );
    // One altered character of the claims, and of the signature.
    for at in [token.find('.').expect("a dot") + 20, token.len() - 5] {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let altered = String::from_utf8(bytes).expect("ascii");
        assert!(matches!(code(&altered, &parties, "customer", NOW), 1..=3));
    }
    // The token does not choose how it is verified.
    let parts: Vec<&str> = token.split('.').collect();
    let none = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        br#"{"alg":"none"}"#,
    );
    assert_eq!(
        code(&format!("{none}.{}.", parts[1]), &parties, "customer", NOW),
        2
    );
}

#[test]
fn an_identifier_may_be_an_object_or_its_text() {
    let object = r#"{"identifierValue":"v","identifierType":"t","identifierFormat":"raw"}"#;
    let a: Identifier = serde_json::from_str(object).expect("an object");
    let b: Identifier =
        serde_json::from_str(&serde_json::to_string(object).expect("json")).expect("its text");
    assert_eq!((a.identifier_value.as_str(), &a), ("v", &b));
    assert!(serde_json::from_str::<Identifier>("\"v\"").is_err());
}
