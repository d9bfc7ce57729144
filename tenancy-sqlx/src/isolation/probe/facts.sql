-- Every table of the host, and the kit's own two that the application may read: one JSON document each. $1: the application's role, $2: the admin role.
with app as (select oid from pg_roles where rolname = $1),
relations as (
  select c.oid, n.nspname as schema, c.relname as name, format('%I.%I', n.nspname, c.relname) as sql, c.relkind, c.relispartition,
         coalesce(fenced.attname, named.attname) as tenant
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    left join pg_attribute named on named.attrelid = c.oid and named.attname = 'tenant_id' and not named.attisdropped and c.relkind in ('r', 'p')
    left join lateral (
      select a.attname from pg_policy p
        join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid and d.refobjsubid > 0
        join pg_attribute a on a.attrelid = c.oid and a.attnum = d.refobjsubid
       where p.polrelid = c.oid and p.polname = 'tenancy_fence' and a.atttypid = 'uuid'::regtype
         -- A fence on the wrong column does not change whose the rows are.
         and named.attname is null limit 1) fenced on true
   where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relpersistence <> 't' and n.nspname !~ '^pg_'
     and n.nspname not in ('information_schema', 'tenancy', 'tenancy_guard', 'tenancy_private')
     and not exists (select from pg_depend e where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.deptype = 'e')
)
select jsonb_build_object(
  'oid', r.oid::bigint, 'schema', r.schema, 'name', r.name, 'sql', r.sql, 'kind', r.relkind, 'tenant', quote_ident(r.tenant),
  'parent', case when r.relispartition then (select i.inhparent::bigint from pg_inherits i where i.inhrelid = r.oid limit 1) end,
  'select', has_table_privilege((select oid from app), r.oid, 'select') or has_any_column_privilege((select oid from app), r.oid, 'select'),
  'truncate', has_table_privilege((select oid from app), r.oid, 'truncate'),
  'planter', coalesce((select has_table_privilege(a.oid, r.oid, 'insert, select, delete') from pg_roles a where a.rolname = $2), false),
  'columns', coalesce((select jsonb_agg(jsonb_build_object(
      'name', quote_ident(a.attname), 'type', a.atttypid::bigint, 'modifier', a.atttypmod, 'not_null', a.attnotnull or (t.typtype = 'd' and t.typnotnull),
      'generated', a.attgenerated <> '', 'default', pg_get_expr(d.adbin, d.adrelid), 'identity', a.attidentity <> '',
      'select', has_column_privilege((select oid from app), r.oid, a.attnum, 'select'),
      'update', has_column_privilege((select oid from app), r.oid, a.attnum, 'update')) order by a.attnum)
    from pg_attribute a join pg_type t on t.oid = a.atttypid left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
   where a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped), '[]'),
  'checks', coalesce((select jsonb_agg(jsonb_build_object('sql', pg_get_expr(c.conbin, c.conrelid), 'columns',
      coalesce((select jsonb_agg(quote_ident(a.attname)) from pg_attribute a where a.attrelid = c.conrelid and a.attnum = any (c.conkey)), '[]')))
    from pg_constraint c where c.conrelid = r.oid and c.contype = 'c'), '[]')
    || case when r.relispartition and pg_get_partition_constraintdef(r.oid) is not null then jsonb_build_array(jsonb_build_object(
      'sql', pg_get_partition_constraintdef(r.oid), 'columns', coalesce((select jsonb_agg(quote_ident(a.attname)) from pg_attribute a
        where a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped and pg_get_partition_constraintdef(r.oid) ~ ('\m' || a.attname || '\M')), '[]'))) else '[]' end,
  'keys', coalesce((select jsonb_agg((select coalesce(jsonb_agg(quote_ident(a.attname)), '[]') from pg_attribute a where a.attrelid = i.indrelid and a.attnum = any (i.indkey::int2[])))
    from pg_index i where i.indrelid = r.oid and (i.indisunique or i.indisexclusion)), '[]'),
  'foreign', coalesce((select jsonb_agg(jsonb_build_object('name', c.conname, 'target', c.confrelid::bigint, 'action', c.confdeltype,
      'columns', (select jsonb_agg(quote_ident(a.attname) order by k.n) from unnest(c.conkey) with ordinality k(num, n) join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.num),
      'targets', (select jsonb_agg(quote_ident(a.attname) order by k.n) from unnest(c.confkey) with ordinality k(num, n) join pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.num)))
    from pg_constraint c where c.conrelid = r.oid and c.contype = 'f'
     and not (c.conparentid <> 0 and exists (select from pg_constraint p where p.oid = c.conparentid and p.conrelid = r.oid))), '[]')
)::text from relations r order by r.schema, r.name
