//! Isolation, proven: every way that a schema, role, function or pool can leak is found by rule.
//!
//! [`inspect`] reads the catalogs and returns [`Finding`]s. A [`Report`] sets aside what an [`AllowList`] accepts, and prints the rest for
//! people, programs and code scanners.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use tenancy_core::Error;

mod allow;
mod inspect;
mod probe;
mod report;
mod rules;

pub use allow::{AllowList, Allowed};
pub use inspect::inspect;
pub(crate) use inspect::inspect_by;
pub use probe::{Probed, probe};
pub use report::Report;
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
    /// All of them, the least first.
    pub const ALL: [Self; 4] = [Self::Info, Self::Warning, Self::High, Self::Critical];

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

impl FromStr for Severity {
    type Err = Error;

    /// # Errors
    /// [`Invalid`](tenancy_core::ErrorKind::Invalid), with the names that there are.
    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|severity| severity.as_str() == text);
        found.ok_or_else(|| Error::invalid("severity", "must be info, warning, high or critical"))
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

impl Finding {
    /// `schema.object`, or the object alone where there is no schema. A schema whose name has a dot or quote in it is quoted.
    pub fn name(&self) -> String {
        match &self.schema {
            Some(schema) if schema.contains(['.', '"']) => format!("\"{}\".{}", schema.replace('"', "\"\""), self.object),
            Some(schema) => format!("{schema}.{}", self.object),
            None => self.object.clone(),
        }
    }
}
