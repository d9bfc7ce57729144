//! A context is evidence: it has no default.

use tenancy_core::TenantContext;

fn main() {
    let _ = TenantContext::default();
}
