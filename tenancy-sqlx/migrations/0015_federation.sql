-- Federation: shares with tenants of other installations. What they sign and verify is the service's to check; here is what it may lead to.
-- A federated share is read by a ticket, as a link is: it shows one resource and its parts, read-only, and no tenant is in play.

-- The installations that this one knows, each with the key that was pinned for it. The platform's own; operators add and remove them.
create table tenancy.federation_peers (
  id uuid primary key,
  origin text not null check (char_length(origin) between 8 and 260),
  key bytea not null check (octet_length(key) = 32),
  next_key bytea check (octet_length(next_key) = 32),                   -- takes the key's place when it is first used
  created_at timestamptz not null default clock_timestamp(),
  rotated_at timestamptz,
  removed_at timestamptz,                                               -- it stays as a row: what was shared with it is not shared with another
  check (key <> next_key)
);
create unique index federation_peers_origin_key on tenancy.federation_peers (origin) where removed_at is null;

-- The proofs that were used, for longer than one is believed.
create table tenancy.federation_nonces (
  peer_id uuid not null references tenancy.federation_peers (id),
  nonce bytea not null check (octet_length(nonce) = 16),
  used_at timestamptz not null default clock_timestamp(),
  primary key (peer_id, nonce)
);
create index federation_nonces_used_idx on tenancy.federation_nonces (used_at);

-- What a tenant shares with one elsewhere.
create table tenancy.federated_shares (
  tenant_id uuid not null,
  id uuid not null,
  peer_id uuid not null references tenancy.federation_peers (id),
  target text not null check (char_length(target) between 1 and 64),    -- what the other installation calls the tenant
  resource_type text not null,
  resource_id uuid not null,
  resource_ref text not null generated always as (resource_type || ':' || resource_id::text) stored,
  nonce_sha256 bytea not null check (octet_length(nonce_sha256) = 32),  -- of the capability's nonce
  state text not null default 'offered' check (state in ('offered', 'active', 'declined', 'withdrawn', 'revoked', 'left', 'gone', 'expired')),
  offered_by text not null,
  created_at timestamptz not null default clock_timestamp(),
  answered_at timestamptz,
  ended_at timestamptz,
  expires_at timestamptz not null,
  version bigint not null default 1,
  primary key (tenant_id, id)
);
create unique index federated_shares_open_key on tenancy.federated_shares (tenant_id, resource_type, resource_id, peer_id, target) where state in ('offered', 'active');
create index federated_shares_peer_idx on tenancy.federated_shares (peer_id, id);

-- One request of a peer: what a transaction shows to see the resource, for a minute.
create table tenancy.federated_tickets (
  tenant_id uuid not null,
  hash bytea not null,
  share_id uuid not null,
  expires_at timestamptz not null,
  primary key (tenant_id, hash),
  foreign key (tenant_id, share_id) references tenancy.federated_shares (tenant_id, id) on delete cascade
);
create unique index federated_tickets_hash_key on tenancy.federated_tickets (hash);
create index federated_tickets_share_idx on tenancy.federated_tickets (tenant_id, share_id);

-- What is shared with a tenant from elsewhere.
create table tenancy.federated_grants (
  tenant_id uuid not null,
  id uuid not null,
  peer_id uuid not null references tenancy.federation_peers (id),
  share_id uuid not null,                                               -- the other installation's
  nonce bytea not null check (octet_length(nonce) = 16),                -- the capability's: it must be sent, so it is no hash
  owner_id uuid not null,
  owner_name text not null check (char_length(owner_name) <= 200),
  resource_ref text not null check (char_length(resource_ref) <= 100),
  state text not null check (state in ('active', 'declined', 'left', 'gone')),
  answered_by text not null,
  created_at timestamptz not null default clock_timestamp(),
  ended_at timestamptz,
  expires_at timestamptz not null,
  version bigint not null default 1,
  primary key (tenant_id, id),
  unique (tenant_id, peer_id, share_id)
);
create index federated_grants_peer_idx on tenancy.federated_grants (peer_id);

do $$
declare name text;
begin
  foreach name in array array['federation_peers', 'federation_nonces', 'federated_shares', 'federated_tickets', 'federated_grants'] loop
    execute format('alter table tenancy.%I enable row level security', name);
    execute format('grant select on tenancy.%I to tenancy_admin', name);
  end loop;
end $$;
grant insert (id, origin, key), update (next_key) on tenancy.federation_peers to tenancy_admin;
grant select (id, origin, key, next_key, removed_at) on tenancy.federation_peers to tenancy_app;
grant select (tenant_id, id, peer_id, target, resource_type, resource_id, resource_ref, state, created_at, answered_at, ended_at, expires_at, version) on tenancy.federated_shares to tenancy_app;
grant select (tenant_id, id, peer_id, owner_id, owner_name, resource_ref, state, created_at, ended_at, expires_at, version) on tenancy.federated_grants to tenancy_app;
create policy everybody on tenancy.federation_peers for select to tenancy_app using (true);
create policy own on tenancy.federated_shares for select to tenancy_app using (tenant_id = (select tenancy.current_tenant()));
create policy own on tenancy.federated_grants for select to tenancy_app using (tenant_id = (select tenancy.current_tenant()));

-- The story, in the log of the side that is here. Its admins are told of what the other side has done.
create function tenancy.federated_told(s tenancy.federated_shares, by_kind text, by_id text, what text, request uuid) returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
declare facts jsonb;
begin
  facts := jsonb_build_object('resource', s.resource_ref, 'peer', (select p.origin from tenancy.federation_peers p where p.id = s.peer_id), 'target', s.target, 'state', s.state);
  perform tenancy.share_event(s.tenant_id, by_kind, by_id, 'federation.' || what, s.id::text, 'done', facts, request);
  if by_kind in ('peer', 'system') then
    perform tenancy.outbox_post_for(s.tenant_id, 'federation.' || what, s.id || ':' || s.version, facts || jsonb_build_object('share', s.id), null);
  end if;
end $$;
revoke all on function tenancy.federated_told(tenancy.federated_shares, text, text, text, uuid) from public;

create function tenancy.federated_grant_told(g tenancy.federated_grants, by_kind text, by_id text, what text, outcome text, request uuid) returns void
  language sql set search_path = pg_catalog, pg_temp
begin atomic
  select tenancy.share_event(g.tenant_id, by_kind, by_id, 'federation.' || what, g.id::text, outcome,
    jsonb_build_object('resource', g.resource_ref, 'peer', (select p.origin from tenancy.federation_peers p where p.id = g.peer_id), 'owner', g.owner_id, 'share', g.share_id, 'state', g.state), request);
end;
revoke all on function tenancy.federated_grant_told(tenancy.federated_grants, text, text, text, text, uuid) from public;

-- Removes a peer: what is shared with it, and by it, has ended.
create function tenancy.federation_peer_remove(of_peer uuid) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare s tenancy.federated_shares; g tenancy.federated_grants;
begin
  update tenancy.federation_peers p set removed_at = clock_timestamp() where p.id = of_peer and p.removed_at is null;
  if not found then return exists (select from tenancy.federation_peers p where p.id = of_peer); end if;
  for s in update tenancy.federated_shares x set state = 'gone', ended_at = clock_timestamp(), version = x.version + 1 where x.peer_id = of_peer and x.state in ('offered', 'active') returning * loop
    perform tenancy.federated_told(s, 'system', null, 'ended', null);
  end loop;
  for g in update tenancy.federated_grants x set state = 'gone', ended_at = clock_timestamp(), version = x.version + 1 where x.peer_id = of_peer and x.state = 'active' returning * loop
    perform tenancy.federated_grant_told(g, 'system', null, 'ended', 'done', null);
  end loop;
  delete from tenancy.federation_nonces n where n.peer_id = of_peer;
  return true;
end $$;
revoke all on function tenancy.federation_peer_remove(uuid) from public;
grant execute on function tenancy.federation_peer_remove(uuid) to tenancy_admin;

-- Whether what this key has signed may be believed: it is one of the peer's. The next key, used for the first time, takes the place of the
-- one before.
create function tenancy.federation_key_used(of_peer uuid, with_key bytea) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare name text;
begin
  update tenancy.federation_peers p set key = with_key, next_key = null, rotated_at = clock_timestamp() where p.id = of_peer and p.removed_at is null and p.next_key = with_key returning p.origin into name;
  if found then
    perform tenancy.share_event(null, 'system', null, 'federation.rotated', name, 'done', jsonb_build_object('key', encode(with_key, 'hex')), null);
    return true;
  end if;
  return exists (select from tenancy.federation_peers p where p.id = of_peer and p.removed_at is null and p.key = with_key);
end $$;
revoke all on function tenancy.federation_key_used(uuid, bytea) from public;
grant execute on function tenancy.federation_key_used(uuid, bytea) to tenancy_app;

-- Uses a proof that this key has signed: false if it was used, or the key is none of the peer's.
create function tenancy.federation_proof_used(of_peer uuid, with_key bytea, of_nonce bytea) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if not tenancy.federation_key_used(of_peer, with_key) then return false; end if;
  delete from tenancy.federation_nonces n where ctid = any (array(
    select x.ctid from tenancy.federation_nonces x where x.used_at < clock_timestamp() - interval '10 minutes' limit 100 for update skip locked));
  insert into tenancy.federation_nonces (peer_id, nonce) values (of_peer, of_nonce) on conflict do nothing;
  return found;
end $$;
revoke all on function tenancy.federation_proof_used(uuid, bytea, bytea) from public;
grant execute on function tenancy.federation_proof_used(uuid, bytea, bytea) to tenancy_app;

-- Offers a resource to a tenant elsewhere. A policy that names the targets names tenants of this installation: it lets nothing out.
create function tenancy.federated_offer(new_id uuid, to_peer text, to_target text, of_type text, of_id uuid, nonce_hash bytea, until timestamptz, by_kind text, by_id text, request uuid)
  returns tenancy.federated_shares
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant(); s tenancy.federated_shares; peer uuid; last timestamptz;
begin
  if mine is null then raise exception 'tenancy: a share belongs to a tenant' using errcode = '42501'; end if;
  last := tenancy.share_allowed(mine, of_type, false, until);
  if exists (select from tenancy.sharing_policies p where p.tenant_id = mine and p.targets is not null) then
    raise exception 'tenancy: the policy names the targets' using errcode = 'TN010', detail = 'tenant';
  elsif until > clock_timestamp() + interval '365 days' then
    raise exception 'tenancy: expires_at is too late' using errcode = 'TN011', detail = 'late';
  end if;
  last := date_trunc('second', least(last, case when until is null then clock_timestamp() + interval '30 days' end)); -- what a capability says
  if not tenancy_views.holds(of_type, of_id) then raise exception 'tenancy: no such resource' using errcode = 'P0002'; end if;
  select p.id into peer from tenancy.federation_peers p where p.origin = to_peer and p.removed_at is null for share;
  if peer is null then raise exception 'tenancy: no such installation' using errcode = 'TN016'; end if;
  update tenancy.federated_shares x set state = 'expired', ended_at = x.expires_at, version = x.version + 1
   where x.tenant_id = mine and x.resource_type = of_type and x.resource_id = of_id and x.peer_id = peer and x.target = to_target and x.state in ('offered', 'active') and x.expires_at <= clock_timestamp();
  insert into tenancy.federated_shares (tenant_id, id, peer_id, target, resource_type, resource_id, nonce_sha256, offered_by, expires_at)
    values (mine, new_id, peer, to_target, of_type, of_id, nonce_hash, by_id, last) returning * into s;
  perform tenancy.federated_told(s, by_kind, by_id, 'offered', request);
  s.nonce_sha256 := null;
  return s;
end $$;
revoke all on function tenancy.federated_offer(uuid, text, text, text, uuid, bytea, timestamptz, text, text, uuid) from public;
grant execute on function tenancy.federated_offer(uuid, text, text, text, uuid, bytea, timestamptz, text, text, uuid) to tenancy_app;

-- Ends what the tenant shares. What has ended stays as it ended.
create function tenancy.federated_end(of_share uuid, by_kind text, by_id text, request uuid) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant(); s tenancy.federated_shares;
begin
  select * into s from tenancy.federated_shares x where x.tenant_id = mine and x.id = of_share for update;
  if s.id is null then return false; end if;
  if s.state in ('offered', 'active') then
    update tenancy.federated_shares x set state = case x.state when 'offered' then 'withdrawn' else 'revoked' end, ended_at = clock_timestamp(), version = x.version + 1
     where x.tenant_id = mine and x.id = of_share returning * into s;
    perform tenancy.federated_told(s, by_kind, by_id, 'ended', request);
  end if;
  return true;
end $$;
revoke all on function tenancy.federated_end(uuid, text, text, uuid) from public;
grant execute on function tenancy.federated_end(uuid, text, text, uuid) to tenancy_app;

-- Whether the share may show something now, but for its state.
create function tenancy.federated_allowed(s tenancy.federated_shares) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
begin atomic
  select s.expires_at > statement_timestamp() and exists (select from tenancy.sharing_platform x where x.enabled)
    and exists (select from tenancy.federation_peers f where f.id = s.peer_id and f.removed_at is null)
    and exists (select from tenancy.sharing_policies p join tenancy.tenants o on o.id = p.tenant_id and o.status = 'active' where p.tenant_id = s.tenant_id and p.offers and p.targets is null);
end;
revoke all on function tenancy.federated_allowed(tenancy.federated_shares) from public;

-- The other side's answer, by its proof: accept, decline or end. False: there is nothing that it could answer. `secret` is the capability's
-- nonce. What was answered so stays so.
create function tenancy.federated_answer(of_peer uuid, of_share uuid, secret bytea, act text, request uuid) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare s tenancy.federated_shares; next text; name text;
begin
  select * into s from tenancy.federated_shares x where x.peer_id = of_peer and x.id = of_share and x.nonce_sha256 = sha256(secret) for update;
  if s.id is null then return false; end if;
  next := case act when 'accept' then 'active' when 'decline' then 'declined' when 'end' then 'left' end;
  if next is null then return false; end if;
  if s.state = next then return act <> 'accept' or tenancy.federated_allowed(s); end if;
  select p.origin into name from tenancy.federation_peers p where p.id = of_peer;
  if not (s.state = 'offered' or (act = 'end' and s.state = 'active')) or (act = 'accept' and not tenancy.federated_allowed(s)) then
    perform tenancy.share_event(s.tenant_id, 'peer', name, 'federation.' || act, s.id::text, 'denied', jsonb_build_object('resource', s.resource_ref), request);
    return false;
  end if;
  update tenancy.federated_shares x set state = next, version = x.version + 1, answered_at = case act when 'end' then x.answered_at else clock_timestamp() end, ended_at = case act when 'accept' then null else clock_timestamp() end
   where x.tenant_id = s.tenant_id and x.id = s.id returning * into s;
  perform tenancy.federated_told(s, 'peer', name, case act when 'accept' then 'accepted' when 'decline' then 'declined' else 'ended' end, request);
  return true;
end $$;
revoke all on function tenancy.federated_answer(uuid, uuid, bytea, text, uuid) from public;
grant execute on function tenancy.federated_answer(uuid, uuid, bytea, text, uuid) to tenancy_app;

-- Opens a share for the peer that has proved itself: gives a ticket that shows the resource for a minute. No row: nothing, for whatever
-- reason. The owner's log has it either way.
create function tenancy.federated_open(of_peer uuid, of_share uuid, secret bytea, request uuid) returns table (ticket text, owner_tenant_id uuid, resource_type text, resource_id uuid)
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare s tenancy.federated_shares; good boolean; key bytea;
begin
  select * into s from tenancy.federated_shares x where x.peer_id = of_peer and x.id = of_share and x.nonce_sha256 = sha256(secret);
  if s.id is null then return; end if;
  good := s.state = 'active' and tenancy.federated_allowed(s);
  perform tenancy.share_event(s.tenant_id, 'peer', (select p.origin from tenancy.federation_peers p where p.id = of_peer), 'federation.open', s.id::text, case when good then 'done' else 'denied' end,
                              jsonb_build_object('resource', s.resource_ref, 'target', s.target), request);
  if not good then return; end if;
  delete from tenancy.federated_tickets k where k.tenant_id = s.tenant_id and k.share_id = s.id and k.expires_at < clock_timestamp();
  key := sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8'));
  insert into tenancy.federated_tickets (tenant_id, hash, share_id, expires_at) values (s.tenant_id, sha256(key), s.id, clock_timestamp() + interval '1 minute');
  return query select encode(key, 'hex'), s.tenant_id, s.resource_type, s.resource_id;
end $$;
revoke all on function tenancy.federated_open(uuid, uuid, bytea, uuid) from public;
grant execute on function tenancy.federated_open(uuid, uuid, bytea, uuid) to tenancy_app;

-- What the transaction's ticket opens: that of a link, or that of a federated share.
create or replace function tenancy.link_grant() returns table (owner_tenant_id uuid, resource_type text, resource_id uuid)
  language plpgsql stable security definer rows 1 set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare ticket constant bytea := sha256(decode(nullif(current_setting('tenancy.ticket', true), ''), 'hex'));
begin
  return query
    select l.tenant_id, l.resource_type, l.resource_id
      from tenancy.share_tickets k
      join tenancy.share_links l on l.tenant_id = k.tenant_id and l.id = k.link_id
      join tenancy.sharing_policies p on p.tenant_id = l.tenant_id and p.links
      join tenancy.tenants o on o.id = l.tenant_id and o.status = 'active'
     where k.hash = ticket and l.token_hash = decode(nullif(current_setting('tenancy.link', true), ''), 'hex') and k.expires_at > statement_timestamp()
       and l.revoked_at is null and l.expires_at > statement_timestamp() and (select s.links from tenancy.sharing_platform s)
    union all
    select s.tenant_id, s.resource_type, s.resource_id
      from tenancy.federated_tickets k
      join tenancy.federated_shares s on s.tenant_id = k.tenant_id and s.id = k.share_id
     where k.hash = ticket and k.expires_at > statement_timestamp() and s.state = 'active' and tenancy.federated_allowed(s);
end $$;

-- The tenant's answer to an offer from elsewhere, whose capability the service has verified. Given again, it stays.
create function tenancy.federated_take(new_id uuid, of_peer uuid, of_share uuid, secret bytea, of_owner uuid, called text, of_resource text, until timestamptz, answer text, by_kind text, by_id text, request uuid)
  returns tenancy.federated_grants
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant(); g tenancy.federated_grants;
begin
  if mine is null then raise exception 'tenancy: a share belongs to a tenant' using errcode = '42501'; end if;
  if answer = 'active' and not exists (select from tenancy.sharing_platform p, tenancy.sharing_policies q where p.enabled and q.tenant_id = mine and q.accepts) then
    raise exception 'tenancy: sharing is switched off' using errcode = 'TN010', detail = 'tenant';
  end if;
  perform from tenancy.federation_peers p where p.id = of_peer and p.removed_at is null for share;
  if not found then raise exception 'tenancy: no such installation' using errcode = 'TN016'; end if;
  insert into tenancy.federated_grants (tenant_id, id, peer_id, share_id, nonce, owner_id, owner_name, resource_ref, state, answered_by, ended_at, expires_at)
    values (mine, new_id, of_peer, of_share, secret, of_owner, called, of_resource, answer, by_id, case answer when 'active' then null else clock_timestamp() end, until)
    on conflict (tenant_id, peer_id, share_id) do nothing returning * into g;
  if g.id is null then
    select * into g from tenancy.federated_grants x where x.tenant_id = mine and x.peer_id = of_peer and x.share_id = of_share;
    if g.state <> answer then raise exception 'tenancy: the share is %', g.state using errcode = 'TN013', detail = g.state; end if;
  else
    perform tenancy.federated_grant_told(g, by_kind, by_id, case answer when 'active' then 'accepted' else 'declined' end, 'done', request);
  end if;
  g.nonce := null;
  return g;
end $$;
revoke all on function tenancy.federated_take(uuid, uuid, uuid, bytea, uuid, text, text, timestamptz, text, text, text, uuid) from public;
grant execute on function tenancy.federated_take(uuid, uuid, uuid, bytea, uuid, text, text, timestamptz, text, text, text, uuid) to tenancy_app;

-- Ends what is shared with the tenant, and says whom to tell. What has ended stays as it ended.
create function tenancy.federated_leave(of_grant uuid, by_kind text, by_id text, request uuid) returns table (origin text, share_id uuid, secret bytea)
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare mine constant uuid := tenancy.current_tenant(); g tenancy.federated_grants;
begin
  select * into g from tenancy.federated_grants x where x.tenant_id = mine and x.id = of_grant for update;
  if g.id is null then return; end if;
  if g.state = 'active' then
    update tenancy.federated_grants x set state = 'left', ended_at = clock_timestamp(), version = x.version + 1 where x.tenant_id = mine and x.id = of_grant returning * into g;
    perform tenancy.federated_grant_told(g, by_kind, by_id, 'ended', 'done', request);
  end if;
  return query select p.origin, g.share_id, g.nonce from tenancy.federation_peers p where p.id = g.peer_id;
end $$;
revoke all on function tenancy.federated_leave(uuid, text, text, uuid) from public;
grant execute on function tenancy.federated_leave(uuid, text, text, uuid) to tenancy_app;

-- What it takes to ask the owner's installation for what is shared with the tenant. No row: nothing, for whatever reason; the log has it.
create function tenancy.federated_ask(of_grant uuid, by_kind text, by_id text, request uuid) returns table (origin text, share_id uuid, secret bytea)
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare mine constant uuid := tenancy.current_tenant(); g tenancy.federated_grants; good boolean;
begin
  select * into g from tenancy.federated_grants x where x.tenant_id = mine and x.id = of_grant;
  if g.id is null then return; end if;
  good := g.state = 'active' and g.expires_at > clock_timestamp()
    and exists (select from tenancy.sharing_platform p, tenancy.sharing_policies q where p.enabled and q.tenant_id = mine and q.accepts);
  perform tenancy.federated_grant_told(g, by_kind, by_id, 'open', case when good then 'done' else 'denied' end, request);
  if good then return query select p.origin, g.share_id, g.nonce from tenancy.federation_peers p where p.id = g.peer_id and p.removed_at is null; end if;
end $$;
revoke all on function tenancy.federated_ask(uuid, text, text, uuid) from public;
grant execute on function tenancy.federated_ask(uuid, text, text, uuid) to tenancy_app;

-- Ends what is shared of a row that is gone, elsewhere too.
create or replace function tenancy.end_shares_of_row() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare of_type text; s tenancy.cross_tenant_shares; f tenancy.federated_shares;
begin
  if tg_op = 'UPDATE' and new.tenant_id = old.tenant_id and new.id = old.id then return null; end if;
  select x.type into of_type from tenancy.shared_tables x where x.rel = tg_relid;
  for s in
    update tenancy.cross_tenant_shares x set state = 'gone', ended_at = clock_timestamp(), version = x.version + 1
     where x.owner_tenant_id = old.tenant_id and x.resource_type = of_type and x.resource_id = old.id and x.state in ('offered', 'active') returning *
  loop
    perform tenancy.share_told(s, s.owner_tenant_id, 'system', null, 'ended', null);
  end loop;
  for f in
    update tenancy.federated_shares x set state = 'gone', ended_at = clock_timestamp(), version = x.version + 1
     where x.tenant_id = old.tenant_id and x.resource_type = of_type and x.resource_id = old.id and x.state in ('offered', 'active') returning *
  loop
    perform tenancy.federated_told(f, 'system', null, 'ended', null);
  end loop;
  delete from tenancy.share_links l where l.tenant_id = old.tenant_id and l.resource_type = of_type and l.resource_id = old.id;
  return null;
end $$;
