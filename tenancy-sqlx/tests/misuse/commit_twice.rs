//! A transaction ends once.

use tenancy_sqlx::TenantTx;

async fn twice(tx: TenantTx) {
    let _ = tx.commit().await;
    let _ = tx.commit().await;
}

fn main() {}
