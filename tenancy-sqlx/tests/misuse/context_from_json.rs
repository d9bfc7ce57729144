//! A context can't arrive in a request body or a queue.

use tenancy_core::TenantContext;

fn main() {
    let _: TenantContext = serde_json::from_str("{}").unwrap();
}
