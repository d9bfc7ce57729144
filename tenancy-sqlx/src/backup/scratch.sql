with wanted as (
  select w.ord - 1 as n, c.oid, c.relkind, c.relhassubclass, c.relrowsecurity, c.relname, n.nspname, w.tenant
    from unnest($1::text[], $3::text[]) with ordinality w (sql, tenant, ord)
    join (pg_class c join pg_namespace n on n.oid = c.relnamespace) on format('%I.%I', n.nspname, c.relname) = w.sql
), policies as (
  select w.oid, p.oid as pol, p.polpermissive, p.polcmd,
         pg_get_expr(p.polqual, w.oid) as reads, pg_get_expr(coalesce(p.polwithcheck, p.polqual), w.oid) as writes
    from wanted w join pg_policy p on p.polrelid = w.oid
   where w.relrowsecurity and p.polcmd in ('*', 'r', 'a')
     and exists (select from unnest(p.polroles) r where case when r = 0 then true else pg_has_role($2::name, r, 'usage') end)
), computed as ( -- what is worked out for each row
  select w.oid, 'pg_policy'::regclass as class, p.pol as obj, concat(p.reads, p.writes) as text from wanted w join policies p on p.oid = w.oid
  union all
  select w.oid, 'pg_constraint'::regclass, k.oid, pg_get_constraintdef(k.oid) from wanted w join pg_constraint k on k.conrelid = w.oid where k.contype in ('c', 'x')
  union all
  select w.oid, 'pg_attrdef'::regclass, d.oid, '' from wanted w join pg_attribute a on a.attrelid = w.oid and a.attgenerated <> ''
    join pg_attrdef d on d.adrelid = w.oid and d.adnum = a.attnum
  union all
  select w.oid, 'pg_class'::regclass, i.indexrelid, '' from wanted w join pg_index i on i.indrelid = w.oid
), used as (
  select c.oid, c.class, f.oid as function, f.pronamespace, f.provolatile, null::oid as relation
    from computed c join pg_depend d on d.classid = c.class and d.objid = c.obj and d.refclassid = 'pg_proc'::regclass join pg_proc f on f.oid = d.refobjid
  union all
  select c.oid, c.class, null, r.relnamespace, null, r.oid
    from computed c join pg_depend d on d.classid = c.class and d.objid = c.obj and d.refclassid = 'pg_class'::regclass join pg_class r on r.oid = d.refobjid
   where c.class = 'pg_policy'::regclass and r.oid <> c.oid
)
select w.relname::text as name,
       w.relkind <> 'r' or w.relhassubclass or exists (select from pg_inherits i where i.inhrelid = w.oid)
         or exists (select from used u where u.oid = w.oid and u.class <> 'pg_policy'::regclass and u.function is not null
                       and not (has_schema_privilege(u.pronamespace, 'usage') and has_function_privilege(u.function, 'execute'))) as apart,
       -- The kit's own look at nothing of the host's.
       exists (select from used u where u.oid = w.oid and u.pronamespace <> 'tenancy'::regnamespace and (u.relation is not null or u.provolatile <> 'i'))
         or exists (select from computed c where c.oid = w.oid and c.text ~ '\.\*')
         or exists (select from pg_trigger g join pg_proc f on f.oid = g.tgfoid
                     where g.tgrelid = w.oid and not g.tgisinternal and g.tgenabled in ('A', 'R') and f.pronamespace <> 'tenancy'::regnamespace)
         or exists (select from pg_rewrite r where r.ev_class = w.oid and r.ev_enabled in ('A', 'R')) as entangled,
       (select jsonb_agg(jsonb_build_object(
                 'name', a.attname,
                 'kind', format_type(a.atttypid, a.atttypmod) || coalesce(' collate ' || quote_ident(cn.nspname) || '.' || quote_ident(co.collname), ''),
                 'rule', case when a.attgenerated = '' then 'default ' || pg_get_expr(d.adbin, w.oid) end,
                 'always', case a.attgenerated when 's' then format('generated always as (%s) stored', pg_get_expr(d.adbin, w.oid))
                                               when 'v' then format('generated always as (%s) virtual', pg_get_expr(d.adbin, w.oid)) end,
                 'required', a.attnotnull) order by a.attnum)
          from pg_attribute a join pg_type y on y.oid = a.atttypid
          left join pg_attrdef d on d.adrelid = w.oid and d.adnum = a.attnum
          left join (pg_collation co join pg_namespace cn on cn.oid = co.collnamespace) on co.oid = a.attcollation and a.attcollation <> y.typcollation
         where a.attrelid = w.oid and a.attnum > 0 and not a.attisdropped) as columns,
       coalesce((select jsonb_agg(format('constraint %I %s', k.conname, regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', '')) order by k.conname)
                   from pg_constraint k where k.conrelid = w.oid and k.contype = 'c'), '[]') as checks,
       coalesce((select jsonb_agg(jsonb_build_array(x.relname, coalesce(
                          format('alter table s%s add ', w.n) || pg_get_constraintdef(k.oid),
                          format('create %sindex on s%s %s', unique_, w.n,
                                 substr(pg_get_indexdef(x.oid), length(format('CREATE %sINDEX %I ON %I.%I ', unique_, x.relname, w.nspname, w.relname)) + 1))))
                        order by i.indisprimary desc, x.relname)
                   from pg_index i join pg_class x on x.oid = i.indexrelid cross join lateral (select case when i.indisunique then 'UNIQUE ' else '' end as unique_) u
                   left join pg_constraint k on k.conindid = x.oid and k.conrelid = w.oid and k.contype in ('p', 'u', 'x')
                  where i.indrelid = w.oid and i.indislive
                    -- Not one that takes any row.
                    and (i.indisunique or i.indisexclusion or i.indexprs is not null or i.indpred is not null
                         or x.relam not in (select m.oid from pg_am m where m.amname in ('btree', 'hash'))
                         or exists (select from pg_attribute a where a.attrelid = i.indexrelid and a.attlen < 0)
                         or exists (select from unnest(i.indclass) o where o >= 16384))), '[]') as indexes,
       (select format('(%s)%s', coalesce(string_agg(format('(%s)', p.writes), ' or ') filter (where p.polpermissive), 'false'),
                      coalesce(' and ' || string_agg(format('(%s)', p.writes), ' and ') filter (where not p.polpermissive), ''))
          from policies p where p.oid = w.oid and p.polcmd in ('*', 'a')) as writes,
       (select format('(%s)%s', coalesce(string_agg(format('(%s)', p.reads), ' or ') filter (where p.polpermissive), 'false'),
                      coalesce(' and ' || string_agg(format('(%s)', p.reads), ' and ') filter (where not p.polpermissive), ''))
          from policies p where p.oid = w.oid and p.polcmd in ('*', 'r')) as reads,
       w.relrowsecurity as secured,
       not exists (select from policies p join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.pol and d.refclassid = 'pg_class'::regclass
                     join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
                    where p.oid = w.oid and d.refobjid = w.oid and d.refobjsubid > 0 and a.attname <> w.tenant) as alike
  from wanted w order by w.n
