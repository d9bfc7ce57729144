//! A cache of tenants has no `get`: a key alone would answer for everybody.

use tenancy_core::cache::TenantCache;

fn cached(cache: &TenantCache<String, String>) -> Option<String> {
    cache.get("settings")
}

fn main() {}
