//! A tenant is not a context.

use tenancy_core::ActiveTenant;
use tenancy_sqlx::TenantDb;

async fn handler(db: TenantDb, tenant: ActiveTenant) {
    let _ = db.read(&tenant).await;
}

fn main() {}
