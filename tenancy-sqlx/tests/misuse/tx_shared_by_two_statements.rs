//! Two statements can't run on one transaction at once.

use tenancy_sqlx::TenantTx;

async fn both(mut tx: TenantTx) {
    let one = sqlx::query("select 1").fetch_one(&mut tx);
    let two = sqlx::query("select 2").fetch_one(&mut tx);
    let _ = (one.await, two.await);
}

fn main() {}
