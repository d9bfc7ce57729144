//! Tables: their policies, tenant column, keys, partitions.

use super::{Rule, Severity};

pub(super) const RULES: &[Rule] = &[Rule {
    id: "rls-off",
    severity: Severity::Critical,
    summary: "row-level security is switched off on a table with a tenant",
    sql: "select t.schema, t.name as object,
            format('row-level security of %s is off: its policies do nothing, and every tenant reads and writes all rows', t.sql) as explanation,
            format('CALL tenancy.protect_table(%L, %L);', t.sql, t.tenant_column) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT %I, count(*) FROM %s GROUP BY 1; ROLLBACK;', given.app, t.tenant_column, t.sql) as demonstrate
       from given, tenant_tables t where not t.rls",
}];
