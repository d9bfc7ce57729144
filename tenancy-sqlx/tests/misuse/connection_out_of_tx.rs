//! A transaction does not give its connection away.

use tenancy_sqlx::TenantTx;

fn raw(tx: &mut TenantTx) -> &mut sqlx::PgConnection {
    &mut **tx
}

fn main() {}
