//! A way around the fence is named, so that a reviewer finds it.

use tenancy_sqlx::TenantDb;

async fn export(db: TenantDb) {
    let _ = db.begin_system("monthly export").await;
}

fn main() {}
