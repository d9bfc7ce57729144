//! The tenant's column, and what else a column can give away.

use super::{Rule, rule};
use crate::isolation::Severity::{High, Info, Warning};

pub(super) const RULES: &[Rule] = &[
    rule(
        "tenant-column-missing",
        High,
        "the application reaches a table that has no tenant and is not declared global",
        "select t.schema, t.name as object,
            format('%s has no tenant column: what one tenant writes there, every tenant reads', t.sql) as explanation,
            format('ALTER TABLE %s ADD tenant_id uuid NOT NULL; CALL tenancy.protect_table(%1$L); -- or, if it belongs to nobody: CALL tenancy.declare_global(%1$L, ''why'');', t.sql) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT count(*) FROM %s; ROLLBACK;', given.app, t.sql) as demonstrate
       from given, tables t where t.tenant_num is null and not t.is_global and t.reached and not (t.rls and not exists (select from pg_policy p where p.polrelid = t.oid))",
    ),
    rule(
        "tenant-column-nullable",
        High,
        "the tenant's column may be NULL",
        "select t.schema, t.name as object,
            format('%I of %s may be NULL: such a row belongs to nobody, a unique key does not hold it, and a foreign key is not checked', t.tenant_column, t.sql) as explanation,
            format('ALTER TABLE %s ALTER %I SET NOT NULL;', t.sql, t.tenant_column) as mend,
            format('SELECT count(*) FROM %s WHERE %I IS NULL; -- as a role with BYPASSRLS', t.sql, t.tenant_column) as demonstrate
       from tenant_tables t join pg_attribute a on a.attrelid = t.oid and a.attnum = t.tenant_num where not a.attnotnull",
    ),
    rule(
        "tenant-column-type",
        High,
        "the tenant's column is not a uuid",
        "select t.schema, t.name as object,
            format('%I of %s is %s: compared after a cast it uses no index, and one tenant may be written in two ways', t.tenant_column, t.sql, format_type(a.atttypid, a.atttypmod)) as explanation,
            format('ALTER TABLE %s ALTER %I TYPE uuid USING %2$I::uuid;', t.sql, t.tenant_column) as mend,
            format('SELECT pg_typeof(%I) FROM %s LIMIT 1;', t.tenant_column, t.sql) as demonstrate
       from tenant_tables t join pg_attribute a on a.attrelid = t.oid and a.attnum = t.tenant_num where a.atttypid <> 'uuid'::regtype",
    ),
    rule(
        "tenant-default-missing",
        Info,
        "the tenant's column has no default",
        "select t.schema, t.name as object,
            format('%I of %s has no default: every INSERT must name the tenant itself', t.tenant_column, t.sql) as explanation,
            format('ALTER TABLE %s ALTER %I SET DEFAULT tenancy.current_tenant();', t.sql, t.tenant_column) as mend,
            format('SELECT atthasdef FROM pg_attribute WHERE attrelid = %L::regclass AND attname = %L;', t.sql, t.tenant_column) as demonstrate
       from tenant_tables t join pg_attribute a on a.attrelid = t.oid and a.attnum = t.tenant_num where not a.atthasdef",
    ),
    rule(
        "tenant-default-other",
        Warning,
        "the tenant's column defaults to something else than the transaction's tenant",
        "select t.schema, t.name as object,
            format('%I of %s defaults to %s: a role that no policy binds files its rows under the wrong tenant', t.tenant_column, t.sql, pg_get_expr(d.adbin, d.adrelid)) as explanation,
            format('ALTER TABLE %s ALTER %I SET DEFAULT tenancy.current_tenant();', t.sql, t.tenant_column) as mend,
            format('SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = %L::regclass;', t.sql) as demonstrate
       from tenant_tables t join pg_attrdef d on d.adrelid = t.oid and d.adnum = t.tenant_num where pg_get_expr(d.adbin, d.adrelid) <> 'tenancy.current_tenant()'",
    ),
    rule(
        "column-default-definer",
        High,
        "a column's default calls a function that runs with its owner's rights",
        "select t.schema, t.name as object,
            format('the default of %s.%I calls %s, which is SECURITY DEFINER: what it reads past the policies lands in the tenant''s row', t.sql, a.attname, f.oid::regprocedure) as explanation,
            format('ALTER TABLE %s ALTER %I DROP DEFAULT; -- or ALTER FUNCTION %s SECURITY INVOKER', t.sql, a.attname, f.oid::regprocedure) as mend,
            format('SELECT pg_get_functiondef(%L::regprocedure);', f.oid::regprocedure) as demonstrate
       from tenant_tables t join pg_attrdef d on d.adrelid = t.oid join pg_attribute a on a.attrelid = t.oid and a.attnum = d.adnum
       join pg_depend x on x.classid = 'pg_attrdef'::regclass and x.objid = d.oid and x.refclassid = 'pg_proc'::regclass
       join pg_proc f on f.oid = x.refobjid where f.prosecdef and t.reached",
    ),
    rule(
        "sequence-shared",
        Warning,
        "all tenants draw their numbers from one sequence",
        "select t.schema, t.name as object,
            format('%s.%I draws from %s, which all tenants share: from the gaps between its own numbers a tenant learns how much the others write', t.sql, a.attname, s.oid::regclass) as explanation,
            format('ALTER TABLE %s ALTER %I DROP %s; -- and use uuid DEFAULT gen_random_uuid(), or a counter per tenant', t.sql, a.attname, case when a.attidentity <> '' then 'IDENTITY' else 'DEFAULT' end) as mend,
            format('SELECT last_value FROM %s;', s.oid::regclass) as demonstrate
       from tenant_tables t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
       join pg_class s on s.relkind = 'S' and (
            exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = s.oid and d.refclassid = 'pg_class'::regclass
                     and d.refobjid = t.oid and d.refobjsubid = a.attnum and a.attidentity <> '' and d.deptype = 'i')
         or exists (select from pg_attrdef f join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid and d.refclassid = 'pg_class'::regclass
                     where f.adrelid = t.oid and f.adnum = a.attnum and d.refobjid = s.oid))",
    ),
];
