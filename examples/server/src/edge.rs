//! What every request passes first and every answer last: its id, its span and log line, its time limit, and a net under panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    let uploads = method == Method::PUT && path.ends_with("/attachments/{name}");
    let limit = if uploads { app.upload_timeout } else { app.request_timeout };
    let mut response = answer(&method, limit, next.run(request)).instrument(span.clone()).await;
    let headers = response.headers_mut();
    // A hyphenated UUID is a header value.
    if let Ok(value) = HeaderValue::try_from(id.to_string()) {
        headers.insert(REQUEST_ID.clone(), value);
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
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

/// What the handler answers, or why it does not.
async fn answer(method: &Method, limit: Duration, handler: impl Future<Output = Response>) -> Response {
    let error = match tokio::time::timeout(limit, AssertUnwindSafe(handler).catch_unwind()).await {
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

    #[tokio::test]
    async fn panics_and_delays_become_problem_documents() {
        let panics = async { panic!("as the test wants") };
        let failed = answer(&Method::GET, Duration::from_secs(1), panics).await;
        assert_eq!(
            (failed.status().as_u16(), &failed.headers()["content-type"]),
            (500, &HeaderValue::from_static("application/problem+json"))
        );
        let late = |method: Method| async move { answer(&method, Duration::from_millis(1), std::future::pending()).await };
        let read = late(Method::GET).await;
        assert_eq!((read.status().as_u16(), read.headers().contains_key("retry-after")), (503, true));
        // Whoever repeats work that may have been done does it twice.
        let written = late(Method::POST).await;
        assert_eq!((written.status().as_u16(), written.headers().contains_key("retry-after")), (503, false));
    }
}
