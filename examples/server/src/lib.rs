//! A multi-tenant API on one PostgreSQL: the example that uses the whole kit.
//!
//! | who | signs in with | may reach |
//! |---|---|---|
//! | an operator | the operator token | `/api/v1/tenants`: who the tenants are |
//! | a member of a tenant | a signed token (JWT) that names the tenant, a session or an API token | the rest of `/api/v1`: that tenant's own |
//! | whoever has a link | the link itself | `/s/{token}`: the document that it shows |
//! | anybody | nothing | `/healthz`, `/readyz`, `/openapi.json` |
//!
//! [`Running::start`] is the server without its command line. Of its modules, `routes` has one file for each noun of the API, and
//! `edge` is what every request passes first.
//!
//! It speaks plain HTTP/1.1: TLS, and patience with clients that send their headers slowly, are the business of a proxy in front.

pub mod cli;
pub mod config;
pub mod database;

mod anchors;
mod app;
mod attachment_store;
mod credentials;
mod cross_site;
mod dns;
mod domains;
mod edge;
mod extract;
mod idempotency;
mod impersonation;
mod link_rate;
mod logo;
mod mailer;
mod metrics;
mod operator;
mod page;
mod plans;
mod precondition;
mod problem;
mod routes;
mod settings;
mod signed_in;
mod standing;
mod visitor;
mod welcome;

pub use app::Running;
pub use config::{Config, Secret};
pub use database::MIGRATIONS;
