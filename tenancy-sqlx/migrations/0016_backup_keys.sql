-- Keys of tenants' backups, each sealed under a master key that is not in the database. `docs/backup-format.md` tells what they seal.

create table tenancy.backup_keys (
  tenant_id uuid not null,
  id uuid not null,
  master_id text not null check (master_id ~ '^[0-9a-f]{16}$'),
  wrapped bytea not null check (octet_length(wrapped) = 60),         -- the nonce, the sealed key, the tag
  created_at timestamptz not null default clock_timestamp(),
  retired_at timestamptz,                                            -- null: new backups are sealed with it
  primary key (tenant_id, id)
);
create unique index backup_keys_current_idx on tenancy.backup_keys (tenant_id) where retired_at is null;
create index backup_keys_master_idx on tenancy.backup_keys (master_id, tenant_id, id);
-- The platform's own: no policy lets the application through. No DELETE: a key goes with its tenant, and its archives with the key.
alter table tenancy.backup_keys enable row level security;
grant select, insert (tenant_id, id, master_id, wrapped), update (master_id, wrapped, retired_at) on tenancy.backup_keys to tenancy_admin;
