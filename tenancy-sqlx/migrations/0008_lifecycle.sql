-- Long work on a tenant, which any node takes up where another one stopped, and the rules of erasure. `docs/lifecycle.md` tells the steps.

create table tenancy.operations (
  id uuid primary key default gen_random_uuid(),
  tenant_id uuid not null,
  kind text not null check (kind ~ '^[a-z_]{1,40}$'),
  state text not null default 'queued' check (state in ('queued', 'running', 'done', 'failed')),
  step text not null default '',
  done bigint not null default 0,
  total bigint,
  unit text not null default '',
  input jsonb not null default '{}',
  steps jsonb not null default '{}' check (jsonb_typeof(steps) = 'object'), -- finished ones, with what came of them: a rerun skips them
  result jsonb,
  error text,
  created_by text not null,
  request_id uuid,
  claimed_until timestamptz,                          -- whoever has it must renew before then
  attempts bigint not null default 0,                 -- counts the claims: an old holder's number is no longer the row's
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp()
);
create index operations_tenant_idx on tenancy.operations (tenant_id, created_at desc);
create index operations_open_idx on tenancy.operations (created_at) where state in ('queued', 'running');
-- One at a time: two that change the same tenant would be in each other's way.
create unique index operations_one_idx on tenancy.operations (tenant_id) where state in ('queued', 'running');
alter table tenancy.operations enable row level security; -- operators' business: no policy lets the application through
grant select, insert, update on tenancy.operations to tenancy_admin;

-- What erasure does with a table, where that is not to delete the tenant's rows.
create table tenancy.erase_rules (
  rel regclass primary key,
  rule text not null check (rule in ('delete', 'keep')),
  reason text not null check (char_length(btrim(reason)) between 8 and 1000),
  declared_by name not null default session_user,
  declared_at timestamptz not null default clock_timestamp()
);
grant select on tenancy.erase_rules to tenancy_admin;

create procedure tenancy.erase_rule(rel regclass, rule text, reason text)
  language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if not exists (select from pg_class c where c.oid = erase_rule.rel and c.relkind in ('r', 'p') and not c.relispartition) then
    raise exception 'tenancy.erase_rule: % is not a table, or only a part of one', rel using errcode = '42809';
  elsif rule is null or rule not in ('delete', 'keep') then
    raise exception 'tenancy.erase_rule: the rule must be delete or keep' using errcode = '22023';
  elsif reason is null or char_length(btrim(reason)) not between 8 and 1000 then
    raise exception 'tenancy.erase_rule: say in 8 to 1000 characters why' using errcode = '22023';
  end if;
  insert into tenancy.erase_rules (rel, rule, reason) values (erase_rule.rel, erase_rule.rule, btrim(erase_rule.reason))
    on conflict on constraint erase_rules_pkey do update
      set rule = excluded.rule, reason = excluded.reason, declared_by = session_user, declared_at = clock_timestamp();
end $$;
revoke all on procedure tenancy.erase_rule(regclass, text, text) from public;
call tenancy.erase_rule('tenancy.audit_events', 'keep', 'the record of who did what, the erasure included');
call tenancy.erase_rule('tenancy.audit_seals', 'keep', 'the seals of that record');
call tenancy.erase_rule('tenancy.operations', 'keep', 'the record of the erasure, with its certificate');

-- Whether rows of the tenant must not come back: from the request on, and for good once anything may be gone.
create function tenancy.being_erased(of_tenant uuid) returns boolean
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  select exists (select from tenancy.operations o where o.tenant_id = of_tenant and o.kind = 'erase' and (o.state in ('queued', 'running') or o.steps ? 'settled'));
end;
revoke all on function tenancy.being_erased(uuid) from public;
grant execute on function tenancy.being_erased(uuid) to tenancy_admin;

-- A tenant that is being erased has one way left.
create function tenancy.hold_erased() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if old.status = 'erased' or (new.status <> 'erased' and tenancy.being_erased(new.id)) then
    raise exception 'tenancy: the tenant is being erased' using errcode = '55006';
  end if;
  return new;
end $$;
revoke all on function tenancy.hold_erased() from public;
create trigger hold_erased before update on tenancy.tenants for each row execute function tenancy.hold_erased();

-- Nodes report what a tenant used after it was archived, too: what comes after the erasure began is not kept.
create function tenancy.skip_erased() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  return case when tenancy.being_erased(new.tenant_id) then null else new end;
end $$;
revoke all on function tenancy.skip_erased() from public;
do $$
declare name text;
begin
  foreach name in array array['quota_counters', 'quota_leases', 'quota_alerts', 'usage', 'usage_hours', 'usage_days'] loop
    execute format('create trigger skip_erased before insert on tenancy.%I for each row execute function tenancy.skip_erased()', name);
  end loop;
end $$;

-- Deletes rows of a tenant that is being erased from one of the kit's own tables, which roles can't delete from; at most so many.
create function tenancy.erase_rows(rel regclass, of_tenant uuid, most bigint) returns bigint
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare n bigint;
begin
  if not tenancy.being_erased(of_tenant) then
    raise exception 'tenancy: the tenant is not being erased' using errcode = '42501';
  elsif not exists (select from pg_class c join pg_attribute a on a.attrelid = c.oid
      where c.oid = rel and c.relnamespace = 'tenancy'::regnamespace and a.attname = 'tenant_id' and a.atttypid = 'uuid'::regtype)
      or exists (select from tenancy.erase_rules r where r.rel = erase_rows.rel and r.rule = 'keep') then
    raise exception 'tenancy: % is not to be erased', rel using errcode = '42501';
  end if;
  execute format('delete from %1$s t using (select tableoid, ctid from %1$s where tenant_id = $1 limit $2) d
                   where t.tableoid = d.tableoid and t.ctid = d.ctid and t.tenant_id = $1', rel) using of_tenant, most;
  get diagnostics n = row_count;
  return n;
end $$;
revoke all on function tenancy.erase_rows(regclass, uuid, bigint) from public;
grant execute on function tenancy.erase_rows(regclass, uuid, bigint) to tenancy_admin;

-- The members' table binds its owner too, so no function of the owner can do it.
grant select, delete on tenancy.members to tenancy_admin;
