-- A journal of row changes, for the tenants that keep one: with a backup it gives how the tenant was at any moment. `docs/backup.md` tells how.

-- Which tenants keep one.
create table tenancy.journaled (
  tenant_id uuid primary key,
  era uuid not null default gen_random_uuid(),       -- a journal that was switched off and on is another one
  keep interval not null check (keep between interval '1 hour' and interval '366 days'),
  since timestamptz,                                 -- whole for what was committed from then on; null: it begins with the next backup
  pruned xid8 not null default '0'                   -- the last transaction that was removed
);
-- Rows that came (1) and went (-1). An update is both: so no order matters, and what doesn't add up is noticed.
create table tenancy.journal (
  tenant_id uuid not null,
  xid xid8 not null default pg_current_xact_id(),
  rel text not null,                                 -- the table, or the root of its partitions, quoted
  form uuid not null,                                -- of the columns
  sign smallint not null check (sign in (1, -1)),
  image text not null                                -- the row's record, without generated columns and the tenant's
);
create index journal_idx on tenancy.journal (tenant_id, xid);
-- When each transaction was committed.
create table tenancy.journal_commits (
  tenant_id uuid not null,
  xid xid8 not null default pg_current_xact_id(),
  at timestamptz,                                    -- null: not yet
  primary key (tenant_id, xid)
) with (fillfactor = 60);
-- The kit's own: no policy lets the application through, and only the functions below write.
alter table tenancy.journaled enable row level security;
alter table tenancy.journal enable row level security;
alter table tenancy.journal_commits enable row level security;
grant select, insert, update, delete on tenancy.journaled to tenancy_admin;
grant select on tenancy.journal, tenancy.journal_commits to tenancy_admin;

-- Writes down the time at the very end of the transaction: just before others see what it did. Whoever makes deferred constraints immediate
-- makes it fire earlier; an update of the row tells, since what watches it fires at once then: it is put off to the end again.
create function tenancy.journal_commit() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform pg_advisory_xact_lock_shared(1953391466, 0); -- "tncj": held until others see it
  set local tenancy.journal_probe = '';
  update tenancy.journal_commits c set at = clock_timestamp() where c.tenant_id = new.tenant_id and c.xid = new.xid and c.at is null;
  if found and current_setting('tenancy.journal_probe') = 'immediate' then
    set constraints tenancy.journal_commit, tenancy.journal_probe deferred;
    update tenancy.journal_commits c set at = null where c.tenant_id = new.tenant_id and c.xid = new.xid;
  end if;
  return null;
end $$;
revoke all on function tenancy.journal_commit() from public;
create function tenancy.journal_probe() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  set local tenancy.journal_probe = 'immediate';
  return null;
end $$;
revoke all on function tenancy.journal_probe() from public;
create constraint trigger journal_commit after insert or update on tenancy.journal_commits deferrable initially deferred
  for each row when (new.at is null) execute function tenancy.journal_commit();
create constraint trigger journal_probe after update on tenancy.journal_commits deferrable initially deferred
  for each row when (new.at is not null) execute function tenancy.journal_probe();
alter table tenancy.journal_commits enable always trigger journal_commit, enable always trigger journal_probe;

-- The columns of a row's image, as a list of `r`'s, and what tells this form from others. Of a gauge only what it measures. In plpgsql, which
-- keeps its plan: each statement asks.
create function tenancy.journal_form(root regclass, tenant_column name, out cols text, out form uuid)
  language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  select coalesce(string_agg('r.' || quote_ident(a.attname), ', ' order by a.attnum), ''),
         md5(coalesce(string_agg(quote_ident(a.attname) || ' ' || a.atttypid || ' ' || a.atttypmod, ', ' order by a.attnum), ''))::uuid
    into cols, form
    from pg_attribute a where a.attrelid = root and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and a.attname <> tenant_column
     and (root <> 'tenancy.quota_gauges'::regclass or a.attname in ('metric', 'used'));
end $$;
revoke all on function tenancy.journal_form(regclass, name) from public;

-- Fires once for each statement, with all of its rows. The settings: a value's text must not depend on whose session it is.
create function tenancy.journal_rows() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
  set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex' set timezone = 'UTC' set lc_monetary = 'C' as $$
declare col constant name := tg_argv[0]; ours boolean; root regclass; sql text; form record; part record;
begin
  if not exists (select from tenancy.journaled) then return null; end if;
  -- Most tables name the tenant's column so: their statements are planned once.
  if col <> 'tenant_id' then ours := true;
  elsif tg_op = 'INSERT' then ours := exists (select from tenancy_new r join tenancy.journaled j on j.tenant_id = r.tenant_id);
  elsif tg_op = 'DELETE' then ours := exists (select from tenancy_old r join tenancy.journaled j on j.tenant_id = r.tenant_id);
  else ours := exists (select from tenancy_old r join tenancy.journaled j on j.tenant_id = r.tenant_id)
            or exists (select from tenancy_new r join tenancy.journaled j on j.tenant_id = r.tenant_id);
  end if;
  if not ours then return null; end if;

  root := coalesce(pg_partition_root(tg_relid), tg_relid);
  select format('%I.%I', n.nspname, c.relname) into sql from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = root;
  select f.* into form from tenancy.journal_form(root, col) f;
  for part in select * from (values ('tenancy_old', -1, 'INSERT'), ('tenancy_new', 1, 'DELETE')) p (name, sign, never) where p.never <> tg_op loop
    execute format('insert into tenancy.journal (tenant_id, rel, form, sign, image)
                    select r.%1$I, $1, $2, $3, row(%2$s)::text from %3$s r join tenancy.journaled j on j.tenant_id = r.%1$I', col, form.cols, part.name)
      using sql, form.form, part.sign;
    if col <> 'tenant_id' then
      execute format('insert into tenancy.journal_commits (tenant_id) select distinct r.%1$I from %2$s r join tenancy.journaled j on j.tenant_id = r.%1$I
                      on conflict on constraint journal_commits_pkey do update set at = null where journal_commits.at is not null', col, part.name);
    elsif part.sign = 1 then
      insert into tenancy.journal_commits (tenant_id) select distinct r.tenant_id from tenancy_new r join tenancy.journaled j on j.tenant_id = r.tenant_id
        on conflict on constraint journal_commits_pkey do update set at = null where journal_commits.at is not null;
    else
      insert into tenancy.journal_commits (tenant_id) select distinct r.tenant_id from tenancy_old r join tenancy.journaled j on j.tenant_id = r.tenant_id
        on conflict on constraint journal_commits_pkey do update set at = null where journal_commits.at is not null;
    end if;
  end loop;
  return null;
end $$;
revoke all on function tenancy.journal_rows() from public;

-- TRUNCATE tells nobody which rows go.
create function tenancy.journal_truncate() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from tenancy.journaled) then
    raise exception 'tenancy: % can''t be truncated while tenants keep a journal: delete its rows, or switch the journals off', tg_relid::regclass using errcode = '55000';
  end if;
  return null;
end $$;
revoke all on function tenancy.journal_truncate() from public;

create procedure tenancy.journal_triggers(rel regclass, col name)
  language plpgsql set search_path = pg_catalog, pg_temp as $$
declare part regclass; t record;
begin
  for part in select rel union select p.relid from pg_partition_tree(rel) p loop
    for t in
      select * from (values ('tenancy_journal_insert', 'insert', 'referencing new table as tenancy_new', 'journal_rows'),
                            ('tenancy_journal_update', 'update', 'referencing old table as tenancy_old new table as tenancy_new', 'journal_rows'),
                            ('tenancy_journal_delete', 'delete', 'referencing old table as tenancy_old', 'journal_rows'),
                            ('tenancy_journal_truncate', 'truncate', '', 'journal_truncate')) v (name, event, tables, fn)
       -- One that is as it must be stays: to make it anew would break what relies on it.
       where not exists (select from pg_trigger g join pg_proc f on f.oid = g.tgfoid
                          where g.tgrelid = part and g.tgname = v.name and g.tgenabled = 'A' and f.proname = v.fn and f.pronamespace = 'tenancy'::regnamespace)
    loop
      execute format('drop trigger if exists %I on %s', t.name, part);
      execute format('create trigger %I after %s on %s %s for each statement execute function tenancy.%I(%L)', t.name, t.event, part, t.tables, t.fn, col);
      -- Also of a restore, whose transaction fires no others: so the journal has no gap there.
      execute format('alter table only %s enable always trigger %I', part, t.name);
    end loop;
  end loop;
end $$;
revoke all on procedure tenancy.journal_triggers(regclass, name) from public;

-- Has the changes of a table journaled, for tenants that keep a journal: run it as the table's owner, and again when it has a new partition.
create procedure tenancy.journal_table(rel regclass)
  language plpgsql set search_path = pg_catalog, pg_temp as $$
declare kind "char"; col name;
begin
  select c.relkind into kind from pg_class c where c.oid = rel and c.relkind in ('r', 'p') and not c.relispartition;
  select a.attname into col from pg_policy p
    join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass and d.refobjid = rel and d.refobjsubid > 0
    join pg_attribute a on a.attrelid = rel and a.attnum = d.refobjsubid
   where p.polrelid = rel and p.polname = 'tenancy_fence' limit 1;
  if kind is null then
    raise exception 'tenancy.journal_table: % is not a table, or only a part of one: name the whole', rel using errcode = '42809';
  elsif col is null then
    raise exception 'tenancy.journal_table: % is not protected: call tenancy.protect_table first', rel using errcode = '42809';
  elsif kind = 'r' and exists (select from pg_inherits i where rel in (i.inhrelid, i.inhparent)) then
    raise exception 'tenancy.journal_table: % inherits, or is inherited from: only partitions are journaled', rel using errcode = '0A000';
  end if;
  call tenancy.journal_triggers(rel, col);
end $$;
revoke all on procedure tenancy.journal_table(regclass) from public;

-- All tables that backups take: the one line that a host's migration needs, after its tables were made.
create procedure tenancy.journal_tables()
  language plpgsql set search_path = pg_catalog, pg_temp as $$
declare rel regclass;
begin
  call tenancy.journal_triggers('tenancy.quota_gauges', 'tenant_id'); -- what gauges measure belongs to the rows
  for rel in
    select c.oid from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace
     where p.polname = 'tenancy_fence' and c.relkind in ('r', 'p') and not c.relispartition and n.nspname !~ '^(pg_|tenancy$|tenancy_)'
       and not exists (select from tenancy.backup_rules r where r.rel = c.oid)
     order by c.oid
  loop
    call tenancy.journal_table(rel);
  end loop;
end $$;
revoke all on procedure tenancy.journal_tables() from public;

-- The tables that are journaled, all of their parts: each one's form, and its triggers. A trigger that was away has another number.
create function tenancy.journal_marks() returns jsonb
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  with triggers as (
    select coalesce(pg_partition_root(g.tgrelid), g.tgrelid) as root, g.tgrelid, g.oid, g.xmin, convert_from(substring(g.tgargs from 1 for position('\x00'::bytea in g.tgargs) - 1), 'utf8') as col
      from pg_trigger g join pg_proc f on f.oid = g.tgfoid
     where f.pronamespace = 'tenancy'::regnamespace and f.proname in ('journal_rows', 'journal_truncate') and g.tgenabled = 'A' and not g.tgisinternal
  ), roots as (
    select t.root, min(t.col)::name as col, jsonb_agg(t.oid || ':' || t.xmin order by t.oid) as marks, count(*) as n from triggers t group by t.root
  )
  select coalesce(jsonb_object_agg(format('%I.%I', n.nspname, c.relname), jsonb_build_object('form', (tenancy.journal_form(r.root, r.col)).form, 'marks', r.marks)), '{}')
    from roots r join pg_class c on c.oid = r.root join pg_namespace n on n.oid = c.relnamespace
   where r.n = 4 * greatest(1, (select count(*) from pg_partition_tree(r.root)));
end;
revoke all on function tenancy.journal_marks() from public;
grant execute on function tenancy.journal_marks() to tenancy_admin;

-- Where in the journal a backup is: null for a tenant that keeps none, or whose journal is not whole yet.
create function tenancy.journal_point(of_tenant uuid) returns jsonb
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  select jsonb_build_object('era', j.era, 'snapshot', pg_current_snapshot()::text, 'tables', tenancy.journal_marks())
    from tenancy.journaled j where j.tenant_id = of_tenant and j.since is not null;
end;
revoke all on function tenancy.journal_point(uuid) from public;
grant execute on function tenancy.journal_point(uuid) to tenancy_backup;

-- What makes the tenant's rows of a snapshot those of a moment, later or earlier: how often each image comes more, or less.
create function tenancy.journal_net(base pg_snapshot, until timestamptz) returns table (rel text, form uuid, image text, n bigint)
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  select j.rel, j.form, j.image, sum(case when c.at <= until then j.sign else -j.sign end)
    from tenancy.journal j join tenancy.journal_commits c on c.tenant_id = j.tenant_id and c.xid = j.xid
   where j.tenant_id = tenancy.current_tenant() and (c.at <= until) <> pg_visible_in_snapshot(j.xid, base)
   group by j.rel, j.form, j.image
  having sum(case when c.at <= until then j.sign else -j.sign end) <> 0;
end;
revoke all on function tenancy.journal_net(pg_snapshot, timestamptz) from public;
grant execute on function tenancy.journal_net(pg_snapshot, timestamptz) to tenancy_restore;

-- Removes what is older than each tenant's window, and what is left of journals that were switched off: of each at most so many transactions, the
-- oldest. With the mark that nobody may rely on what went.
create function tenancy.journal_prune(most bigint) returns bigint
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare n bigint;
begin
  with recursive tenants as (
    (select c.tenant_id from tenancy.journal_commits c order by c.tenant_id limit 1)
    union all
    select (select c.tenant_id from tenancy.journal_commits c where c.tenant_id > t.tenant_id order by c.tenant_id limit 1) from tenants t where t.tenant_id is not null
  ), old as (
    select o.tenant_id, o.xid
      from tenants t left join tenancy.journaled j on j.tenant_id = t.tenant_id
      cross join lateral (select c.tenant_id, c.xid, c.at from tenancy.journal_commits c where c.tenant_id = t.tenant_id order by c.xid limit most) o
     where j.tenant_id is null or o.at < now() - j.keep
  ), marked as (
    update tenancy.journaled j set pruned = greatest(j.pruned, g.xid), since = case when j.since is not null then greatest(j.since, now() - j.keep) end
      from (select o.tenant_id, max(o.xid) as xid from old o group by o.tenant_id) g where g.tenant_id = j.tenant_id
  ), gone as (
    delete from tenancy.journal_commits c using old o where c.tenant_id = o.tenant_id and c.xid = o.xid returning c.tenant_id, c.xid
  ), rows as (
    delete from tenancy.journal j using gone g where j.tenant_id = g.tenant_id and j.xid = g.xid
  )
  select count(*) into n from gone;
  return n;
end $$;
revoke all on function tenancy.journal_prune(bigint) from public;
grant execute on function tenancy.journal_prune(bigint) to tenancy_admin;

-- Whoever is to be erased keeps no journal of it.
create function tenancy.journal_ends() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from tenancy.journaled j where j.tenant_id = new.tenant_id;
  return null;
end $$;
revoke all on function tenancy.journal_ends() from public;
create trigger journal_ends after insert on tenancy.operations for each row when (new.kind = 'erase') execute function tenancy.journal_ends();
