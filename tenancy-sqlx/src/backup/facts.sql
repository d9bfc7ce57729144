with tables as materialized (
  select c.oid, n.nspname, format('%I.%I', n.nspname, c.relname) as sql, c.relkind, has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') as readable,
         coalesce(fenced.attnum, named.attnum) as tenant_num, coalesce(fenced.attname, named.attname)::text as tenant_column,
         coalesce(fenced.atttypid, named.atttypid) = 'uuid'::regtype as is_uuid, fenced.attnum is not null as fenced
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    left join pg_attribute named on named.attrelid = c.oid and named.attname = 'tenant_id' and not named.attisdropped
    left join lateral (
      select a.attnum, a.attname, a.atttypid from pg_policy p
        join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid and d.refobjsubid > 0
        join pg_attribute a on a.attrelid = c.oid and a.attnum = d.refobjsubid
       where p.polrelid = c.oid and p.polname = 'tenancy_fence' limit 1) fenced on true
   where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't'
     and n.nspname !~ '^(pg_|tenancy$|tenancy_)' and n.nspname <> 'information_schema'
     and not exists (select from pg_depend e where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.deptype = 'e')
)
select t.oid::bigint as oid, t.sql, t.relkind = 'r' as plain, t.readable, t.tenant_column, coalesce(t.is_uuid, false) as is_uuid, t.fenced,
       exists (select from tenancy.backup_rules r where r.rel = t.oid) as skipped,
       (select jsonb_agg(jsonb_build_object(
                 'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
                 -- What names things by numbers of this one database goes as text: its own types, arrays of them, and oids.
                 'binary', y.oid < 16384 and coalesce(e.oid, 0) < 16384 and y.typname !~ '^_?(reg|oid|xid|cid|tid)',
                 'text', y.typcategory = 'S', 'generated', a.attgenerated <> '', 'identity', a.attidentity <> '',
                 'required', a.attnotnull and not a.atthasdef and a.attidentity = '' and a.attgenerated = '',
                 'sequence', pg_get_serial_sequence(t.sql, a.attname) is not null,
                 'uuid', y.oid = 'uuid'::regtype) order by a.attnum)
          from pg_attribute a join pg_type y on y.oid = a.atttypid left join pg_type e on e.oid = y.typelem
         where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped and a.attnum <> t.tenant_num) as columns,
       (select jsonb_agg(a.attname order by k.ord) from pg_index i, unnest(i.indkey) with ordinality k (num, ord), pg_attribute a
         where i.indrelid = t.oid and i.indisprimary and a.attrelid = t.oid and a.attnum = k.num and k.num <> t.tenant_num) as key,
       coalesce((select jsonb_agg(jsonb_build_object(
                          'name', k.conname, 'to', format('%I.%I', fn.nspname, f.relname),
                          'pairs', (select jsonb_agg(jsonb_build_array(a.attname, b.attname) order by p.ord)
                                      from unnest(k.conkey, k.confkey) with ordinality p (here, there, ord)
                                      join pg_attribute a on a.attrelid = k.conrelid and a.attnum = p.here join pg_attribute b on b.attrelid = k.confrelid and b.attnum = p.there),
                          'full', k.confmatchtype = 'f') order by k.conname)
                   from pg_constraint k join pg_class f on f.oid = k.confrelid join pg_namespace fn on fn.oid = f.relnamespace
                  where k.contype = 'f' and k.conrelid = t.oid and k.conparentid = 0), '[]') as refers
  from tables t
 where t.tenant_num is not null and not exists (select from tenancy.global_tables g where g.rel = t.oid)
 order by t.sql
