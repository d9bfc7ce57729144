//! Keys, foreign keys and indexes, which don't ask the policies.

use super::{Rule, rule};
use crate::isolation::Severity::{Critical, High, Info, Warning};

pub(super) const RULES: &[Rule] = &[
    rule(
        "primary-key-missing",
        Warning,
        "a table with a tenant has no primary key",
        "select t.schema, t.name as object,
            format('%s has no primary key: no foreign key can hold a row to its tenant, and no row can be restored one by one', t.sql) as explanation,
            format('ALTER TABLE %s ADD PRIMARY KEY (%I, …);', t.sql, t.tenant_column) as mend,
            format('SELECT conname FROM pg_constraint WHERE conrelid = %L::regclass AND contype = ''p'';', t.sql) as demonstrate
       from tenant_tables t where t.reached and not exists (select from pg_index i where i.indrelid = t.oid and i.indisprimary)",
    ),
    rule(
        "primary-key-without-tenant",
        High,
        "a primary key does not contain the tenant",
        "select t.schema, t.name as object,
            format('the primary key of %s is without %I: an INSERT tells whether another tenant has that key', t.sql, t.tenant_column) as explanation,
            format('ALTER TABLE %s DROP CONSTRAINT %I, ADD PRIMARY KEY (%I, %s);', t.sql, c.conname, t.tenant_column,
                (select string_agg(quote_ident(a.attname), ', ' order by k.n) from unnest(c.conkey) with ordinality k (num, n) join pg_attribute a on a.attrelid = t.oid and a.attnum = k.num)) as mend,
            format('INSERT INTO %s … -- with the key of another tenant''s row: ERROR 23505', t.sql) as demonstrate
       from tenant_tables t join pg_constraint c on c.conrelid = t.oid and c.contype = 'p' where t.reached and not t.tenant_num = any (c.conkey)",
    ),
    rule(
        "unique-without-tenant",
        High,
        "a unique key does not contain the tenant",
        "select t.schema, t.name as object,
            format('the unique index %I of %s is without %I: an INSERT tells whether another tenant has that value', i.indexrelid::regclass::text, t.sql, t.tenant_column) as explanation,
            format('CREATE UNIQUE INDEX ON %s (%I, …); -- then drop the other one: %s', t.sql, t.tenant_column, pg_get_indexdef(i.indexrelid)) as mend,
            format('INSERT INTO %s … -- with a value of another tenant''s row: ERROR 23505', t.sql) as demonstrate
       from tenant_tables t join pg_index i on i.indrelid = t.oid
      where t.reached and i.indisunique and not i.indisprimary and not t.tenant_num = any ((i.indkey::int2[])[0:i.indnkeyatts - 1])",
    ),
    rule(
        "exclusion-without-tenant",
        High,
        "an exclusion constraint does not contain the tenant",
        "select t.schema, t.name as object,
            format('the exclusion constraint %I of %s is without %I: an INSERT tells what another tenant has, and prints it', c.conname, t.sql, t.tenant_column) as explanation,
            format('ALTER TABLE %s DROP CONSTRAINT %I; -- and add it again with (%I WITH =, …)', t.sql, c.conname, t.tenant_column) as mend,
            format('INSERT INTO %s … -- that overlaps another tenant''s row: ERROR 23P01', t.sql) as demonstrate
       from tenant_tables t join pg_constraint c on c.conrelid = t.oid and c.contype = 'x' where t.reached and not t.tenant_num = any (c.conkey)",
    ),
    rule(
        "foreign-key-without-tenant",
        High,
        "a foreign key does not contain the tenant",
        "select k.schema, k.name as object,
            format('the foreign key %I of %s is without the tenant: a row can point to another tenant''s, and the error tells which exist', k.conname, k.sql) as explanation,
            format('ALTER TABLE %s DROP CONSTRAINT %I, ADD FOREIGN KEY (%I, …) REFERENCES %s (%I, …); -- was: %s', k.sql, k.conname, k.tenant_column, k.to_sql, k.to_column, k.def) as mend,
            format('INSERT INTO %s … -- with the key of another tenant''s row of %s', k.sql, k.to_sql) as demonstrate
       from foreign_keys k where k.tenant_num is not null and not (k.tenant_num = any (k.conkey) or k.to_num = any (k.confkey))",
    ),
    rule(
        "foreign-key-misaligned",
        High,
        "a foreign key contains a tenant, and does not compare the two sides'",
        "select k.schema, k.name as object,
            format('the foreign key %I of %s (%s) does not hold %I equal to %I of %s: a row can point to another tenant''s', k.conname, k.sql, k.def, k.tenant_column, k.to_column, k.to_sql) as explanation,
            format('ALTER TABLE %s DROP CONSTRAINT %I, ADD FOREIGN KEY (%I, …) REFERENCES %s (%I, …);', k.sql, k.conname, k.tenant_column, k.to_sql, k.to_column) as mend,
            format('SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %L::regclass AND conname = %L;', k.sql, k.conname) as demonstrate
       from foreign_keys k where k.tenant_num is not null and (k.tenant_num = any (k.conkey) or k.to_num = any (k.confkey)) and k.tenant_points_to is distinct from k.to_num",
    ),
    rule(
        "foreign-key-cascade-crosses",
        Critical,
        "a cascade changes another tenant's rows",
        "select k.schema, k.name as object,
            format('the foreign key %I of %s cascades and does not compare the tenants: what one tenant deletes or changes in %s takes other tenants'' rows with it', k.conname, k.sql, k.to_sql) as explanation,
            format('ALTER TABLE %s DROP CONSTRAINT %I, ADD FOREIGN KEY (%I, …) REFERENCES %s (%I, …) ON DELETE CASCADE;', k.sql, k.conname, k.tenant_column, k.to_sql, k.to_column) as mend,
            format('DELETE FROM %s; -- as one tenant, while another''s row of %s points there', k.to_sql, k.sql) as demonstrate
       from foreign_keys k where k.reached and k.tenant_num is not null and (k.confdeltype in ('c', 'n', 'd') or k.confupdtype in ('c', 'n', 'd')) and k.tenant_points_to is distinct from k.to_num",
    ),
    rule(
        "foreign-key-sets-tenant",
        Warning,
        "a foreign key's action writes the tenant's column",
        "select k.schema, k.name as object,
            format('the foreign key %I of %s (%s) sets %I as well: the delete fails, or leaves a row of no tenant', k.conname, k.sql, k.def, k.tenant_column) as explanation,
            format('ALTER TABLE %s DROP CONSTRAINT %I; -- and add it again with ON DELETE SET NULL (the other columns)', k.sql, k.conname) as mend,
            format('DELETE FROM %s; -- of a row that %s points to', k.to_sql, k.sql) as demonstrate
       from foreign_keys k where k.tenant_num = any (k.conkey)
        and (k.confupdtype in ('n', 'd') or (k.confdeltype in ('n', 'd') and (coalesce(k.set_columns, 'null'::jsonb) = 'null'::jsonb or k.set_columns @> to_jsonb(k.tenant_num))))",
    ),
    rule(
        "foreign-key-from-global",
        High,
        "a table without a tenant points to one with",
        "select k.schema, k.name as object,
            format('%s has no tenant and its foreign key %I points to %s: it tells which rows exist there, whoever owns them', k.sql, k.conname, k.to_sql) as explanation,
            format('ALTER TABLE %s DROP CONSTRAINT %I;', k.sql, k.conname) as mend,
            format('INSERT INTO %s … -- with the key of any tenant''s row of %s', k.sql, k.to_sql) as demonstrate
       from foreign_keys k where k.tenant_num is null and k.reached",
    ),
    rule(
        "foreign-key-unchecked",
        Warning,
        "a foreign key was never validated, or its triggers are switched off",
        "select k.schema, k.name as object,
            format('the foreign key %I of %s is %s: rows may point to another tenant''s', k.conname, k.sql, case when k.convalidated then 'switched off' else 'NOT VALID' end) as explanation,
            case when k.convalidated then format('ALTER TABLE %s ENABLE TRIGGER ALL; -- then look for rows that point nowhere', k.sql)
                 else format('ALTER TABLE %s VALIDATE CONSTRAINT %I;', k.sql, k.conname) end as mend,
            format('SELECT convalidated FROM pg_constraint WHERE conrelid = %L::regclass AND conname = %L;', k.sql, k.conname) as demonstrate
       from foreign_keys k where k.tenant_num is not null
        and (not k.convalidated or exists (select from pg_trigger t where t.tgconstraint = k.oid and t.tgenabled = 'D'))",
    ),
    rule(
        "index-tenant-not-first",
        Info,
        "an index of a tenant's table does not begin with the tenant",
        "select t.schema, t.name as object,
            format('the index %s of %s does not begin with %I: a tenant''s query walks through all tenants'' entries, and its time tells how many there are', i.indexrelid::regclass, t.sql, t.tenant_column) as explanation,
            format('CREATE INDEX ON %s (%I, …); -- then drop the other one: %s', t.sql, t.tenant_column, pg_get_indexdef(i.indexrelid)) as mend,
            format('SELECT pg_get_indexdef(%L::regclass);', i.indexrelid::regclass) as demonstrate
       from tenant_tables t join pg_index i on i.indrelid = t.oid join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam
      where t.reached and m.amname = 'btree' and i.indkey[0] <> t.tenant_num and not exists (select from pg_inherits p where p.inhrelid = i.indexrelid)",
    ),
    rule(
        "statistics-extended",
        Info,
        "extended statistics mix the tenants' values",
        "select t.schema, t.name as object,
            format('the statistics %I of %s are of all tenants'' rows: the planner''s estimates, which EXPLAIN prints, tell of them', s.stxname, t.sql) as explanation,
            format('DROP STATISTICS %I.%I;', n.nspname, s.stxname) as mend,
            format('EXPLAIN SELECT * FROM %s WHERE …;', t.sql) as demonstrate
       from tenant_tables t join pg_statistic_ext s on s.stxrelid = t.oid join pg_namespace n on n.oid = s.stxnamespace where t.reached",
    ),
];
