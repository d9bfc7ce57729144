//! A committed transaction runs nothing more.

use tenancy_sqlx::TenantTx;

async fn late(mut tx: TenantTx) {
    let _ = tx.commit().await;
    let _ = sqlx::query("delete from notes").execute(&mut tx).await;
}

fn main() {}
