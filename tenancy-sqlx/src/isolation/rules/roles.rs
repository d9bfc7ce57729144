//! What the application's role is, owns, and can become.

use super::{Rule, rule};
use crate::isolation::Severity::{Critical, High, Warning};

pub(super) const RULES: &[Rule] = &[
    rule(
        "app-missing",
        Critical,
        "there is no such role",
        "select null::text as schema, given.app as object,
            format('there is no role %I: nothing can be said about what it may do', given.app) as explanation,
            'migrate first, or name the role that the application logs in as' as mend,
            format('SELECT rolname FROM pg_roles WHERE rolname = %L;', given.app) as demonstrate
       from given where not exists (select from pg_roles r where r.rolname = given.app)",
    ),
    rule(
        "app-superuser",
        Critical,
        "the application's role is a superuser",
        "select null::text as schema, r.rolname::text as object,
            format('%I is a superuser: no policy applies to it', r.rolname) as explanation,
            format('ALTER ROLE %I NOSUPERUSER; -- or connect as another role', r.rolname) as mend,
            format('SELECT rolsuper FROM pg_roles WHERE rolname = %L;', r.rolname) as demonstrate
       from app_roles r where r.login and r.rolsuper",
    ),
    rule(
        "app-bypassrls",
        Critical,
        "the application's role has BYPASSRLS",
        "select null::text as schema, r.rolname::text as object,
            format('%I has BYPASSRLS: no policy applies to it', r.rolname) as explanation,
            format('ALTER ROLE %I NOBYPASSRLS;', r.rolname) as mend,
            format('SELECT rolbypassrls FROM pg_roles WHERE rolname = %L;', r.rolname) as demonstrate
       from app_roles r where r.login and r.rolbypassrls",
    ),
    rule(
        "app-createrole",
        Critical,
        "the application's role may create roles",
        "select null::text as schema, r.rolname::text as object,
            format('%I is or can become a role with CREATEROLE: it makes itself a member of any role that is no superuser', given.app) as explanation,
            format('ALTER ROLE %I NOCREATEROLE;', r.rolname) as mend,
            format('BEGIN; SET LOCAL ROLE %I; GRANT pg_read_all_data TO %I; ROLLBACK;', r.rolname, given.app) as demonstrate
       from given, app_roles a join pg_roles r on r.oid = a.oid where r.rolcreaterole and not r.rolsuper",
    ),
    rule(
        "app-createdb",
        Warning,
        "the application's role may create databases",
        "select null::text as schema, r.rolname::text as object,
            format('%I is or can become a role with CREATEDB: it can copy a database that is a template, and fill the disk', given.app) as explanation,
            format('ALTER ROLE %I NOCREATEDB;', r.rolname) as mend,
            format('SELECT rolcreatedb FROM pg_roles WHERE rolname = %L;', r.rolname) as demonstrate
       from given, app_roles a join pg_roles r on r.oid = a.oid where r.rolcreatedb and not r.rolsuper",
    ),
    rule(
        "app-replication",
        Critical,
        "the application's role may replicate",
        "select null::text as schema, r.rolname::text as object,
            format('%I has REPLICATION: it can read every row of the server from the write-ahead log', r.rolname) as explanation,
            format('ALTER ROLE %I NOREPLICATION;', r.rolname) as mend,
            format('SELECT rolreplication FROM pg_roles WHERE rolname = %L;', r.rolname) as demonstrate
       from app_roles a join pg_roles r on r.oid = a.oid where r.rolreplication and not r.rolsuper",
    ),
    rule(
        "app-becomes-bypass",
        Critical,
        "the application's role can become one that no policy binds",
        "select null::text as schema, r.rolname::text as object,
            format('%I is a member, straight or through others, of %I, which %s: SET ROLE is enough', given.app, r.rolname, case when r.rolsuper then 'is a superuser' else 'has BYPASSRLS' end) as explanation,
            format('REVOKE %s FROM %I;', r.via, given.app) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SET LOCAL ROLE %I; SELECT current_user; ROLLBACK;', given.app, r.rolname) as demonstrate
       from given, app_roles r where not r.login and (r.rolsuper or r.rolbypassrls)",
    ),
    rule(
        "app-becomes-owner",
        Critical,
        "the application's role can become the owner of tenants' tables",
        "select null::text as schema, r.rolname::text as object,
            format('%I is a member, straight or through others, of %I, which owns tenants'' tables: it may switch their protection off', given.app, r.rolname) as explanation,
            format('REVOKE %s FROM %I;', r.via, given.app) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SET LOCAL ROLE %I; SELECT current_user; ROLLBACK;', given.app, r.rolname) as demonstrate
       from given, app_roles r where not r.login and (r.rolname = given.owner or exists (select from tenant_tables t where t.relowner = r.oid))",
    ),
    rule(
        "app-member-of-predefined",
        Critical,
        "the application's role is a member of one of PostgreSQL's own",
        "select null::text as schema, r.rolname::text as object,
            format('%I is a member of %I: it reads or writes what no grant gave it, or sees other sessions', given.app, r.rolname) as explanation,
            format('REVOKE %s FROM %I;', r.via, given.app) as mend,
            format('SELECT pg_has_role(%L, %L, ''member'');', given.app, r.rolname) as demonstrate
       from given, app_roles r where not r.login and r.rolname ~ '^pg_'",
    ),
    rule(
        "app-member-of-other",
        Warning,
        "the application's role is a member of another",
        "select null::text as schema, r.rolname::text as object,
            format('%I is a member of %I: whatever that role is ever granted, every tenant gets', given.app, r.rolname) as explanation,
            format('REVOKE %s FROM %I;', r.via, given.app) as mend,
            format('SELECT pg_has_role(%L, %L, ''member'');', given.app, r.rolname) as demonstrate
       from given, app_roles r where not r.login and r.rolname !~ '^pg_'",
    ),
    rule(
        "app-admin-of-role",
        High,
        "the application's role may hand out a role",
        "select null::text as schema, m.roleid::regrole::text as object,
            format('%s has ADMIN OPTION on %s: it may give that role to anybody', m.member::regrole, m.roleid::regrole) as explanation,
            format('REVOKE ADMIN OPTION FOR %s FROM %s;', m.roleid::regrole, m.member::regrole) as mend,
            format('SELECT admin_option FROM pg_auth_members WHERE member = %L::regrole;', m.member::regrole) as demonstrate
       from app_roles r join pg_auth_members m on m.member = r.oid where m.admin_option and not r.rolsuper",
    ),
    rule(
        "app-owns-table",
        Critical,
        "the application owns a relation",
        "select n.nspname as schema, c.relname as object,
            format('%s belongs to %s, which the application is or can become: an owner may switch its protection off', c.oid::regclass, c.relowner::regrole) as explanation,
            format('ALTER TABLE %s OWNER TO %I;', c.oid::regclass, given.owner) as mend,
            format('BEGIN; SET LOCAL ROLE %s; ALTER TABLE %s DISABLE ROW LEVEL SECURITY; ROLLBACK;', c.relowner::regrole, c.oid::regclass) as demonstrate
       from given, pg_class c join pg_namespace n on n.oid = c.relnamespace join app_roles r on r.oid = c.relowner
      where not r.rolsuper and r.rolname <> given.owner and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and n.nspname !~ '^pg_(temp|toast)'",
    ),
    rule(
        "app-owns-function",
        High,
        "the application owns a function",
        "select n.nspname as schema, p.oid::regprocedure::text as object,
            format('%s belongs to %s, which the application is or can become: what one tenant makes of it, every other one runs', p.oid::regprocedure, p.proowner::regrole) as explanation,
            format('ALTER ROUTINE %s OWNER TO %I;', p.oid::regprocedure, given.owner) as mend,
            format('SELECT proowner::regrole FROM pg_proc WHERE oid = %L::regprocedure;', p.oid::regprocedure) as demonstrate
       from given, pg_proc p join pg_namespace n on n.oid = p.pronamespace join app_roles r on r.oid = p.proowner where not r.rolsuper and r.rolname <> given.owner",
    ),
    rule(
        "app-owns-schema",
        Critical,
        "the application owns a schema",
        "select null::text as schema, n.nspname::text as object,
            format('the schema %I belongs to %s, which the application is or can become: it may drop and replace what is in it', n.nspname, n.nspowner::regrole) as explanation,
            format('ALTER SCHEMA %I OWNER TO %I;', n.nspname, given.owner) as mend,
            format('SELECT nspowner::regrole FROM pg_namespace WHERE nspname = %L;', n.nspname) as demonstrate
       from given, pg_namespace n join app_roles r on r.oid = n.nspowner where not r.rolsuper and r.rolname <> given.owner and n.nspname !~ '^pg_'",
    ),
    rule(
        "app-owns-database",
        Critical,
        "the application owns the database",
        "select null::text as schema, d.datname::text as object,
            format('the database %I belongs to %s, which the application is or can become: it sets defaults for every session, a tenant among them', d.datname, d.datdba::regrole) as explanation,
            format('ALTER DATABASE %I OWNER TO %I;', d.datname, given.owner) as mend,
            format('SELECT datdba::regrole FROM pg_database WHERE datname = %L;', d.datname) as demonstrate
       from given, pg_database d join app_roles r on r.oid = d.datdba where d.datname = current_database() and not r.rolsuper and r.rolname <> given.owner",
    ),
    rule(
        "default-tenant-role",
        Critical,
        "a role begins its sessions with a tenant",
        "select null::text as schema, r.rolname::text as object,
            format('sessions of %I begin with %s: a connection that serves no tenant serves that one', r.rolname, c) as explanation,
            format('ALTER ROLE %I%s RESET tenancy.tenant_id;', r.rolname, ' IN DATABASE ' || quote_ident(d.datname)) as mend,
            format('SELECT setconfig FROM pg_db_role_setting WHERE setrole = %L::regrole;', r.rolname) as demonstrate
       from pg_db_role_setting s join app_roles r on r.oid = s.setrole left join pg_database d on d.oid = s.setdatabase cross join unnest(s.setconfig) c
      where c like 'tenancy.tenant_id=%' and (s.setdatabase = 0 or d.datname = current_database())",
    ),
    rule(
        "default-tenant-database",
        Critical,
        "every session of the database begins with a tenant",
        "select null::text as schema, coalesce(d.datname, 'every database')::text as object,
            format('sessions begin with %s: a connection that serves no tenant serves that one', c) as explanation,
            format('ALTER %s RESET tenancy.tenant_id;', coalesce('DATABASE ' || quote_ident(d.datname), 'ROLE ALL')) as mend,
            'SELECT setconfig FROM pg_db_role_setting WHERE setrole = 0;' as demonstrate
       from pg_db_role_setting s left join pg_database d on d.oid = s.setdatabase cross join unnest(s.setconfig) c
      where s.setrole = 0 and c like 'tenancy.tenant_id=%' and (s.setdatabase = 0 or d.datname = current_database())",
    ),
    rule(
        "default-session-setting",
        High,
        "the application's sessions begin with a setting that weakens isolation",
        "select null::text as schema, coalesce(r.rolname, d.datname, 'every session')::text as object,
            format('sessions of the application begin with %s', c) as explanation,
            format('ALTER %s RESET %s;', coalesce('ROLE ' || quote_ident(r.rolname), 'DATABASE ' || quote_ident(d.datname), 'ROLE ALL'), split_part(c, '=', 1)) as mend,
            'SELECT setrole::regrole, setconfig FROM pg_db_role_setting;' as demonstrate
       from pg_db_role_setting s left join app_roles r on r.oid = s.setrole left join pg_database d on d.oid = s.setdatabase cross join unnest(s.setconfig) c
      where (s.setrole = 0 or r.oid is not null) and (s.setdatabase = 0 or d.datname = current_database())
        and c ~ '^(role|session_authorization|row_security|session_replication_role|session_preload_libraries|local_preload_libraries|tenancy\\.guard|plan_cache_mode=force_custom)='",
    ),
    rule(
        "search-path-writable",
        High,
        "a schema on the application's search_path can be written by the application",
        "select null::text as schema, n.nspname::text as object,
            format('%I comes in the search_path of %I, which may create objects there: an unqualified name then means what a tenant made of it', n.nspname, given.app) as explanation,
            format('REVOKE CREATE ON SCHEMA %I FROM %I, PUBLIC;', n.nspname, given.app) as mend,
            format('SELECT has_schema_privilege(%L, %L, ''create'');', given.app, n.nspname) as demonstrate
       from given, pg_namespace n
      where exists (select from app_roles r where has_schema_privilege(r.oid, n.oid, 'create') and not r.rolsuper and r.rolname <> given.owner)
        and n.nspname = any (select btrim(x, ' \"') from unnest(string_to_array(coalesce(
              (select substr(c, 13) from pg_db_role_setting s join app_roles r on r.oid = s.setrole and r.login cross join unnest(s.setconfig) c where c like 'search_path=%' limit 1),
              (select substr(c, 13) from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase and d.datname = current_database() cross join unnest(s.setconfig) c where s.setrole = 0 and c like 'search_path=%' limit 1),
              'public'), ',')) x)",
    ),
];
