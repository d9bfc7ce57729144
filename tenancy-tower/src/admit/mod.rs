//! Admission: each request of a tenant takes its place, or is told when to come again.
//!
//! # Rules
//! 1. *Inside the tenant.* The layer stands inside [`ResolveTenantLayer`](crate::ResolveTenantLayer). A request without a tenant is answered with
//!    500 and a line in the log; only [`tenantless`](AdmitLayer::tenantless) lets it through, unmetered.
//! 2. *A denial costs nothing* and never reaches the handler. 429 says that the tenant is over its rate, its concurrency or its quota; 503
//!    that this node is full, or that what is left can't be asked.
//! 3. *The place is held until the body has ended*, or is dropped: a slow download is still in flight.
//! 4. *What was admitted is spent*, whatever the handler answers.
//!
//! # Headers
//! `Retry-After` (whole seconds, rounded up) on a denial where waiting helps; `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10)
//! on answers and denials where a limit is known. What is left is what this node knows, about a second old.

mod body;
mod future;
mod layer;
mod service;

pub use body::AdmittedBody;
pub use future::ResponseFuture;
pub use layer::AdmitLayer;
pub use service::AdmitService;
