//! sqlx's nested transactions lose track of the tenant when cancelled: `savepoint` instead.

use sqlx::Acquire;
use tenancy_sqlx::TenantTx;

async fn nested(tx: &mut TenantTx) {
    let _ = tx.begin().await;
}

fn main() {}
