#![doc = include_str!("../README.md")]

pub mod audit;
pub mod erase;
pub mod isolation;
pub mod operations;
pub mod outbox;
pub mod preflight;
pub mod quota;
pub mod schema;
pub mod sharing;
pub mod tx;

mod catalog;
mod dangerous;
mod db;
mod error;
mod lease;
mod members;
mod seal;
mod token;

#[cfg(all(unix, feature = "embedded"))]
pub mod embedded;
#[cfg(feature = "mail")]
pub mod mail;
#[cfg(all(unix, feature = "testing"))]
pub mod testing;

pub use catalog::PgCatalog;
pub use dangerous::Dangerous;
pub use db::{Isolation, Options, TenantDb};
pub use error::from_sqlx;
pub use preflight::{Refusal, Refused};
pub use schema::{Roles, Schema};
pub use seal::SealKey;
pub use token::Token;
pub use tx::{Savepoint, SystemTx, TenantTx, Tx};
