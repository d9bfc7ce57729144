//! What a new tenant begins with: a project to look at.

use async_trait::async_trait;
use serde_json::{Value, json};
use tenancy_core::Result;
use tenancy_sqlx::provision::{ProvisionHook, Provisioning};
use tenancy_sqlx::{TenantTx, from_sqlx};
use uuid::Uuid;

/// The step `welcome` of a provisioning.
#[derive(Debug)]
pub(crate) struct Welcome;

#[async_trait]
impl ProvisionHook for Welcome {
    fn name(&self) -> &'static str {
        "welcome"
    }

    async fn run(&self, of: &Provisioning<'_>, tx: &mut TenantTx) -> Result<Value> {
        let project = Uuid::now_v7();
        sqlx::query(
            "insert into projects (tenant_id, id, name, description, created_at, updated_at) values ($1, $2, 'Welcome', $3, $4, $4)",
        )
        .bind(of.tenant.id.as_uuid())
        .bind(project)
        .bind(format!("The first project of {}", of.tenant.name))
        .bind(of.now)
        .execute(tx)
        .await
        .map_err(from_sqlx)?;
        Ok(json!({ "project": project }))
    }
}
