//! Quotas in PostgreSQL: never exceeded, on any number of nodes, and admitted at memory speed.
//!
//! - A *gauge* (users, bytes) changes in the transaction that changes what it measures: [`TenantTx::grow`](crate::TenantTx::grow), last
//!   before the commit. Work that outlives a transaction [reserves](crate::TenantTx::reserve) first.
//! - A *counter* (calls this month) is leased: a [`Meter`] debits units ahead, spends them from memory and reports in batches.
//! - *Rates* and *concurrency* are decided by the meter alone, per node.
//!
//! `docs/quotas.md` tells the protocol, what it guarantees and what is lost in a crash.

mod gauge;
#[cfg(feature = "metrics")]
mod labels;
mod levels;
mod meter;
mod usage;

pub use gauge::{Level, Reservation};
pub use levels::QuotaState;
pub use meter::{Meter, MeterOptions, MeterStats, Settlement, WhenAway};
pub use usage::{Point, Resolution};
