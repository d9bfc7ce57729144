//! Isolation, proven: every way that a schema, role, function or pool can leak is found by rule.
//!
//! [`inspect`] reads the catalogs and returns [`Finding`]s.

use std::fmt;

use serde::Serialize;

mod inspect;
mod probe;
mod rules;

pub use inspect::inspect;
pub use probe::{Probed, probe};
pub use rules::{RULES, Rule};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Severity {
    /// Worth knowing; nothing leaks by it.
    Info,
    /// Leaks metadata, or leaks once something else changes.
    Warning,
    /// Leaks or lets a tenant change another's data under some condition.
    High,
    /// Another tenant's rows can be read or written now. [`TenantDb::open`](crate::TenantDb::open) refuses.
    Critical,
}

impl Severity {
    /// The lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One way in which tenants are not apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The stable, kebab-case name of the rule: `docs/isolation/<rule>.md` explains it.
    pub rule: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// The schema of the object, if it has one.
    pub schema: Option<String>,
    /// What it is about: a table, policy, function, role.
    pub object: String,
    /// What leaks, and why.
    pub explanation: String,
    /// The SQL that mends it.
    pub mend: String,
    /// The SQL that shows it.
    pub demonstrate: String,
}
