//! The server, and the kit's own schema.

use super::{Rule, rule};
use crate::isolation::Severity::{Critical, High, Warning};

pub(super) const RULES: &[Rule] = &[
    rule(
        "server-version",
        Warning,
        "the server has known holes in row-level security",
        "select null::text as schema, format('PostgreSQL %s', current_setting('server_version'))::text as object,
            format('PostgreSQL %s has holes in row-level security that no schema closes; %s.%s is the first without', current_setting('server_version'), f.major, f.minor) as explanation,
            format('upgrade the server to %s.%s or later', f.major, f.minor) as mend,
            'SELECT version();' as demonstrate
       from (values (14, 25), (15, 20), (16, 16), (17, 12), (18, 7)) f (major, minor)
      where f.major = current_setting('server_version_num')::int / 10000 and current_setting('server_version_num')::int % 10000 < f.minor",
    ),
    rule(
        "seal-weak",
        Critical,
        "the database is sealed and the application can break the seal",
        "select 'tenancy'::text as schema, 'enter(text)'::text as object,
            format('%s can %s', r.rolname, w.what) as explanation, w.mend, w.shown as demonstrate
       from app_roles r, lateral (values
          (has_parameter_privilege(r.oid, 'backtrace_functions', 'set'), 'set the tenant itself', format('REVOKE SET ON PARAMETER backtrace_functions FROM %I, PUBLIC;', r.rolname),
           'SELECT has_parameter_privilege(''backtrace_functions'', ''set'');'),
          (has_schema_privilege(r.oid, (select n.oid from pg_namespace n where n.nspname = 'tenancy_private'), 'usage'), 'reach the keys', format('REVOKE USAGE ON SCHEMA tenancy_private FROM %I, PUBLIC;', r.rolname),
           'SELECT has_schema_privilege(''tenancy_private'', ''usage'');'),
          (coalesce((select bool_or(has_table_privilege(r.oid, c.oid, 'select, insert, update, delete')) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'tenancy_private'), false),
           'read or write the keys', format('REVOKE ALL ON ALL TABLES IN SCHEMA tenancy_private FROM %I, PUBLIC;', r.rolname), 'SELECT relacl FROM pg_class WHERE relname = ''seal_keys'';'),
          ((select bool_or(has_function_privilege(r.oid, f, 'execute')) from unnest(array['pg_catalog.pg_stat_get_activity(integer)', 'pg_catalog.pg_stat_get_backend_activity(integer)']) f),
           'read other sessions'' tokens', 'REVOKE EXECUTE ON FUNCTION pg_stat_get_activity(integer), pg_stat_get_backend_activity(integer) FROM PUBLIC;', 'SELECT query FROM pg_stat_activity;')
       ) w (open, what, mend, shown)
      where w.open and not r.rolsuper and exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'tenancy' and p.proname = 'enter')",
    )
    .since(15),
    rule(
        "guard-disabled",
        Warning,
        "the DDL guard is installed and switched off",
        "select null::text as schema, e.evtname::text as object,
            format('the event trigger %I is %s: tables made from now on are not protected by themselves', e.evtname, case e.evtenabled when 'D' then 'disabled' else 'for replicas only' end) as explanation,
            format('ALTER EVENT TRIGGER %I ENABLE;', e.evtname) as mend,
            'SELECT evtname, evtenabled FROM pg_event_trigger;' as demonstrate
       from pg_event_trigger e where e.evtname in ('tenancy_guard_ddl', 'tenancy_guard_drop') and e.evtenabled in ('D', 'R')",
    ),
    rule(
        "catalog-open",
        Critical,
        "the application can read or change the list of tenants",
        "select 'tenancy'::text as schema, 'tenants'::text as object, w.what as explanation, w.mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT count(*) FROM tenancy.tenants; ROLLBACK;', given.app) as demonstrate
       from given, pg_class c, lateral (values
          (not c.relrowsecurity, 'row-level security of tenancy.tenants is off: every tenant reads the list of customers', 'ALTER TABLE tenancy.tenants ENABLE ROW LEVEL SECURITY;'),
          (exists (select from pg_policy p where p.polrelid = c.oid and p.polpermissive and (p.polroles = '{0}' or exists (select from app_roles r where r.oid = any (p.polroles)))
                and (p.polcmd <> 'r' or pg_get_expr(p.polqual, p.polrelid) <> '(id = ( SELECT tenancy.current_tenant() AS current_tenant))')),
           'a policy of tenancy.tenants shows the application more than its own tenant', (select string_agg(format('DROP POLICY %I ON tenancy.tenants;', p.polname), ' ') from pg_policy p where p.polrelid = c.oid and p.polname <> 'own_row')),
          (exists (select from aclexplode(c.relacl) a where a.privilege_type <> 'SELECT' and (a.grantee = 0 or exists (select from app_roles r where r.oid = a.grantee and r.rolname not in (given.owner, given.admin)))),
           'the application may write tenancy.tenants', format('REVOKE ALL ON tenancy.tenants FROM %I, PUBLIC; GRANT SELECT ON tenancy.tenants TO %1$I;', given.app))
       ) w (open, what, mend)
      where c.oid = to_regclass('tenancy.tenants') and w.open",
    ),
    rule(
        "audit-mutable",
        High,
        "the application can change what the audit log says",
        "select 'tenancy'::text as schema, 'audit_events'::text as object,
            format('%s has %s on tenancy.audit_events: what was done can be undone there', coalesce(g.rolname, 'PUBLIC'), string_agg(a.privilege_type, ', ')) as explanation,
            format('REVOKE %s ON tenancy.audit_events FROM %s;', string_agg(a.privilege_type, ', '), coalesce(quote_ident(g.rolname), 'PUBLIC')) as mend,
            'SELECT relacl FROM pg_class WHERE oid = ''tenancy.audit_events''::regclass;' as demonstrate
       from given, pg_class c cross join lateral aclexplode(c.relacl) a left join pg_roles g on g.oid = a.grantee
      where c.oid = to_regclass('tenancy.audit_events') and a.privilege_type <> 'SELECT' and a.grantee <> c.relowner
        and (a.grantee = 0 or g.rolname = given.admin or exists (select from app_roles r where r.oid = a.grantee)) group by g.rolname",
    ),
    rule(
        "audit-open",
        Critical,
        "the application can read other tenants' audit log",
        "select 'tenancy'::text as schema, 'audit_events'::text as object, w.what as explanation, w.mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT count(*) FROM tenancy.audit_events; ROLLBACK;', given.app) as demonstrate
       from given, pg_class c, lateral (values
          (not (c.relrowsecurity and c.relforcerowsecurity), 'row-level security of tenancy.audit_events is off or not FORCEd', 'ALTER TABLE tenancy.audit_events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;'),
          (exists (select from pg_policy p where p.polrelid = c.oid and p.polpermissive and (p.polroles = '{0}' or exists (select from app_roles r where r.oid = any (p.polroles)))
                and (pg_get_expr(p.polqual, p.polrelid) <> '(tenant_id = ( SELECT tenancy.current_tenant() AS current_tenant))'
                     or pg_get_expr(p.polwithcheck, p.polrelid) <> '(tenant_id = ( SELECT tenancy.current_tenant() AS current_tenant))')),
           'a policy of tenancy.audit_events shows the application more than its own tenant''s events', (select string_agg(format('DROP POLICY %I ON tenancy.audit_events;', p.polname), ' ') from pg_policy p where p.polrelid = c.oid and p.polname <> 'own_events'))
       ) w (open, what, mend)
      where c.oid = to_regclass('tenancy.audit_events') and w.open",
    ),
];
