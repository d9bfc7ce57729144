//! Of policies, the functions that they ask, and the tenant's column.

use super::{Defect, hidden, shown};

/// One defect each.
pub(super) const DEFECTS: &[Defect] = &[
    shown("rls-off", "alter table notes disable row level security"),
    hidden("rls-not-forced", "alter table notes no force row level security"),
    hidden("unprotected-unreached", "create table kept (tenant_id uuid not null default tenancy.current_tenant(), id uuid, primary key (tenant_id, id))"),
    hidden("no-policy", "drop policy tenancy_fence on notes; drop policy tenancy_rows on notes"),
    hidden("fence-missing", "drop policy tenancy_fence on notes"),
    shown(
        "fence-missing",
        "drop policy tenancy_fence on notes; create policy report on notes for select to tenancy_app using (true)",
    ),
    shown(
        "fence-not-restrictive",
        "drop policy tenancy_fence on notes; create policy tenancy_fence on notes using (tenant_id = (select tenancy.current_tenant()));
         create policy open on notes using (true)",
    ),
    shown(
        "fence-role-list",
        "alter policy tenancy_fence on notes to tenancy_admin; create policy open on notes to tenancy_app using (true)",
    ),
    shown(
        "fence-one-command",
        "drop policy tenancy_fence on notes; create policy tenancy_fence on notes as restrictive for select using (tenant_id = (select tenancy.current_tenant()));
         drop policy tenancy_rows on notes; create policy tenancy_rows on notes to tenancy_app using (true) with check (true)",
    ),
    shown(
        "fence-wrong-column",
        "drop policy tenancy_fence on notes; drop policy tenancy_rows on notes; alter table notes add author_id uuid default tenancy.current_tenant();
         create policy tenancy_fence on notes as restrictive using (author_id = (select tenancy.current_tenant()));
         create policy tenancy_rows on notes to tenancy_app using (author_id = (select tenancy.current_tenant()))",
    ),
    hidden("fence-text", "alter policy tenancy_fence on notes using (tenant_id = (select tenancy.current_tenant()) or body = 'shared')"),
    shown(
        "fence-text",
        "alter policy tenancy_fence on notes using (true) with check (true); alter policy tenancy_rows on notes using (true) with check (true)",
    ),
    hidden(
        "policy-other-setting",
        "drop policy tenancy_fence on notes; drop policy tenancy_rows on notes;
         create policy own on notes to tenancy_app using (tenant_id = nullif(current_setting('app.tenant', true), '')::uuid)",
    ),
    shown(
        "policy-open-when-unset",
        "drop policy tenancy_fence on notes; drop policy tenancy_rows on notes;
         create policy own on notes to tenancy_app using ((select tenancy.current_tenant()) is null or tenant_id = (select tenancy.current_tenant()))",
    ),
    shown(
        "policy-open-when-unset",
        "drop policy tenancy_fence on notes; drop policy tenancy_rows on notes;
         create policy own on notes to tenancy_app using (tenant_id = coalesce((select tenancy.current_tenant()), tenant_id))",
    ),
    hidden(
        "policy-null-is-global",
        "drop policy tenancy_fence on notes; drop policy tenancy_rows on notes; alter table notes drop constraint notes_pkey cascade; alter table notes alter tenant_id drop not null;
         create policy own on notes to tenancy_app using (tenant_id is null or tenant_id = (select tenancy.current_tenant()))",
    ),
    shown(
        "check-weaker-than-using",
        "drop policy tenancy_fence on notes; drop policy tenancy_rows on notes;
         create policy own on notes to tenancy_app using (tenant_id = (select tenancy.current_tenant())) with check (true)",
    ),
    shown(
        "policy-open",
        "drop policy tenancy_fence on notes; create policy readers on notes for select to public using (true)",
    ),
    shown(
        "policy-open",
        "drop policy tenancy_fence on notes; create policy cleaners on notes for delete to public using (true); create policy seers on notes for select using (true)",
    ),
    hidden("policy-permissive-other", "create policy report on notes for select to tenancy_app using (true)"),
    hidden("rows-policy-missing", "drop policy tenancy_rows on notes"),
    hidden(
        "policy-command-gap",
        "drop policy tenancy_rows on notes; create policy tenancy_rows on notes for select to tenancy_app using (tenant_id = (select tenancy.current_tenant()))",
    ),
    hidden("policy-inline", "alter policy tenancy_rows on notes using (tenant_id = tenancy.current_tenant()) with check (tenant_id = tenancy.current_tenant())"),
    hidden(
        "policy-subquery",
        "create policy via_comments on notes for select to tenancy_app using (exists (select from comments c where c.note_id = id))",
    ),
    hidden("policy-inert", "create table kept (id uuid primary key); create policy own on kept using (true)"),
    shown(
        "partition-unprotected",
        "create table events (tenant_id uuid not null, id uuid not null default gen_random_uuid(), body text, primary key (tenant_id, id)) partition by hash (tenant_id);
         alter table events owner to tenancy_owner; call tenancy.protect_table('events');
         create table events_0 partition of events for values with (modulus 1, remainder 0); grant select on events_0 to tenancy_app",
    ),
    shown(
        "child-unprotected",
        "create table pinned (at date) inherits (notes); grant select, insert on pinned to tenancy_app",
    ),
    hidden(
        "child-of-other-owner",
        "create table pinned (at date) inherits (notes); call tenancy.protect_table('pinned')",
    ),
    hidden(
        "global-table-writable",
        "create table countries (code text primary key); grant select, insert on countries to tenancy_app; call tenancy.declare_global('countries', 'the same for everybody')",
    ),
    // The functions that policies ask.
    shown("tenant-function-immutable", "alter function tenancy.current_tenant() immutable"),
    hidden("tenant-function-volatile", "alter function tenancy.current_tenant() volatile"),
    hidden("tenant-function-owner", "alter function tenancy.current_tenant() owner to {app}"),
    hidden(
        "tenant-function-body",
        "create or replace function tenancy.current_tenant() returns uuid language sql stable parallel safe
         return nullif(pg_catalog.current_setting('app.tenant', true), '')::uuid",
    ),
    hidden(
        "tenant-function-string-body",
        "create or replace function tenancy.current_tenant() returns uuid language sql stable parallel safe
         as $$ select nullif(current_setting('tenancy.tenant_id', true), '')::uuid $$",
    ),
    hidden("tenant-function-parallel", "alter function tenancy.current_tenant() parallel unsafe"),
    hidden("tenant-function-definer", "alter function tenancy.current_tenant() security definer"),
    hidden(
        "tenant-function-definer",
        "create function is_ours(uuid) returns boolean language sql stable security definer set search_path = pg_catalog return $1 = tenancy.current_tenant();
         create policy also on notes as restrictive using (is_ours(tenant_id))",
    ),
    // Columns.
    hidden("tenant-column-missing", "create table settings (key text primary key, value text); grant select, insert on settings to tenancy_app"),
    hidden("tenant-column-nullable", "alter table entries drop constraint entries_pkey; alter table entries alter tenant_id drop not null"),
    hidden(
        "tenant-column-type",
        "create table tags (tenant_id text not null, name text, primary key (tenant_id, name)); grant select on tags to tenancy_app;
         alter table tags enable row level security, force row level security",
    ),
    hidden("tenant-default-missing", "alter table notes alter tenant_id drop default"),
    hidden("tenant-default-other", "alter table notes alter tenant_id set default '018f3b1c-0000-7000-8000-000000000001'"),
    hidden(
        "column-default-definer",
        "create function last_body() returns text language sql security definer set search_path = public as $$ select body from notes limit 1 $$;
         alter table comments alter body set default last_body()",
    ),
    hidden("sequence-shared", "alter table notes add number bigint generated always as identity"),
    hidden("sequence-shared", "alter table notes add number serial"),
];
