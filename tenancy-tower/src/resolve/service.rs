//! The service: resolve, look up, establish, then call the inner service.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{Request, Response};
use tenancy_core::{Error, ErrorKind, Result, Tenant, TenantContext};
use tower_service::Service;

use super::future::Lookup;
use super::{Identified, ResolveTenant, ResolveTenantLayer, ResponseFuture};

/// Establishes the tenant of each request: what [`ResolveTenantLayer`] puts around a service.
///
/// Refusals are answered as problem documents in the inner service's body type, which must be `From<String>`.
pub struct ResolveTenantService<S, R> {
    pub(super) inner: S,
    pub(super) layer: ResolveTenantLayer<R>,
}

/// Marks a request that an optional layer let through without a tenant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unresolved;

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for ResolveTenantService<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: ResolveTenant,
    ResBody: From<String>,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let found = match self.layer.resolver.resolve(&parts) {
            Ok(Some(found)) => found,
            Ok(None) if self.layer.optional => {
                parts.extensions.insert(Unresolved);
                return ResponseFuture::admitted(self.inner.call(Request::from_parts(parts, body)));
            }
            Ok(None) => return ResponseFuture::refused(unnamed(&*self.layer.resolver)),
            Err(error) => return ResponseFuture::refused(error),
        };
        if let Some(tenant) = self.layer.catalog.peek(found.hint()) {
            return match establish(Some(tenant), found, &mut parts) {
                Ok(()) => ResponseFuture::admitted(self.inner.call(Request::from_parts(parts, body))),
                Err(error) => ResponseFuture::refused(error),
            };
        }
        // The service that was polled ready goes with the request; the clone stays.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        let (catalog, hint) = (Arc::clone(&self.layer.catalog), found.hint().clone());
        let find = Box::pin(async move { catalog.find(&hint).await });
        ResponseFuture::finding(Lookup { find, found, parts, body, inner })
    }
}

impl<S: Clone, R> Clone for ResolveTenantService<S, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S: fmt::Debug, R> fmt::Debug for ResolveTenantService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResolveTenantService").field("inner", &self.inner).field("layer", &self.layer).finish()
    }
}

/// The refusal of a request that names no tenant.
pub(super) fn unnamed(resolver: &dyn ResolveTenant) -> Error {
    if resolver.authenticates() {
        Error::new(ErrorKind::Unauthenticated, "this needs a bearer token")
    } else {
        Error::tenant_not_found().with_source("the request names no tenant")
    }
}

/// Puts the context into the request, if `tenant` is the one that all hints point at and is active: or can be read, for a safe method, and the
/// context is read-only.
pub(super) fn establish(tenant: Option<Arc<Tenant>>, found: Identified, parts: &mut Parts) -> Result<()> {
    let tenant = tenant.ok_or_else(|| Error::tenant_not_found().with_source("the catalog has no such tenant"))?;
    if !std::iter::once(&found.hint).chain(&found.others).all(|hint| tenant.is(hint)) {
        return Err(Error::tenant_not_found().with_source("the hints of the request disagree"));
    }
    let id = tenant.id;
    let active = if parts.method.is_safe() { tenant.into_readable() } else { tenant.into_active() };
    let active = active.map_err(|inactive| if found.is_proven() { inactive } else { Error::tenant_not_found().with_source(inactive) })?;
    let mut cx = TenantContext::establish(active, found.principal);
    if !found.scopes.is_empty() {
        cx = cx.with_scopes(found.scopes);
    }
    if found.read_only {
        cx = cx.read_only();
    }
    tracing::Span::current().record("tenant_id", tracing::field::display(id));
    match parts.extensions.insert(cx) {
        Some(outer) if outer.tenant_id() != id => Err(Error::tenant_not_found().with_source("an outer layer established another tenant")),
        _ => Ok(()),
    }
}
