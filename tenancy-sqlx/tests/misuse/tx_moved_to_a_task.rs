//! A transaction given to a task is gone here.

use tenancy_sqlx::TenantTx;

async fn give(mut tx: TenantTx) {
    tokio::spawn(async move {
        let _ = sqlx::query("select 1").execute(&mut tx).await;
    });
    let _ = tx.commit().await;
}

fn main() {}
