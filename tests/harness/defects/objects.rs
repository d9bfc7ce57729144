//! Of whatever is no table: views, functions, sequences, servers; and of the kit's own schema.

use super::{Defect, hidden, shown};

/// One defect each.
pub(super) const DEFECTS: &[Defect] = &[
    shown("view-bypasses", "create view latest as select body from notes; grant select on latest to tenancy_app"),
    hidden("view-definer", "create view latest as select body from notes; alter view latest owner to tenancy_owner; grant select on latest to tenancy_app"),
    hidden(
        "view-definer-nested",
        "create view inner_one as select body from notes; alter view inner_one owner to tenancy_owner; create view latest as select body from inner_one; grant select on latest to tenancy_app",
    ),
    shown(
        "view-bypasses",
        "create view inner_one as select body from notes; create view latest with (security_invoker = false) as select body from inner_one; grant select on latest to tenancy_app",
    ),
    shown(
        "materialized-view",
        "create materialized view totals as select tenant_id, body, count(*) from notes group by 1, 2; grant select on totals to tenancy_app",
    ),
    hidden(
        "shared-view-changed",
        "call tenancy.share_table('notes', 'note'); set local role tenancy_share;
         create or replace view tenancy_views.notes with (security_barrier) as select null::uuid as share_id, 'read'::text as share_perms, t.tenant_id, t.id, t.body from notes t",
    ),
    hidden("rule-on-table", "create rule quiet as on delete to notes do instead nothing"),
    shown(
        "function-definer-bypasses",
        "create function all_bodies() returns setof text language sql security definer set search_path = public as $$ select body from notes $$",
    ),
    hidden(
        "function-definer",
        "create function plain() returns int language sql security definer set search_path = pg_catalog return 1; alter function plain() owner to tenancy_owner",
    ),
    hidden("function-definer-search-path", "create function plain() returns int language sql security definer as 'select 1'; alter function plain() owner to tenancy_owner"),
    hidden(
        "trigger-definer",
        "create function stamp() returns trigger language plpgsql security definer set search_path = pg_catalog as $$ begin return new; end $$;
         create trigger stamp before insert on notes for each row execute function stamp()",
    ),
    shown(
        "function-leakproof",
        "create function tell(text) returns boolean language plpgsql leakproof cost 0.0001 as $$ begin raise notice '%', $1; return true; end $$",
    ),
    hidden("function-untrusted", "create function cosine(float8) returns float8 language internal as 'dcos'"),
    hidden(
        "untrusted-language",
        "create function wild_handler() returns language_handler language c as '$libdir/plpgsql', 'plpgsql_call_handler'; create language wild handler wild_handler",
    ),
    hidden("sequence-writable", "create sequence numbers; grant update on sequence numbers to tenancy_app"),
    shown("large-objects", "select lo_from_bytea(4711, 'secret'); grant select on large object 4711 to tenancy_app"),
    hidden(
        "foreign-table",
        "create foreign data wrapper nowhere; create server elsewhere foreign data wrapper nowhere; create foreign table remote (tenant_id uuid) server elsewhere; grant select on remote to tenancy_app",
    ),
    hidden("user-mapping", "create foreign data wrapper nowhere; create server elsewhere foreign data wrapper nowhere; create user mapping for public server elsewhere"),
    hidden("foreign-server-usage", "create foreign data wrapper nowhere; create server elsewhere foreign data wrapper nowhere; grant usage on foreign server elsewhere to tenancy_app"),
    hidden("publication", "create publication everything for all tables"),
    // The kit's own schema.
    hidden("seal-weak", "create function tenancy.enter(text) returns void language sql as ''; grant set on parameter backtrace_functions to {app}"),
    hidden(
        "guard-disabled",
        "create function guard() returns event_trigger language plpgsql as $$ begin end $$; create event trigger tenancy_guard_ddl on ddl_command_end execute function guard();
         alter event trigger tenancy_guard_ddl disable",
    ),
    shown("catalog-open", "alter table tenancy.tenants disable row level security"),
    hidden("catalog-open", "create policy more on tenancy.tenants for select to tenancy_app using (true)"),
    hidden("catalog-open", "grant update on tenancy.tenants to tenancy_app"),
    hidden("audit-mutable", "grant delete on tenancy.audit_events to tenancy_app"),
    hidden("audit-mutable", "grant update on tenancy.audit_events to tenancy_admin"),
    shown("audit-open", "alter table tenancy.audit_events disable row level security"),
    hidden("audit-open", "create policy more on tenancy.audit_events for select to tenancy_app using (true)"),
];
