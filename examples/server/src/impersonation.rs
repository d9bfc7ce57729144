//! Operators inside a tenant: the layer that knows their tokens, and writes each of their requests into the tenant's audit log.
//!
//! The event is committed before the answer goes out, and without it there is none: the client's leaving does not keep it from being
//! written. It has the method, the route's template and the outcome; no names, queries or bodies.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use serde_json::json;
use tenancy_core::{Error, ErrorKind, Outcome, Result, TenantCatalog as _, TenantContext, TenantHint, TenantId};
use tenancy_sqlx::{Impersonation, Token};
use tenancy_tower::Identified;
use tenancy_tower::axum::Problem;
use tenancy_tower::response::invalid_token;

use crate::app::{App, uncancelled};
use crate::edge::RequestId;

/// Hands a visit to the layers further in as the request's proof; a request with another credential goes on as it is.
pub(crate) async fn impersonate(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(token) = token(request.headers()) else { return next.run(request).await };
    match inside(app, &token, request, next).await {
        Ok(response) => response,
        Err(error) => Problem(error).into_response(),
    }
}

/// The token of a visit, if that is the request's one credential.
fn token(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && token.starts_with(Token::IMPERSONATION)).then(|| token.to_owned())
}

async fn inside(app: Arc<App>, token: &str, mut request: Request, next: Next) -> Result<Response> {
    let over = || invalid_token("no visit of an operator has it, or it is over");
    let visit = app.db.impersonation_by_token(token).await?.ok_or_else(over)?;
    let hint = TenantHint::Id(TenantId::from_uuid(visit.tenant_id)?);
    let tenant = app.catalog.find(&hint).await?.ok_or_else(over)?.into_active()?;
    // For the log alone: what goes further in is made by the layer that makes everybody's.
    let mut log = TenantContext::establish(tenant, visit.principal()?);
    if let Some(RequestId(id)) = request.extensions().get::<RequestId>() {
        log = log.with_request_id(*id);
    }
    let called = json!({
        "method": request.method().as_str(), "route": request.extensions().get::<MatchedPath>().map(MatchedPath::as_str),
    });
    let who = Identified::proven(hint, visit.principal()?);
    request.extensions_mut().insert(if visit.write { who } else { who.read_only() });
    request.headers_mut().remove(AUTHORIZATION);
    uncancelled(async move {
        let panicked = |_panic| Problem(Error::new(ErrorKind::Internal, "a handler panicked")).into_response();
        let response = AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(panicked);
        record(&app, &log, &visit, called, response.status()).await?;
        Ok(response)
    })
    .await
}

async fn record(app: &App, log: &TenantContext, visit: &Impersonation, mut detail: serde_json::Value, status: StatusCode) -> Result<()> {
    let mut event = visit.event("impersonation.request")?;
    if status.is_client_error() || status.is_server_error() {
        event.outcome = Outcome::Denied;
    }
    detail["status"] = status.as_u16().into();
    detail["reason"] = visit.reason.clone().into();
    let mut tx = app.db.begin(log).await?;
    tx.audit(event.with_detail(detail)).await?;
    tx.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_of_a_visit_is_taken_and_nothing_else() {
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().expect("a header"));
            }
            token(&headers)
        };
        assert_eq!(with(&["Bearer tni_1"]).as_deref(), Some("tni_1"));
        assert_eq!(with(&["bearer tni_1"]).as_deref(), Some("tni_1"));
        for other in [&[][..], &["Bearer tno_1"], &["Basic tni_1"], &["tni_1"], &["Bearer tni_1", "Bearer tni_1"], &["Bearer  tni_1"]] {
            assert_eq!(with(other), None, "{other:?}");
        }
    }
}
