//! What every request passes first and every answer last: its id, its span and log line, its time limit, and a net under panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use tenancy_core::{Error, ErrorKind};
use tenancy_tower::axum::Problem;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::app::App;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Ties an answer, its log lines and its audit events together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestId(pub(crate) Uuid);

impl RequestId {
    /// The caller's own id if it is one UUID, else a new one.
    fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(&REQUEST_ID).iter();
        let theirs = match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().ok().filter(|text| text.len() == 36).and_then(|text| Uuid::try_parse(text).ok()),
            _ => None,
        };
        Self(theirs.filter(|id| !id.is_nil()).unwrap_or_else(Uuid::now_v7))
    }
}

/// The outermost layer.
pub(crate) async fn edge(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let RequestId(id) = RequestId::of(request.headers());
    request.extensions_mut().insert(RequestId(id));
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let path = route.as_deref().unwrap_or("-");
    let span = tracing::info_span!("request", request_id = %id, tenant_id = tracing::field::Empty);
    let mut response = answer(&app, &method, request, next).instrument(span.clone()).await;
    let headers = response.headers_mut();
    // A hyphenated UUID is a header value.
    if let Ok(value) = HeaderValue::try_from(id.to_string()) {
        headers.insert(REQUEST_ID.clone(), value);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let (status, ms) = (response.status().as_u16(), started.elapsed().as_millis());
    let _entered = span.entered();
    if matches!(path, "/healthz" | "/readyz") {
        tracing::debug!(%method, path, status, ms);
    } else {
        tracing::info!(%method, path, status, ms);
    }
    response
}

async fn answer(app: &App, method: &Method, request: Request, next: Next) -> Response {
    // Attachments are the only thing that is PUT.
    let limit = if *method == Method::PUT { app.upload_timeout } else { app.request_timeout };
    let handled = tokio::time::timeout(limit, AssertUnwindSafe(next.run(request)).catch_unwind());
    let error = match handled.await {
        Ok(Ok(response)) => return response,
        // The panic hook has printed what and where.
        Ok(Err(_panic)) => Error::new(ErrorKind::Internal, "a handler panicked"),
        Err(_elapsed) if method.is_safe() => Error::new(ErrorKind::Unavailable, "this took too long: try again later"),
        Err(_elapsed) => Error::new(ErrorKind::OutcomeUnknown, "this took too long: it may or may not have been done"),
    };
    Problem(error).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uuid_is_taken_for_a_request_id() {
        let of = |value: &str| RequestId::of(&HeaderMap::from_iter([(REQUEST_ID.clone(), value.parse().expect("a header"))])).0;
        let id = Uuid::now_v7();
        assert_eq!(of(&id.to_string()), id);
        for other in ["", "x", "1\" injected=\"1", &"0".repeat(36), &Uuid::nil().to_string(), &format!("{id} ")] {
            assert_ne!(of(other).to_string(), *other);
            assert!(!of(other).is_nil());
        }
        assert_ne!(RequestId::of(&HeaderMap::new()).0, RequestId::of(&HeaderMap::new()).0);
    }
}
