//! A context can't be turned to another tenant.

use tenancy_core::{TenantContext, TenantId};

fn turn(cx: TenantContext, other: TenantId) -> TenantContext {
    cx.with_tenant_id(other)
}

fn main() {}
