//! A savepoint ends before its transaction.

use tenancy_sqlx::TenantTx;

async fn outlive(mut tx: TenantTx) {
    let part = tx.savepoint().await.unwrap();
    let _ = tx.commit().await;
    let _ = part.release().await;
}

fn main() {}
