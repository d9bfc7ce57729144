//! The service: ask, then call the inner service.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tenancy_core::quota::{Admit, Ask};
use tenancy_core::{Error, ErrorKind, Result, TenantContext};
use tower_service::Service;

use super::future::Wait;
use super::{AdmitLayer, AdmittedBody, ResponseFuture};

/// Admits each request of a tenant: what [`AdmitLayer`] puts around a service.
///
/// Denials are answered as problem documents in the inner service's body type, which must be `From<String>`.
pub struct AdmitService<S, A> {
    pub(super) inner: S,
    pub(super) layer: AdmitLayer<A>,
}

impl<S, A, ReqBody, ResBody> Service<Request<ReqBody>> for AdmitService<S, A>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    A: Admit,
    ResBody: From<String>,
{
    type Response = Response<AdmittedBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let Some(tenant) = request.extensions().get::<TenantContext>() else {
            if self.layer.tenantless {
                return ResponseFuture::admitted(self.inner.call(request), None);
            }
            let message = "AdmitLayer found no tenant: put it inside ResolveTenantLayer, or say tenantless()";
            return ResponseFuture::failed(Error::new(ErrorKind::Misconfigured, message));
        };
        let ask = self.layer.asks.as_ref().map_or_else(Ask::default, |asks| asks(request.method(), request.uri()));
        match self.layer.admit.try_admit(tenant, ask) {
            Some(Ok(place)) => return ResponseFuture::admitted(self.inner.call(request), Some(place)),
            Some(Err(denial)) => return ResponseFuture::denied(denial),
            None => {}
        }
        let tenant = tenant.clone();
        // The service that was polled ready goes with the request; the clone stays.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        let admit = Arc::clone(&self.layer.admit);
        let admission = Box::pin(async move { admit.admit(&tenant, ask).await });
        ResponseFuture::waiting(Wait { admission, request, inner })
    }
}

impl<S: Clone, A> Clone for AdmitService<S, A> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S: fmt::Debug, A> fmt::Debug for AdmitService<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmitService").field("inner", &self.inner).field("layer", &self.layer).finish()
    }
}
