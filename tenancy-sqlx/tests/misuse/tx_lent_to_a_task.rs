//! A transaction can't be lent to a task that may outlive it.

use tenancy_sqlx::TenantTx;

async fn lend(mut tx: TenantTx) {
    tokio::spawn(async {
        let _ = sqlx::query("select 1").execute(&mut tx).await;
    });
    let _ = tx.commit().await;
}

fn main() {}
