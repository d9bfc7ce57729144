//! A transaction comes from `begin` or `read` only.

use tenancy_core::TenantId;
use tenancy_sqlx::tx::ForTenant;

fn scope(id: TenantId) -> ForTenant {
    ForTenant(id)
}

fn main() {}
