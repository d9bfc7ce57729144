-- How people and programs prove who they are. Of a secret only its SHA-256 is kept, and no role of ours can read it: functions compare.
-- A row is what is good: what was used, revoked or signed out is deleted, and the audit log tells of it.
-- Not FORCEd: whose a secret is must be found before there is a tenant, by functions of the owner.

create table tenancy.invites (
  tenant_id uuid not null default tenancy.current_tenant(),
  id uuid not null,
  token_sha256 bytea not null check (octet_length(token_sha256) = 32),
  email text not null check (email = lower(email) and char_length(email) between 3 and 254 and email !~ '[^!-~]'),
  name text not null check (char_length(name) between 1 and 200),
  role text not null check (role in ('viewer', 'member', 'admin', 'owner')),
  scopes text[],                                    -- null: no restriction
  created_at timestamptz not null,
  expires_at timestamptz not null,
  primary key (tenant_id, id),
  unique (tenant_id, email)
);
create index invites_token_idx on tenancy.invites (token_sha256); -- not unique: no key without the tenant, and 256 random bits don't meet

alter table tenancy.invites enable row level security;
create policy own on tenancy.invites to tenancy_app
  using (tenant_id = (select tenancy.current_tenant())) with check (tenant_id = (select tenancy.current_tenant()));
grant select (tenant_id, id, email, name, role, scopes, created_at, expires_at), delete,
      insert (tenant_id, id, token_sha256, email, name, role, scopes, created_at, expires_at),
      update (id, token_sha256, name, role, scopes, created_at, expires_at)
  on tenancy.invites to tenancy_app, tenancy_admin;

-- The tenant of an invite that can still be accepted.
create function tenancy.invite_find(token_sha256 bytea) returns uuid
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  select i.tenant_id from tenancy.invites i where i.token_sha256 = invite_find.token_sha256 and i.expires_at > clock_timestamp();
end;
revoke all on function tenancy.invite_find(bytea) from public;
grant execute on function tenancy.invite_find(bytea) to tenancy_app;

-- Uses up an invite of the tenant that is being served. Of two that come at once, the second finds nothing.
create function tenancy.invite_take(token_sha256 bytea) returns table (id uuid, email text, name text, role text, scopes text[])
  language sql security definer rows 1 set search_path = pg_catalog, pg_temp
begin atomic
  delete from tenancy.invites i
   where i.tenant_id = tenancy.current_tenant() and i.token_sha256 = invite_take.token_sha256 and i.expires_at > clock_timestamp()
  returning i.id, i.email, i.name, i.role, i.scopes;
end;
revoke all on function tenancy.invite_take(bytea) from public;
grant execute on function tenancy.invite_take(bytea) to tenancy_app;
