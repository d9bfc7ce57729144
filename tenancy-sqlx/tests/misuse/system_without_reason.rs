//! A way around the fence says why.

use tenancy_sqlx::TenantDb;

async fn export(db: TenantDb) {
    let _ = db.dangerous().begin_system().await;
}

fn main() {}
