//! Who may use the operator API: whoever has the operator token.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tenancy_core::{Actor, Error, ErrorKind, Result};
use tenancy_tower::axum::Problem;
use tenancy_tower::response::invalid_token;

use crate::app::App;

/// How operators are named in the audit log.
pub(crate) fn actor() -> Result<Actor> {
    Ok(Actor::Operator("operator".parse()?))
}

/// Lets a request with the operator token through, and no other.
pub(crate) async fn require_operator(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match check(&app, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => Problem(error).into_response(),
    }
}

fn check(app: &App, request: &Request) -> Result<()> {
    let mut headers = request.headers().get_all(AUTHORIZATION).iter();
    let Some(header) = headers.next() else {
        return Err(Error::new(ErrorKind::Unauthenticated, "this needs the operator token, as a bearer token"));
    };
    if headers.next().is_some() {
        return Err(invalid_token("there is more than one Authorization header"));
    }
    let (scheme, token) = header.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    if scheme.eq_ignore_ascii_case("bearer") && app.operator_token.is(token.as_bytes()) {
        Ok(())
    } else {
        Err(invalid_token("it is not the operator token"))
    }
}
