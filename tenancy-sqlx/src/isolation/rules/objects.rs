//! Roles, privileges, and whatever is no table: views, functions, sequences, settings.

use super::{Rule, Severity};

pub(super) const RULES: &[Rule] = &[Rule {
    id: "app-superuser",
    severity: Severity::Critical,
    summary: "the application's role is a superuser",
    sql: "select null::text as schema, r.rolname::text as object,
            format('%I is a superuser: no policy applies to it', r.rolname) as explanation,
            format('ALTER ROLE %I NOSUPERUSER;', r.rolname) as mend,
            format('SELECT rolsuper FROM pg_roles WHERE rolname = %L;', r.rolname) as demonstrate
       from app_roles r where r.login and r.rolsuper",
}];
