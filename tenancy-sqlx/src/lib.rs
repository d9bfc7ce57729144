#![doc = include_str!("../README.md")]

pub mod audit;
pub mod config;
pub mod domains;
pub mod erase;
pub mod flags;
pub mod isolation;
pub mod jobs;
pub mod operations;
pub mod outbox;
pub mod preflight;
pub mod provision;
pub mod quota;
pub mod schema;
pub mod sharing;
pub mod sign_in;
pub mod tx;

mod branding;
mod catalog;
mod dangerous;
mod db;
mod dedicated;
mod error;
mod impersonation;
mod lease;
mod members;
mod operators;
mod platform;
mod seal;
mod settle;
mod token;
#[cfg(any(feature = "backup", feature = "export"))]
mod upload;

#[cfg(feature = "backup")]
pub mod backup;
#[cfg(all(unix, feature = "embedded"))]
pub mod embedded;
#[cfg(feature = "export")]
pub mod export;
#[cfg(feature = "federation")]
pub mod federation;
#[cfg(feature = "mail")]
pub mod mail;
#[cfg(all(unix, feature = "testing"))]
pub mod testing;
#[cfg(feature = "webhook")]
pub mod webhook;

pub use catalog::PgCatalog;
pub use dangerous::Dangerous;
pub use db::{Isolation, Options, TenantDb};
pub use dedicated::DedicatedRuntime;
pub use error::from_sqlx;
pub use impersonation::Impersonation;
pub use preflight::{Refusal, Refused};
pub use schema::{Roles, Schema};
pub use seal::SealKey;
pub use token::Token;
pub use tx::{Savepoint, SystemTx, TenantTx, Tx};
