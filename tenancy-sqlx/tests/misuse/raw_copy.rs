//! Raw COPY stays in flight when cancelled.

use sqlx::postgres::PgPoolCopyExt;
use tenancy_sqlx::TenantTx;

async fn copy(tx: &mut TenantTx) {
    let _ = tx.copy_in_raw("copy notes from stdin").await;
}

fn main() {}
