//! The one integration binary: everything through the public API, against a real PostgreSQL, as the role that owns nothing.
//!
//! Tests that show a protection have a negative control beside them: the same attempt with the protection off, which must succeed.

mod api;
mod audit;
mod cancel;
mod catalog;
mod checker;
mod erase;
mod guard;
mod isolation;
mod isolation_report;
mod macros;
mod mail;
mod members;
mod meter;
mod noninterference;
mod outbox;
mod pooler;
mod preflight;
mod probe;
mod quota;
mod quota_faults;
mod schema;
mod sealed;
mod sharing;
mod tx;
