//! A row of the catalog is not yet active: `into_active` is asked first.

use std::sync::Arc;

use tenancy_core::{Principal, Tenant, TenantContext};

fn establish(tenant: Arc<Tenant>) -> TenantContext {
    TenantContext::establish(tenant, Principal::Visitor)
}

fn main() {}
