//! The rules. Each is one question to the catalogs; each has a page in `docs/isolation/`.

use super::Severity;

mod objects;
mod tables;

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
}

/// All rules, by theme.
pub const RULES: &[&[Rule]] = &[tables::RULES, objects::RULES];
