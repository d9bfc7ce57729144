//! A context can't be sent: what travels is a `JobEnvelope`.

use tenancy_core::TenantContext;

fn send(cx: &TenantContext) -> String {
    serde_json::to_string(cx).unwrap()
}

fn main() {}
