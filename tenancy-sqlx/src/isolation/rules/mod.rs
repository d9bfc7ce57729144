//! The rules. Each is one question to the catalogs; each has a page in `docs/isolation/`.

use super::Severity;

mod columns;
mod grants;
mod keys;
mod objects;
mod policies;
mod roles;
mod server;
mod tenant_function;

/// One way to leak, and the question that finds it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rule {
    /// Stable, kebab-case.
    pub id: &'static str,
    /// Of its findings.
    pub severity: Severity,
    /// One line: what is wrong.
    pub summary: &'static str,
    /// Selects `schema, object, explanation, mend, demonstrate` (all text; only `schema` may be null) after the text of `facts.sql`.
    pub(super) sql: &'static str,
    /// The oldest major version of PostgreSQL that has what the question is about.
    pub(super) since: i32,
}

const fn rule(id: &'static str, severity: Severity, summary: &'static str, sql: &'static str) -> Rule {
    Rule { id, severity, summary, sql, since: 14 }
}

impl Rule {
    const fn since(self, major: i32) -> Self {
        Self { since: major, ..self }
    }
}

/// All rules, by theme.
pub const RULES: &[&[Rule]] =
    &[policies::RULES, tenant_function::RULES, columns::RULES, keys::RULES, roles::RULES, grants::RULES, objects::RULES, server::RULES];
