//! Schemas with one defect each: what the checker must find, and the probe confirm.

pub mod objects;
pub mod tables;

/// A statement that makes one way to leak, on the tests' clean schema.
#[derive(Debug)]
pub struct Defect {
    /// The rule that must find it.
    pub rule: &'static str,
    /// Run by a superuser in the test's database.
    pub sql: &'static str,
    /// Run afterwards, for what belongs to the whole server (roles).
    pub undo: &'static str,
    /// Whether the probe can show it by acting.
    pub shown: bool,
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Defect> {
    tables::DEFECTS.iter().chain(objects::DEFECTS)
}
