//! IAB Tech Lab, Data Deletion Request Framework 1.0, the recipient's side.
//!
//! A request token (rqJWT) is signed by the requester and holds the identity token (idJWT) that the
//! first party signed; both are checked against the keys that each publishes (`dsrdelete.json`).
//! The answer is an acknowledgement token (acJWT) that holds the request and a result code. Version
//! 1.0 acknowledges receipt only; that a deletion is complete is said by a second acknowledgement
//! with result code 0 and a result string that begins with `completed`.

use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::SubjectId;
use serde::{Deserialize, Serialize};

use crate::DsrError;
use crate::jws::{sign, unverified, verify};
use crate::keys::{Jwk, SigningKey};

/// Version of the data format.
pub const VERSION: &str = "1.0";
/// How old a request may be, in seconds: a month and some days.
pub const MAX_AGE: i64 = 45 * 86_400;
/// How far ahead other clocks may be, in seconds.
pub const SKEW: i64 = 600;

/// An identifier. The specification's tables say a string, its examples have an object: both are
/// read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Sub")]
pub struct Identifier {
    /// The identifier.
    pub identifier_value: String,
    /// Its type, as the recipient's `dsrdelete.json` names it.
    pub identifier_type: String,
    /// `raw`, `sha256`, ...
    pub identifier_format: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Sub {
    Text(String),
    Object(IdentifierObject),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IdentifierObject {
    identifier_value: String,
    identifier_type: String,
    identifier_format: String,
}

impl TryFrom<Sub> for Identifier {
    type Error = serde_json::Error;
    fn try_from(sub: Sub) -> Result<Self, serde_json::Error> {
        let o = match sub {
            Sub::Object(o) => o,
            Sub::Text(text) => serde_json::from_str(&text)?,
        };
        Ok(Self {
            identifier_value: o.identifier_value,
            identifier_type: o.identifier_type,
            identifier_format: o.identifier_format,
        })
    }
}

/// Claims of the first party's token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdClaims {
    /// [`VERSION`].
    pub version: String,
    /// Names the request over its whole life.
    pub jti: String,
    /// Domain of the first party.
    pub iss: String,
    /// Whom.
    pub sub: Identifier,
    /// When, in Unix seconds.
    pub iat: i64,
}

/// Claims of the requester's token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestClaims {
    /// [`VERSION`].
    pub version: String,
    /// The first party's token.
    #[serde(rename = "idJWT")]
    pub id_jwt: String,
    /// Names this transaction.
    pub jti: String,
    /// Domain of the requester.
    pub iss: String,
    /// Whom; may be the requester's alias for the first party's identifier.
    pub sub: Identifier,
    /// When, in Unix seconds.
    pub iat: i64,
}

/// Claims of the acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckClaims {
    /// [`VERSION`].
    pub version: String,
    /// The request that is answered.
    #[serde(rename = "rqJWT")]
    pub rq_jwt: String,
    /// Names this acknowledgement.
    pub jti: String,
    /// Domain of the recipient.
    pub iss: String,
    /// When, in Unix seconds.
    pub iat: i64,
    /// 0, or what is wrong ([`result_code`]).
    #[serde(rename = "raResultCode")]
    pub result: u8,
    /// In words.
    #[serde(
        rename = "raResultString",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub text: Option<String>,
}

/// The keys that a domain publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// The domain.
    pub domain: String,
    /// JSON Web Keys, as in `dsrdelete.json`.
    #[serde(rename = "publicKey")]
    pub keys: Vec<Jwk>,
    /// People may be its customers: it may sign identity tokens.
    #[serde(rename = "firstParty", default)]
    pub first_party: bool,
}

/// A request that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Of the requester.
    pub request: RequestClaims,
    /// Of the first party.
    pub origin: IdClaims,
    /// What it asks for.
    pub deletion: DeletionRequest,
}

/// The result code of an error: 1 malformed, 2 invalid signature, 3 invalid token, 4 unsupported
/// identifier type, 5 incorrect identifier format, 6 invalid time.
pub fn result_code(e: &DsrError) -> u8 {
    match e {
        DsrError::Format(_)
        | DsrError::Unsupported(_)
        | DsrError::Callback(_)
        | DsrError::Version(_) => 1,
        DsrError::Signature { .. } => 2,
        DsrError::Key(_) => 3,
        DsrError::IdentityType { .. } => 4,
        DsrError::IdentityFormat(_) => 5,
        DsrError::Time(_) => 6,
    }
}

fn keys<'a>(parties: &'a [Party], domain: &str) -> Result<&'a [Jwk], DsrError> {
    let found = parties.iter().find(|p| p.domain == domain);
    found.map(|p| &p.keys[..]).ok_or_else(|| {
        DsrError::Key(format!(
            "no keys of {domain} are known: fetch its dsrdelete.json and add them"
        ))
    })
}

fn fresh(iat: i64, now: i64) -> Result<(), DsrError> {
    if iat > now + SKEW || iat < now - MAX_AGE {
        return Err(DsrError::Time(format!(
            "iat {iat}: expected at most {MAX_AGE} s ago (now {now})"
        )));
    }
    Ok(())
}

fn version(v: &str) -> Result<(), DsrError> {
    if v == VERSION {
        Ok(())
    } else {
        Err(DsrError::Format(format!(
            "version {v:?}: {VERSION} is known"
        )))
    }
}

/// Checks a request token, and the identity token in it, as received at `now`; `known` is the
/// identifier type by which subjects are known here.
pub fn receive(
    token: &str,
    parties: &[Party],
    known: &str,
    now: i64,
) -> Result<Verified, DsrError> {
    let claimed: RequestClaims = unverified(token)?;
    let request: RequestClaims = verify(token, keys(parties, &claimed.iss)?)?;
    let claimed: IdClaims = unverified(&request.id_jwt)?;
    if !parties
        .iter()
        .any(|p| p.domain == claimed.iss && p.first_party)
    {
        return Err(DsrError::Key(format!(
            "{} is not marked as a first party among the partners",
            claimed.iss
        )));
    }
    let origin: IdClaims = verify(&request.id_jwt, keys(parties, &claimed.iss)?)?;
    version(&request.version)?;
    version(&origin.version)?;
    fresh(request.iat, now)?;
    fresh(origin.iat, now)?;
    let sub = &request.sub;
    if *sub != origin.sub {
        let why =
            "the requester's identifier is not the first party's: aliases are not resolved here";
        return Err(DsrError::IdentityFormat(why.into()));
    }
    if sub.identifier_type != known {
        return Err(DsrError::IdentityType {
            got: vec![sub.identifier_type.clone()],
            want: known.to_owned(),
        });
    }
    if !["raw", "plaintext"].contains(&sub.identifier_format.as_str()) {
        let got = &sub.identifier_format;
        return Err(DsrError::IdentityFormat(format!(
            "identifierFormat {got:?}: subjects are known in plaintext"
        )));
    }
    let subject = SubjectId::new(sub.identifier_value.clone())
        .map_err(|e| DsrError::IdentityFormat(format!("identifierValue: {e}")))?;
    Ok(Verified {
        request,
        origin,
        deletion: DeletionRequest::Erase { subject },
    })
}

/// Who acknowledges.
#[derive(Debug)]
pub struct Recipient<'a> {
    /// Its domain.
    pub domain: &'a str,
    /// Its key.
    pub key: &'a SigningKey,
    /// Name of the key in its `dsrdelete.json`.
    pub kid: &'a str,
}

impl Recipient<'_> {
    /// An acknowledgement of `token` named `jti`, at `now`.
    pub fn acknowledge(
        &self,
        token: &str,
        jti: &str,
        now: i64,
        result: u8,
        text: Option<&str>,
    ) -> Result<String, DsrError> {
        let claims = AckClaims {
            version: VERSION.into(),
            rq_jwt: token.to_owned(),
            jti: jti.to_owned(),
            iss: self.domain.to_owned(),
            iat: now,
            result,
            text: text.map(str::to_owned),
        };
        sign(&claims, self.key, self.kid)
    }
}
