-- The guard: tables are confined when they are made, and stay so, unless a migration says `set local tenancy.guard = 'off'`.
-- Run by a superuser, in one transaction; safe to run again. In a schema of its own, which tenancy_owner can't change.
create schema if not exists tenancy_guard;
revoke all on schema tenancy_guard from public;
-- Tables without a tenant that were closed, and not declared global since.
create table if not exists tenancy_guard.closed (rel oid primary key);

-- Whether this command is let through: the migration says so, and whoever logged in may; or it is protect_table at work, which replaces
-- policies by the same ones.
create or replace function tenancy_guard.lifted(context text) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
  return (coalesce(current_setting('tenancy.guard', true), '') = 'off' and pg_has_role(session_user, 'tenancy_owner', 'member'))
      or context ~ '(^|\n)PL/pgSQL function tenancy\.protect_table\(regclass,name\) line';

create or replace function tenancy_guard.on_ddl() returns event_trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  context text; o record; t record; fence oid; tenant_column name;
  hint constant text := 'In a reviewed migration: SET LOCAL tenancy.guard = ''off''.';
begin
  get diagnostics context = pg_context;
  if tenancy_guard.lifted(context) then
    delete from tenancy_guard.closed k where not exists (select from pg_class c where c.oid = k.rel and c.relrowsecurity);
    return;
  end if;
  for o in select * from pg_event_trigger_ddl_commands() where not in_extension loop
    if o.command_tag = 'ALTER POLICY' and exists (select from pg_policy p join pg_class c on c.oid = p.polrelid
        where p.oid = o.objid and c.relnamespace <> 'tenancy'::regnamespace) then
      raise exception 'tenancy guard: the policy % may not be altered', o.object_identity using errcode = '42501', hint = hint;
    end if;
    continue when o.classid <> 'pg_class'::regclass or o.object_type not in ('table', 'table column');
    select c.oid::regclass as rel, c.relrowsecurity as rls, c.relforcerowsecurity as forced, c.relowner as owner, a.attnotnull and a.atttypid = 'uuid'::regtype as sound,
           a.attnum is not null as has_tenant
      into t
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
      left join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
     where c.oid = o.objid and c.relkind in ('r', 'p') and c.relpersistence <> 't'
       and n.nspname !~ '^(pg_|information_schema$|tenancy$|tenancy_guard$|tenancy_private$)';
    continue when not found;
    select p.oid into fence from pg_policy p where p.polrelid = o.objid and p.polname = 'tenancy_fence';

    if pg_has_role('tenancy_app', t.owner, 'member') and not (select rolsuper from pg_roles where oid = t.owner) then
      raise exception 'tenancy guard: % may not belong to a role of the application', t.rel using errcode = '42501', hint = hint;
    elsif fence is not null then
      if not (t.rls and t.forced) then
        raise exception 'tenancy guard: row-level security of % may not be switched off', t.rel using errcode = '42501', hint = hint;
      elsif o.object_type = 'table column' and exists (select from pg_depend d where d.classid = 'pg_policy'::regclass and d.objid = fence
          and d.refclassid = 'pg_class'::regclass and d.refobjid = o.objid and d.refobjsubid = o.objsubid) then
        raise exception 'tenancy guard: the tenant column of % may not be renamed', t.rel using errcode = '42501', hint = hint;
      elsif exists (select from pg_inherits i where i.inhparent = o.objid
          and not exists (select from pg_policy p where p.polrelid = i.inhrelid and p.polname = 'tenancy_fence')) then
        select a.attname into tenant_column
          from pg_depend d join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
         where d.classid = 'pg_policy'::regclass and d.objid = fence and d.refclassid = 'pg_class'::regclass and d.refobjid = o.objid and d.refobjsubid > 0;
        call tenancy.protect_table(t.rel, tenant_column);
      end if;
    elsif t.has_tenant and t.sound then
      call tenancy.protect_table(t.rel);
      delete from tenancy_guard.closed where rel = o.objid;
    elsif o.command_tag <> 'ALTER TABLE' or (t.has_tenant and not t.rls) then
      -- Not FORCEd, so that the migration can still fill it as its owner.
      execute format('alter table %s enable row level security', t.rel);
      insert into tenancy_guard.closed values (o.objid) on conflict do nothing;
      raise warning 'tenancy guard: % has no "tenant_id uuid not null", so the application sees nothing of it', t.rel
        using hint = 'Add the column, or CALL tenancy.declare_global and DISABLE ROW LEVEL SECURITY.';
    elsif not t.rls and exists (select from tenancy_guard.closed k where k.rel = o.objid) then
      if not exists (select from tenancy.global_tables g where g.rel = t.rel) then
        raise exception 'tenancy guard: % has no tenant_id and is not declared global, so it stays closed', t.rel using errcode = '42501', hint = hint;
      end if;
      delete from tenancy_guard.closed where rel = o.objid;
    end if;
  end loop;
end $$;

create or replace function tenancy_guard.on_drop() returns event_trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  context text; o record;
begin
  get diagnostics context = pg_context;
  if tenancy_guard.lifted(context) then return; end if;
  for o in select * from pg_event_trigger_dropped_objects() where object_type = 'policy' and address_names[1] <> 'tenancy' loop
    -- With its table, or alone?
    if to_regclass(format('%I.%I', o.address_names[1], o.address_names[2])) is not null then
      raise exception 'tenancy guard: the policy % may not be dropped', o.object_identity
        using errcode = '42501', hint = 'In a reviewed migration: SET LOCAL tenancy.guard = ''off''.';
    end if;
  end loop;
end $$;

drop event trigger if exists tenancy_guard_ddl;
create event trigger tenancy_guard_ddl on ddl_command_end
  when tag in ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'ALTER POLICY') execute function tenancy_guard.on_ddl();
drop event trigger if exists tenancy_guard_drop;
create event trigger tenancy_guard_drop on sql_drop execute function tenancy_guard.on_drop();
