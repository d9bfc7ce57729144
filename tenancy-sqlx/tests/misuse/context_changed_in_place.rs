//! What a context says is read-only.

use tenancy_core::{TenantContext, TenantId};

fn turn(cx: &mut TenantContext, other: TenantId) {
    cx.tenant_id() = other;
}

fn main() {}
