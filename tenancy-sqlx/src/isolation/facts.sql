with given as (
  select $1::text as app, $2::text as owner, $3::text as admin
),
-- Every role whose rights the application's login has or can take, itself included.
app_roles as (
  select r.oid, r.rolname, r.rolsuper, r.rolbypassrls, r.oid = g.oid as login
    from given, pg_roles r, pg_roles g
   where g.rolname = given.app and (r.oid = g.oid or (not g.rolsuper and pg_has_role(g.oid, r.oid, 'member')))
),
-- The host's schemas.
host_schemas as (
  select n.oid, n.nspname from pg_namespace n
   where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'tenancy', 'tenancy_guard', 'tenancy_private')
),
-- Tables, partitions and children, with the tenant's column: that of the fence, or the one called tenant_id.
tables as (
  select c.oid, n.nspname as schema, c.relname as name, format('%I.%I', n.nspname, c.relname) as sql, c.relkind, c.relowner, c.relrowsecurity as rls,
         c.relforcerowsecurity as forced, c.relispartition, g.rel is not null as is_global,
         coalesce(fenced.attname, named.attname) as tenant_column, coalesce(fenced.attnum, named.attnum) as tenant_num
    from pg_class c join host_schemas n on n.oid = c.relnamespace
    left join tenancy.global_tables g on g.rel = c.oid
    left join pg_attribute named on named.attrelid = c.oid and named.attname = 'tenant_id' and not named.attisdropped
    left join lateral (
      select a.attname, a.attnum from pg_policy p
        join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid and d.refobjsubid > 0
        join pg_attribute a on a.attrelid = c.oid and a.attnum = d.refobjsubid
       where p.polrelid = c.oid and p.polname = 'tenancy_fence' limit 1) fenced on true
   where c.relkind in ('r', 'p') and c.relpersistence <> 't'
     and not exists (select from pg_depend e where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.deptype = 'e')
),
-- Those with a tenant.
tenant_tables as (select * from tables where tenant_num is not null)
