-- Cross-tenant sharing: one resource of one tenant, shown to another tenant (a share) or to whoever has a token (a link).
-- The strict policies of tenants' tables stay as they are: shared rows are read through views of the schema tenancy_views, which belong
-- to tenancy_share and show nothing but what is shared at that moment with the transaction's tenant, or by the transaction's ticket.

-- Off unless the platform and the tenants switch it on.
create table tenancy.sharing_platform (
  one boolean primary key default true check (one),
  enabled boolean not null default false,             -- shares between tenants
  links boolean not null default false,
  max_lifetime interval,                              -- of shares and links; null: no bound for shares, 30 days for links
  updated_at timestamptz not null default clock_timestamp()
);
insert into tenancy.sharing_platform default values;

create table tenancy.sharing_policies (
  tenant_id uuid primary key,
  offers boolean not null default false,              -- may offer its resources
  accepts boolean not null default false,             -- may be offered others'
  links boolean not null default false,
  types text[] not null default '{}' check (cardinality(types) <= 100),  -- which kinds of resources it may share
  targets uuid[] check (cardinality(targets) <= 1000),                   -- with whom; null: any tenant that accepts
  max_lifetime interval,
  version bigint not null default 1,
  updated_at timestamptz not null default clock_timestamp()
);

-- What may be shared: the root table of each type of resource, and the tables that come along with it.
create table tenancy.shared_tables (
  rel regclass primary key,
  type text not null check (type ~ '^[a-z][a-z0-9_]{0,39}$'),
  parent regclass references tenancy.shared_tables (rel),               -- null: rel is the resource itself
  read_view regclass not null,
  link_view regclass not null,
  write_view regclass,
  digests text[] not null                                               -- of the three views: what the checker compares them with
);
create unique index shared_tables_type_key on tenancy.shared_tables (type) where parent is null;

create table tenancy.cross_tenant_shares (
  id uuid primary key,
  owner_tenant_id uuid not null,
  target_tenant_id uuid not null,
  resource_type text not null,
  resource_id uuid not null,
  resource_ref text not null generated always as (resource_type || ':' || resource_id::text) stored,
  perms text not null check (perms in ('read', 'comment', 'write')),
  only_roles text[] check (only_roles <@ array['viewer', 'member', 'admin', 'owner']),  -- of the target; null: everybody
  only_subjects text[] check (cardinality(only_subjects) between 1 and 100),
  state text not null default 'offered' check (state in ('offered', 'active', 'declined', 'withdrawn', 'revoked', 'left', 'gone', 'expired')),
  offered_by text not null,
  created_at timestamptz not null default clock_timestamp(),
  answered_at timestamptz,
  ended_at timestamptz,
  expires_at timestamptz,
  version bigint not null default 1,
  check (owner_tenant_id <> target_tenant_id)
);
create unique index cross_tenant_shares_open_key on tenancy.cross_tenant_shares (owner_tenant_id, resource_type, resource_id, target_tenant_id)
  where state in ('offered', 'active');
create index cross_tenant_shares_active_idx on tenancy.cross_tenant_shares (target_tenant_id, resource_type, owner_tenant_id, resource_id) where state = 'active';
create index cross_tenant_shares_owner_idx on tenancy.cross_tenant_shares (owner_tenant_id, id);
create index cross_tenant_shares_target_idx on tenancy.cross_tenant_shares (target_tenant_id, id);

create table tenancy.share_links (
  tenant_id uuid not null,
  id uuid not null,
  resource_type text not null,
  resource_id uuid not null,
  resource_ref text not null generated always as (resource_type || ':' || resource_id::text) stored,
  token_hash bytea not null unique check (octet_length(token_hash) = 32),
  label text not null check (char_length(label) <= 200),
  recipient text check (char_length(recipient) <= 254),                 -- who was sent it; null: whoever its maker gives it to
  expires_at timestamptz not null,
  max_uses bigint check (max_uses > 0),
  uses bigint not null default 0,
  passphrase text check (passphrase like '$argon2id$%'),
  has_passphrase boolean not null generated always as (passphrase is not null) stored,
  failures int not null default 0,
  locked_until timestamptz,
  created_by text not null,
  created_at timestamptz not null default clock_timestamp(),
  revoked_at timestamptz,
  primary key (tenant_id, id)
);
create index share_links_resource_idx on tenancy.share_links (tenant_id, resource_type, resource_id);

-- One opening of a link: what a transaction shows to see the resource, for ten minutes.
create table tenancy.share_tickets (
  tenant_id uuid not null,
  hash bytea not null,
  link_id uuid not null,
  expires_at timestamptz not null,
  primary key (tenant_id, hash),
  foreign key (tenant_id, link_id) references tenancy.share_links (tenant_id, id) on delete cascade
);
create unique index share_tickets_hash_key on tenancy.share_tickets (hash);
create index share_tickets_link_idx on tenancy.share_tickets (tenant_id, link_id);

do $$
declare name text;
begin
  foreach name in array array['sharing_platform', 'sharing_policies', 'cross_tenant_shares', 'share_links', 'share_tickets'] loop
    execute format('alter table tenancy.%I enable row level security', name);
    execute format('grant select on tenancy.%I to tenancy_admin', name);
  end loop;
end $$;
grant select on tenancy.sharing_platform, tenancy.sharing_policies, tenancy.cross_tenant_shares to tenancy_app;
grant select (tenant_id, id, resource_type, resource_id, resource_ref, label, recipient, expires_at, max_uses, uses, locked_until, has_passphrase, created_by, created_at, revoked_at) on tenancy.share_links to tenancy_app;
grant select on tenancy.shared_tables to public;
create policy everybody on tenancy.sharing_platform for select to tenancy_app using (true);
create policy own on tenancy.sharing_policies for select to tenancy_app using (tenant_id = (select tenancy.current_tenant()));
create policy own on tenancy.share_links for select to tenancy_app using (tenant_id = (select tenancy.current_tenant()));
create policy either_side on tenancy.cross_tenant_shares for select to tenancy_app
  using (owner_tenant_id = (select tenancy.current_tenant()) or target_tenant_id = (select tenancy.current_tenant()));
grant usage on schema tenancy to tenancy_share;
grant select on tenancy.sharing_platform, tenancy.sharing_policies, tenancy.cross_tenant_shares, tenancy.tenants to tenancy_share;

set local role tenancy_share;
-- The shares that show something to the transaction's tenant, as of this statement. `tenancy.share` narrows to one share,
-- `tenancy.subject` and `tenancy.role` say for whom; a share that is for some only shows nothing to a transaction that doesn't say.
create view tenancy_views.incoming with (security_barrier) as
  select s.id as share_id, s.owner_tenant_id, s.resource_type, s.resource_id, s.perms
    from tenancy.cross_tenant_shares s
    join tenancy.sharing_policies po on po.tenant_id = s.owner_tenant_id and po.offers
    join tenancy.tenants o on o.id = s.owner_tenant_id and o.status = 'active'
   where s.target_tenant_id = (select tenancy.current_tenant()) and s.state = 'active'
     -- Once for the statement, and not for each share.
     and (select pt.accepts from tenancy.sharing_policies pt where pt.tenant_id = tenancy.current_tenant())
     and (select t.status = 'active' from tenancy.tenants t where t.id = tenancy.current_tenant())
     and (s.expires_at is null or s.expires_at > statement_timestamp())
     and (select p.enabled from tenancy.sharing_platform p)
     and current_setting('transaction_isolation') = 'read committed'   -- another level would go on seeing what has ended
     and s.id = coalesce(nullif(current_setting('tenancy.share', true), '')::uuid, s.id)
     and (s.only_roles is null or current_setting('tenancy.role', true) = any (s.only_roles))
     and (s.only_subjects is null or current_setting('tenancy.subject', true) = any (s.only_subjects));
grant usage on schema tenancy_views to tenancy_app, tenancy_admin, tenancy_owner;
grant select on tenancy_views.incoming to tenancy_app, tenancy_admin;

-- Holds the row of a resource of the transaction's tenant, so that it can't go before what is made of it is committed. False: the tenant
-- has none such.
create function tenancy_views.holds(of_type text, of_id uuid) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare rel regclass; there boolean;
begin
  select s.rel into rel from tenancy.shared_tables s where s.type = of_type and s.parent is null;
  if rel is null then return false; end if;
  execute format('select true from %s where tenant_id = tenancy.current_tenant() and id = $1 for key share', rel) into there using of_id;
  return coalesce(there, false);
end $$;
revoke all on function tenancy_views.holds(text, uuid) from public;
grant execute on function tenancy_views.holds(text, uuid) to tenancy_owner;
set local role tenancy_owner;

-- What the transaction's ticket opens, with the token of its link. plpgsql: its plan is kept.
create function tenancy.link_grant() returns table (owner_tenant_id uuid, resource_type text, resource_id uuid)
  language plpgsql stable security definer rows 1 set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  return query
    select l.tenant_id, l.resource_type, l.resource_id
      from tenancy.share_tickets k
      join tenancy.share_links l on l.tenant_id = k.tenant_id and l.id = k.link_id
      join tenancy.sharing_policies p on p.tenant_id = l.tenant_id and p.links
      join tenancy.tenants o on o.id = l.tenant_id and o.status = 'active'
     where k.hash = sha256(decode(nullif(current_setting('tenancy.ticket', true), ''), 'hex')) and l.token_hash = decode(nullif(current_setting('tenancy.link', true), ''), 'hex') and k.expires_at > statement_timestamp()
       and l.revoked_at is null and l.expires_at > statement_timestamp() and (select s.links from tenancy.sharing_platform s);
end $$;
revoke all on function tenancy.link_grant() from public;
grant execute on function tenancy.link_grant() to tenancy_app, tenancy_share;

-- What a view is: its query, its owner and its options.
create function tenancy.view_digest(of_view oid) returns text
  language sql stable set search_path = pg_catalog, pg_temp
begin atomic
  select md5(concat_ws('|', pg_get_viewdef(c.oid), c.relowner::regrole, c.reloptions::text)) from pg_class c where c.oid = of_view;
end;

-- Ends what is shared of a row that is gone.
create function tenancy.end_shares_of_row() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare of_type text; s tenancy.cross_tenant_shares;
begin
  if tg_op = 'UPDATE' and new.tenant_id = old.tenant_id and new.id = old.id then return null; end if;
  select x.type into of_type from tenancy.shared_tables x where x.rel = tg_relid;
  for s in
    update tenancy.cross_tenant_shares x set state = 'gone', ended_at = clock_timestamp(), version = x.version + 1
     where x.owner_tenant_id = old.tenant_id and x.resource_type = of_type and x.resource_id = old.id and x.state in ('offered', 'active') returning *
  loop
    perform tenancy.share_told(s, s.owner_tenant_id, 'system', null, 'ended', null);
  end loop;
  delete from tenancy.share_links l where l.tenant_id = old.tenant_id and l.resource_type = of_type and l.resource_id = old.id;
  return null;
end $$;
revoke all on function tenancy.end_shares_of_row() from public;

-- Makes the rows of a table shareable, as resources of `type`, or, with a parent, as a part of the parent's resources. Run it as the
-- table's owner, after protect_table, in the migration that makes it; run it again when the table has changed.
--  * tenancy_views.<table>        what is shared with the transaction's tenant
--  * tenancy_views.<table>_link   what the transaction's ticket opens
--  * tenancy_views.<table>_write  with `updatable` or `insertable` columns: the rows that a share of at least `needs` lets the tenant change
create procedure tenancy.share_table(rel regclass, type text default null, parent regclass default null, updatable name[] default '{}', insertable name[] default '{}', needs text default 'write')
  language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  base text; key name; cols text; changes text; adds text; bad name; was name; found tenancy.shared_tables;
begin
  select case when n.nspname = 'public' then '' else n.nspname || '_' end || c.relname into base
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = rel and c.relkind in ('r', 'p');
  if base is null then
    raise exception 'tenancy.share_table: % is not a table', rel using errcode = '42809';
  elsif not exists (select from pg_policy where polrelid = rel and polname = 'tenancy_fence') then
    raise exception 'tenancy.share_table: % is not confined to its tenants: CALL tenancy.protect_table first', rel using errcode = '55000';
  elsif exists (select from pg_attribute where attrelid = rel and attname in ('share_id', 'share_perms') and not attisdropped) then
    raise exception 'tenancy.share_table: % has a column share_id or share_perms, which the views add', rel using errcode = '42701';
  elsif length(base) > 57 then
    raise exception 'tenancy.share_table: the name % is too long for its views', base using errcode = '42622';
  elsif needs not in ('comment', 'write') then
    raise exception 'tenancy.share_table: needs must be comment or write' using errcode = '22023';
  end if;
  if parent is null then
    type := coalesce(type, (select relname from pg_class where oid = rel));
    key := 'id';
    if not exists (select from pg_constraint c where c.conrelid = rel and c.contype in ('p', 'u') and c.conkey <@ array[
          (select attnum from pg_attribute where attrelid = rel and attname = 'tenant_id'), (select attnum from pg_attribute where attrelid = rel and attname = 'id' and atttypid = 'uuid'::regtype)]
          and cardinality(c.conkey) = 2) then
      raise exception 'tenancy.share_table: % needs the key (tenant_id, id), both uuid', rel using errcode = '42704';
    end if;
  else
    select s.* into found from tenancy.shared_tables s where s.rel = share_table.parent;
    if found.rel is null or found.parent is not null then
      raise exception 'tenancy.share_table: % must be the table of a resource itself: share it first', parent using errcode = '42704';
    end if;
    type := found.type;
    select a.attname into key from pg_constraint c join pg_attribute a on a.attrelid = rel and a.attnum = c.conkey[2]
     where c.conrelid = rel and c.confrelid = share_table.parent and c.contype = 'f' and cardinality(c.conkey) = 2
       and (select attname from pg_attribute where attrelid = rel and attnum = c.conkey[1]) = 'tenant_id'
       and (select attname from pg_attribute where attrelid = share_table.parent and attnum = c.confkey[2]) = 'id';
    if key is null then
      raise exception 'tenancy.share_table: % has no foreign key (tenant_id, …) to %', rel, parent using errcode = '42830';
    end if;
  end if;
  select a into bad from unnest(updatable || insertable) a
   where not exists (select from pg_attribute x where x.attrelid = rel and x.attname = a and x.attnum > 0 and not x.attisdropped and x.attgenerated = '');
  if bad is not null then
    raise exception 'tenancy.share_table: % has no column %', rel, bad using errcode = '42703';
  elsif updatable && array['tenant_id', key]::name[] or (parent is null and cardinality(insertable) > 0) then
    raise exception 'tenancy.share_table: a share can''t change whose a row is, nor add resources' using errcode = '42501';
  end if;

  select string_agg(format('t.%I', attname), ', ' order by attnum) into cols from pg_attribute where attrelid = rel and attnum > 0 and not attisdropped;
  changes := (select string_agg(quote_ident(c), ', ') from unnest(updatable) c);
  adds := case when cardinality(insertable) > 0 then (select string_agg(distinct quote_ident(c), ', ') from unnest(insertable || array['tenant_id', key]) c) end;
  execute format('grant select on %s to tenancy_share', rel);
  execute format('revoke update, insert on %s from tenancy_share', rel);
  if parent is null then execute format('grant update (id) on %s to tenancy_share', rel); end if; -- what it takes to hold a row
  if changes is not null then execute format('grant update (%s) on %s to tenancy_share', changes, rel); end if;
  if adds is not null then execute format('grant insert (%s) on %s to tenancy_share', adds, rel); end if;

  -- The views belong to the role that may see shared rows.
  was := current_user;
  set local role tenancy_share;
  execute format('drop view if exists tenancy_views.%I, tenancy_views.%I, tenancy_views.%I', base, base || '_link', base || '_write');
  execute format('create view tenancy_views.%I with (security_barrier) as select g.share_id, g.perms as share_perms, %s
      from tenancy_views.incoming g join %s t on t.tenant_id = g.owner_tenant_id and t.%I = g.resource_id where g.resource_type = %L', base, cols, rel, key, type);
  execute format('create view tenancy_views.%I with (security_barrier) as select %s
      from tenancy.link_grant() g join %s t on t.tenant_id = g.owner_tenant_id and t.%I = g.resource_id where g.resource_type = %L', base || '_link', cols, rel, key, type);
  execute format('grant select on tenancy_views.%I, tenancy_views.%I to tenancy_app', base, base || '_link');
  if coalesce(changes, adds) is not null then
    execute format('create view tenancy_views.%I with (security_barrier) as select %s from %s t where exists (
        select from tenancy_views.incoming g where g.resource_type = %L and g.perms in (%s) and g.owner_tenant_id = t.tenant_id and g.resource_id = t.%I) with cascaded check option',
      base || '_write', cols, rel, type, case needs when 'write' then '''write''' else '''comment'', ''write''' end, key);
    execute format('grant select on tenancy_views.%I to tenancy_app', base || '_write');
    if changes is not null then execute format('grant update (%s) on tenancy_views.%I to tenancy_app', changes, base || '_write'); end if;
    if adds is not null then execute format('grant insert (%s) on tenancy_views.%I to tenancy_app', adds, base || '_write'); end if;
  end if;
  execute format('set local role %I', was);

  insert into tenancy.shared_tables (rel, type, parent, read_view, link_view, write_view, digests)
    values (rel, type, parent, format('tenancy_views.%I', base)::regclass, format('tenancy_views.%I', base || '_link')::regclass, to_regclass(format('tenancy_views.%I', base || '_write')),
            (select array_agg(tenancy.view_digest(c.oid)) from pg_class c where c.relnamespace = 'tenancy_views'::regnamespace and c.relname in (base, base || '_link', base || '_write')))
  on conflict on constraint shared_tables_pkey do update
    set type = excluded.type, parent = excluded.parent, read_view = excluded.read_view, link_view = excluded.link_view, write_view = excluded.write_view, digests = excluded.digests;
  if parent is null then
    -- A row that goes, or becomes another, takes its shares and links with it: they must not show a later row with the same id.
    execute format('create or replace trigger shares_end after delete or update of tenant_id, id on %s for each row execute function tenancy.end_shares_of_row()', rel);
  end if;
end $$;
revoke all on procedure tenancy.share_table(regclass, text, regclass, name[], name[], text) from public;

-- The story of a share or link, told to both sides. Of another tenant's people only the tenant is named.
create function tenancy.share_event(of_tenant uuid, by_kind text, by_id text, action text, target text, outcome text, detail jsonb, request uuid) returns void
  language sql set search_path = pg_catalog, pg_temp
begin atomic
  insert into tenancy.audit_events (tenant_id, actor_kind, actor_id, action, target, outcome, detail, request_id)
    values (of_tenant, by_kind, by_id, action, target, outcome, detail, request);
end;
revoke all on function tenancy.share_event(uuid, text, text, text, text, text, jsonb, uuid) from public;
-- The functions below belong to the table's owner, whom its policies bind as well.
create policy by_the_kit on tenancy.audit_events for insert to tenancy_owner with check (true);

create function tenancy.share_told(s tenancy.cross_tenant_shares, by_tenant uuid, by_kind text, by_id text, what text, request uuid) returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
declare side uuid; facts jsonb;
begin
  facts := jsonb_build_object('resource', s.resource_ref, 'perms', s.perms, 'owner', s.owner_tenant_id, 'target', s.target_tenant_id, 'state', s.state);
  foreach side in array array[s.owner_tenant_id, s.target_tenant_id] loop
    perform tenancy.share_event(side, case when side = by_tenant then by_kind else 'tenant' end, case when side = by_tenant then by_id else by_tenant::text end,
                                'share.' || what, s.id::text, 'done', facts, request);
    if side is distinct from by_tenant then
      perform tenancy.outbox_post_for(side, 'share.' || what, s.id || ':' || s.version, facts || jsonb_build_object('share', s.id)
        || case what when 'offered' then jsonb_build_object('owner_name', (select t.name from tenancy.tenants t where t.id = s.owner_tenant_id)) else '{}' end, null);
    end if;
  end loop;
end $$;
revoke all on function tenancy.share_told(tenancy.cross_tenant_shares, uuid, text, text, text, uuid) from public;

-- What is erased is shared with nobody; the other side keeps the story in its audit log.
create function tenancy.erase_shares() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare s tenancy.cross_tenant_shares;
begin
  for s in
    update tenancy.cross_tenant_shares x set state = 'gone', ended_at = clock_timestamp(), version = x.version + 1
     where new.id in (x.owner_tenant_id, x.target_tenant_id) and x.state in ('offered', 'active') returning *
  loop
    perform tenancy.share_told(s, new.id, 'system', null, 'ended', null);
  end loop;
  delete from tenancy.cross_tenant_shares x where new.id in (x.owner_tenant_id, x.target_tenant_id);
  return null;
end $$;
revoke all on function tenancy.erase_shares() from public;
create trigger erase_shares after update on tenancy.tenants for each row when (new.status = 'erased' and old.status <> 'erased') execute function tenancy.erase_shares();

-- Refuses what the platform or the tenant has not switched on, and gives the last moment that something shared now may last until.
create function tenancy.share_allowed(of_tenant uuid, of_type text, link boolean, until timestamptz) returns timestamptz
  language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare platform tenancy.sharing_platform; policy tenancy.sharing_policies; last timestamptz;
begin
  select * into platform from tenancy.sharing_platform;
  select * into policy from tenancy.sharing_policies p where p.tenant_id = of_tenant;
  if not (case when link then platform.links else platform.enabled end) then
    raise exception 'tenancy: sharing is switched off' using errcode = 'TN010', detail = 'platform';
  elsif not coalesce((case when link then policy.links else policy.offers end), false) then
    raise exception 'tenancy: sharing is switched off' using errcode = 'TN010', detail = 'tenant';
  elsif not of_type = any (policy.types) or not exists (select from tenancy.shared_tables s where s.type = of_type and s.parent is null) then
    raise exception 'tenancy: this type is not shared' using errcode = 'TN010', detail = 'type';
  end if;
  last := clock_timestamp() + least(platform.max_lifetime, policy.max_lifetime, case when link and platform.max_lifetime is null then interval '30 days' end);
  if until is not null and until <= clock_timestamp() then
    raise exception 'tenancy: expires_at is over' using errcode = 'TN011', detail = 'past';
  elsif until > last then
    raise exception 'tenancy: expires_at is too late' using errcode = 'TN011', detail = 'late';
  end if;
  return coalesce(until, last);
end $$;
revoke all on function tenancy.share_allowed(uuid, text, boolean, timestamptz) from public;

create function tenancy.share_offer(new_id uuid, of_type text, of_id uuid, to_tenant uuid, with_perms text, for_roles text[], for_subjects text[], until timestamptz, by_kind text, by_id text, request uuid)
  returns tenancy.cross_tenant_shares
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant(); s tenancy.cross_tenant_shares; last timestamptz;
begin
  if mine is null then raise exception 'tenancy: a share belongs to a tenant' using errcode = '42501'; end if;
  last := tenancy.share_allowed(mine, of_type, false, until);
  if not tenancy_views.holds(of_type, of_id) then raise exception 'tenancy: no such resource' using errcode = 'P0002'; end if;
  -- Whether another tenant exists, is active, or accepts shares, is not told apart.
  if to_tenant = mine or to_tenant is null or not exists (
      select from tenancy.tenants t join tenancy.sharing_policies p on p.tenant_id = t.id where t.id = to_tenant and t.status = 'active' and p.accepts)
     or exists (select from tenancy.sharing_policies p where p.tenant_id = mine and not to_tenant = any (p.targets)) then
    raise exception 'tenancy: this tenant can''t be offered anything' using errcode = 'TN012';
  end if;
  -- What has run out makes room.
  update tenancy.cross_tenant_shares x set state = 'expired', ended_at = x.expires_at, version = x.version + 1
   where x.owner_tenant_id = mine and x.resource_type = of_type and x.resource_id = of_id and x.target_tenant_id = to_tenant and x.state in ('offered', 'active') and x.expires_at <= clock_timestamp();
  insert into tenancy.cross_tenant_shares (id, owner_tenant_id, target_tenant_id, resource_type, resource_id, perms, only_roles, only_subjects, offered_by, expires_at)
    values (new_id, mine, to_tenant, of_type, of_id, with_perms, for_roles, for_subjects, by_id, last) returning * into s;
  perform tenancy.share_told(s, mine, by_kind, by_id, 'offered', request);
  return s;
end $$;
revoke all on function tenancy.share_offer(uuid, text, uuid, uuid, text, text[], text[], timestamptz, text, text, uuid) from public;
grant execute on function tenancy.share_offer(uuid, text, uuid, uuid, text, text[], text[], timestamptz, text, text, uuid) to tenancy_app;

-- accept and decline are the target's, withdraw and revoke the owner's, leave the target's. Doing it again changes nothing.
create function tenancy.share_move(of_share uuid, act text, by_kind text, by_id text, request uuid) returns tenancy.cross_tenant_shares
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant(); s tenancy.cross_tenant_shares; owns boolean; next text;
begin
  select * into s from tenancy.cross_tenant_shares x where x.id = of_share and mine in (x.owner_tenant_id, x.target_tenant_id) for update;
  if s.id is null then raise exception 'tenancy: no such share' using errcode = 'P0002'; end if;
  owns := s.owner_tenant_id = mine;
  next := case act when 'accept' then 'active' when 'decline' then 'declined' when 'end' then case when owns then case s.state when 'offered' then 'withdrawn' else 'revoked' end else 'left' end end;
  if next is null or (act in ('accept', 'decline') and owns) then
    raise exception 'tenancy: this is for the other side to do' using errcode = 'TN013', detail = s.state;
  elsif s.state = next then
    return s;
  elsif not (case act when 'end' then s.state in ('offered', 'active') else s.state = 'offered' end) then
    if act = 'end' then return s; end if;
    raise exception 'tenancy: the share is %', s.state using errcode = 'TN013', detail = s.state;
  elsif act = 'accept' then
    if s.expires_at <= clock_timestamp() then raise exception 'tenancy: the offer has expired' using errcode = 'TN013', detail = 'expired'; end if;
    if not exists (select from tenancy.sharing_platform p, tenancy.sharing_policies q where p.enabled and q.tenant_id = mine and q.accepts) then
      raise exception 'tenancy: sharing is switched off' using errcode = 'TN010', detail = 'tenant';
    end if;
  end if;
  update tenancy.cross_tenant_shares x
     set state = next, version = x.version + 1, answered_at = case when act = 'end' then x.answered_at else clock_timestamp() end, ended_at = case when act = 'accept' then null else clock_timestamp() end
   where x.id = s.id returning * into s;
  perform tenancy.share_told(s, mine, by_kind, by_id, case act when 'accept' then 'accepted' when 'decline' then 'declined' else 'ended' end, request);
  return s;
end $$;
revoke all on function tenancy.share_move(uuid, text, text, text, uuid) from public;
grant execute on function tenancy.share_move(uuid, text, text, text, uuid) to tenancy_app;

-- What a share grants to this tenant now, told to both sides' logs; no row: nothing, for whatever reason.
create function tenancy.share_open(of_share uuid, by_kind text, by_id text, by_role text, request uuid) returns table (owner_tenant_id uuid, resource_type text, resource_id uuid, perms text)
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare mine constant uuid := tenancy.current_tenant(); s tenancy.cross_tenant_shares; good boolean;
begin
  select * into s from tenancy.cross_tenant_shares x where x.id = of_share and x.target_tenant_id = mine;
  if s.id is null then return; end if;
  good := s.state = 'active' and (s.expires_at is null or s.expires_at > clock_timestamp())
    and (s.only_roles is null or by_role = any (s.only_roles)) and (s.only_subjects is null or by_id = any (s.only_subjects))
    and exists (select from tenancy.sharing_platform p where p.enabled)
    and exists (select from tenancy.sharing_policies p join tenancy.tenants t on t.id = p.tenant_id where p.tenant_id = s.owner_tenant_id and p.offers and t.status = 'active')
    and exists (select from tenancy.sharing_policies p where p.tenant_id = mine and p.accepts);
  perform tenancy.share_event(mine, by_kind, by_id, 'share.open', s.id::text, case when good then 'done' else 'denied' end, jsonb_build_object('resource', s.resource_ref), request);
  perform tenancy.share_event(s.owner_tenant_id, 'tenant', mine::text, 'share.open', s.id::text, case when good then 'done' else 'denied' end, jsonb_build_object('resource', s.resource_ref), request);
  if good then return query select s.owner_tenant_id, s.resource_type, s.resource_id, s.perms; end if;
end $$;
revoke all on function tenancy.share_open(uuid, text, text, text, uuid) from public;
grant execute on function tenancy.share_open(uuid, text, text, text, uuid) to tenancy_app;

-- What the log says of a link: who was sent it, too.
create function tenancy.link_facts(l tenancy.share_links, more jsonb default '{}') returns jsonb
  language sql immutable set search_path = pg_catalog, pg_temp
begin atomic
  select jsonb_build_object('resource', l.resource_ref) || case when l.recipient is null then '{}' else jsonb_build_object('recipient', l.recipient) end || more;
end;
revoke all on function tenancy.link_facts(tenancy.share_links, jsonb) from public;

create function tenancy.link_create(new_id uuid, of_type text, of_id uuid, hash bytea, its_label text, to_whom text, until timestamptz, most bigint, phrase text, by_kind text, by_id text, request uuid)
  returns tenancy.share_links
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant(); l tenancy.share_links; last timestamptz;
begin
  if mine is null then raise exception 'tenancy: a link belongs to a tenant' using errcode = '42501'; end if;
  last := tenancy.share_allowed(mine, of_type, true, until);
  if not tenancy_views.holds(of_type, of_id) then raise exception 'tenancy: no such resource' using errcode = 'P0002'; end if;
  insert into tenancy.share_links (tenant_id, id, resource_type, resource_id, token_hash, label, recipient, expires_at, max_uses, passphrase, created_by)
    values (mine, new_id, of_type, of_id, hash, its_label, to_whom, last, most, phrase, by_id) returning * into l;
  perform tenancy.share_event(mine, by_kind, by_id, 'link.create', l.id::text, 'done', tenancy.link_facts(l, jsonb_build_object('expires_at', l.expires_at, 'max_uses', l.max_uses, 'passphrase', phrase is not null)), request);
  l.token_hash := null; l.passphrase := null;
  return l;
end $$;
revoke all on function tenancy.link_create(uuid, text, uuid, bytea, text, text, timestamptz, bigint, text, text, text, uuid) from public;
grant execute on function tenancy.link_create(uuid, text, uuid, bytea, text, text, timestamptz, bigint, text, text, text, uuid) to tenancy_app;

create function tenancy.link_revoke(of_link uuid, by_kind text, by_id text, request uuid) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant(); l tenancy.share_links;
begin
  select * into l from tenancy.share_links x where x.tenant_id = mine and x.id = of_link for update;
  if l.id is null then return false; end if;
  if l.revoked_at is null then
    update tenancy.share_links x set revoked_at = clock_timestamp() where x.tenant_id = mine and x.id = of_link;
    perform tenancy.share_event(mine, by_kind, by_id, 'link.revoke', l.id::text, 'done', tenancy.link_facts(l), request);
  end if;
  return true;
end $$;
revoke all on function tenancy.link_revoke(uuid, text, text, uuid) from public;
grant execute on function tenancy.link_revoke(uuid, text, text, uuid) to tenancy_app;

-- The passphrase's hash of a link that may be opened now; no row: it can't be, for whatever reason. Opens nothing.
create function tenancy.link_find(hash bytea) returns table (passphrase text)
  language sql stable security definer rows 1 set search_path = pg_catalog, pg_temp
begin atomic
  select l.passphrase from tenancy.share_links l join tenancy.sharing_policies p on p.tenant_id = l.tenant_id and p.links join tenancy.tenants o on o.id = l.tenant_id and o.status = 'active'
   where l.token_hash = hash and l.revoked_at is null and l.expires_at > clock_timestamp() and (l.max_uses is null or l.uses < l.max_uses)
     and (l.locked_until is null or l.locked_until < clock_timestamp()) and (select s.links from tenancy.sharing_platform s);
end;
revoke all on function tenancy.link_find(bytea) from public;
grant execute on function tenancy.link_find(bytea) to tenancy_app;

-- Opens a link once: counts the use, and gives a ticket that shows the resource for ten minutes. With `wrong` a passphrase was tried in
-- vain: ten of those lock the link for a quarter of an hour.
create function tenancy.link_open(hash bytea, wrong boolean, client text, request uuid) returns table (ticket text, owner_tenant_id uuid, link_id uuid, resource_type text, resource_id uuid)
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare l tenancy.share_links; key bytea;
begin
  if not exists (select from tenancy.link_find(hash)) then return; end if;
  if wrong then
    update tenancy.share_links x set failures = case when x.failures >= 9 then 0 else x.failures + 1 end, locked_until = case when x.failures >= 9 then clock_timestamp() + interval '15 minutes' end
     where x.token_hash = hash returning * into l;
    perform tenancy.share_event(l.tenant_id, 'link', l.id::text, 'link.open', l.id::text, 'denied', tenancy.link_facts(l, jsonb_build_object('client', client)), request);
    return;
  end if;
  update tenancy.share_links x set uses = x.uses + 1, failures = 0 where x.token_hash = hash and (x.max_uses is null or x.uses < x.max_uses)
     and x.revoked_at is null and (x.locked_until is null or x.locked_until < clock_timestamp()) returning * into l;
  if l.id is null then return; end if;
  delete from tenancy.share_tickets k where k.tenant_id = l.tenant_id and k.link_id = l.id and k.expires_at < clock_timestamp(); -- they make way
  key := sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8'));
  insert into tenancy.share_tickets (tenant_id, hash, link_id, expires_at) values (l.tenant_id, sha256(key), l.id, clock_timestamp() + interval '10 minutes');
  perform tenancy.share_event(l.tenant_id, 'link', l.id::text, 'link.open', l.id::text, 'done', tenancy.link_facts(l, jsonb_build_object('client', client)), request);
  return query select encode(key, 'hex'), l.tenant_id, l.id, l.resource_type, l.resource_id;
end $$;
revoke all on function tenancy.link_open(bytea, boolean, text, uuid) from public;
grant execute on function tenancy.link_open(bytea, boolean, text, uuid) to tenancy_app;

create function tenancy.sharing_set(may_offer boolean, may_accept boolean, may_link boolean, of_types text[], to_targets uuid[], lasts interval, expected bigint, by_kind text, by_id text, request uuid)
  returns tenancy.sharing_policies
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant(); p tenancy.sharing_policies; bad text;
begin
  if mine is null then raise exception 'tenancy: a policy belongs to a tenant' using errcode = '42501'; end if;
  select t into bad from unnest(of_types) t where not exists (select from tenancy.shared_tables s where s.type = t and s.parent is null);
  if bad is not null then raise exception 'tenancy: there is no type %', bad using errcode = 'TN014', detail = bad; end if;
  insert into tenancy.sharing_policies (tenant_id) values (mine) on conflict do nothing;
  update tenancy.sharing_policies x
     set offers = may_offer, accepts = may_accept, links = may_link, types = of_types, targets = to_targets, max_lifetime = lasts, version = x.version + 1, updated_at = clock_timestamp()
   where x.tenant_id = mine and (expected is null or x.version = expected) returning * into p;
  if p.tenant_id is null then raise exception 'tenancy: the policy has another version' using errcode = 'TN015'; end if;
  perform tenancy.share_event(mine, by_kind, by_id, 'sharing.policy', mine::text, 'done', to_jsonb(p) - 'tenant_id', request);
  return p;
end $$;
revoke all on function tenancy.sharing_set(boolean, boolean, boolean, text[], uuid[], interval, bigint, text, text, uuid) from public;
grant execute on function tenancy.sharing_set(boolean, boolean, boolean, text[], uuid[], interval, bigint, text, text, uuid) to tenancy_app;
grant update (enabled, links, max_lifetime, updated_at) on tenancy.sharing_platform to tenancy_admin;
