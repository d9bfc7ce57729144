//! A claimed tenant is not an established one.

use tenancy_core::TenantHint;
use tenancy_core::cache::TenantCache;

fn purge(cache: &TenantCache<String, String>, hint: TenantHint) {
    cache.purge(hint);
}

fn main() {}
