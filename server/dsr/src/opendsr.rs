//! OpenDSR 2.0, the processor's side. A request names a person by identities; the answers are JSON
//! bodies, each signed (RSA or another kind of key, SHA-256) in the header `X-OpenDSR-Signature`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::SubjectId;
use serde::{Deserialize, Serialize};

use crate::callback;
use crate::keys::SigningKey;
use crate::url::not_callable;
use crate::{DsrError, from_rfc3339, rfc3339};

/// Largest request, in bytes.
pub const MAX_REQUEST: usize = 256 << 10;
/// Most callback addresses in a request.
pub const MAX_CALLBACKS: usize = 16;
/// The version that is answered.
pub const API_VERSION: &str = "2.0";

/// A way in which a controller names a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Such as `controller_customer_id`.
    pub identity_type: String,
    /// The identifier; absent in discovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_value: Option<String>,
    /// `raw`, `sha256`, ...
    pub identity_format: String,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// `gdpr`, `ccpa`, ...; version 1 did not have it.
    #[serde(default)]
    pub regulation: Option<String>,
    /// UUID, version 4, lower case, made by the controller.
    pub subject_request_id: String,
    /// `erasure`; others are refused.
    pub subject_request_type: String,
    /// When the person asked, RFC 3339.
    pub submitted_time: String,
    /// The person.
    #[serde(default, deserialize_with = "none_or_all")]
    pub subject_identities: Vec<Identity>,
    /// Version wanted.
    #[serde(default)]
    pub api_version: Option<String>,
    /// Where status changes are reported.
    #[serde(default, deserialize_with = "none_or_all")]
    pub status_callback_urls: Vec<String>,
}

/// A list; `null` is an empty one.
fn none_or_all<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Received; nothing has been done.
    Pending,
    /// Being acted on.
    InProgress,
    /// Done.
    Completed,
    /// Withdrawn while it was pending.
    Cancelled,
}

/// Answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The controller in the processor's system.
    pub controller_id: String,
    /// RFC 3339.
    pub expected_completion_time: String,
    /// RFC 3339.
    pub received_time: String,
    /// The request's body, base64.
    pub encoded_request: String,
    /// From the request.
    pub subject_request_id: String,
}

/// Status of a request; with `status_callback_url`, the body of a callback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusBody {
    /// The controller in the processor's system.
    pub controller_id: String,
    /// RFC 3339.
    pub expected_completion_time: String,
    /// The address that this copy goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_callback_url: Option<String>,
    /// From the request.
    pub subject_request_id: String,
    /// The status.
    pub request_status: Status,
    /// [`API_VERSION`].
    pub api_version: String,
}

/// Answer to a cancellation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// The controller in the processor's system.
    pub controller_id: String,
    /// From the request.
    pub subject_request_id: String,
    /// RFC 3339.
    pub received_time: String,
    /// [`API_VERSION`].
    pub api_version: String,
}

/// What the processor supports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovery {
    /// [`API_VERSION`].
    pub api_version: String,
    /// Types and formats.
    pub supported_identities: Vec<Identity>,
    /// `erasure`.
    pub supported_subject_request_types: Vec<String>,
    /// Where the certificate of the signing key is.
    pub processor_certificate: String,
}

/// A body with its headers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// Exactly the bytes that are signed.
    pub body: String,
    /// `X-OpenDSR-Processor-Domain`.
    pub domain: String,
    /// `X-OpenDSR-Signature`: base64 of the signature over the body.
    pub signature: String,
}

impl Signed {
    /// Signs a body.
    pub fn new(body: &impl Serialize, domain: &str, key: &SigningKey) -> Result<Self, DsrError> {
        let body = serde_json::to_string(body).map_err(|e| DsrError::Format(e.to_string()))?;
        let signature = STANDARD.encode(key.sign(body.as_bytes())?);
        Ok(Self {
            body,
            domain: domain.to_owned(),
            signature,
        })
    }

    /// The headers that go with the body.
    pub fn headers(&self) -> [(&'static str, &str); 3] {
        [
            ("Content-Type", "application/json"),
            ("X-OpenDSR-Processor-Domain", &self.domain),
            ("X-OpenDSR-Signature", &self.signature),
        ]
    }
}

/// Whether `text` is a UUID of version 4 in lower case.
fn is_uuid4(text: &str) -> bool {
    let b = text.as_bytes();
    let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    b.len() == 36
        && b.iter().enumerate().all(|(i, c)| {
            if [8, 13, 18, 23].contains(&i) {
                *c == b'-'
            } else {
                digit(*c)
            }
        })
        && b[14] == b'4'
        && matches!(b[19], b'8' | b'9' | b'a' | b'b')
}

impl Request {
    /// Reads and checks a request as it was received at `now` (Unix seconds).
    pub fn parse(body: &[u8], now: i64) -> Result<Self, DsrError> {
        if body.len() > MAX_REQUEST {
            return Err(DsrError::Format(format!(
                "a request of {} bytes, at most {MAX_REQUEST}",
                body.len()
            )));
        }
        let r: Self = serde_json::from_slice(body).map_err(|e| DsrError::Format(e.to_string()))?;
        if !is_uuid4(&r.subject_request_id) {
            return Err(DsrError::Format(
                "subject_request_id: expected a UUID of version 4 in lower case".into(),
            ));
        }
        let submitted = from_rfc3339(&r.submitted_time)?;
        // A day for clocks that differ.
        if submitted > now + 86_400 {
            return Err(DsrError::Time(format!(
                "submitted_time {} is in the future",
                r.submitted_time
            )));
        }
        if r.api_version
            .as_deref()
            .is_some_and(|v| !v.starts_with("1.") && !v.starts_with("2."))
        {
            let got = r.api_version.as_deref().unwrap_or_default();
            return Err(DsrError::Version(format!(
                "api_version {got:?}: 1.0 and 2.0 are known"
            )));
        }
        if r.status_callback_urls.len() > MAX_CALLBACKS {
            return Err(DsrError::Format(format!(
                "more than {MAX_CALLBACKS} status_callback_urls"
            )));
        }
        for url in &r.status_callback_urls {
            if let Some(why) = not_callable(url) {
                let shown: String = url.chars().take(200).collect();
                return Err(DsrError::Callback(format!(
                    "status_callback_urls: {shown:?}: {why}"
                )));
            }
        }
        Ok(r)
    }

    /// Refuses callback addresses inside of a network ([`callback::check`]).
    ///
    /// # Errors
    /// [`DsrError::Callback`], naming the address.
    pub fn check_callbacks(&self) -> Result<(), DsrError> {
        let urls = self.status_callback_urls.iter();
        urls.map(String::as_str).try_for_each(callback::check)
    }

    /// The deletion that it asks for, of the person whom an identity of type `known` names.
    pub fn deletion(&self, known: &str) -> Result<DeletionRequest, DsrError> {
        if self.subject_request_type != "erasure" {
            let got = &self.subject_request_type;
            return Err(DsrError::Unsupported(format!(
                "subject_request_type {got:?}: only erasure is done here"
            )));
        }
        let of_type = self
            .subject_identities
            .iter()
            .filter(|i| i.identity_type == known);
        let of_type: Vec<&Identity> = of_type.collect();
        // The same person may be named hashed, too: what a hash was made of cannot be told, so the
        // raw name counts.
        let raw = of_type.iter().filter(|i| i.identity_format == "raw");
        let raw: Vec<&Identity> = raw.copied().collect();
        let Some(identity) = raw.first().or(of_type.first()) else {
            let got = self
                .subject_identities
                .iter()
                .map(|i| i.identity_type.clone())
                .collect();
            return Err(DsrError::IdentityType {
                got,
                want: known.to_owned(),
            });
        };
        if raw
            .iter()
            .any(|i| i.identity_value != identity.identity_value)
        {
            return Err(DsrError::Format(format!(
                "more than one identity of type {known}: one person to a request"
            )));
        }
        if identity.identity_format != "raw" {
            let got = &identity.identity_format;
            return Err(DsrError::IdentityFormat(format!(
                "identity_format {got:?}: subjects are known raw"
            )));
        }
        let value = identity.identity_value.clone().unwrap_or_default();
        let subject = SubjectId::new(value)
            .map_err(|e| DsrError::IdentityFormat(format!("identity_value: {e}")))?;
        Ok(DeletionRequest::Erase { subject })
    }

    /// When the person asked, in Unix seconds.
    pub fn submitted(&self) -> Result<i64, DsrError> {
        from_rfc3339(&self.submitted_time)
    }

    /// The answer to this request, whose body was `body`.
    pub fn response(
        &self,
        body: &[u8],
        controller: &str,
        received: i64,
        due: i64,
    ) -> Result<Response, DsrError> {
        Ok(Response {
            controller_id: controller.to_owned(),
            expected_completion_time: rfc3339(due)?,
            received_time: rfc3339(received)?,
            encoded_request: STANDARD.encode(body),
            subject_request_id: self.subject_request_id.clone(),
        })
    }
}

/// What is wrong with a request, as sections 7.5 to 7.7 of the specification have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// The error of an [`ErrorBody`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorObject {
    /// The HTTP status to answer with.
    pub code: u16,
    /// In words.
    pub message: String,
    /// For programs.
    pub errors: Vec<ErrorDetail>,
}

/// One of the faults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// `Validation`: the request is at fault.
    pub domain: String,
    /// Which case it is: one word.
    pub reason: String,
    /// In words.
    pub message: String,
}

impl ErrorBody {
    /// An error of a request; `code` is the HTTP status.
    pub fn new(code: u16, reason: &str, message: &str) -> Self {
        Self {
            error: ErrorObject {
                code,
                message: message.to_owned(),
                errors: vec![ErrorDetail {
                    domain: "Validation".into(),
                    reason: reason.to_owned(),
                    message: message.to_owned(),
                }],
            },
        }
    }

    /// The answer to a request that cannot be taken. `None`: the request is not at fault (a key of
    /// this installation cannot be used).
    pub fn of(e: &DsrError) -> Option<Self> {
        let reason = match e {
            DsrError::Format(_) => "MalformedRequest",
            DsrError::Unsupported(_) => "UnsupportedRequestType",
            DsrError::Version(_) => "UnsupportedVersion",
            DsrError::IdentityType { .. } => "UnsupportedIdentityType",
            DsrError::IdentityFormat(_) => "UnsupportedIdentityFormat",
            DsrError::Time(_) => "InvalidTime",
            DsrError::Callback(_) => "InvalidCallback",
            DsrError::Key(_) | DsrError::Signature { .. } => return None,
        };
        Some(Self::new(400, reason, &e.to_string()))
    }
}

impl StatusBody {
    /// A status; `callback` for a callback to that address.
    pub fn new(
        id: &str,
        controller: &str,
        status: Status,
        due: i64,
        callback: Option<&str>,
    ) -> Result<Self, DsrError> {
        Ok(Self {
            controller_id: controller.to_owned(),
            expected_completion_time: rfc3339(due)?,
            status_callback_url: callback.map(str::to_owned),
            subject_request_id: id.to_owned(),
            request_status: status,
            api_version: API_VERSION.into(),
        })
    }
}

impl Cancelled {
    /// The answer to a cancellation that was received at `now`.
    pub fn new(id: &str, controller: &str, now: i64) -> Result<Self, DsrError> {
        Ok(Self {
            controller_id: controller.to_owned(),
            subject_request_id: id.to_owned(),
            received_time: rfc3339(now)?,
            api_version: API_VERSION.into(),
        })
    }
}

impl Discovery {
    /// For an installation that knows subjects by identities of type `known`.
    pub fn new(known: &str, certificate: &str) -> Self {
        let identity = Identity {
            identity_type: known.to_owned(),
            identity_value: None,
            identity_format: "raw".into(),
        };
        Self {
            api_version: API_VERSION.into(),
            supported_identities: vec![identity],
            supported_subject_request_types: vec!["erasure".into()],
            processor_certificate: certificate.to_owned(),
        }
    }
}
