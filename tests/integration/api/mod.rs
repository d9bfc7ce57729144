//! The example server, over real HTTP, on a database of its own. Each server audits its books when its test is over.

mod attachments;
mod audit;
mod bad_input;
mod documents;
mod isolation;
mod lifecycle;
mod members;
mod operations;
mod oracle;
mod outbox;
mod projects;
mod quotas;
mod sharing;
mod tenants;
mod timing;
mod tokens;

/// An id that nothing has.
const ABSENT: &str = "0198c0de-0000-7000-8000-00000000dead";
