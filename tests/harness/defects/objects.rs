//! Of roles, privileges, and whatever is no table.

use super::Defect;

/// One defect each.
pub const DEFECTS: &[Defect] = &[];
