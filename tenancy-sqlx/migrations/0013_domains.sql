-- Domains of tenants' own: claimed by any number of tenants, held by the one that has proved it. The application's role reaches the table
-- by the functions below alone: the key of the holders has no tenant in it, so nobody may try values on it.

create table tenancy.domains (
  tenant_id uuid not null,
  domain text not null check (char_length(domain) between 4 and 234 and domain ~ '^[a-z0-9-]+(\.[a-z0-9-]+)+$'),
  token text not null check (token ~ '^[0-9a-f]{32,64}$'), -- the owner of the domain publishes it: no secret
  state text not null default 'pending' check (state in ('pending', 'verified', 'lost')),
  problem text,                                     -- why the last check found no proof
  misses integer not null default 0,                -- checks in a row that found it gone
  created_at timestamptz not null default clock_timestamp(),
  verified_at timestamptz,
  checked_at timestamptz,                           -- when the last look began
  due_at timestamptz,                               -- of a held one, when the next look is due
  primary key (tenant_id, domain),
  check (state <> 'verified' or (verified_at is not null and due_at is not null))
);
create unique index domains_holder_key on tenancy.domains (domain) where state = 'verified';
create index domains_due_idx on tenancy.domains (due_at) where state = 'verified';
alter table tenancy.domains enable row level security; -- no policy: only who bypasses them, and the owner's functions
grant select, update (checked_at, due_at) on tenancy.domains to tenancy_admin;

drop function tenancy.find_tenant(uuid, text); -- resolve_tenant takes its place
-- A tenant by its exact name, with the domains that it holds.
create function tenancy.resolve_tenant(by_id uuid, by_slug text, by_domain text)
  returns table (id uuid, slug text, name text, status text, branding jsonb, flags jsonb, plan text, created_at timestamptz, updated_at timestamptz, version bigint, domains text[])
  language sql stable security definer rows 1 set search_path = pg_catalog, pg_temp
begin atomic
  select t.id, t.slug, t.name, t.status, t.branding, t.flags, t.plan, t.created_at, t.updated_at, t.version,
         array(select d.domain from tenancy.domains d where d.tenant_id = t.id and d.state = 'verified' order by 1)
    from tenancy.tenants t
   where t.status <> 'erased' and t.id = case
     when by_id is not null then by_id
     when by_slug is not null then (select s.id from tenancy.tenants s where s.slug = by_slug and s.status <> 'erased')
     else (select d.tenant_id from tenancy.domains d where d.domain = by_domain and d.state = 'verified') end;
end;
revoke all on function tenancy.resolve_tenant(uuid, text, text) from public;
grant execute on function tenancy.resolve_tenant(uuid, text, text) to tenancy_app, tenancy_admin;

-- What a tenant holds is part of its row in the catalog: a new version makes every node forget what it knows. Returns that version.
create function tenancy.domains_changed(of_tenant uuid) returns bigint
  language sql set search_path = pg_catalog, pg_temp
begin atomic
  update tenancy.tenants t set version = t.version + 1, updated_at = clock_timestamp() where t.id = of_tenant returning t.version;
end;
revoke all on function tenancy.domains_changed(uuid) from public;

create function tenancy.domain_mine() returns uuid language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if tenancy.current_tenant() is null then raise exception 'tenancy: a domain belongs to a tenant' using errcode = '42501'; end if;
  return tenancy.current_tenant();
end $$;
revoke all on function tenancy.domain_mine() from public;

-- The transaction's tenant's own claims; of one domain, if one is named.
create function tenancy.domains_own(only_domain text) returns setof tenancy.domains
  language sql stable security definer rows 20 set search_path = pg_catalog, pg_temp
begin atomic
  select d.* from tenancy.domains d where d.tenant_id = tenancy.domain_mine() and (only_domain is null or d.domain = only_domain) order by d.domain;
end;
revoke all on function tenancy.domains_own(text) from public;
grant execute on function tenancy.domains_own(text) to tenancy_app;

-- Says 'claimed', 'known' (to the same tenant) or 'full'. What others have claimed or hold makes no difference.
create function tenancy.domain_claim(of_domain text, new_token text, most integer) returns text
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.domain_mine();
begin
  perform pg_advisory_xact_lock(hashtextextended('tenancy.domains ' || mine, 0)); -- two at once must not go past the limit
  if exists (select from tenancy.domains d where d.tenant_id = mine and d.domain = of_domain) then return 'known'; end if;
  if (select count(*) from tenancy.domains d where d.tenant_id = mine) >= most then return 'full'; end if;
  insert into tenancy.domains (tenant_id, domain, token) values (mine, of_domain, new_token);
  return 'claimed';
end $$;
revoke all on function tenancy.domain_claim(text, text, integer) from public;
grant execute on function tenancy.domain_claim(text, text, integer) to tenancy_app;

-- Whether a look may begin: the last one must be `pause` ago.
create function tenancy.domain_look(of_domain text, pause interval) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update tenancy.domains d set checked_at = clock_timestamp()
   where d.tenant_id = tenancy.domain_mine() and d.domain = of_domain and (d.checked_at is null or d.checked_at <= clock_timestamp() - pause);
  return found;
end $$;
revoke all on function tenancy.domain_look(text, interval) from public;
grant execute on function tenancy.domain_look(text, interval) to tenancy_app;

-- Keeps what a look for the proof of this token has shown: 'found', 'missing' or 'unknown'. What is `missing` counts only where `allowed`
-- says how often it may be, in a row, before the domain is lost. Returns the state before and after, and the tenant's version if that is new.
create function tenancy.domain_seen_for(of_tenant uuid, of_domain text, of_token text, proof text, why text, allowed integer, again interval)
  returns table (was text, became text, version bigint)
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare d tenancy.domains%rowtype;
begin
  select * into d from tenancy.domains x where x.tenant_id = of_tenant and x.domain = of_domain and x.token = of_token for update;
  if not found then return; end if;
  was := d.state; became := d.state; d.problem := why;
  if proof = 'found' then
    became := 'verified'; d.misses := 0; d.problem := null;
  elsif proof = 'missing' and d.state = 'verified' and allowed is not null then
    d.misses := d.misses + 1;
    if d.misses >= allowed then became := 'lost'; end if;
  end if;
  begin
    update tenancy.domains x set state = became, problem = d.problem, misses = d.misses,
           verified_at = case when became = 'verified' and was <> 'verified' then clock_timestamp() else x.verified_at end,
           due_at = case when became = 'verified' then clock_timestamp() + again end
     where x.tenant_id = of_tenant and x.domain = of_domain;
  exception when unique_violation then -- whoever sees this has the proof: that somebody else had it first is theirs to know
    became := was;
    update tenancy.domains x set problem = 'another account of this platform holds the domain' where x.tenant_id = of_tenant and x.domain = of_domain;
  end;
  if (was = 'verified') <> (became = 'verified') then version := tenancy.domains_changed(of_tenant); end if;
  return next;
end $$;
revoke all on function tenancy.domain_seen_for(uuid, text, text, text, text, integer, interval) from public;
grant execute on function tenancy.domain_seen_for(uuid, text, text, text, text, integer, interval) to tenancy_admin;

create function tenancy.domain_seen(of_domain text, of_token text, proof text, why text, again interval)
  returns table (was text, became text, version bigint)
  language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
  select s.was, s.became, s.version from tenancy.domain_seen_for(tenancy.domain_mine(), of_domain, of_token, proof, why, null, again) s;
end;
revoke all on function tenancy.domain_seen(text, text, text, text, interval) from public;
grant execute on function tenancy.domain_seen(text, text, text, text, interval) to tenancy_app;

create function tenancy.domain_release(of_domain text) returns table (was text, version bigint)
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from tenancy.domains d where d.tenant_id = tenancy.domain_mine() and d.domain = of_domain returning d.state into was;
  if not found then return; end if;
  if was = 'verified' then version := tenancy.domains_changed(tenancy.domain_mine()); end if;
  return next;
end $$;
revoke all on function tenancy.domain_release(text) from public;
grant execute on function tenancy.domain_release(text) to tenancy_app;
