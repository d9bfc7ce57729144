//! The database is no executor: a query needs a transaction of a tenant.

use tenancy_sqlx::TenantDb;

async fn handler(db: TenantDb) {
    let _ = sqlx::query("select body from notes").fetch_all(&db).await;
}

fn main() {}
