//! Extractors and error answers for axum handlers.
//!
//! ```
//! use tenancy_core::Role;
//! use tenancy_tower::axum::{CurrentTenant, Problem};
//!
//! async fn rename(CurrentTenant(cx): CurrentTenant) -> Result<String, Problem> {
//!     cx.require(Role::Admin)?; // any `tenancy_core::Error` becomes a problem document
//!     Ok(format!("{} acts for {}", cx.principal().actor(), cx.tenant().slug))
//! }
//! ```

use axum_core::body::Body;
use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;
use tenancy_core::{Error, ErrorKind, TenantContext};

use crate::resolve::Unresolved;
use crate::response;

/// The context that [`ResolveTenantLayer`](crate::ResolveTenantLayer) established for this request.
///
/// Behind an [optional](crate::ResolveTenantLayer::optional) layer, `CurrentTenant` answers 401 to a request that names no tenant,
/// and `Option<CurrentTenant>` is `None` for it. On a route that no layer guards, both answer 500 and the log says why.
#[derive(Debug, Clone)]
pub struct CurrentTenant(pub TenantContext);

impl<S: Send + Sync> FromRequestParts<S> for CurrentTenant {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let found = <Self as OptionalFromRequestParts<S>>::from_request_parts(parts, state).await?;
        found.ok_or_else(|| Error::new(ErrorKind::Unauthenticated, "this needs a tenant: sign in first").into())
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for CurrentTenant {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Problem> {
        match parts.extensions.get::<TenantContext>() {
            Some(cx) => Ok(Some(Self(cx.clone()))),
            None if parts.extensions.get::<Unresolved>().is_some() => Ok(None),
            None => Err(Error::new(ErrorKind::Misconfigured, "the route has no tenant: put a ResolveTenantLayer around it").into()),
        }
    }
}

/// An [`Error`] as an answer: see [`response::problem`].
#[derive(Debug)]
pub struct Problem(pub Error);

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        response::problem::<Body>(&self.0)
    }
}
