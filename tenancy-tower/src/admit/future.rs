//! The answer to come. Where the decision is made at once it is the inner service's future and a guard; only one that must wait is boxed.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tenancy_core::quota::{Admitted, Denial};
use tenancy_core::{Error, Result};
use tower_service::Service;

use super::AdmittedBody;
use crate::response::{denial, problem, rate_limit};

pin_project! {
    /// The response future of [`AdmitService`](super::AdmitService).
    ///
    /// # Cancel safety
    /// Safe: the place is given back.
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
        Waiting { wait: Option<Box<Wait<S, ReqBody>>> },
        Admitted { #[pin] future: F, place: Option<Admitted> },
        Denied { denial: Denial },
        Failed { error: Error },
    }
}

/// A request that waits for its admission, and the ready service that it is for.
pub(super) struct Wait<S, ReqBody> {
    pub(super) admission: Pin<Box<dyn Future<Output = Result<Admitted, Denial>> + Send>>,
    pub(super) request: Request<ReqBody>,
    pub(super) inner: S,
}

impl<S, ReqBody> ResponseFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    pub(super) fn admitted(future: S::Future, place: Option<Admitted>) -> Self {
        Self { state: State::Admitted { future, place } }
    }

    pub(super) fn denied(denial: Denial) -> Self {
        Self { state: State::Denied { denial } }
    }

    pub(super) fn failed(error: Error) -> Self {
        Self { state: State::Failed { error } }
    }

    pub(super) fn waiting(wait: Wait<S, ReqBody>) -> Self {
        Self { state: State::Waiting { wait: Some(Box::new(wait)) } }
    }
}

impl<S, ReqBody, ResBody> Future for ResponseFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: From<String>,
{
    type Output = Result<Response<AdmittedBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Admitted { future, place } => {
                    let mut response = ready!(future.poll(cx))?;
                    let place = place.take();
                    if let Some(standing) = place.as_ref().and_then(Admitted::standing) {
                        rate_limit(response.headers_mut(), standing);
                    }
                    return Poll::Ready(Ok(response.map(|body| AdmittedBody::new(body, place))));
                }
                StateProj::Denied { denial: why } => {
                    tracing::debug!(reason = why.reason.code(), metric = why.metric, "the request is denied");
                    return Poll::Ready(Ok(denial(why)));
                }
                StateProj::Failed { error } => return Poll::Ready(Ok(problem(error))),
                StateProj::Waiting { wait } => {
                    let waiting = wait.as_mut().expect("an admission is taken once, when it is done");
                    let decision = ready!(waiting.admission.as_mut().poll(cx));
                    let Wait { request, mut inner, .. } = *wait.take().expect("it was there a line ago");
                    match decision {
                        Ok(place) => State::Admitted { future: inner.call(request), place: Some(place) },
                        Err(denial) => State::Denied { denial },
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
            State::Waiting { .. } => "waiting",
            State::Admitted { .. } => "admitted",
            State::Denied { .. } => "denied",
            State::Failed { .. } => "failed",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}
