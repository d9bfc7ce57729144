//! There is no nil tenant.

use tenancy_core::TenantId;

fn main() {
    let _ = TenantId::default();
}
