//! Quotas: what a tenant may use, decided at memory speed and never exceeded.
//!
//! Everything here is pure: `now` is an argument and nothing is awaited. An adapter (`tenancy_sqlx::quota`) remembers and leases; a tower
//! layer admits.
//!
//! | kind of metric | what is counted | where it is decided |
//! |---|---|---|
//! | [gauge](MetricKind::Gauge) | how much there is (users, bytes) | in the caller's transaction, by a guarded update |
//! | [counter](MetricKind::Counter) | how often, in a [`Window`] | in the tenant's [`Slot`], from units leased ahead |
//! | [rate](MetricKind::Rate) | how fast | in the slot (GCRA) |
//! | [concurrency](MetricKind::Concurrency) | how much at once | in the slot |
//!
//! A [`QuotaPolicy`] compiles to one number, the *ceiling*, which is all that is enforced; so no policy can make enforcement inexact.

mod admit;
mod decision;
mod metric;
mod plan;
mod policy;
mod rate;
mod slot;
mod window;

pub use admit::{Admit, Admitted, Ask, Place, Standing};
pub use decision::{Denial, Reason};
pub use metric::{Metric, MetricKind};
pub use plan::{Plan, Plans};
pub use policy::{Quota, QuotaPolicy};
pub use rate::Rate;
pub use slot::{Node, Priority, Refusal, Slot, Terms};
pub use window::{Period, Window};
