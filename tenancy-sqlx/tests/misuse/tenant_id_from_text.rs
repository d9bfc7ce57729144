//! Text becomes a `TenantHint`, which claims; never a `TenantId`, which is established.

use tenancy_core::TenantId;

fn main() {
    let _: TenantId = "0190a1b2-0000-7000-8000-000000000001".into();
}
