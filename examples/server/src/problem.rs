//! Problem documents for what has no [`Error`](tenancy_core::Error): the answers of HTTP itself. The rest is
//! [`tenancy_tower::response`]'s.

use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::response::{IntoResponse as _, Response};
use tenancy_tower::response::PROBLEM_JSON;

/// There is no such path.
pub(crate) async fn not_found() -> Response {
    document(StatusCode::NOT_FOUND, "no-such-path", "There is no such path", "/openapi.json lists the paths of this API")
}

/// The path has no such method; axum adds `Allow`.
pub(crate) async fn method_not_allowed() -> Response {
    document(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "The path has no such method", "the header Allow lists the methods")
}

/// The body is not of the type that is read here.
pub(crate) fn unsupported_media_type(wanted: &str) -> Response {
    let detail = format!("send the header Content-Type: {wanted}");
    document(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "The body has another type", &detail)
}

/// The same was asked for less than `pause` ago.
pub(crate) fn too_soon(pause: std::time::Duration) -> Response {
    let (seconds, status) = (pause.as_secs(), StatusCode::TOO_MANY_REQUESTS);
    let mut response = document(status, "rate", "Too many requests", &format!("this can be asked for once in {seconds} seconds"));
    response.headers_mut().insert(RETRY_AFTER, seconds.into());
    response
}

/// Too much was asked; in so long there is room again.
pub(crate) fn too_often(wait: std::time::Duration) -> Response {
    let mut response = document(StatusCode::TOO_MANY_REQUESTS, "rate", "Too many requests", "wait as long as Retry-After says");
    response.headers_mut().insert(RETRY_AFTER, (wait.as_secs() + 1).into());
    response
}

fn document(status: StatusCode, code: &str, title: &str, detail: &str) -> Response {
    let body =
        serde_json::json!({ "type": format!("urn:tenancy:problem:{code}"), "title": title, "status": status.as_u16(), "detail": detail });
    (status, [(CONTENT_TYPE, PROBLEM_JSON), (CACHE_CONTROL, "no-store")], body.to_string()).into_response()
}
