//! A body that holds its request's place until it has ended.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tenancy_core::quota::Admitted;

pin_project! {
    /// The inner service's body. When it has ended, or is dropped, the tenant's place is free again.
    #[derive(Debug)]
    pub struct AdmittedBody<B> {
        #[pin]
        inner: B,
        place: Option<Admitted>,
    }
}

impl<B> AdmittedBody<B> {
    pub(super) fn new(inner: B, place: Option<Admitted>) -> Self {
        Self { inner, place }
    }
}

impl<B: From<String>> From<String> for AdmittedBody<B> {
    fn from(text: String) -> Self {
        Self::new(B::from(text), None)
    }
}

impl<B: Body> Body for AdmittedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            *this.place = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
