-- The seals: each event of the log takes a place in its tenant's chain of hashes, a moment after it was committed. Writers pay nothing
-- for it. What is hashed, and how: docs/audit.md.

-- What is hashed of the actor and the detail is their digest with this salt: once the three are erased, the chain still holds, and
-- nobody can guess from it what they were.
alter table tenancy.audit_events add column salt bytea not null default uuid_send(gen_random_uuid());
-- The order of sealing. `at` alone would not do: a transaction may commit long after another that began later.
create index audit_events_order_idx on tenancy.audit_events (xid, at, id);

create table tenancy.audit_seals (
  tenant_id uuid,                                   -- null: the platform's chain
  n bigint not null check (n > 0),
  event_id uuid not null unique,                    -- no foreign key: the seal of a deleted event is what tells
  prev bytea not null check (octet_length(prev) = 32),
  hash bytea not null check (octet_length(hash) = 32),
  sealed_at timestamptz not null default clock_timestamp(),
  unique nulls not distinct (tenant_id, n)
);
alter table tenancy.audit_seals enable row level security; -- no policy: only who bypasses them sees it
alter table tenancy.audit_seals force row level security;
grant select, insert (tenant_id, n, event_id, prev, hash) on tenancy.audit_seals to tenancy_admin;

-- Everything up to this place is sealed. The row is also the lock of the one sealer.
create table tenancy.audit_sealed (
  only_row boolean primary key default true check (only_row),
  xid xid8 not null default '0',
  at timestamptz not null default '-infinity',
  id uuid not null default '00000000-0000-0000-0000-000000000000'
);
insert into tenancy.audit_sealed default values;
grant select, update (xid, at, id) on tenancy.audit_sealed to tenancy_admin;
