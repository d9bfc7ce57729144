//! Who may use the operator API: operators with a token of their own, as far as their role goes, and whoever has the bootstrap credential.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tenancy_core::{Actor, Error, ErrorKind, Operator, OperatorRole, Result};
use tenancy_tower::axum::Problem;
use tenancy_tower::response::invalid_token;

use crate::app::App;

/// Whoever acts on the platform: established anew at each request, so that a change of an operator counts at their next one.
#[derive(Debug, Clone)]
pub(crate) struct By(Option<Arc<Operator>>);

impl By {
    /// How they are named in audit logs: by their id, or as `operator` if they have the bootstrap credential.
    pub(crate) fn actor(&self) -> Result<Actor> {
        Ok(Actor::Operator(self.0.as_ref().map_or_else(|| Operator::BOOTSTRAP.to_owned(), |operator| operator.id.to_string()).parse()?))
    }

    /// What they may do.
    pub(crate) fn role(&self) -> OperatorRole {
        self.0.as_ref().map_or(OperatorRole::Admin, |operator| operator.role)
    }

    /// Their row; none if they have the bootstrap credential.
    pub(crate) fn operator(&self) -> Option<&Operator> {
        self.0.as_deref()
    }

    /// Whether they have the bootstrap credential.
    pub(crate) fn is_bootstrap(&self) -> bool {
        self.0.is_none()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for By {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let by = parts.extensions.get::<Self>().cloned();
        Ok(by.ok_or_else(|| Error::new(ErrorKind::Misconfigured, "a route for operators is outside of their layer"))?)
    }
}

/// Lets operators through, and nobody else.
pub(crate) async fn require_operator(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    match who(&app, request.headers()).await {
        Ok(by) => {
            request.extensions_mut().insert(by);
            next.run(request).await
        }
        Err(error) => Problem(error).into_response(),
    }
}

/// Lets operators through who have this role at least.
pub(crate) async fn require_role(State(role): State<OperatorRole>, by: By, request: Request, next: Next) -> Response {
    match by.role().require(role) {
        Ok(()) => next.run(request).await,
        Err(error) => Problem(error).into_response(),
    }
}

async fn who(app: &App, headers: &HeaderMap) -> Result<By> {
    let mut headers = headers.get_all(AUTHORIZATION).iter();
    let Some(header) = headers.next() else {
        return Err(Error::new(ErrorKind::Unauthenticated, "this needs an operator's token, as a bearer token"));
    };
    if headers.next().is_some() {
        return Err(invalid_token("there is more than one Authorization header"));
    }
    let (scheme, token) = header.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(invalid_token("it is not a bearer token"));
    }
    if app.operator_token.is(token.as_bytes()) {
        return Ok(By(None));
    }
    match app.db.operator_by_token(token).await? {
        Some(operator) => Ok(By(Some(Arc::new(operator)))),
        None => Err(invalid_token("it is not an operator's token")),
    }
}
