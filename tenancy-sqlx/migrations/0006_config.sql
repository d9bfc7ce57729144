-- What a tenant's service is like: settings (of its own, and of its plan), branding, and feature flags. Nodes learn of a tenant's through the
-- version of its catalog row, and of the platform's through a version of their own: docs/configuration.md.

create table tenancy.tenant_configs (
  tenant_id uuid not null,
  key text not null check (key ~ '^[a-z][a-z0-9_.]{0,99}$'),
  value jsonb not null check (jsonb_typeof(value) <> 'null' and octet_length(value::text) <= 8192),
  version bigint not null check (version > 0),      -- that of the tenant's settings which gave it this value
  updated_at timestamptz not null default now(),
  primary key (tenant_id, key)
);

-- Every version of a tenant's settings, to look at and to go back to. Nobody but the owner changes what is here.
create table tenancy.config_history (
  tenant_id uuid not null,
  version bigint not null check (version > 0),
  at timestamptz not null default clock_timestamp(),
  actor text not null check (char_length(actor) between 1 and 300),
  request_id uuid,
  before jsonb not null,                            -- of the keys that changed; one that is not in it was not set
  after jsonb not null,
  layer jsonb not null,                             -- all that was set from then on
  rolled_back_to bigint,
  primary key (tenant_id, version)
);
do $$
declare name text;
begin
  foreach name in array array['tenant_configs', 'config_history'] loop
    execute format('alter table tenancy.%I enable row level security', name);
    execute format('create policy own on tenancy.%I for select to tenancy_app using (tenant_id = (select tenancy.current_tenant()))', name);
    execute format('grant select on tenancy.%I to tenancy_app, tenancy_admin', name);
  end loop;
end $$;

create function tenancy.without_nulls(object jsonb) returns jsonb
  language sql immutable set search_path = pg_catalog, pg_temp
begin atomic
  select coalesce(jsonb_object_agg(e.key, e.value), '{}') from jsonb_each(object) e where jsonb_typeof(e.value) <> 'null';
end;
revoke all on function tenancy.without_nulls(jsonb) from public;

-- Sets what `change` names, and unsets where it says null; a `whole` change is all that is set from now on. No version comes back if there
-- is no such tenant or its settings are not of the version `expected`, and no `tenant_version` if nothing changed.
create function tenancy.change_config(of_tenant uuid, change jsonb, whole boolean, expected bigint, by_actor text, by_request uuid, back_to bigint,
    out version bigint, out tenant_version bigint, out before jsonb, out after jsonb, out layer jsonb)
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare old jsonb; latest bigint;
begin
  perform from tenancy.tenants t where t.id = of_tenant and t.status <> 'erased' for update; -- one change at a time
  if not found then return; end if;
  select coalesce(max(h.version), 0) into latest from tenancy.config_history h where h.tenant_id = of_tenant;
  if expected is not null and expected <> latest then return; end if;
  select coalesce(jsonb_object_agg(c.key, c.value), '{}') into old from tenancy.tenant_configs c where c.tenant_id = of_tenant;
  layer := tenancy.without_nulls(case when whole then '{}' else old end || change);
  version := latest;
  if layer = old then return; end if;

  version := latest + 1;
  select coalesce(jsonb_object_agg(e.key, e.value), '{}') into before from jsonb_each(old) e where e.value is distinct from change_config.layer -> e.key;
  select coalesce(jsonb_object_agg(e.key, e.value), '{}') into after from jsonb_each(change_config.layer) e where e.value is distinct from old -> e.key;
  delete from tenancy.tenant_configs c where c.tenant_id = of_tenant and not change_config.layer ? c.key;
  insert into tenancy.tenant_configs (tenant_id, key, value, version)
    select of_tenant, e.key, e.value, change_config.version from jsonb_each(change_config.after) e
    on conflict on constraint tenant_configs_pkey do update set value = excluded.value, version = excluded.version, updated_at = now();
  insert into tenancy.config_history (tenant_id, version, actor, request_id, before, after, layer, rolled_back_to)
    values (of_tenant, change_config.version, by_actor, by_request, change_config.before, change_config.after, change_config.layer, back_to);
  update tenancy.tenants t set version = t.version + 1, updated_at = now() where t.id = of_tenant returning t.version into tenant_version;
end $$;
revoke all on function tenancy.change_config(uuid, jsonb, boolean, bigint, text, uuid, bigint) from public;
grant execute on function tenancy.change_config(uuid, jsonb, boolean, bigint, text, uuid, bigint) to tenancy_admin;

-- The same for the transaction's own tenant.
create function tenancy.change_own_config(change jsonb, whole boolean, expected bigint, by_actor text, by_request uuid, back_to bigint,
    out version bigint, out tenant_version bigint, out before jsonb, out after jsonb, out layer jsonb)
  language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
  select * from tenancy.change_config(tenancy.current_tenant(), change, whole, expected, by_actor, by_request, back_to);
end;
revoke all on function tenancy.change_own_config(jsonb, boolean, bigint, text, uuid, bigint) from public;
grant execute on function tenancy.change_own_config(jsonb, boolean, bigint, text, uuid, bigint) to tenancy_app;

-- A tenant's own admins write its branding, and nothing else of its row.
create function tenancy.lock_own_branding(out branding jsonb, out version bigint)
  language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
  select t.branding, t.version from tenancy.tenants t where t.id = tenancy.current_tenant() and t.status <> 'erased' for update;
end;
revoke all on function tenancy.lock_own_branding() from public;
grant execute on function tenancy.lock_own_branding() to tenancy_app;

create function tenancy.set_own_branding(new_branding jsonb) returns bigint
  language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
  update tenancy.tenants t set branding = new_branding, version = t.version + 1, updated_at = now()
   where t.id = tenancy.current_tenant() and t.status <> 'erased' returning t.version;
end;
revoke all on function tenancy.set_own_branding(jsonb) from public;
grant execute on function tenancy.set_own_branding(jsonb) to tenancy_app;

-- The platform's part: operators write it, and every node knows all of it.
create table tenancy.plan_configs (
  plan text not null check (plan ~ '^[a-z0-9_-]{1,64}$'),
  key text not null check (key ~ '^[a-z][a-z0-9_.]{0,99}$'),
  value jsonb not null check (jsonb_typeof(value) <> 'null' and octet_length(value::text) <= 8192),
  updated_at timestamptz not null default now(),
  primary key (plan, key)
);

create table tenancy.flag_definitions (
  name text primary key check (name ~ '^[a-z][a-z0-9_.-]{0,63}$'),
  description text not null default '' check (char_length(description) <= 500),
  kind text not null check (kind in ('bool', 'variant')),
  variants text[] not null default '{}',
  default_value jsonb not null,
  on_value jsonb not null,                          -- what the cohorts and the rollout get
  rollout bigint not null default 0 check (rollout between 0 and 10000),
  plans text[] not null default '{}',
  tenants uuid[] not null default '{}',
  killed boolean not null default false,
  version bigint not null default 1 check (version > 0),
  updated_at timestamptz not null default now()
);

-- Counts the changes of both; the row is also the lock of whoever changes them.
create table tenancy.platform (
  only_row boolean primary key default true check (only_row),
  version bigint not null default 1 check (version > 0)
);
insert into tenancy.platform default values;

create function tenancy.count_platform() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update tenancy.platform p set version = p.version + 1;
  perform pg_notify('tenancy_catalog', '');
  return null;
end $$;
revoke all on function tenancy.count_platform() from public;
do $$
declare name text;
begin
  foreach name in array array['plan_configs', 'flag_definitions'] loop
    execute format('create trigger count_platform after insert or update or delete or truncate on tenancy.%I for each statement execute function tenancy.count_platform()', name);
    execute format('alter table tenancy.%I enable row level security', name); -- no policy lets the application through
    execute format('grant select, insert, update, delete on tenancy.%I to tenancy_admin', name);
  end loop;
end $$;
alter table tenancy.platform enable row level security;
grant select on tenancy.platform to tenancy_admin;

create function tenancy.platform_version() returns bigint
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  select p.version from tenancy.platform p;
end;
revoke all on function tenancy.platform_version() from public;
grant execute on function tenancy.platform_version() to tenancy_app, tenancy_admin;

-- All that nodes need. Tenants of a cohort are told by a digest: whoever knows an id can ask for it, and nobody can list them.
create function tenancy.platform_settings() returns table (version bigint, plans jsonb, flags jsonb)
  language sql stable security definer rows 1 set search_path = pg_catalog, pg_temp
begin atomic
  select p.version,
    (select coalesce(jsonb_agg(jsonb_build_object('plan', c.plan, 'key', c.key, 'value', c.value)), '[]') from tenancy.plan_configs c),
    (select coalesce(jsonb_agg(to_jsonb(f) || jsonb_build_object('tenants',
        (select coalesce(jsonb_agg(encode(sha256(convert_to(f.name, 'UTF8') || '\x00'::bytea || uuid_send(t.id)), 'hex')), '[]') from unnest(f.tenants) t (id)))), '[]')
       from tenancy.flag_definitions f)
  from tenancy.platform p;
end;
revoke all on function tenancy.platform_settings() from public;
grant execute on function tenancy.platform_settings() to tenancy_app, tenancy_admin;
