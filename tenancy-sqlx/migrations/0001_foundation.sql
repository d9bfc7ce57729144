-- The foundation: who the tenants are, which tenant a transaction serves, and how a table is confined to it.
-- Runs as tenancy_owner, which owns the schema and every tenant table and cannot log in.

grant usage on schema tenancy to tenancy_app, tenancy_admin;
grant select on tenancy.migrations to tenancy_app, tenancy_admin;

-- The tenant of the running transaction; NULL when there is none, so every policy is false.
--  * SQL-standard body: parsed once, here, so that no search_path can change its meaning; the planner still inlines it.
--  * nullif: after the first SET LOCAL of a session the setting reverts to '', not to NULL.
--  * STABLE, never IMMUTABLE: an immutable one is folded into a cached plan, and serves the next tenant with it.
create function tenancy.current_tenant() returns uuid
  language sql stable parallel safe cost 1
  return nullif(pg_catalog.current_setting('tenancy.tenant_id', true), '')::uuid;
grant execute on function tenancy.current_tenant() to public;

create table tenancy.tenants (
  id uuid primary key,
  slug text not null check (slug ~ '^[a-z][a-z0-9-]{1,38}[a-z0-9]$'),
  name text not null check (char_length(name) between 1 and 200),
  status text not null check (status in ('provisioning', 'active', 'suspended', 'archived', 'erased', 'moving', 'restoring')),
  branding jsonb not null default '{}' check (jsonb_typeof(branding) = 'object'),
  flags jsonb not null default '{}' check (jsonb_typeof(flags) = 'object'),
  plan text not null,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  version bigint not null check (version > 0),
  -- The transaction that last wrote the row: what `catalog_changes` looks for.
  changed_xid xid8 not null default pg_current_xact_id()
);
create unique index tenants_slug_key on tenancy.tenants (slug) where status <> 'erased';
create index tenants_changed_xid_idx on tenancy.tenants (changed_xid);

create function tenancy.stamp_tenant() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op = 'UPDATE' then
    if new.id <> old.id then raise exception 'tenancy: a tenant keeps its id' using errcode = '23514'; end if;
    if new.version <> old.version + 1 then
      raise exception 'tenancy: version must go from % to %', old.version, old.version + 1 using errcode = '40001';
    end if;
  end if;
  new.changed_xid := pg_current_xact_id();
  perform pg_notify('tenancy_catalog', ''); -- a hint to look: what changed is read from the table
  return new;
end $$;
revoke all on function tenancy.stamp_tenant() from public;
create trigger stamp_tenant before insert or update on tenancy.tenants for each row execute function tenancy.stamp_tenant();

-- The application sees its own tenant's row, and can look one up by its exact name, but not read the list of customers.
-- Not FORCEd: the owner's functions below read all rows.
alter table tenancy.tenants enable row level security;
create policy own_row on tenancy.tenants for select to tenancy_app using (id = (select tenancy.current_tenant()));
grant select on tenancy.tenants to tenancy_app;
grant select, insert, update on tenancy.tenants to tenancy_admin;

create function tenancy.find_tenant(by_id uuid, by_slug text) returns setof tenancy.tenants
  language sql stable security definer rows 1 set search_path = pg_catalog, pg_temp
begin atomic
  select t.* from tenancy.tenants t where t.id = by_id and t.status <> 'erased'
  union all
  select t.* from tenancy.tenants t where by_id is null and t.slug = by_slug and t.status <> 'erased';
end;
revoke all on function tenancy.find_tenant(uuid, text) from public;
grant execute on function tenancy.find_tenant(uuid, text) to tenancy_app, tenancy_admin;

-- The tenants that changed since `since`, and the horizon to ask with next time. No change is ever passed over: what this call's
-- snapshot can't see was written by a transaction that is not older than the horizon. A change may be told twice. The upper bound is
-- for a database that was dumped and restored: its rows were stamped by another server, perhaps with numbers that are yet to come here.
create function tenancy.catalog_changes(since xid8) returns table (horizon xid8, id uuid, version bigint)
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  select pg_snapshot_xmin(pg_current_snapshot()), t.id, t.version
    from (values (1)) one left join tenancy.tenants t on t.changed_xid >= since and t.changed_xid < pg_snapshot_xmax(pg_current_snapshot());
end;
revoke all on function tenancy.catalog_changes(xid8) from public;
grant execute on function tenancy.catalog_changes(xid8) to tenancy_app, tenancy_admin;

-- Append-only: roles get INSERT on named columns, so that nobody dates an event back, and nobody gets UPDATE or DELETE.
create table tenancy.audit_events (
  id uuid primary key default gen_random_uuid(),
  tenant_id uuid,                                   -- null: the platform's own business, which no tenant sees
  at timestamptz not null default clock_timestamp(),
  xid xid8 not null default pg_current_xact_id(),
  login name not null default session_user,
  actor_kind text not null,
  actor_id text,
  action text not null check (action ~ '^[a-z_]+(\.[a-z_]+)+$'),
  target text not null,
  outcome text not null check (outcome in ('done', 'denied')),
  detail jsonb,
  request_id uuid
);
create index audit_events_tenant_idx on tenancy.audit_events (tenant_id, at desc, id);
alter table tenancy.audit_events enable row level security;
alter table tenancy.audit_events force row level security;
create policy own_events on tenancy.audit_events to tenancy_app
  using (tenant_id = (select tenancy.current_tenant())) with check (tenant_id = (select tenancy.current_tenant()));
grant select, insert (tenant_id, actor_kind, actor_id, action, target, outcome, detail, request_id)
  on tenancy.audit_events to tenancy_app, tenancy_admin;

-- Confines a table to its tenants: the one line that a host's migration needs. Run it as the table's owner; safe to run again.
create procedure tenancy.protect_table(rel regclass, tenant_column name default 'tenant_id')
  language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  child regclass; expr text; kind text; typ oid; nn boolean; pol name; permissive text; who text; bare text;
begin
  select c.relkind into kind from pg_class c where c.oid = rel;
  if kind not in ('r', 'p') then
    raise exception 'tenancy.protect_table: % is not a table', rel using errcode = '42809';
  end if;
  select atttypid, attnotnull into typ, nn from pg_attribute
   where attrelid = rel and attname = tenant_column and attnum > 0 and not attisdropped;
  if typ is null then
    raise exception 'tenancy.protect_table: % has no column %: add "% uuid not null"', rel, tenant_column, tenant_column using errcode = '42703';
  elsif typ <> 'uuid'::regtype then
    raise exception 'tenancy.protect_table: %.% must be of type uuid', rel, tenant_column using errcode = '42804';
  elsif not nn then
    raise exception 'tenancy.protect_table: %.% must be NOT NULL', rel, tenant_column using errcode = '23502';
  end if;

  expr := format('%I = (select tenancy.current_tenant())', tenant_column);
  execute format('alter table %s enable row level security', rel);
  execute format('alter table %s force row level security', rel);
  execute format('alter table %s alter column %I set default tenancy.current_tenant()', rel, tenant_column);
  -- The fence is RESTRICTIVE and TO PUBLIC: no later permissive policy widens it, and no role can DROP OWNED itself out of it.
  -- Its twin is what grants, and names the application's role: another login that is ever granted the table sees nothing.
  for pol, permissive, who in values ('tenancy_fence', 'restrictive', 'public'), ('tenancy_rows', 'permissive', 'tenancy_app') loop
    execute format('drop policy if exists %I on %s', pol, rel);
    execute format('create policy %I on %s as %s for all to %s using (%s) with check (%s)', pol, rel, permissive, who, expr, expr);
  end loop;
  execute format('revoke all on %s from public', rel);
  execute format('revoke truncate, references, trigger on %s from tenancy_app', rel);
  execute format('grant select, insert, update, delete on %s to tenancy_app, tenancy_admin', rel);

  -- Keys and foreign keys don't ask the policies: one without the tenant tells whether another tenant has a value.
  for bare in
    select conname from pg_constraint c
     where conrelid = rel and contype in ('p', 'u', 'x', 'f')
       and not (select a.attnum from pg_attribute a where a.attrelid = rel and a.attname = tenant_column) = any (conkey)
       and not (contype = 'f' and confrelid = 'tenancy.tenants'::regclass)
    union all
    select i.indexrelid::regclass::text from pg_index i
     where i.indrelid = rel and i.indisunique and not exists (select from pg_constraint where conindid = i.indexrelid)
       and not (select a.attnum from pg_attribute a where a.attrelid = rel and a.attname = tenant_column) = any (i.indkey)
  loop
    raise warning 'tenancy.protect_table: % of % does not contain %: other tenants'' values show through it', bare, rel, tenant_column;
  end loop;

  -- A partition or inheritance child can be named directly, so each one carries its own policies.
  for child in select inhrelid::regclass from pg_inherits where inhparent = rel loop
    call tenancy.protect_table(child, tenant_column);
  end loop;
end $$;
revoke all on procedure tenancy.protect_table(regclass, name) from public;

-- Tables without a tenant, on purpose: price lists, countries. The checker and the guard accept what is declared, with a reason.
create table tenancy.global_tables (
  rel regclass primary key,
  reason text not null check (char_length(btrim(reason)) between 8 and 1000),
  declared_by name not null default session_user,
  declared_at timestamptz not null default clock_timestamp()
);
grant select on tenancy.global_tables to public;

-- Declares that a table belongs to no tenant, so that every tenant may read it. Run it as the table's owner, in the migration that makes it.
create procedure tenancy.declare_global(rel regclass, reason text)
  language plpgsql set search_path = pg_catalog, pg_temp as $$
declare kind "char"; fenced boolean;
begin
  select c.relkind, exists (select from pg_policy p where p.polrelid = c.oid and p.polname = 'tenancy_fence') into kind, fenced
    from pg_class c where c.oid = declare_global.rel;
  if kind not in ('r', 'p', 'm', 'f') then
    raise exception 'tenancy.declare_global: % is not a table', rel using errcode = '42809';
  elsif fenced then
    raise exception 'tenancy.declare_global: % is confined to its tenants', rel using errcode = '55000',
      hint = 'Take the tenants'' rows out of it first, and drop its policies.';
  elsif reason is null or char_length(btrim(reason)) not between 8 and 1000 then
    raise exception 'tenancy.declare_global: say in 8 to 1000 characters why % belongs to no tenant', rel using errcode = '22023';
  end if;
  insert into tenancy.global_tables (rel, reason) values (declare_global.rel, btrim(declare_global.reason))
    on conflict on constraint global_tables_pkey do update set reason = excluded.reason, declared_by = session_user, declared_at = clock_timestamp();
end $$;
revoke all on procedure tenancy.declare_global(regclass, text) from public;
