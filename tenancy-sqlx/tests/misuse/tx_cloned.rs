//! A transaction is one: there is no second handle to give to somebody else.

use tenancy_sqlx::TenantTx;

fn two(tx: &TenantTx) -> TenantTx {
    TenantTx::clone(tx)
}

fn main() {}
