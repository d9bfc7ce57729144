//! An active tenant can't be edited into another one.

use tenancy_core::{ActiveTenant, TenantId};

fn edit(mut tenant: ActiveTenant, other: TenantId) {
    tenant.id = other;
}

fn main() {}
