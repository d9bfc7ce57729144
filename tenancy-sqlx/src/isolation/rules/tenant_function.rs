//! The functions that the policies ask.

use super::{Rule, rule};
use crate::isolation::Severity::{Critical, High, Info, Warning};

pub(super) const RULES: &[Rule] = &[
    rule(
        "tenant-function-immutable",
        Critical,
        "a function of the policies is IMMUTABLE",
        "select f.schema, f.sql as object,
            format('%s is IMMUTABLE: its result is folded into a cached plan, which then serves the next tenant of the connection', f.sql) as explanation,
            format('ALTER FUNCTION %s STABLE;', f.sql) as mend,
            format('SELECT provolatile FROM pg_proc WHERE oid = %L::regprocedure;', f.sql) as demonstrate
       from policy_functions f where f.provolatile = 'i' and f.schema <> 'pg_catalog'",
    ),
    rule(
        "tenant-function-volatile",
        Warning,
        "a function of the policies is VOLATILE",
        "select f.schema, f.sql as object,
            format('%s is VOLATILE: it is asked again while a statement runs, and no index is used', f.sql) as explanation,
            format('ALTER FUNCTION %s STABLE;', f.sql) as mend,
            format('SELECT provolatile FROM pg_proc WHERE oid = %L::regprocedure;', f.sql) as demonstrate
       from policy_functions f where f.provolatile = 'v' and f.schema <> 'pg_catalog'",
    ),
    rule(
        "tenant-function-owner",
        Critical,
        "the application may replace a function of the policies",
        "select f.schema, f.sql as object,
            format('%s belongs to %s, which the application is or can become: it may replace the function by one that says what it likes', f.sql, f.proowner::regrole) as explanation,
            format('ALTER FUNCTION %s OWNER TO %I;', f.sql, given.owner) as mend,
            format('SELECT proowner::regrole FROM pg_proc WHERE oid = %L::regprocedure;', f.sql) as demonstrate
       from given, policy_functions f where f.proowner in (select r.oid from app_roles r)",
    ),
    rule(
        "tenant-function-body",
        Critical,
        "tenancy.current_tenant() is not the kit's own",
        "select f.schema, f.sql as object,
            format('%s has another body than the kit gave it: %s', f.sql, coalesce(pg_get_function_sqlbody(f.oid), 'a string')) as explanation,
            'CREATE OR REPLACE FUNCTION tenancy.current_tenant() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE COST 1 RETURN nullif(pg_catalog.current_setting(''tenancy.tenant_id'', true), '''')::uuid; -- or Schema::seal again' as mend,
            'SELECT pg_get_functiondef(''tenancy.current_tenant()''::regprocedure);' as demonstrate
       from policy_functions f where f.sql = 'tenancy.current_tenant()' and coalesce(pg_get_function_sqlbody(f.oid), '') not in (
            'RETURN (NULLIF(current_setting(''tenancy.tenant_id''::text, true), ''''::text))::uuid',
            'RETURN (NULLIF(substr(current_setting(''backtrace_functions''::text), 9), ''''::text))::uuid')",
    ),
    rule(
        "tenant-function-string-body",
        High,
        "a function of the policies is parsed anew where it is called",
        "select f.schema, f.sql as object,
            format('%s has a string for a body and no search_path of its own: a schema put before pg_catalog changes what it means', f.sql) as explanation,
            format('ALTER FUNCTION %s SET search_path = pg_catalog, pg_temp; -- or give it an SQL-standard body', f.sql) as mend,
            format('SELECT prosrc, proconfig FROM pg_proc WHERE oid = %L::regprocedure;', f.sql) as demonstrate
       from policy_functions f where not f.parsed and f.schema <> 'pg_catalog' and f.lanname not in ('internal', 'c')
        and not exists (select from unnest(f.proconfig) c where c like 'search_path=%')",
    ),
    rule(
        "tenant-function-parallel",
        Info,
        "a function of the policies is not PARALLEL SAFE",
        "select f.schema, f.sql as object,
            format('%s is not PARALLEL SAFE: no statement on a tenant''s table runs in parallel', f.sql) as explanation,
            format('ALTER FUNCTION %s PARALLEL SAFE;', f.sql) as mend,
            format('SELECT proparallel FROM pg_proc WHERE oid = %L::regprocedure;', f.sql) as demonstrate
       from policy_functions f where f.proparallel <> 's' and f.schema <> 'pg_catalog'",
    ),
    rule(
        "tenant-function-definer",
        Warning,
        "a function of the policies runs with its owner's rights",
        "select f.schema, f.sql as object,
            format('%s is SECURITY DEFINER: what it reads, it reads past the caller''s policies', f.sql) as explanation,
            format('ALTER FUNCTION %s SECURITY INVOKER;', f.sql) as mend,
            format('SELECT prosecdef FROM pg_proc WHERE oid = %L::regprocedure;', f.sql) as demonstrate
       from policy_functions f where f.prosecdef",
    ),
];
