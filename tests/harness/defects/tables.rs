//! Of tables.

use super::Defect;

/// One defect each.
pub const DEFECTS: &[Defect] = &[Defect { rule: "rls-off", sql: "alter table notes disable row level security", undo: "", shown: true }];
