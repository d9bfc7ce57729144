//! Privileges beyond reading and writing rows.

use super::{Rule, rule};
use crate::isolation::Severity::{Critical, High, Warning};

pub(super) const RULES: &[Rule] = &[
    rule(
        "grant-truncate",
        Critical,
        "the application may TRUNCATE a tenant's table",
        "select g.schema, g.name as object,
            format('%s has TRUNCATE on %s, which no policy binds: one tenant empties it for all', g.to_sql, g.sql) as explanation,
            format('REVOKE TRUNCATE ON %s FROM %s;', g.sql, g.to_sql) as mend,
            format('BEGIN; SET LOCAL ROLE %I; TRUNCATE %s; ROLLBACK;', given.app, g.sql) as demonstrate
       from given, grants g where g.to_app and g.tenant_num is not null and g.privilege = 'TRUNCATE'",
    ),
    rule(
        "grant-references",
        High,
        "the application may point foreign keys at a tenant's table",
        "select g.schema, g.name as object,
            format('%s has REFERENCES on %s: a foreign key asks whether a row exists past every policy', g.to_sql, g.sql) as explanation,
            format('REVOKE REFERENCES ON %s FROM %s;', g.sql, g.to_sql) as mend,
            format('SELECT relacl FROM pg_class WHERE oid = %L::regclass;', g.sql) as demonstrate
       from grants g where g.to_app and g.tenant_num is not null and g.privilege = 'REFERENCES'",
    ),
    rule(
        "grant-trigger",
        High,
        "the application may put triggers on a tenant's table",
        "select g.schema, g.name as object,
            format('%s has TRIGGER on %s: what one tenant hangs there, every other one runs', g.to_sql, g.sql) as explanation,
            format('REVOKE TRIGGER ON %s FROM %s;', g.sql, g.to_sql) as mend,
            format('SELECT relacl FROM pg_class WHERE oid = %L::regclass;', g.sql) as demonstrate
       from grants g where g.to_app and g.tenant_num is not null and g.privilege = 'TRIGGER'",
    ),
    rule(
        "grant-option",
        Warning,
        "the application may hand on its rights",
        "select g.schema, g.name as object,
            format('%s has %s on %s WITH GRANT OPTION: it may give them to any login', g.to_sql, string_agg(g.privilege, ', '), g.sql) as explanation,
            format('REVOKE GRANT OPTION FOR ALL ON %s FROM %s;', g.sql, g.to_sql) as mend,
            format('SELECT relacl FROM pg_class WHERE oid = %L::regclass;', g.sql) as demonstrate
       from grants g where g.to_app and g.is_grantable group by g.schema, g.name, g.sql, g.to_sql",
    ),
    rule(
        "grant-to-public",
        High,
        "every login has rights on a tenant's table",
        "select g.schema, g.name as object,
            format('PUBLIC has %s on %s: every login of the server that gets in has it', string_agg(g.privilege, ', '), g.sql) as explanation,
            format('REVOKE ALL ON %s FROM PUBLIC;', g.sql) as mend,
            format('SELECT relacl FROM pg_class WHERE oid = %L::regclass;', g.sql) as demonstrate
       from grants g where g.grantee = 0 and g.tenant_num is not null group by g.schema, g.name, g.sql",
    ),
    rule(
        "grant-to-bypassing",
        Warning,
        "a login that no policy binds may read a tenant's table",
        "select g.schema, g.name as object,
            format('%s was granted %s on %s and has BYPASSRLS: it reads every tenant''s rows', g.to_sql, string_agg(g.privilege, ', '), g.sql) as explanation,
            format('REVOKE ALL ON %s FROM %s;', g.sql, g.to_sql) as mend,
            format('SELECT relacl FROM pg_class WHERE oid = %L::regclass;', g.sql) as demonstrate
       from given, grants g where not g.to_app and g.tenant_num is not null and g.grantee in (select b.oid from bypassing b)
        and g.to_name <> given.admin and not starts_with(g.to_name, given.prefix || '_')
      group by g.schema, g.name, g.sql, g.to_sql",
    ),
    rule(
        "grant-schema-create",
        High,
        "the application may create objects in a schema",
        "select null::text as schema, n.nspname::text as object,
            format('%s may CREATE in the schema %I: what it makes is unprotected, and may stand in for something else', r.rolname, n.nspname) as explanation,
            format('REVOKE CREATE ON SCHEMA %I FROM %I, PUBLIC;', n.nspname, r.rolname) as mend,
            format('BEGIN; SET LOCAL ROLE %I; CREATE TABLE %I.made_by_the_application (); ROLLBACK;', r.rolname, n.nspname) as demonstrate
       from given, pg_namespace n, app_roles r
      where not r.rolsuper and r.rolname <> given.owner and n.nspname !~ '^pg_(temp|toast)' and n.nspowner <> r.oid and has_schema_privilege(r.oid, n.oid, 'create')",
    ),
    rule(
        "grant-database-create",
        High,
        "the application may create schemas",
        "select null::text as schema, current_database()::text as object,
            format('%s may CREATE in the database: schemas of its own, with tables that nothing protects', r.rolname) as explanation,
            format('REVOKE CREATE ON DATABASE %I FROM %I, PUBLIC;', current_database(), r.rolname) as mend,
            format('SELECT has_database_privilege(%L, %L, ''create'');', r.rolname, current_database()) as demonstrate
       from given, app_roles r where not r.rolsuper and r.rolname <> given.owner and has_database_privilege(r.oid, current_database(), 'create')
        and not exists (select from pg_database d where d.datname = current_database() and d.datdba = r.oid)",
    ),
    rule(
        "grant-database-temp",
        Warning,
        "the application may create temporary tables",
        "select null::text as schema, current_database()::text as object,
            format('%s may create temporary tables: they stay on a pooled connection and are read by the tenant that gets it next', r.rolname) as explanation,
            format('REVOKE TEMPORARY ON DATABASE %I FROM %I, PUBLIC;', current_database(), r.rolname) as mend,
            format('BEGIN; SET LOCAL ROLE %I; CREATE TEMP TABLE kept (body text); ROLLBACK;', r.rolname) as demonstrate
       from given, app_roles r where not r.rolsuper and r.rolname <> given.owner and has_database_privilege(r.oid, current_database(), 'temporary')
        and not exists (select from pg_database d where d.datname = current_database() and d.datdba = r.oid)",
    ),
    rule(
        "default-privileges",
        Warning,
        "new tables are open to the application before they are protected",
        "select n.nspname as schema, d.defaclrole::regrole::text as object,
            format('tables that %s makes are granted to %s at once (%s), before protect_table has seen them', d.defaclrole::regrole, coalesce(g.rolname, 'PUBLIC'), string_agg(a.privilege_type, ', ')) as explanation,
            format('ALTER DEFAULT PRIVILEGES FOR ROLE %s%s REVOKE ALL ON TABLES FROM %s;', d.defaclrole::regrole, ' IN SCHEMA ' || quote_ident(n.nspname), coalesce(quote_ident(g.rolname), 'PUBLIC')) as mend,
            'SELECT defaclrole::regrole, defaclacl FROM pg_default_acl;' as demonstrate
       from pg_default_acl d cross join lateral aclexplode(d.defaclacl) a left join pg_roles g on g.oid = a.grantee left join pg_namespace n on n.oid = d.defaclnamespace
      where d.defaclobjtype = 'r' and a.grantee <> d.defaclrole and (a.grantee = 0 or exists (select from app_roles r where r.oid = a.grantee))
      group by n.nspname, d.defaclrole, g.rolname",
    ),
    rule(
        "function-set-config",
        High,
        "the application may call set_config()",
        "select 'pg_catalog'::text as schema, 'set_config(text,text,boolean)'::text as object,
            format('%s may call set_config(): SQL injected into an expression binds another tenant', string_agg(r.rolname, ', ')) as explanation,
            format('REVOKE EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) FROM PUBLIC, %s;', string_agg(quote_ident(r.rolname), ', ')) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT set_config(''tenancy.tenant_id'', gen_random_uuid()::text, true); ROLLBACK;', min(r.rolname)) as demonstrate
       from given, app_roles r where not r.rolsuper and r.rolname not in (given.owner, given.admin)
        and has_function_privilege(r.oid, 'pg_catalog.set_config(text, text, boolean)', 'execute') having count(*) > 0",
    ),
    rule(
        "function-stat-activity",
        High,
        "the application may read what its other sessions run",
        "select 'pg_catalog'::text as schema, f as object,
            format('%s may call %s: all tenants'' sessions have one login, and each reads the others'' statements', string_agg(r.rolname, ', '), f) as explanation,
            format('REVOKE EXECUTE ON FUNCTION pg_catalog.%s FROM PUBLIC, %s;', f, string_agg(quote_ident(r.rolname), ', ')) as mend,
            'SELECT pid, query FROM pg_stat_activity;' as demonstrate
       from given, app_roles r, unnest(array['pg_stat_get_activity(integer)', 'pg_stat_get_backend_activity(integer)']) f
      where not r.rolsuper and has_function_privilege(r.oid, 'pg_catalog.' || f, 'execute') group by f",
    ),
    rule(
        "function-file-access",
        Critical,
        "the application may call a function that reads or writes files",
        "select n.nspname as schema, p.oid::regprocedure::text as object,
            format('%s may call %s: the server''s files hold every tenant''s rows', string_agg(r.rolname, ', '), p.oid::regprocedure) as explanation,
            format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC, %s;', p.oid::regprocedure, string_agg(quote_ident(r.rolname), ', ')) as mend,
            format('SELECT has_function_privilege(%L, %L, ''execute'');', min(r.rolname), p.oid::regprocedure) as demonstrate
       from app_roles r, pg_proc p join pg_namespace n on n.oid = p.pronamespace
      where p.proname in ('pg_read_file', 'pg_read_binary_file', 'pg_ls_dir', 'pg_stat_file', 'lo_import', 'lo_export', 'pg_file_write', 'pg_file_read', 'pg_current_logfile', 'pg_ls_waldir', 'pg_ls_logdir')
        and not r.rolsuper and has_function_privilege(r.oid, p.oid, 'execute') group by n.nspname, p.oid",
    ),
    rule(
        "function-dblink",
        High,
        "the application may open connections from inside the database",
        "select n.nspname as schema, p.oid::regprocedure::text as object,
            format('%s may call %s: a connection from the server to itself has rights of its own, and no tenant', string_agg(r.rolname, ', '), p.oid::regprocedure) as explanation,
            format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC, %s; -- or DROP EXTENSION dblink', p.oid::regprocedure, string_agg(quote_ident(r.rolname), ', ')) as mend,
            format('SELECT has_function_privilege(%L, %L, ''execute'');', min(r.rolname), p.oid::regprocedure) as demonstrate
       from app_roles r, pg_proc p join pg_namespace n on n.oid = p.pronamespace
      where p.proname in ('dblink', 'dblink_connect', 'dblink_connect_u', 'dblink_exec', 'dblink_open', 'dblink_send_query') and not r.rolsuper and has_function_privilege(r.oid, p.oid, 'execute')
      group by n.nspname, p.oid",
    ),
    rule(
        "parameter-set",
        High,
        "the application may set one of the server's own parameters",
        "select null::text as schema, p.parname as object,
            format('%s has %s on the parameter %s, which PostgreSQL keeps for superusers', string_agg(distinct coalesce(g.rolname, 'PUBLIC'), ', '), string_agg(distinct a.privilege_type, ', '), p.parname) as explanation,
            format('REVOKE ALL ON PARAMETER %s FROM %s;', p.parname, string_agg(distinct coalesce(quote_ident(g.rolname), 'PUBLIC'), ', ')) as mend,
            format('SELECT has_parameter_privilege(%L, %L, ''set'');', given.app, p.parname) as demonstrate
       from given, pg_parameter_acl p cross join lateral aclexplode(p.paracl) a left join pg_roles g on g.oid = a.grantee
      where a.grantee = 0 or exists (select from app_roles r where r.oid = a.grantee and not r.rolsuper) group by given.app, p.parname",
    )
    .since(15),
];
