//! Row-level-security-aware sqlx connections.

#[cfg(all(unix, feature = "embedded"))]
pub mod embedded;
