//! Whether a table is confined at all, and by which policies.

use super::{Rule, rule};
use crate::isolation::Severity::{Critical, High, Info, Warning};

pub(super) const RULES: &[Rule] = &[
    rule(
        "rls-off",
        Critical,
        "row-level security is switched off on a table with a tenant",
        "select t.schema, t.name as object,
            format('row-level security of %s is off: its policies do nothing, and every tenant reads and writes all rows', t.sql) as explanation,
            format('CALL tenancy.protect_table(%L, %L);', t.sql, t.tenant_column) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT %I, count(*) FROM %s GROUP BY 1; ROLLBACK;', given.app, t.tenant_column, t.sql) as demonstrate
       from given, tenant_tables t where t.reached and not t.rls and not t.relispartition and not exists (select from pg_inherits i where i.inhrelid = t.oid)",
    ),
    rule(
        "rls-not-forced",
        High,
        "row-level security does not bind the table's owner",
        "select t.schema, t.name as object,
            format('row-level security of %s is not FORCEd: its owner %s, and every definer function of that owner, skips the policies', t.sql, t.relowner::regrole) as explanation,
            format('ALTER TABLE %s FORCE ROW LEVEL SECURITY;', t.sql) as mend,
            format('BEGIN; SET LOCAL ROLE %s; SELECT %I, count(*) FROM %s GROUP BY 1; ROLLBACK;', t.relowner::regrole, t.tenant_column, t.sql) as demonstrate
       from tenant_tables t where t.reached and t.rls and not t.forced",
    ),
    rule(
        "unprotected-unreached",
        Info,
        "a table with a tenant and no fence, which only a missing grant keeps from the application",
        "select t.schema, t.name as object,
            format('%s has a tenant column and no fence; the application has no right on it now, and sees every row with the first grant', t.sql) as explanation,
            format('CALL tenancy.protect_table(%L, %L); -- which also grants; or REVOKE again afterwards', t.sql, t.tenant_column) as mend,
            format('SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = %L::regclass;', t.sql) as demonstrate
       from tenant_tables t where not t.reached
        and not (t.rls and exists (select from pg_policy p where p.polrelid = t.oid and p.polname = 'tenancy_fence' and not p.polpermissive))",
    ),
    rule(
        "no-policy",
        Warning,
        "row-level security is on and there is no policy",
        "select t.schema, t.name as object,
            format('%s has no policy at all: nothing is visible now, and the next permissive policy alone decides what is', t.sql) as explanation,
            format('CALL tenancy.protect_table(%L, %L);', t.sql, t.tenant_column) as mend,
            format('SELECT polname FROM pg_policy WHERE polrelid = %L::regclass;', t.sql) as demonstrate
       from tenant_tables t where t.reached and t.rls and not exists (select from pg_policy p where p.polrelid = t.oid)",
    ),
    rule(
        "fence-missing",
        Critical,
        "a table with a tenant has no fence",
        "select t.schema, t.name as object,
            format('%s has no policy tenancy_fence: whatever permissive policy is added shows rows to every tenant', t.sql) as explanation,
            format('CALL tenancy.protect_table(%L, %L);', t.sql, t.tenant_column) as mend,
            format('SELECT polname, polpermissive, pg_get_expr(polqual, polrelid) FROM pg_policy WHERE polrelid = %L::regclass;', t.sql) as demonstrate
       from tenant_tables t where t.reached and not exists (select from pg_policy p where p.polrelid = t.oid and p.polname = 'tenancy_fence')",
    ),
    rule(
        "fence-not-restrictive",
        Critical,
        "the fence is permissive",
        "select p.schema, p.name as object,
            format('the %s is PERMISSIVE: another permissive policy is ORed with it, and shows what the fence would not', p.what) as explanation,
            format('CALL tenancy.protect_table(%L, %L);', p.sql, p.tenant_column) as mend,
            format('SELECT polpermissive FROM pg_policy WHERE polrelid = %L::regclass AND polname = ''tenancy_fence'';', p.sql) as demonstrate
       from policies p where p.polname = 'tenancy_fence' and p.permissive",
    ),
    rule(
        "fence-role-list",
        Critical,
        "the fence stands for some roles only",
        "select p.schema, p.name as object,
            format('the %s does not stand for PUBLIC: every other role that has or gets a right on the table passes, and a role named in it can DROP OWNED it away', p.what) as explanation,
            format('ALTER POLICY tenancy_fence ON %s TO PUBLIC;', p.sql) as mend,
            format('SELECT polroles::regrole[] FROM pg_policy WHERE polrelid = %L::regclass AND polname = ''tenancy_fence'';', p.sql) as demonstrate
       from policies p where p.polname = 'tenancy_fence' and p.polroles <> '{0}'",
    ),
    rule(
        "fence-one-command",
        Critical,
        "the fence stands for one command only",
        "select p.schema, p.name as object,
            format('the %s is for %s alone: the other commands pass it', p.what, case p.cmd when 'r' then 'SELECT' when 'a' then 'INSERT' when 'w' then 'UPDATE' else 'DELETE' end) as explanation,
            format('CALL tenancy.protect_table(%L, %L);', p.sql, p.tenant_column) as mend,
            format('SELECT polcmd FROM pg_policy WHERE polrelid = %L::regclass AND polname = ''tenancy_fence'';', p.sql) as demonstrate
       from policies p where p.polname = 'tenancy_fence' and p.cmd <> '*'",
    ),
    rule(
        "fence-wrong-column",
        Critical,
        "the fence compares another column than tenant_id",
        "select p.schema, p.name as object,
            format('the %s compares %I, and the table has a tenant_id: whoever fills %1$s.%2$I with its own id takes the row', p.what, p.tenant_column) as explanation,
            format('CALL tenancy.protect_table(%L, ''tenant_id'');', p.sql) as mend,
            format('SELECT tenant_id, %I FROM %s WHERE tenant_id <> %2$I;', p.tenant_column, p.sql) as demonstrate
       from policies p where p.polname = 'tenancy_fence' and p.tenant_column <> 'tenant_id'
        and exists (select from pg_attribute a where a.attrelid = p.polrelid and a.attname = 'tenant_id' and not a.attisdropped)",
    ),
    rule(
        "fence-text",
        Critical,
        "the fence is not the kit's own text",
        "select p.schema, p.name as object,
            format('the %s says USING %s%s, and not %s', p.what, p.qual, ' WITH CHECK ' || nullif(p.checked, p.qual), p.canonical) as explanation,
            format('CALL tenancy.protect_table(%L, %L);', p.sql, p.tenant_column) as mend,
            format('SELECT pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid) FROM pg_policy WHERE polrelid = %L::regclass AND polname = ''tenancy_fence'';', p.sql) as demonstrate
       from policies p where p.polname = 'tenancy_fence' and (p.qual is distinct from p.canonical or coalesce(p.checked, p.qual) is distinct from p.canonical)",
    ),
    rule(
        "policy-other-setting",
        Critical,
        "a policy that decides reads a setting of its own",
        "select p.schema, p.name as object,
            format('the %s reads a setting itself (%s): the kit never binds it, and SET by anybody it survives its transaction', p.what, coalesce(p.qual, p.checked)) as explanation,
            format('DROP POLICY %I ON %s; CALL tenancy.protect_table(%2$L, %L);', p.polname, p.sql, p.tenant_column) as mend,
            format('SELECT pg_get_expr(polqual, polrelid) FROM pg_policy WHERE polrelid = %L::regclass AND polname = %L;', p.sql, p.polname) as demonstrate
       from deciding p where p.permissive and coalesce(p.qual, '') || coalesce(p.checked, '') ~ 'current_setting\\('",
    ),
    rule(
        "policy-open-when-unset",
        Critical,
        "a policy that decides is true where no tenant is bound",
        "select p.schema, p.name as object,
            format('the %s is true without a tenant (%s): a connection that serves none reads every row', p.what, coalesce(p.qual, p.checked)) as explanation,
            format('DROP POLICY %I ON %s; CALL tenancy.protect_table(%2$L, %L);', p.polname, p.sql, p.tenant_column) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT count(*) FROM %s; ROLLBACK;', given.app, p.sql) as demonstrate
       from given, deciding p where p.permissive
        and coalesce(p.qual, '') || coalesce(p.checked, '') ~ '(current_tenant\\(\\)|current_tenant\\)|::uuid\\)?|current_setting\\([^)]*\\)+|NULLIF\\([^)]*\\)+) IS (NULL|NOT DISTINCT)|COALESCE\\('",
    ),
    rule(
        "policy-null-is-global",
        Critical,
        "a policy that decides shows rows without a tenant to all",
        "select p.schema, p.name as object,
            format('the %s shows rows whose %I is NULL to every tenant (%s); with the same WITH CHECK every tenant writes and changes them', p.what, p.tenant_column, coalesce(p.qual, p.checked)) as explanation,
            format('ALTER TABLE %2$s ALTER %3$I SET NOT NULL; DROP POLICY %1$I ON %2$s; CALL tenancy.protect_table(%2$L, %3$L); -- what belongs to all: a table of its own, declared global', p.polname, p.sql, p.tenant_column) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT * FROM %s WHERE %I IS NULL; ROLLBACK;', given.app, p.sql, p.tenant_column) as demonstrate
       from given, deciding p where p.permissive and position(format('(%I IS NULL)', p.tenant_column) in coalesce(p.qual, '') || coalesce(p.checked, '')) > 0",
    ),
    rule(
        "check-weaker-than-using",
        Critical,
        "a policy that decides checks new rows less than it filters old ones",
        "select p.schema, p.name as object,
            format('the %s filters by %s and checks new rows by %s: rows can be written for, or moved to, another tenant', p.what, p.qual, p.checked) as explanation,
            format('DROP POLICY %I ON %s; CALL tenancy.protect_table(%2$L, %L);', p.polname, p.sql, p.tenant_column) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SET LOCAL tenancy.tenant_id = ''…''; UPDATE %s SET %I = gen_random_uuid(); ROLLBACK;', given.app, p.sql, p.tenant_column) as demonstrate
       from given, deciding p where p.permissive and p.qual is not null and p.checked is not null and p.checked <> p.qual and p.checked <> p.canonical",
    ),
    rule(
        "policy-open",
        Critical,
        "a policy that decides does not compare the tenant",
        "select p.schema, p.name as object,
            format('the %s lets through what it should compare with the tenant: USING %s%s', p.what, coalesce(p.qual, 'nothing'), ' WITH CHECK ' || p.checked) as explanation,
            format('DROP POLICY %I ON %s; CALL tenancy.protect_table(%2$L, %L);', p.polname, p.sql, p.tenant_column) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT %I, count(*) FROM %s GROUP BY 1; ROLLBACK;', given.app, p.tenant_column, p.sql) as demonstrate
       from given, deciding p where p.permissive
        and (p.qual <> p.canonical or p.checked <> p.canonical)
        and not exists (select from policies r where r.polrelid = p.polrelid and not r.permissive and r.polroles = '{0}' and r.cmd = '*' and r.qual = r.canonical and coalesce(r.checked, r.qual) = r.canonical)",
    ),
    rule(
        "policy-permissive-other",
        Warning,
        "another permissive policy stands beside the kit's, held back by the fence alone",
        "select p.schema, p.name as object,
            format('the %s lets the application through on its own terms (%s); only the fence holds it back', p.what, coalesce(p.qual, p.checked)) as explanation,
            format('DROP POLICY %I ON %s; -- or make it RESTRICTIVE, if it is to narrow what a tenant sees', p.polname, p.sql) as mend,
            format('SELECT polname, polpermissive, pg_get_expr(polqual, polrelid) FROM pg_policy WHERE polrelid = %L::regclass;', p.sql) as demonstrate
       from policies p join fenced f on f.oid = p.polrelid
      where p.permissive and p.for_app and (p.qual <> p.canonical or p.checked <> p.canonical)",
    ),
    rule(
        "rows-policy-missing",
        Warning,
        "no permissive policy lets the application through",
        "select t.schema, t.name as object,
            format('%s has no permissive policy for %I: its statements find no row and say nothing', t.sql, given.app) as explanation,
            format('CALL tenancy.protect_table(%L, %L);', t.sql, t.tenant_column) as mend,
            format('SELECT polname, polpermissive, polroles::regrole[] FROM pg_policy WHERE polrelid = %L::regclass;', t.sql) as demonstrate
       from given, tenant_tables t where t.reached and t.rls and exists (select from policies p where p.polrelid = t.oid)
        and not exists (select from policies p where p.polrelid = t.oid and p.permissive and p.for_app)",
    ),
    rule(
        "policy-command-gap",
        Warning,
        "the application may give a command that no permissive policy covers",
        "select t.schema, t.name as object,
            format('%I has the right to %s on %s, and no permissive policy is for it: the command finds no row, or fails, for every tenant', given.app, string_agg(c.privilege, ', '), t.sql) as explanation,
            format('CALL tenancy.protect_table(%L, %L); -- or REVOKE %s ON %1$s FROM %I', t.sql, t.tenant_column, string_agg(c.privilege, ', '), given.app) as mend,
            format('SELECT polname, polcmd FROM pg_policy WHERE polrelid = %L::regclass AND polpermissive;', t.sql) as demonstrate
       from given, tenant_tables t, (values ('SELECT', 'r'), ('INSERT', 'a'), ('UPDATE', 'w'), ('DELETE', 'd')) c (privilege, cmd)
      where t.rls and exists (select from app_roles r where r.login and has_table_privilege(r.oid, t.oid, c.privilege))
        and exists (select from policies p where p.polrelid = t.oid and p.permissive and p.for_app)
        and not exists (select from policies p where p.polrelid = t.oid and p.permissive and p.for_app and p.cmd in ('*', c.cmd::\"char\"))
      group by given.app, t.sql, t.schema, t.name, t.tenant_column",
    ),
    rule(
        "policy-inline",
        Warning,
        "a policy calls a function once per row",
        "select p.schema, p.name as object,
            format('the %s calls its function for every row (%s), five times slower, and before 15.19 in an order that leaks', p.what, coalesce(p.qual, p.checked)) as explanation,
            format('CALL tenancy.protect_table(%L, %L);', p.sql, p.tenant_column) as mend,
            format('EXPLAIN SELECT * FROM %s;', p.sql) as demonstrate
       from policies p where p.for_app and coalesce(p.qual, '') || coalesce(p.checked, '') ~ '(?<!SELECT )tenancy\\.current_tenant\\(\\)'",
    ),
    rule(
        "policy-subquery",
        High,
        "a policy reads another table",
        "select p.schema, p.name as object,
            format('the %s reads %s: what that table holds, and who may write it, decides what a tenant sees', p.what, string_agg(distinct d.refobjid::regclass::text, ', ')) as explanation,
            format('DROP POLICY %I ON %s; CALL tenancy.protect_table(%2$L, %L);', p.polname, p.sql, p.tenant_column) as mend,
            format('SELECT pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid) FROM pg_policy WHERE polrelid = %L::regclass AND polname = %L;', p.sql, p.polname) as demonstrate
       from policies p join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass and d.refobjid <> p.polrelid
      where p.for_app and p.permissive group by p.oid, p.what, p.schema, p.name, p.sql, p.polname, p.tenant_column",
    ),
    rule(
        "policy-inert",
        Warning,
        "a policy on a table whose row-level security is off",
        "select n.nspname as schema, c.relname as object,
            format('the policy %I on %s does nothing: row-level security is off', p.polname, c.oid::regclass) as explanation,
            format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY; -- or drop the policy', c.oid::regclass) as mend,
            format('SELECT relrowsecurity FROM pg_class WHERE oid = %L::regclass;', c.oid::regclass) as demonstrate
       from pg_policy p join pg_class c on c.oid = p.polrelid join host_schemas n on n.oid = c.relnamespace
      where not c.relrowsecurity and not exists (select from tenant_tables t where t.oid = c.oid and t.reached)",
    ),
    rule(
        "partition-unprotected",
        Critical,
        "a partition can be named directly, past its parent's policies",
        "select t.schema, t.name as object,
            format('%s is a partition of %s without row-level security of its own: read by its own name it shows every tenant''s rows', t.sql, i.inhparent::regclass) as explanation,
            format('CALL tenancy.protect_table(%L, %L);', t.sql, t.tenant_column) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT %I, count(*) FROM %s GROUP BY 1; ROLLBACK;', given.app, t.tenant_column, t.sql) as demonstrate
       from given, tenant_tables t join pg_inherits i on i.inhrelid = t.oid where t.relispartition and t.reached and not t.rls",
    ),
    rule(
        "child-unprotected",
        Critical,
        "an inheritance child can be named directly, past its parent's policies",
        "select t.schema, t.name as object,
            format('%s inherits from %s and has no row-level security of its own: read by its own name it shows every tenant''s rows', t.sql, i.inhparent::regclass) as explanation,
            format('CALL tenancy.protect_table(%L, %L);', t.sql, t.tenant_column) as mend,
            format('BEGIN; SET LOCAL ROLE %I; SELECT %I, count(*) FROM ONLY %s GROUP BY 1; ROLLBACK;', given.app, t.tenant_column, t.sql) as demonstrate
       from given, tenant_tables t join pg_inherits i on i.inhrelid = t.oid where not t.relispartition and t.reached and not t.rls",
    ),
    rule(
        "child-of-other-owner",
        Warning,
        "a partition or child has another owner than its parent",
        "select t.schema, t.name as object,
            format('%s belongs to %s and its parent %s to %s: whoever owns it may switch its protection off', t.sql, t.relowner::regrole, p.sql, p.relowner::regrole) as explanation,
            format('ALTER TABLE %s OWNER TO %s;', t.sql, p.relowner::regrole) as mend,
            format('SELECT relowner::regrole FROM pg_class WHERE oid IN (%L::regclass, %L::regclass);', t.sql, p.sql) as demonstrate
       from tenant_tables t join pg_inherits i on i.inhrelid = t.oid join tables p on p.oid = i.inhparent where t.relowner <> p.relowner",
    ),
    rule(
        "global-table-writable",
        High,
        "every tenant may write a table that is declared global",
        "select g.schema, g.name as object,
            format('%s is declared global and %s has %s on it: one tenant changes what all the others read', g.sql, g.to_sql, string_agg(g.privilege, ', ')) as explanation,
            format('REVOKE %s ON %s FROM %s;', string_agg(g.privilege, ', '), g.sql, g.to_sql) as mend,
            format('SELECT grantee, privilege_type FROM information_schema.role_table_grants WHERE table_schema = %L AND table_name = %L;', g.schema, g.name) as demonstrate
       from grants g join tables t on t.oid = g.oid where t.is_global and g.to_app and g.privilege in ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
      group by g.schema, g.name, g.sql, g.to_sql",
    ),
];
