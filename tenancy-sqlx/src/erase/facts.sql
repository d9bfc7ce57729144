with recursive above (rel, root) as (
  select c.oid, c.oid from pg_class c where not exists (select from pg_inherits i where i.inhrelid = c.oid)
  union
  select i.inhrelid, a.root from above a join pg_inherits i on i.inhparent = a.rel
),
tables as materialized (
  select c.oid, a.root, n.nspname, format('%I.%I', n.nspname, c.relname) as sql, c.relforcerowsecurity as forced,
         has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'delete') as granted
    from pg_class c join pg_namespace n on n.oid = c.relnamespace join above a on a.rel = c.oid
   where c.relkind in ('r', 'p') and c.relpersistence <> 't' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
     and not exists (select from pg_depend e where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.deptype = 'e')
),
tenants_columns as materialized (
  select t.oid, coalesce(fenced.attname, named.attname)::text as col, coalesce(fenced.atttypid, named.atttypid) = 'uuid'::regtype as is_uuid, fenced.attname is not null as fenced
    from tables t
    left join pg_attribute named on named.attrelid = t.oid and named.attname = 'tenant_id' and not named.attisdropped
    left join lateral (
      select a.attname, a.atttypid from pg_policy p
        join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass and d.refobjid = t.oid and d.refobjsubid > 0
        join pg_attribute a on a.attrelid = t.oid and a.attnum = d.refobjsubid
       where p.polrelid = t.oid and p.polname = 'tenancy_fence' limit 1) fenced on true
)
select t.oid::bigint as oid, t.sql, t.nspname = 'tenancy' as kit, t.granted, t.forced, c.col, coalesce(c.is_uuid, false) as is_uuid, c.fenced,
       g.rel is not null as is_global, r.rule, r.reason,
       (select min(k.sql) from tables k join tenants_columns kc on kc.oid = k.oid where k.root = t.oid and kc.col is not null and kc.col is distinct from c.col) as odd_part,
       coalesce((select jsonb_agg(jsonb_build_array(k.conname, tr.root::bigint, k.confdeltype) order by k.conname)
          from pg_constraint k join tables f on f.oid = k.conrelid join tables tr on tr.oid = k.confrelid
         where k.contype = 'f' and k.conparentid = 0 and f.root = t.oid), '[]') as refers
  from tables t join tenants_columns c on c.oid = t.oid
  left join tenancy.global_tables g on g.rel = t.oid
  left join tenancy.erase_rules r on r.rel = t.oid
 where t.root = t.oid
 order by t.sql
