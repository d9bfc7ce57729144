//! While a savepoint is open, statements go through it.

use tenancy_sqlx::TenantTx;

async fn beside(mut tx: TenantTx) {
    let part = tx.savepoint().await.unwrap();
    let _ = sqlx::query("select 1").execute(&mut tx).await;
    let _ = part.release().await;
}

fn main() {}
