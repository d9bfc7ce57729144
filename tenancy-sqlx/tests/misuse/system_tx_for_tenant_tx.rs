//! What is written for one tenant's transaction never runs in one that no tenant confines.

use tenancy_sqlx::{SystemTx, TenantTx};

async fn delete_all_notes(tx: &mut TenantTx) {
    let _ = sqlx::query("delete from notes").execute(tx).await;
}

async fn job(mut tx: SystemTx) {
    delete_all_notes(&mut tx).await;
}

fn main() {}
