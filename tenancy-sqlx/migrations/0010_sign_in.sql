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

-- Links to sign in with, by mail.
create table tenancy.sign_in_links (
  tenant_id uuid not null default tenancy.current_tenant(),
  id uuid not null,
  member_id uuid not null,
  token_sha256 bytea not null check (octet_length(token_sha256) = 32),
  created_at timestamptz not null,
  expires_at timestamptz not null,
  primary key (tenant_id, id)
);

-- What a browser's cookie stands for.
create table tenancy.sessions (
  tenant_id uuid not null default tenancy.current_tenant(),
  id uuid not null,
  member_id uuid not null,
  token_sha256 bytea not null check (octet_length(token_sha256) = 32),
  created_at timestamptz not null,
  expires_at timestamptz not null,
  primary key (tenant_id, id)
);

-- What a member's programs sign in with.
create table tenancy.api_tokens (
  tenant_id uuid not null default tenancy.current_tenant(),
  id uuid not null,
  member_id uuid not null,
  name text not null check (char_length(name) between 1 and 200),
  role text not null check (role in ('viewer', 'member', 'admin', 'owner')),
  scopes text[] not null,
  token_sha256 bytea not null check (octet_length(token_sha256) = 32),
  created_at timestamptz not null,
  expires_at timestamptz not null,
  last_used_at timestamptz,                         -- to the minute
  primary key (tenant_id, id)
);

do $$
declare name text;
begin
  foreach name in array array['sign_in_links', 'sessions', 'api_tokens'] loop
    execute format('create index %1$I on tenancy.%2$I (token_sha256)', name || '_token_idx', name);
    execute format('create index %1$I on tenancy.%2$I (tenant_id, member_id, id)', name || '_member_idx', name);
    execute format('alter table tenancy.%I enable row level security', name);
    execute format('create policy own on tenancy.%I to tenancy_app
      using (tenant_id = (select tenancy.current_tenant())) with check (tenant_id = (select tenancy.current_tenant()))', name);
    execute format('grant select (tenant_id, id, member_id, created_at, expires_at), insert, delete on tenancy.%I to tenancy_app', name);
    execute format('grant select on tenancy.%I to tenancy_admin', name);
  end loop;
end $$;
grant select (name, role, scopes, last_used_at) on tenancy.api_tokens to tenancy_app;

-- Whoever is removed and added again signs in anew.
create function tenancy.forget_member() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from tenancy.sign_in_links l where l.tenant_id = new.tenant_id and l.member_id = new.id;
  delete from tenancy.sessions s where s.tenant_id = new.tenant_id and s.member_id = new.id;
  delete from tenancy.api_tokens t where t.tenant_id = new.tenant_id and t.member_id = new.id;
  return null;
end $$;
revoke all on function tenancy.forget_member() from public;
create trigger forget_member after update of status on tenancy.members for each row when (new.status = 'removed') execute function tenancy.forget_member();

create function tenancy.sign_in_find(token_sha256 bytea) returns uuid
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  select l.tenant_id from tenancy.sign_in_links l where l.token_sha256 = sign_in_find.token_sha256 and l.expires_at > clock_timestamp();
end;
revoke all on function tenancy.sign_in_find(bytea) from public;
grant execute on function tenancy.sign_in_find(bytea) to tenancy_app;

create function tenancy.sign_in_take(token_sha256 bytea) returns uuid
  language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
  delete from tenancy.sign_in_links l
   where l.tenant_id = tenancy.current_tenant() and l.token_sha256 = sign_in_take.token_sha256 and l.expires_at > clock_timestamp()
  returning l.member_id;
end;
revoke all on function tenancy.sign_in_take(bytea) from public;
grant execute on function tenancy.sign_in_take(bytea) to tenancy_app;

-- Whose a session is: asked at each request that has a cookie.
create function tenancy.session_find(token_sha256 bytea) returns table (tenant_id uuid, id uuid, member_id uuid)
  language sql stable security definer rows 1 set search_path = pg_catalog, pg_temp
begin atomic
  select s.tenant_id, s.id, s.member_id from tenancy.sessions s
   where s.token_sha256 = session_find.token_sha256 and s.expires_at > clock_timestamp();
end;
revoke all on function tenancy.session_find(bytea) from public;
grant execute on function tenancy.session_find(bytea) to tenancy_app;

create function tenancy.api_token_find(token_sha256 bytea) returns table (tenant_id uuid, id uuid, member_id uuid, role text, scopes text[])
  language sql security definer rows 1 set search_path = pg_catalog, pg_temp
begin atomic
  -- Skips a row that another request is writing: one of them is enough, and none waits.
  update tenancy.api_tokens t set last_used_at = clock_timestamp()
    from (select d.tenant_id, d.id from tenancy.api_tokens d
           where d.token_sha256 = api_token_find.token_sha256 and (d.last_used_at is null or d.last_used_at < clock_timestamp() - interval '1 minute')
             for update skip locked) due
   where t.tenant_id = due.tenant_id and t.id = due.id and t.expires_at > clock_timestamp();
  select t.tenant_id, t.id, t.member_id, t.role, t.scopes from tenancy.api_tokens t
   where t.token_sha256 = api_token_find.token_sha256 and t.expires_at > clock_timestamp();
end;
revoke all on function tenancy.api_token_find(bytea) from public;
grant execute on function tenancy.api_token_find(bytea) to tenancy_app;
