//! There is no transaction of no tenant.

use tenancy_sqlx::TenantDb;

async fn handler(db: TenantDb) {
    let _ = db.begin().await;
}

fn main() {}
