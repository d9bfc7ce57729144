-- When a tenant is backed up by itself, what is kept, links to archives, and operations that can be called off.

create table tenancy.backup_schedules (
  tenant_id uuid primary key,
  every_hours smallint check (every_hours between 1 and 8760),       -- null: none is taken by itself
  drill_days smallint check (drill_days between 1 and 3650),         -- null: none is held by itself
  keep_last smallint not null check (keep_last between 1 and 1000),
  keep_daily smallint not null check (keep_daily between 0 and 1000),
  keep_weekly smallint not null check (keep_weekly between 0 and 1000),
  keep_monthly smallint not null check (keep_monthly between 0 and 1000),
  set_by text not null,
  set_at timestamptz not null default clock_timestamp()
);
alter table tenancy.backup_schedules enable row level security; -- operators' business: no policy lets the application through
grant select, insert, update, delete on tenancy.backup_schedules to tenancy_admin;

-- Links to archives: whoever has one may download it, for a short time.
create table tenancy.backup_links (
  token_hash bytea primary key check (octet_length(token_hash) = 32),
  tenant_id uuid not null,
  backup_id uuid not null,
  expires_at timestamptz not null,
  created_by text not null
);
create index backup_links_tenant_idx on tenancy.backup_links (tenant_id, backup_id);
create index backup_links_expired_idx on tenancy.backup_links (expires_at);
alter table tenancy.backup_links enable row level security;
grant select, insert, delete on tenancy.backup_links to tenancy_admin;

alter table tenancy.operations
  add column bytes bigint not null default 0,                        -- read or written so far
  add column cancel_asked_at timestamptz,                            -- from then on whoever has it calls it off, where that is still possible
  drop constraint operations_state_check,
  add constraint operations_state_check check (state in ('queued', 'running', 'done', 'failed', 'cancelled'));
create index operations_kind_idx on tenancy.operations (tenant_id, kind, updated_at desc);
