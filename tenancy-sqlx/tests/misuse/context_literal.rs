//! A context has no public parts to put together.

use tenancy_core::{ActiveTenant, TenantContext};

fn context(tenant: ActiveTenant) -> TenantContext {
    TenantContext(std::sync::Arc::new(tenant))
}

fn main() {}
