//! A name from the request is not enough to begin.

use tenancy_core::TenantHint;
use tenancy_sqlx::TenantDb;

async fn handler(db: TenantDb, hint: TenantHint) {
    let _ = db.begin(&hint).await;
}

fn main() {}
