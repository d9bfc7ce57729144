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
