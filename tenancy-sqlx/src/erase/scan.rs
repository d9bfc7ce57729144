//! What is left of a tenant: its rows, and its id in any other value.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Row};
use tenancy_core::{Result, TenantId};

use super::plan::{Plan, Table};
use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// How many rows of the tenant the table has.
pub(super) async fn count(tx: &mut SystemTx, table: &Table, tenant: TenantId) -> Result<i64> {
    let Some(col) = &table.col else { return Ok(0) };
    let query = format!("select count(*) from {} where {} = $1", table.sql, quoted(col));
    sqlx::query_scalar(AssertSqlSafe(query)).bind(tenant.as_uuid()).fetch_one(tx).await.map_err(from_sqlx)
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Where the tenant's id still stands.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// Rows per table.
    pub(super) rows: BTreeMap<String, i64>,
    /// Tables that could not be read.
    pub(super) unread: Vec<String>,
}

/// Looks for the tenant's id in every column of type uuid, text or JSON, of every table and materialized view but those that are kept.
pub(super) async fn leftovers(tx: &mut SystemTx, plan: &Plan, tenant: TenantId) -> Result<Leftovers> {
    let tables = sqlx::query(
        "select format('%I.%I', n.nspname, c.relname) as sql, has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') as readable,
                string_agg(case when a.atttypid = 'uuid'::regtype then format('%I = $1', a.attname) else format('strpos(lower(%I::text), $1::text) > 0', a.attname) end, ' or ') as has
           from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
           join pg_type y on y.oid = a.atttypid left join pg_type base on base.oid = coalesce(nullif(y.typelem, 0), nullif(y.typbasetype, 0), y.oid)
          where c.relkind in ('r', 'p', 'm') and c.relpersistence <> 't' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
            and not c.relispartition and c.oid <> 'tenancy.tenants'::regclass and (base.typcategory = 'S' or base.typname in ('uuid', 'json', 'jsonb', 'xml', 'hstore'))
          group by 1, 2 order by 1",
    );
    let mut found = Leftovers::default();
    for row in tables.fetch_all(&mut *tx).await.map_err(from_sqlx)? {
        let (table, readable, has): (String, bool, String) = (row.get(0), row.get(1), row.get(2));
        if plan.kept.iter().any(|kept| kept.sql == table) {
            continue;
        }
        if !readable {
            found.unread.push(table);
            continue;
        }
        let query = format!("select count(*) from {table} where {has}");
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(query)).bind(tenant.as_uuid()).fetch_one(&mut *tx).await.map_err(from_sqlx)?;
        if rows > 0 {
            found.rows.insert(table, rows);
        }
    }
    Ok(found)
}
