//! The steps of a provisioning. Each can be stopped at any point, and done again.

use async_trait::async_trait;
use serde_json::{Value, json};
use tenancy_core::{Error, ErrorKind, Result, Tenant, TenantChange, TenantId, TenantStatus};

use super::{OWN, Provision, Provisioning, Step, to_be_provisioned};
use crate::isolation::Severity;
use crate::operations::{Handler, Operation, Progress};
use crate::tx::ForTenant;

#[async_trait]
impl Handler for Provision {
    async fn run(&self, operation: &Operation, progress: &Progress) -> Result<Value> {
        let tenant = TenantId::from_uuid(operation.tenant_id)?;
        self.preflight(tenant, progress).await?;
        self.quotas(tenant, progress).await?;
        self.storage(tenant, progress).await?;
        for step in &self.steps {
            self.step(step, tenant, operation, progress).await?;
        }
        self.activate(tenant, operation, progress).await
    }
}

impl Provision {
    async fn halted(&self, step: &str) {
        if self.halt_after == Some(step) {
            std::future::pending::<()>().await;
        }
    }

    /// What every step would fail on. Done by each attempt, since the database may have changed.
    async fn preflight(&self, tenant: TenantId, progress: &Progress) -> Result<()> {
        progress.at("preflight", 0, None, "").await?;
        for (n, step) in self.steps.iter().enumerate() {
            if OWN.contains(&step.name()) || self.steps[..n].iter().any(|before| before.name() == step.name()) {
                return Err(Error::new(ErrorKind::Misconfigured, format!("two steps have the name {}", step.name())));
            }
        }
        let findings = self.db.inspect().await?;
        let leaks: Vec<String> =
            findings.iter().filter(|f| f.severity == Severity::Critical).map(|f| format!("{} at {}", f.rule, f.name())).collect();
        if !leaks.is_empty() {
            return Err(Error::new(ErrorKind::Misconfigured, format!("the database does not keep tenants apart: {}", leaks.join(", "))));
        }
        let mut tx = progress.begin().await?;
        let tenant = to_be_provisioned(&mut tx, tenant).await?;
        let plan = self.plans.plan(&tenant.plan)?;
        progress.finish(&mut tx, "preflight", &json!({ "plan": plan.name() })).await?;
        tx.commit().await?;
        self.halted("preflight").await;
        Ok(())
    }

    async fn quotas(&self, tenant: TenantId, progress: &Progress) -> Result<()> {
        if progress.finished("quotas").await?.is_none() {
            let mut tx = progress.begin().await?;
            progress.tell(&mut tx, "quotas", 0, None, "").await?;
            let tenant = to_be_provisioned(&mut tx, tenant).await?;
            let plan = self.plans.plan(&tenant.plan)?;
            tx.entitle(tenant.id, plan).await?;
            progress.finish(&mut tx, "quotas", &json!({ "plan": plan.name(), "quotas": plan.quotas().len() })).await?;
            tx.commit().await?;
        }
        self.halted("quotas").await;
        Ok(())
    }

    async fn storage(&self, tenant: TenantId, progress: &Progress) -> Result<()> {
        let Some(storage) = &self.storage else { return Ok(()) };
        if progress.finished("storage").await?.is_none() {
            progress.at("storage", 0, None, "").await?;
            storage.probe(tenant).await?;
            let mut tx = progress.begin().await?;
            progress.finish(&mut tx, "storage", &json!(true)).await?;
            tx.commit().await?;
        }
        self.halted("storage").await;
        Ok(())
    }

    async fn step(&self, step: &Step, id: TenantId, operation: &Operation, progress: &Progress) -> Result<()> {
        let name = step.name();
        if progress.finished(name).await?.is_none() {
            let mut tx = progress.begin().await?;
            progress.tell(&mut tx, name, 0, None, "").await?;
            let tenant: Tenant = to_be_provisioned(&mut tx, id).await?;
            let of = Provisioning { tenant: &tenant, input: &operation.input, now: self.db.inner().clock.now() };
            match step {
                Step::Across(step) => {
                    let output = step.run(&of, &mut tx).await?;
                    if self.remembers {
                        progress.finish(&mut tx, name, &output).await?;
                    }
                    tx.commit().await?;
                }
                Step::Within(hook) => {
                    tx.commit().await?; // it holds the claim, which is renewed meanwhile
                    let scope = ForTenant { tenant_id: id, request_id: operation.request_id.unwrap_or(operation.id) };
                    let mut tx = self.db.begin_unserved(scope, "BEGIN", false).await?;
                    let output = hook.run(&of, &mut tx).await?;
                    if self.remembers {
                        progress.finish_within(&mut tx, name, &output).await?;
                    }
                    tx.commit().await?;
                }
            }
        }
        self.halted(name).await;
        Ok(())
    }

    /// The end of the operation and the tenant's first moment are one.
    async fn activate(&self, id: TenantId, operation: &Operation, progress: &Progress) -> Result<Value> {
        let mut tx = progress.begin().await?;
        let tenant = to_be_provisioned(&mut tx, id).await?;
        let mut steps: Vec<&str> = OWN[..2].to_vec();
        steps.extend(self.storage.is_some().then_some(OWN[2]));
        steps.extend(self.steps.iter().map(Step::name));
        let warm = operation.input["warm"] == true; // it waits to be taken
        if !warm {
            steps.push(OWN[3]);
        }
        let result = json!({ "tenant_id": id, "slug": tenant.slug, "plan": tenant.plan, "steps": steps });
        progress.tell(&mut tx, "done", 0, None, "").await?;
        progress.done(&mut tx, &result).await?; // first: only then may the tenant become active
        if !warm {
            tx.update_tenant(id, TenantChange::status(TenantStatus::Active), None, self.db.inner().clock.now()).await?;
        }
        tx.commit().await?;
        if let Err(error) = self.db.catalog().refresh().await {
            tracing::warn!(?error, "the catalog was not refreshed after a provisioning");
        }
        Ok(result)
    }
}
