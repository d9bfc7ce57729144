//! An id is not enough to begin: who acts must have been established.

use tenancy_core::TenantId;
use tenancy_sqlx::TenantDb;

async fn handler(db: TenantDb, id: TenantId) {
    let _ = db.begin(&id).await;
}

fn main() {}
