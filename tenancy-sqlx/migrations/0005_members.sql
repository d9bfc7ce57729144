-- The people of a tenant. Nothing about a person is global: who belongs to several tenants has a row in each.
-- A removed member stays as a row without address and name: a token of theirs that is still valid is refused by it.

create table tenancy.members (
  tenant_id uuid not null default tenancy.current_tenant(),
  id uuid not null,
  subject text check (subject ~ '^[!-~]{1,255}$'),
  email text check (email = lower(email) and char_length(email) between 3 and 254 and email !~ '[^!-~]'),
  name text not null check (char_length(name) <= 200),
  role text not null check (role in ('viewer', 'member', 'admin', 'owner')),
  scopes text[],                                    -- null: no restriction
  status text not null default 'active' check (status in ('active', 'removed')),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  version bigint not null default 1 check (version > 0),
  primary key (tenant_id, id),
  check (case status when 'active' then email is not null and name <> '' else email is null and name = '' end)
);
create unique index members_email_key on tenancy.members (tenant_id, email) where status = 'active';
create unique index members_subject_key on tenancy.members (tenant_id, subject) where subject is not null;
create index members_owners_idx on tenancy.members (tenant_id, id) where role = 'owner' and status = 'active';

-- No DELETE: what refuses a token stays. No UPDATE of id and subject.
call tenancy.protect_table('tenancy.members');
revoke insert, update, delete on tenancy.members from tenancy_app, tenancy_admin;
grant insert (tenant_id, id, subject, email, name, role, scopes), update (email, name, role, scopes, status, updated_at, version)
  on tenancy.members to tenancy_app, tenancy_admin;
