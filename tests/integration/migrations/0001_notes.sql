-- A host's tables, as the README teaches them: tenant_id in every key, one line each to protect them.
create table notes (
  tenant_id uuid not null,
  id uuid not null default gen_random_uuid(),
  body text not null,
  primary key (tenant_id, id)
);
call tenancy.protect_table('notes');

create table comments (
  tenant_id uuid not null,
  id uuid not null default gen_random_uuid(),
  note_id uuid not null,
  body text not null,
  primary key (tenant_id, id),
  foreign key (tenant_id, note_id) references notes (tenant_id, id) on delete cascade
);
create index comments_note_idx on comments (tenant_id, note_id);
call tenancy.protect_table('comments');

-- Books that must balance: every transaction writes a debit and a credit.
create table entries (
  tenant_id uuid not null,
  id bigint not null,
  side text not null check (side in ('debit', 'credit')),
  primary key (tenant_id, id, side)
);
call tenancy.protect_table('entries');
