//! An object is reached through a tenant's scope only.

use object_store::ObjectStoreExt;
use object_store::path::Path;
use tenancy_core::objects::TenantObjects;

async fn download(objects: TenantObjects) {
    let _ = objects.get(&Path::from("report.pdf")).await;
}

fn main() {}
