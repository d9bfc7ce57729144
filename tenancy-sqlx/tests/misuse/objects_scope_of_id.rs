//! Objects are scoped by a context, not by an id from anywhere.

use tenancy_core::TenantId;
use tenancy_core::objects::TenantObjects;

fn open(objects: &TenantObjects, id: TenantId) {
    let _ = objects.scope(&id);
}

fn main() {}
