//! From an [`Error`] to an HTTP answer: one status per kind, one problem document (RFC 9457) per error.
//!
//! - The document's `type` is `urn:tenancy:problem:` and the kind's [code](ErrorKind::code); it does not change.
//! - The details of a defect or of a wrong set-up stay in the log: the caller reads the same words each time.
//! - A 401 has a `WWW-Authenticate` challenge, a 503 that may be tried again has `Retry-After`, and nothing may be cached.

use std::error::Error as _;
use std::fmt;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde::Serialize;
use tenancy_core::quota::{Denial, Standing};
use tenancy_core::{Error, ErrorKind};

/// The media type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// The status that `kind` answers with.
pub const fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden | ErrorKind::TenantInactive | ErrorKind::QuotaExceeded => StatusCode::FORBIDDEN,
        ErrorKind::NotFound | ErrorKind::TenantNotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::VersionMismatch => StatusCode::PRECONDITION_FAILED,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::Retry | ErrorKind::OutcomeUnknown | ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        // TransactionAborted, Misconfigured, Internal, and what a later version of the core may add.
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The words for `kind` that do not vary from error to error.
const fn title(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Invalid => "The request is not valid",
        ErrorKind::Unauthenticated => "Authentication is needed",
        ErrorKind::Forbidden => "This is not allowed",
        ErrorKind::NotFound => "There is no such resource",
        ErrorKind::TenantNotFound => "There is no such tenant",
        ErrorKind::TenantInactive => "The tenant is not active",
        ErrorKind::Conflict => "The state of the resource forbids this",
        ErrorKind::VersionMismatch => "The resource has changed",
        ErrorKind::TooLarge => "The request is too large",
        ErrorKind::QuotaExceeded => "A quota is used up",
        ErrorKind::Retry | ErrorKind::Unavailable => "The service is not available now",
        ErrorKind::OutcomeUnknown => "The outcome is not known",
        _ => "The server has failed",
    }
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    /// The names of the policies, as in `RateLimit-Policy`, that the request would have violated.
    #[serde(rename = "violated-policies", skip_serializing_if = "Option::is_none")]
    violated: Option<[&'a str; 1]>,
}

/// The problem document for `error`.
///
/// A 5xx is logged here with its source, once: answer every error of a request through this function and log it nowhere else.
pub fn problem<B: From<String>>(error: &Error) -> Response<B> {
    let kind = error.kind();
    let status = status(kind);
    match error.source().map(tracing::field::display) {
        // Nothing failed: it is so for a while, as of a tenant that is being restored.
        None if kind == ErrorKind::Unavailable => tracing::debug!(kind = kind.code(), "{error}"),
        source if status.is_server_error() => tracing::error!(kind = kind.code(), source, "{error}"),
        _ => {}
    }
    let detail = if status == StatusCode::INTERNAL_SERVER_ERROR { "the failure is logged on the server" } else { error.message() };
    let document = Document {
        r#type: format!("urn:tenancy:problem:{}", kind.code()),
        title: title(kind),
        status: status.as_u16(),
        detail,
        field: error.field(),
        violated: None,
    };
    let mut response = answer(status, &document);
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        let refused = error.source().is_some_and(<dyn std::error::Error>::is::<InvalidToken>);
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(if refused { "Bearer error=\"invalid_token\"" } else { "Bearer" }));
    }
    if error.is_transient() {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn answer<B: From<String>>(status: StatusCode, document: &Document<'_>) -> Response<B> {
    // Strings and a number: there is nothing that can't be written.
    let mut response = Response::new(B::from(serde_json::to_string(document).unwrap_or_default()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The problem document for a denied request: 429 where the tenant is over its rate, concurrency or quota, 503 where the service is out
/// of capacity or can't ask what is left.
pub fn denial<B: From<String>>(denial: &Denial) -> Response<B> {
    let (status, title) = if denial.reason.is_the_tenants() {
        (StatusCode::TOO_MANY_REQUESTS, "Too many requests")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "The service is not available now")
    };
    let detail = denial.to_string();
    let document = Document {
        r#type: format!("urn:tenancy:problem:{}", denial.reason.code()),
        title,
        status: status.as_u16(),
        detail: &detail,
        field: None,
        violated: denial.reason.is_the_tenants().then_some([denial.metric]),
    };
    let mut response = answer(status, &document);
    let headers = response.headers_mut();
    if let Some(seconds) = denial.retry_after_seconds() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(limit) = denial.limit.filter(|_| denial.reason.is_the_tenants()) {
        let reset = denial.retry_after_seconds();
        rate_limit(headers, Standing::new(denial.metric, limit, denial.window, denial.remaining, reset));
    }
    response
}

/// Tells where a tenant stands: `RateLimit-Policy: "api";q=1000;w=3600` and `RateLimit: "api";r=12;t=60`.
pub(crate) fn rate_limit(headers: &mut HeaderMap, standing: Standing) {
    let Standing { metric, limit, window, remaining, reset, .. } = standing;
    let parameter = |name: &str, value: Option<u64>| value.map(|value| format!(";{name}={value}")).unwrap_or_default();
    let policy = format!("\"{metric}\";q={limit}{}", parameter("w", window));
    let state = format!("\"{metric}\";r={remaining}{}", parameter("t", reset));
    for (name, value) in [("ratelimit-policy", policy), ("ratelimit", state)] {
        // A metric's name has only letters, digits, '_' and '.'.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// The refusal of a credential that was presented: the same words whatever is wrong with it, and a challenge that says
/// `invalid_token`. `reason` is for the log alone.
pub fn invalid_token(reason: &'static str) -> Error {
    Error::new(ErrorKind::Unauthenticated, "the bearer token is not valid").with_source(InvalidToken(reason))
}

/// Marks the errors of [`invalid_token`].
#[derive(Debug)]
struct InvalidToken(&'static str);

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidToken {}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(error: &Error) -> Response<String> {
        problem(error)
    }

    #[test]
    fn a_document_has_the_members_of_rfc_9457() {
        let response = answer(&Error::invalid("slug", "may contain only a-z"));
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);
        assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
        let body: serde_json::Value = serde_json::from_str(response.body()).expect("json");
        let wanted = serde_json::json!({
            "type": "urn:tenancy:problem:invalid",
            "title": "The request is not valid",
            "status": 400,
            "detail": "may contain only a-z",
            "field": "slug",
        });
        assert_eq!(body, wanted);
    }

    #[test]
    fn what_a_caller_must_not_see_stays_in_the_log() {
        for kind in [ErrorKind::Internal, ErrorKind::Misconfigured, ErrorKind::TransactionAborted] {
            let response = answer(&Error::new(kind, "password of role tenancy_app").with_source("select secret"));
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert!(!response.body().contains("tenancy_app") && !response.body().contains("secret"), "{}", response.body());
        }
        // A kind that may be shown is, so the test above can fail; its source is not.
        let shown = answer(&Error::new(ErrorKind::Conflict, "the slug is taken").with_source("select secret"));
        assert!(shown.body().contains("the slug is taken") && !shown.body().contains("secret"));
    }

    #[test]
    fn a_401_challenges_and_only_transient_errors_invite_a_retry() {
        let absent = answer(&Error::new(ErrorKind::Unauthenticated, "sign in first"));
        assert_eq!(absent.headers()[WWW_AUTHENTICATE], "Bearer");
        let refused = answer(&invalid_token("the signature does not verify"));
        assert_eq!(refused.headers()[WWW_AUTHENTICATE], "Bearer error=\"invalid_token\"");
        assert!(!refused.body().contains("signature"));
        assert_eq!(answer(&Error::new(ErrorKind::Unavailable, "away")).headers()[RETRY_AFTER], "1");
        // Whoever repeats work that may have been done does it twice.
        assert!(!answer(&Error::new(ErrorKind::OutcomeUnknown, "lost")).headers().contains_key(RETRY_AFTER));
    }
}
