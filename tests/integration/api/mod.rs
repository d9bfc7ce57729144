//! The example server, over real HTTP, on a database of its own. Each server audits its books when its test is over.

mod attachments;
mod audit;
mod backups;
mod bad_input;
mod config;
mod documents;
mod domains;
mod federation;
mod impersonation;
mod isolation;
mod lifecycle;
mod links;
mod members;
mod onboarding;
mod operations;
mod operators;
mod oracle;
mod outbox;
mod postgres_killed;
mod projects;
mod provision;
mod quotas;
mod readers;
mod sharing;
mod sign_in;
mod tenants;
mod timing;
mod tokens;
mod webhooks;

/// An id that nothing has.
const ABSENT: &str = "0198c0de-0000-7000-8000-00000000dead";
