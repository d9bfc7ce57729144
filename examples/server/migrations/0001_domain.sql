-- The tenants' own domain: projects, their documents, and the documents' attachments (whose contents are in object storage).
-- Runs as tenancy_owner. Each table that belongs to tenants is confined by one line: CALL tenancy.protect_table(…).
--
-- There is no foreign key to tenancy.tenants: no transaction of a tenant begins without that row, and each insert would lock it.

create table projects (
  tenant_id uuid not null,
  id uuid not null,
  name text not null check (char_length(name) between 1 and 200),
  description text not null check (char_length(description) <= 4000),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  version bigint not null default 1 check (version > 0),
  primary key (tenant_id, id)
);
call tenancy.protect_table('projects');

create table documents (
  tenant_id uuid not null,
  id uuid not null,
  project_id uuid not null,
  title text not null check (char_length(title) between 1 and 200),
  content text not null check (char_length(content) <= 50000),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  version bigint not null default 1 check (version > 0),
  primary key (tenant_id, id),
  foreign key (tenant_id, project_id) references projects (tenant_id, id) on delete cascade
);
create index documents_project_idx on documents (tenant_id, project_id, id desc);
call tenancy.protect_table('documents');

create table attachments (
  tenant_id uuid not null,
  document_id uuid not null,
  name text not null check (char_length(name) between 1 and 200),
  object uuid not null, -- the object's key is attachments/<object>, below the tenant's prefix
  size bigint not null check (size >= 0),
  sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
  content_type text not null check (char_length(content_type) between 1 and 255),
  created_at timestamptz not null,
  primary key (tenant_id, document_id, name),
  foreign key (tenant_id, document_id) references documents (tenant_id, id) on delete cascade
);
call tenancy.protect_table('attachments');

-- The answers to POST requests that had an Idempotency-Key; kept for a day.
create table idempotency_keys (
  tenant_id uuid not null,
  actor text not null,
  key text not null check (char_length(key) between 1 and 255),
  fingerprint bytea not null,
  created_at timestamptz not null,
  -- Set before the transaction that made the row commits.
  status smallint,
  etag text,
  location text,
  body text,
  primary key (tenant_id, actor, key)
);
create index idempotency_keys_age_idx on idempotency_keys (tenant_id, created_at);
call tenancy.protect_table('idempotency_keys');

-- The same for operators, whom no tenant confines: only the administrative role may touch it.
create table operator_idempotency_keys (
  actor text not null,
  key text not null check (char_length(key) between 1 and 255),
  fingerprint bytea not null,
  created_at timestamptz not null,
  status smallint,
  etag text,
  location text,
  body text,
  primary key (actor, key)
);
create index operator_idempotency_keys_age_idx on operator_idempotency_keys (created_at);
revoke all on operator_idempotency_keys from public;
grant select, insert, update, delete on operator_idempotency_keys to tenancy_admin;

-- Lets a node that has no administrative credentials see whether it may serve.
grant select on _sqlx_migrations to tenancy_app;
call tenancy.declare_global('_sqlx_migrations', 'which migrations ran: the same for every tenant');
