//! Whatever shows or changes rows without being a table: views, functions, triggers, rules, large objects, servers, publications.

use super::{Rule, rule};
use crate::isolation::Severity::{Critical, High, Warning};

pub(super) const RULES: &[Rule] = &[
    rule(
        "view-bypasses",
        Critical,
        "a view reads a tenant's table with the rights of an owner whom no policy binds",
        "select v.schema, v.name as object,
            format('the view %s reads %s as the owner %s of %s, whom no policy binds: it shows every tenant''s rows', v.sql, string_agg(distinct v.tbl, ', '), v.relowner::regrole, v.reader) as explanation,
            format('ALTER VIEW %s SET (security_invoker = true);', v.reader) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT count(*) FROM %s; ROLLBACK;', given.app, v.sql) as demonstrate
       from given, views v where v.relkind = 'v' and not v.invoker and (v.relowner in (select b.oid from bypassing b) or (v.relowner = v.tbl_owner and not v.forced))
      group by given.app, v.schema, v.name, v.sql, v.relowner, v.reader",
    ),
    rule(
        "view-definer",
        Warning,
        "a view reads a tenant's table with its owner's rights",
        "select v.schema, v.name as object,
            format('the view %s reads %s as its owner %s: what it shows depends on that role, and changes with its attributes', v.sql, string_agg(v.tbl, ', '), v.relowner::regrole) as explanation,
            format('ALTER VIEW %s SET (security_invoker = true);', v.sql) as mend,
            format('SELECT reloptions FROM pg_class WHERE oid = %L::regclass;', v.sql) as demonstrate
       from views v where v.relkind = 'v' and v.direct and not v.invoker group by v.schema, v.name, v.sql, v.relowner",
    ),
    rule(
        "view-definer-nested",
        Warning,
        "a view reads a tenant's table through another view, with the rights of that one's owner",
        "select v.schema, v.name as object,
            format('the view %s reads %s through the view %s, as the owner %s of that one, whatever %1$s itself says', v.sql, string_agg(v.tbl, ', '), v.reader, v.relowner::regrole) as explanation,
            format('ALTER VIEW %s SET (security_invoker = true);', v.reader) as mend,
            format('SELECT reloptions FROM pg_class WHERE oid = %L::regclass;', v.reader) as demonstrate
       from views v where v.relkind = 'v' and not v.direct and not v.invoker group by v.schema, v.name, v.sql, v.reader, v.relowner",
    ),
    rule(
        "materialized-view",
        Critical,
        "a materialized view holds all tenants' rows",
        "select v.schema, v.name as object,
            format('%s shows rows of %s that the materialized view %s holds, and no policy can be put on that: whoever may read it reads every tenant', v.sql, string_agg(v.tbl, ', '), v.reader) as explanation,
            format('REVOKE ALL ON %s FROM %I, PUBLIC; -- and use a table that protect_table confines', v.sql, given.app) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT count(*) FROM %s; ROLLBACK;', given.app, v.sql) as demonstrate
       from given, views v where v.relkind = 'm' group by given.app, v.schema, v.name, v.sql, v.reader",
    ),
    rule(
        "shared-view-changed",
        Critical,
        "something of the schema tenancy_views is not what share_table makes",
        "select 'tenancy_views'::text as schema, c.relname::text as object,
            format('%I.%I reads shared rows with the rights of %s, whom no policy binds, and is not what share_table made', n.nspname, c.relname, c.relowner::regrole) as explanation,
            format('DROP VIEW %I.%I; -- and CALL tenancy.share_table for its table again', n.nspname, c.relname) as mend,
            format('SELECT pg_get_viewdef(%L::regclass);', format('%I.%I', n.nspname, c.relname)) as demonstrate
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = 'tenancy_views' and c.relkind in ('v', 'm', 'r', 'p', 'f') and c.relname <> 'incoming'
        and not exists (select from tenancy.shared_tables s where c.oid in (s.read_view, s.link_view, s.write_view) and tenancy.view_digest(c.oid) = any (s.digests))",
    ),
    rule(
        "rule-on-table",
        High,
        "a rule rewrites statements on a tenant's table",
        "select t.schema, t.name as object,
            format('the rule %I on %s makes its statements something else, with the rights of the owner %s', r.rulename, t.sql, t.relowner::regrole) as explanation,
            format('DROP RULE %I ON %s; -- and use a trigger', r.rulename, t.sql) as mend,
            format('SELECT definition FROM pg_rules WHERE schemaname = %L AND tablename = %L AND rulename = %L;', t.schema, t.name, r.rulename) as demonstrate
       from tenant_tables t join pg_rewrite r on r.ev_class = t.oid where r.rulename <> '_RETURN'",
    ),
    rule(
        "function-definer-bypasses",
        Critical,
        "a function runs with the rights of an owner whom no policy binds",
        "select f.schema, f.sql as object,
            format('%s is SECURITY DEFINER, the application may call it, and no policy binds its owner %s', f.sql, f.proowner::regrole) as explanation,
            format('ALTER ROUTINE %s SECURITY INVOKER; -- or REVOKE EXECUTE ON ROUTINE %1$s FROM PUBLIC', f.sql) as mend,
            format('SELECT pg_get_functiondef(%L::regprocedure);', f.sql) as demonstrate
       from functions f where f.reached and f.prosecdef and f.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)
        and (f.proowner in (select b.oid from bypassing b) or exists (select from tenant_tables t where t.relowner = f.proowner and not t.forced))",
    ),
    rule(
        "function-definer",
        Warning,
        "a function runs with its owner's rights",
        "select f.schema, f.sql as object,
            format('%s is SECURITY DEFINER and the application may call it: it can do what its owner %s can', f.sql, f.proowner::regrole) as explanation,
            format('ALTER ROUTINE %s SECURITY INVOKER; -- or REVOKE EXECUTE ON ROUTINE %1$s FROM PUBLIC, or allow it with a reason', f.sql) as mend,
            format('SELECT pg_get_functiondef(%L::regprocedure);', f.sql) as demonstrate
       from functions f where f.reached and f.prosecdef and f.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)",
    ),
    rule(
        "function-definer-search-path",
        High,
        "a function with its owner's rights takes the caller's search_path",
        "select f.schema, f.sql as object,
            format('%s is SECURITY DEFINER without a search_path of its own: the caller decides what its names mean', f.sql) as explanation,
            format('ALTER ROUTINE %s SET search_path = pg_catalog, pg_temp;', f.sql) as mend,
            format('SELECT proconfig FROM pg_proc WHERE oid = %L::regprocedure;', f.sql) as demonstrate
       from functions f where f.reached and f.prosecdef and not f.parsed and not exists (select from unnest(f.proconfig) c where c like 'search_path=%')",
    ),
    rule(
        "trigger-definer",
        High,
        "a trigger of a tenant's table runs with its owner's rights",
        "select t.schema, t.name as object,
            format('the trigger %I on %s calls %s, which is SECURITY DEFINER and owned by %s', g.tgname, t.sql, f.sql, f.proowner::regrole) as explanation,
            format('ALTER FUNCTION %s SECURITY INVOKER;', f.sql) as mend,
            format('SELECT pg_get_functiondef(%L::regprocedure);', f.sql) as demonstrate
       from tenant_tables t join pg_trigger g on g.tgrelid = t.oid and not g.tgisinternal join functions f on f.oid = g.tgfoid where f.prosecdef",
    ),
    rule(
        "function-leakproof",
        High,
        "a function claims to leak nothing, and is run on rows before the policy",
        "select f.schema, f.sql as object,
            format('%s is LEAKPROOF: it sees rows that the policy hides, and tells of them by an error, a notice or its time', f.sql) as explanation,
            format('ALTER FUNCTION %s NOT LEAKPROOF;', f.sql) as mend,
            format('SELECT proleakproof FROM pg_proc WHERE oid = %L::regprocedure;', f.sql) as demonstrate
       from functions f where f.reached and f.proleakproof",
    ),
    rule(
        "function-untrusted",
        High,
        "the application may call a function in a language that PostgreSQL does not confine",
        "select f.schema, f.sql as object,
            format('%s is written in %s: it can do what the server''s process can', f.sql, f.lanname) as explanation,
            format('REVOKE EXECUTE ON ROUTINE %s FROM PUBLIC; -- and from the application''s roles', f.sql) as mend,
            format('SELECT pg_get_functiondef(%L::regprocedure);', f.sql) as demonstrate
       from functions f where f.reached and not f.lanpltrusted",
    ),
    rule(
        "untrusted-language",
        Warning,
        "an untrusted language is installed",
        "select null::text as schema, l.lanname::text as object,
            format('%I is an untrusted language: whoever may use it is the server''s own user', l.lanname) as explanation,
            format('DROP LANGUAGE %I;', l.lanname) as mend,
            'SELECT lanname, lanpltrusted FROM pg_language;' as demonstrate
       from pg_language l where not l.lanpltrusted and l.lanname not in ('internal', 'c')",
    ),
    rule(
        "sequence-writable",
        Warning,
        "the application may set a sequence",
        "select n.nspname as schema, c.relname as object,
            format('%s has UPDATE on the sequence %s: one tenant sets the numbers that others get', coalesce(g.rolname, 'PUBLIC'), c.oid::regclass) as explanation,
            format('REVOKE UPDATE ON SEQUENCE %s FROM %s; -- USAGE is enough for nextval', c.oid::regclass, coalesce(quote_ident(g.rolname), 'PUBLIC')) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT setval(%L, 1); ROLLBACK;', given.app, c.oid::regclass) as demonstrate
       from given, pg_class c join host_schemas n on n.oid = c.relnamespace cross join lateral aclexplode(c.relacl) a left join pg_roles g on g.oid = a.grantee
      where c.relkind = 'S' and a.privilege_type = 'UPDATE' and a.grantee <> c.relowner and (a.grantee = 0 or exists (select from app_roles r where r.oid = a.grantee))",
    ),
    rule(
        "large-objects",
        High,
        "the application may read large objects, which know no tenant",
        "select null::text as schema, ('large object ' || min(l.oid::text))::text as object,
            format('%s large objects are open to the application: they have no policies, and whoever knows a number reads them', count(*)) as explanation,
            'SELECT lo_unlink(oid) FROM pg_largeobject_metadata; -- and keep files in object storage, below the tenant''s prefix' as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT lo_get(%s); ROLLBACK;', given.app, min(l.oid::text)) as demonstrate
       from given, pg_largeobject_metadata l
      where l.lomowner in (select r.oid from app_roles r) or current_setting('lo_compat_privileges')::bool
         or exists (select from aclexplode(l.lomacl) a where a.grantee = 0 or a.grantee in (select r.oid from app_roles r))
      group by given.app having count(*) > 0",
    ),
    rule(
        "foreign-table",
        High,
        "the application reaches a foreign table, which knows no policies",
        "select n.nspname as schema, c.relname as object,
            format('%s is a foreign table: no policy can be put on it, and the other side sees one user for all tenants', c.oid::regclass) as explanation,
            format('REVOKE ALL ON %s FROM %I, PUBLIC; -- or CALL tenancy.declare_global(%1$L, ''why'')', c.oid::regclass, given.app) as mend,
            format('SELECT relacl FROM pg_class WHERE oid = %L::regclass;', c.oid::regclass) as demonstrate
       from given, pg_class c join host_schemas n on n.oid = c.relnamespace
      where c.relkind = 'f' and not exists (select from tenancy.global_tables g where g.rel = c.oid)
        and exists (select from app_roles r where has_table_privilege(r.oid, c.oid, 'select, insert, update, delete') or has_any_column_privilege(r.oid, c.oid, 'select, insert, update'))",
    ),
    rule(
        "user-mapping",
        Warning,
        "the application has an account on a foreign server",
        "select null::text as schema, s.srvname::text as object,
            format('%s is mapped to a user of the server %I: all tenants are that one user there', coalesce(r.rolname, 'PUBLIC'), s.srvname) as explanation,
            format('DROP USER MAPPING FOR %s SERVER %I;', coalesce(quote_ident(r.rolname), 'PUBLIC'), s.srvname) as mend,
            'SELECT srvname, usename FROM pg_user_mappings;' as demonstrate
       from pg_user_mappings m join pg_foreign_server s on s.oid = m.srvid left join app_roles r on r.oid = m.umuser where m.umuser = 0 or r.oid is not null",
    ),
    rule(
        "foreign-server-usage",
        Warning,
        "the application may use a foreign server",
        "select null::text as schema, s.srvname::text as object,
            format('%s has USAGE on the server %I: it may map itself to a user there', string_agg(r.rolname, ', '), s.srvname) as explanation,
            format('REVOKE USAGE ON FOREIGN SERVER %I FROM %s, PUBLIC;', s.srvname, string_agg(quote_ident(r.rolname), ', ')) as mend,
            format('SELECT has_server_privilege(%L, %L, ''usage'');', min(r.rolname), s.srvname) as demonstrate
       from app_roles r, pg_foreign_server s where not r.rolsuper and has_server_privilege(r.oid, s.oid, 'usage') group by s.srvname",
    ),
    rule(
        "publication",
        Warning,
        "tenants' rows are published for replication",
        "select null::text as schema, p.pubname::text as object,
            format('the publication %I sends the rows of %s tenants'' tables to its subscribers, all tenants mixed', p.pubname, count(*)) as explanation,
            format('DROP PUBLICATION %I; -- or publish WHERE (tenant_id = …), or allow it with a reason', p.pubname) as mend,
            format('SELECT * FROM pg_publication_tables WHERE pubname = %L;', p.pubname) as demonstrate
       from pg_publication p join pg_publication_tables x on x.pubname = p.pubname join tenant_tables t on t.schema = x.schemaname and t.name = x.tablename group by p.pubname",
    ),
    rule(
        "logical-slot",
        Warning,
        "a logical replication slot streams this database",
        "select null::text as schema, s.slot_name::text as object,
            format('the slot %I (%s) gives whoever may replicate every change of every tenant, and holds the log back while nobody reads it', s.slot_name, s.plugin) as explanation,
            format('SELECT pg_drop_replication_slot(%L);', s.slot_name) as mend,
            'SELECT slot_name, plugin, active, restart_lsn FROM pg_replication_slots;' as demonstrate
       from pg_replication_slots s where s.slot_type = 'logical' and s.database = current_database()",
    ),
];
