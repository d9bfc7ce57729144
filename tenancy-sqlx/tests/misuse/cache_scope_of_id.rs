//! A cache is scoped by a context, not by an id from anywhere.

use tenancy_core::TenantId;
use tenancy_core::cache::TenantCache;

fn cached(cache: &TenantCache<String, String>, id: TenantId) -> Option<String> {
    cache.scope(&id).get("settings")
}

fn main() {}
