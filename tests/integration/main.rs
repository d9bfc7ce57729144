//! The one integration binary: everything through the public API, against a real PostgreSQL, as the role that owns nothing.
//!
//! Tests that show a protection have a negative control beside them: the same attempt with the protection off, which must succeed.

mod api;
mod audit;
mod backup;
mod backup_hard;
mod backup_keys;
mod cancel;
mod catalog;
mod checker;
mod config;
mod dedicated;
mod erase;
mod export;
mod federation;
mod guard;
mod impersonation;
mod isolation;
mod isolation_report;
mod jobs;
mod macros;
mod mail;
mod members;
mod meter;
mod nodes;
mod noninterference;
mod operations;
mod operators;
mod outbox;
mod pooler;
mod preflight;
mod probe;
mod provision;
mod quota;
mod quota_faults;
mod schema;
mod sealed;
mod sharing;
mod sign_in;
mod tx;
mod webhook;
