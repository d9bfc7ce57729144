//! The answer to come. On the warm path it is the inner service's future and nothing else; only a lookup that must wait is boxed.

use std::error::Error as _;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::request::Parts;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tenancy_core::{Error, Result, Tenant};
use tower_service::Service;

use super::Identified;
use super::service::establish;
use crate::response::problem;

pin_project! {
    /// The response future of [`ResolveTenantService`](super::ResolveTenantService).
    ///
    /// # Cancel safety
    /// Safe: until the inner service is called, nothing but a lookup has begun.
    pub struct ResponseFuture<S, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        state: State<S, ReqBody, S::Future>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, ReqBody, F> {
        Finding { lookup: Option<Box<Lookup<S, ReqBody>>> },
        Admitted { #[pin] future: F },
        Refused { error: Error },
    }
}

/// A lookup in the catalog.
type Find = Pin<Box<dyn Future<Output = Result<Option<Arc<Tenant>>>> + Send>>;

/// A request that waits for the catalog, and the ready service that it is for.
pub(super) struct Lookup<S, ReqBody> {
    pub(super) find: Find,
    pub(super) found: Identified,
    pub(super) parts: Parts,
    pub(super) body: ReqBody,
    pub(super) inner: S,
}

impl<S, ReqBody> ResponseFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    pub(super) fn admitted(future: S::Future) -> Self {
        Self { state: State::Admitted { future } }
    }

    pub(super) fn refused(error: Error) -> Self {
        Self { state: State::Refused { error } }
    }

    pub(super) fn finding(lookup: Lookup<S, ReqBody>) -> Self {
        Self { state: State::Finding { lookup: Some(Box::new(lookup)) } }
    }
}

impl<S, ReqBody, ResBody> Future for ResponseFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: From<String>,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Admitted { future } => return future.poll(cx),
                StateProj::Refused { error } => {
                    let reason = error.source().map(tracing::field::display);
                    tracing::debug!(kind = error.kind().code(), reason, "the request is refused");
                    return Poll::Ready(Ok(problem(error)));
                }
                StateProj::Finding { lookup } => {
                    let waiting = lookup.as_mut().expect("a lookup is taken once, when it is done");
                    let tenant = ready!(waiting.find.as_mut().poll(cx));
                    let done = lookup.take().expect("it was there a line ago");
                    let Lookup { found, mut parts, body, mut inner, .. } = *done;
                    match tenant.and_then(|tenant| establish(tenant, found, &mut parts)) {
                        Ok(()) => State::Admitted { future: inner.call(Request::from_parts(parts, body)) },
                        Err(error) => State::Refused { error },
                    }
                }
            };
            state.set(next);
        }
    }
}

impl<S, ReqBody> fmt::Debug for ResponseFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Finding { .. } => "finding",
            State::Admitted { .. } => "admitted",
            State::Refused { .. } => "refused",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}
