-- The people of the platform, and their visits to tenants. `docs/operators.md` tells what each may do.

create table tenancy.operators (
  id uuid primary key,
  name text not null check (char_length(name) between 1 and 200),
  email text not null check (email = lower(email) and char_length(email) between 3 and 254 and email !~ '[^!-~]'),
  role text not null check (role in ('viewer', 'support', 'admin')),
  token_sha256 bytea unique check (octet_length(token_sha256) = 32), -- null: no token; who is disabled has none
  token_at timestamptz not null default now(),                       -- visits that began with an older token are over
  expires_at timestamptz not null,
  last_used_at timestamptz,
  disabled_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  version bigint not null default 1 check (version > 0),
  check (disabled_at is null or token_sha256 is null)
);
create unique index operators_email_key on tenancy.operators (email) where disabled_at is null;
-- The platform's own: no policy lets the application through. No DELETE: audit logs name them by their id.
alter table tenancy.operators enable row level security;
grant select, insert (id, name, email, role, token_sha256, expires_at),
  update (name, email, role, token_sha256, token_at, expires_at, last_used_at, disabled_at, updated_at, version) on tenancy.operators to tenancy_admin;

-- An operator's visit to a tenant: which, by whom, why and until when. The tenant sees all of it but the token.
create table tenancy.impersonations (
  tenant_id uuid not null,
  id uuid not null,
  operator_id uuid,                                                  -- null: whoever has the bootstrap credential
  operator_name text not null,
  reason text not null check (char_length(reason) between 8 and 500),
  write boolean not null,
  token_sha256 bytea not null check (octet_length(token_sha256) = 32),
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz not null,
  ended_at timestamptz,
  ended_by text,
  primary key (tenant_id, id),
  check ((ended_at is null) = (ended_by is null)),
  check (expires_at > created_at and expires_at <= created_at + interval '61 minutes')
);
create index impersonations_token_idx on tenancy.impersonations (token_sha256); -- not unique: no key without the tenant
alter table tenancy.impersonations enable row level security; -- not FORCEd: the owner's functions below read all rows
create policy own on tenancy.impersonations for select to tenancy_app using (tenant_id = (select tenancy.current_tenant()));
grant select (tenant_id, id, operator_id, operator_name, reason, write, created_at, expires_at, ended_at, ended_by) on tenancy.impersonations to tenancy_app;
grant select, insert (tenant_id, id, operator_id, operator_name, reason, write, token_sha256, expires_at), update (ended_at, ended_by)
  on tenancy.impersonations to tenancy_admin;

-- Whether a tenant lets operators in; without a row it does. A tenant writes its own.
create table tenancy.impersonation_consent (
  tenant_id uuid primary key default tenancy.current_tenant(),
  allowed boolean not null,
  changed_at timestamptz not null default now()
);
alter table tenancy.impersonation_consent enable row level security;
create policy own on tenancy.impersonation_consent to tenancy_app
  using (tenant_id = (select tenancy.current_tenant())) with check (tenant_id = (select tenancy.current_tenant()));
grant select, insert (tenant_id, allowed), update (allowed, changed_at) on tenancy.impersonation_consent to tenancy_app;
grant select on tenancy.impersonation_consent to tenancy_admin;

-- The visit that a token is for, if it may go on now: asked at each request, so that whatever ends it counts at the next one. Its
-- operator must still be one, with the role that it took, and with the token that they had.
create function tenancy.find_impersonation(digest bytea)
  returns table (tenant_id uuid, id uuid, operator_id uuid, operator_name text, reason text, write boolean, created_at timestamptz, expires_at timestamptz,
    ended_at timestamptz, ended_by text)
  language sql stable security definer rows 1 set search_path = pg_catalog, pg_temp
begin atomic
  select i.tenant_id, i.id, i.operator_id, i.operator_name, i.reason, i.write, i.created_at, i.expires_at, i.ended_at, i.ended_by
    from tenancy.impersonations i
   where i.token_sha256 = digest and i.ended_at is null and i.expires_at > clock_timestamp()
     and not exists (select from tenancy.impersonation_consent c where c.tenant_id = i.tenant_id and not c.allowed)
     and (i.operator_id is null or exists (
       select from tenancy.operators o
        where o.id = i.operator_id and o.disabled_at is null and o.expires_at > clock_timestamp() and o.token_at <= i.created_at
          and (o.role = 'admin' or (o.role = 'support' and not i.write))));
end;
revoke all on function tenancy.find_impersonation(bytea) from public;
grant execute on function tenancy.find_impersonation(bytea) to tenancy_app;

-- Ends one of the current tenant's.
create function tenancy.impersonation_end(of_id uuid, by_whom text) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update tenancy.impersonations i set ended_at = clock_timestamp(), ended_by = by_whom
   where i.tenant_id = tenancy.current_tenant() and i.id = of_id and i.ended_at is null;
  return found;
end $$;
revoke all on function tenancy.impersonation_end(uuid, text) from public;
grant execute on function tenancy.impersonation_end(uuid, text) to tenancy_app;
