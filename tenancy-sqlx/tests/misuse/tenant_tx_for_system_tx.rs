//! A tenant's transaction can't change the catalog.

use tenancy_core::NewTenant;
use tenancy_sqlx::TenantTx;

async fn sign_up(mut tx: TenantTx, new: NewTenant) {
    let _ = tx.create_tenant(new, chrono::DateTime::UNIX_EPOCH).await;
}

fn main() {}
