create table notes (
  tenant_id uuid not null,
  id uuid not null default gen_random_uuid(),
  body text not null,
  primary key (tenant_id, id)
);
call tenancy.protect_table('notes'); -- the only line that a table needs
