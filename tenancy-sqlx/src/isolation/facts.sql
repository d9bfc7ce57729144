with given as (
  select $1::text as app, $2::text as owner, $3::text as admin, left($2::text, -length('_owner')) as prefix
),
-- Every role whose rights the application's login has or can take, itself included.
app_roles as materialized (
  select r.oid, r.rolname, r.rolsuper, r.rolbypassrls, r.oid = g.oid as login,
         -- The role that was granted to the login itself, and leads to this one.
         (select min(m.roleid::regrole::text) from pg_auth_members m where m.member = g.oid and pg_has_role(m.roleid, r.oid, 'member')) as via
    from given, pg_roles r, pg_roles g
   where g.rolname = given.app and (r.oid = g.oid or (not g.rolsuper and pg_has_role(g.oid, r.oid, 'member')))
),
-- Roles to whom no policy applies, and those that can become one.
bypassing as materialized (
  select r.oid from pg_roles r where r.rolsuper or r.rolbypassrls
      or exists (select from pg_roles b where b.rolbypassrls and pg_has_role(r.oid, b.oid, 'usage'))
),
-- The host's schemas.
host_schemas as (
  select n.oid, n.nspname, n.nspacl, n.nspowner from pg_namespace n
   where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'tenancy', 'tenancy_guard', 'tenancy_private', 'tenancy_views')
),
extension_made as materialized (
  select classid, objid from pg_depend where deptype = 'e'
),
-- Tables, partitions and children, with the tenant's column: that of the fence, or the one called tenant_id.
tables as materialized (
  select c.oid, n.nspname as schema, c.relname as name, format('%I.%I', n.nspname, c.relname) as sql, c.relkind, c.relowner, c.relacl, c.relrowsecurity as rls,
         c.relforcerowsecurity as forced, c.relispartition, g.rel is not null as is_global,
         coalesce(fenced.attname, named.attname) as tenant_column, coalesce(fenced.attnum, named.attnum) as tenant_num,
         '(' || quote_ident(coalesce(fenced.attname, named.attname)) || ' = ( SELECT tenancy.current_tenant() AS current_tenant))' as canonical,
         -- Whether the application can do anything with it.
         exists (select from app_roles r where has_table_privilege(r.oid, c.oid, 'select, insert, update, delete, truncate')
                 or has_any_column_privilege(r.oid, c.oid, 'select, insert, update')) as reached
    from pg_class c join host_schemas n on n.oid = c.relnamespace
    left join tenancy.global_tables g on g.rel = c.oid
    left join pg_attribute named on named.attrelid = c.oid and named.attname = 'tenant_id' and not named.attisdropped
    left join lateral (
      select a.attname, a.attnum from pg_policy p
        join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid and d.refobjsubid > 0
        join pg_attribute a on a.attrelid = c.oid and a.attnum = d.refobjsubid
       where p.polrelid = c.oid and p.polname = 'tenancy_fence' limit 1) fenced on true
   where c.relkind in ('r', 'p') and c.relpersistence <> 't'
     and not exists (select from extension_made e where e.classid = 'pg_class'::regclass and e.objid = c.oid)
),
-- Those with a tenant.
tenant_tables as (select * from tables where tenant_num is not null and not is_global),
-- The policies of those, as text, and whether they speak of the application.
policies as materialized (
  select p.oid, p.polrelid, p.polname, p.polpermissive as permissive, p.polcmd as cmd, p.polroles, t.schema, t.name, t.sql, t.tenant_column, t.canonical,
         t.rls, t.reached, format('policy %I on %s', p.polname, t.sql) as what,
         p.polroles = '{0}' or exists (select from app_roles r where r.oid = any (p.polroles)) as for_app,
         pg_get_expr(p.polqual, p.polrelid) as qual, pg_get_expr(p.polwithcheck, p.polrelid) as checked
    from pg_policy p join tenant_tables t on t.oid = p.polrelid
),
-- Tables whose fence is the kit's own, so that no other policy can widen what is seen.
fenced as (
  select p.polrelid as oid from policies p
   where p.polname = 'tenancy_fence' and p.rls and not p.permissive and p.cmd = '*' and p.polroles = '{0}' and p.qual = p.canonical
     and coalesce(p.checked, p.qual) = p.canonical
),
-- Policies that let the application through, where nothing else would stop it.
deciding as (
  select p.* from policies p where p.for_app and p.reached and p.polrelid not in (select f.oid from fenced f)
),
-- What the policies of tenants' tables, and the kit's own, ask.
policy_functions as (
  select f.oid, f.proname, f.proowner, f.provolatile, f.proparallel, f.prosecdef, f.proconfig, f.prosqlbody is not null as parsed, l.lanname,
         f.oid::regprocedure::text as sql, n.nspname as schema
    from pg_proc f join pg_language l on l.oid = f.prolang join pg_namespace n on n.oid = f.pronamespace
   where f.oid in (
      select to_regprocedure('tenancy.current_tenant()')::oid
      union select d.refobjid from pg_depend d join policies p on p.oid = d.objid
       where d.classid = 'pg_policy'::regclass and d.refclassid = 'pg_proc'::regclass)
),
-- Which relations a view reads, and which view it is that reads them: itself, or one that it is made of. That one's owner counts, or,
-- if it is security_invoker, the caller.
reads (viewed, rel, reader) as (
  with recursive direct (viewed, rel) as (
    select r.ev_class, d.refobjid from pg_rewrite r
      join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class
     where r.rulename = '_RETURN'
  ), step (viewed, rel, reader) as (
    select viewed, rel, viewed from direct
    union
    select d.viewed, s.rel, s.reader from step s join direct d on d.rel = s.viewed
  )
  select viewed, rel, reader from step
),
-- Views of tenants' tables that the application may read.
views as (
  select n.nspname as schema, c.relname as name, format('%I.%I', n.nspname, c.relname) as sql, c.oid = b.oid as direct, b.oid::regclass::text as reader, b.relkind, b.relowner,
         t.sql as tbl, t.forced, t.relowner as tbl_owner, coalesce(b.reloptions && array['security_invoker=true', 'security_invoker=on', 'security_invoker=1', 'security_invoker=yes'], false) as invoker
    from pg_class c join host_schemas n on n.oid = c.relnamespace join reads r on r.viewed = c.oid join pg_class b on b.oid = r.reader join tenant_tables t on t.oid = r.rel
   -- What share_table makes is another rule's.
   where c.relkind in ('v', 'm') and b.relnamespace <> coalesce(to_regnamespace('tenancy_views')::oid, 0) and exists (select from app_roles a where has_table_privilege(a.oid, c.oid, 'select') or has_any_column_privilege(a.oid, c.oid, 'select'))
),
-- The host's functions that the application may call.
functions as (
  select p.oid, n.nspname as schema, p.proname as name, p.oid::regprocedure::text as sql, p.proowner, p.prosecdef, p.proleakproof, p.proconfig, p.prosqlbody is not null as parsed,
         p.prorettype, l.lanname, l.lanpltrusted,
         exists (select from app_roles r where has_function_privilege(r.oid, p.oid, 'execute')) as reached
    from pg_proc p join host_schemas n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang
   where not exists (select from extension_made e where e.classid = 'pg_proc'::regclass and e.objid = p.oid)
),
-- What was granted on tables, by name.
grants as (
  select t.oid, t.schema, t.name, t.sql, t.tenant_num, t.relowner, a.grantee, a.privilege_type as privilege, a.is_grantable,
         coalesce(g.rolname, 'PUBLIC') as to_name, case when a.grantee = 0 then 'PUBLIC' else quote_ident(g.rolname) end as to_sql,
         a.grantee = 0 or exists (select from app_roles r where r.oid = a.grantee) as to_app
    from tables t cross join lateral aclexplode(t.relacl) a left join pg_roles g on g.oid = a.grantee
   where a.grantee <> t.relowner
),
-- Foreign keys, with the tenant's columns of both sides.
foreign_keys as (
  select k.oid, k.conname, k.conkey, k.confkey, k.confdeltype, k.confupdtype, k.convalidated, a.schema, a.name, a.sql, a.tenant_num, a.tenant_column, a.reached,
         b.sql as to_sql, b.tenant_num as to_num, b.tenant_column as to_column,
         -- Where the tenant of this side points to.
         case when a.tenant_num = any (k.conkey) then k.confkey[array_position(k.conkey, a.tenant_num)] end as tenant_points_to,
         pg_get_constraintdef(k.oid) as def, to_jsonb(k) -> 'confdelsetcols' as set_columns
    from pg_constraint k join tables a on a.oid = k.conrelid join tables b on b.oid = k.confrelid
   where k.contype = 'f' and k.conparentid = 0 and b.tenant_num is not null
)
