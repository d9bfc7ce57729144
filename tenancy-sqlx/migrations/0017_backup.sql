-- Backups of single tenants: what is taken, what is not, and which there are. `docs/backup.md` tells how they are taken and restored.

-- A protected table is in its tenants' backups. The role that takes them reads, and nothing else.
alter procedure tenancy.protect_table(regclass, name) rename to fence_table;
create procedure tenancy.protect_table(rel regclass, tenant_column name default 'tenant_id')
  language plpgsql set search_path = pg_catalog, pg_temp as $$
declare space record;
begin
  call tenancy.fence_table(rel, tenant_column); -- and its partitions, by this procedure
  execute format('grant select on %s to tenancy_backup', rel);
  select n.nspname, pg_has_role(n.nspowner, 'usage') as own into space from pg_namespace n join pg_class c on c.relnamespace = n.oid where c.oid = rel;
  if space.own then execute format('grant usage on schema %I to tenancy_backup', space.nspname); end if;
end $$;
revoke all on procedure tenancy.protect_table(regclass, name) from public;

do $$
declare t record;
begin
  for t in
    select c.oid::regclass as rel, n.nspname, pg_has_role(n.nspowner, 'usage') as own
      from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace
     where p.polname = 'tenancy_fence' and pg_has_role(c.relowner, 'usage') and n.nspname <> 'tenancy' -- the kit's own are not taken
  loop
    execute format('grant select on %s to tenancy_backup', t.rel);
    if t.own then execute format('grant usage on schema %I to tenancy_backup', t.nspname); end if;
  end loop;
end $$;

-- Tables whose rows are not taken along, and are left alone by a restore: caches, idempotency keys, queues.
create table tenancy.backup_rules (
  rel regclass primary key,
  rule text not null check (rule in ('skip')),
  reason text not null check (char_length(btrim(reason)) between 8 and 1000),
  declared_by name not null default session_user,
  declared_at timestamptz not null default clock_timestamp()
);

create procedure tenancy.backup_rule(rel regclass, rule text, reason text)
  language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if not exists (select from pg_class c where c.oid = backup_rule.rel and c.relkind in ('r', 'p') and not c.relispartition) then
    raise exception 'tenancy.backup_rule: % is not a table, or only a part of one', rel using errcode = '42809';
  elsif rule is distinct from 'skip' then
    raise exception 'tenancy.backup_rule: the rule must be skip' using errcode = '22023';
  elsif reason is null or char_length(btrim(reason)) not between 8 and 1000 then
    raise exception 'tenancy.backup_rule: say in 8 to 1000 characters why' using errcode = '22023';
  end if;
  insert into tenancy.backup_rules (rel, rule, reason) values (backup_rule.rel, backup_rule.rule, btrim(backup_rule.reason))
    on conflict on constraint backup_rules_pkey do update set reason = excluded.reason, declared_by = session_user, declared_at = clock_timestamp();
end $$;
revoke all on procedure tenancy.backup_rule(regclass, text, text) from public;

-- Columns that name an object of the tenant's: 'attachments/{}', with the column's text in place of the braces. A backup has all objects
-- that its rows name, or is begun anew.
create table tenancy.object_columns (
  rel regclass not null,
  col name not null,
  path text not null check (path like '%{}%' and path !~ '^/|//|/$'),
  primary key (rel, col, path)
);

create procedure tenancy.declare_objects(rel regclass, col name, path text)
  language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if not exists (select from pg_attribute a where a.attrelid = rel and a.attname = col and a.attnum > 0 and not a.attisdropped) then
    raise exception 'tenancy.declare_objects: % has no column %', rel, col using errcode = '42703';
  end if;
  insert into tenancy.object_columns (rel, col, path) values (declare_objects.rel, declare_objects.col, declare_objects.path) on conflict do nothing;
end $$;
revoke all on procedure tenancy.declare_objects(regclass, name, text) from public;

create table tenancy.backups (
  tenant_id uuid not null,
  id uuid not null,                                  -- that of the operation that took it
  taken_at timestamptz not null,                     -- of the snapshot
  reason text not null check (reason in ('asked', 'scheduled', 'before restore')),
  key_id uuid not null,
  rows bigint not null,
  bytes bigint not null,                             -- of the archive
  objects bigint not null,
  object_bytes bigint not null,
  hash text not null,                                -- of the archive
  attempt bigint not null,                           -- of the operation: where the archive is
  kit text not null,
  created_by text not null,
  hold text check (char_length(btrim(hold)) between 3 and 500), -- why it must not be deleted
  deleted_at timestamptz,                            -- from then on it is gone or going
  primary key (tenant_id, id)
);
create index backups_newest_idx on tenancy.backups (tenant_id, taken_at desc);
alter table tenancy.backups enable row level security; -- operators' business: no policy lets the application through
grant select, insert, update, delete on tenancy.backups to tenancy_admin;

grant usage on schema tenancy to tenancy_backup, tenancy_restore;
grant select on tenancy.backup_rules, tenancy.object_columns to tenancy_backup, tenancy_admin, tenancy_app;
grant select on tenancy.global_tables, tenancy.tenants, tenancy.quota_gauges, tenancy.tenant_configs to tenancy_backup;

-- What a restore does to a tenant's gauges: they measure what is there again. Members, sessions and the like are not restored.
create function tenancy.restore_gauges(of_tenant uuid, levels jsonb) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare g record;
begin
  insert into tenancy.quota_gauges (tenant_id, metric) select of_tenant, e.key from jsonb_each(levels) e on conflict do nothing;
  for g in
    update tenancy.quota_gauges q set used = coalesce((levels ->> q.metric)::bigint, 0)
     where q.tenant_id = of_tenant and q.metric <> 'users' and q.used <> coalesce((levels ->> q.metric)::bigint, 0) returning q.metric, q.used, q.reserved
  loop
    perform tenancy.gauge_level(of_tenant, g.metric, g.used, g.used + g.reserved);
  end loop;
end $$;
revoke all on function tenancy.restore_gauges(uuid, jsonb) from public;
grant execute on function tenancy.restore_gauges(uuid, jsonb) to tenancy_admin;

-- Lets the sequences behind a table's columns go on after the highest value in it of this tenant.
create function tenancy.restore_sequence(rel regclass, col name, highest bigint) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare seq regclass; at bigint;
begin
  seq := pg_get_serial_sequence(rel::text, col);
  if seq is null or highest is null then return; end if;
  execute format('select last_value from %s', seq) into at;
  if at < highest then perform setval(seq, highest); end if;
end $$;
revoke all on function tenancy.restore_sequence(regclass, name, bigint) from public;
grant execute on function tenancy.restore_sequence(regclass, name, bigint) to tenancy_admin;

-- Triggers don't fire in a restore: ends what was shared of rows that it removed. What was ended before stays ended, whatever comes back.
create function tenancy.restore_shares() returns bigint
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant(); s tenancy.cross_tenant_shares; n bigint := 0;
begin
  for s in select * from tenancy.cross_tenant_shares x where x.owner_tenant_id = mine and x.state in ('offered', 'active') for update loop
    if not tenancy_views.holds(s.resource_type, s.resource_id) then
      update tenancy.cross_tenant_shares x set state = 'gone', ended_at = clock_timestamp(), version = x.version + 1 where x.id = s.id returning * into s;
      perform tenancy.share_told(s, mine, 'system', null, 'ended', null);
      n := n + 1;
    end if;
  end loop;
  delete from tenancy.share_links l where l.tenant_id = mine and not tenancy_views.holds(l.resource_type, l.resource_id);
  return n;
end $$;
revoke all on function tenancy.restore_shares() from public;
grant execute on function tenancy.restore_shares() to tenancy_admin;

-- While a tenant is being restored nobody lets it serve but the restore's own end.
create function tenancy.hold_restoring() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from tenancy.operations o where o.tenant_id = new.id and o.kind = 'restore' and o.state in ('queued', 'running')) then
    raise exception 'tenancy: the tenant is being restored' using errcode = '55006';
  end if;
  return new;
end $$;
revoke all on function tenancy.hold_restoring() from public;
create trigger hold_restoring before update on tenancy.tenants for each row
  when (old.status = 'restoring' and new.status <> 'restoring') execute function tenancy.hold_restoring();
