//! SQL put together at run time must be vouched for: `AssertSqlSafe`, or a bind parameter.

use tenancy_sqlx::TenantTx;

async fn search(mut tx: TenantTx, term: String) {
    let sql = format!("select body from notes where body = '{term}'");
    let _ = sqlx::query(sql).fetch_all(&mut tx).await;
}

fn main() {}
