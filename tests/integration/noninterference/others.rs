//! The other tenants: steps like the subject's, and worse.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use harness::actors::Actor as _;
use harness::drop_after;
use rand::Rng;
use serde_json::json;
use tenancy_core::{Actor, TenantCatalog, TenantChange, TenantStatus};
use tokio::sync::Semaphore;

use super::player::Player;

/// What the others did.
#[derive(Debug, Default)]
pub(super) struct Deeds {
    pub(super) steps: AtomicU64,
    pub(super) cancelled: AtomicU64,
    pub(super) suspensions: AtomicU64,
    pub(super) killed: AtomicU64,
    pub(super) made: AtomicU64,
}

/// Makes trouble, one step for each permit, until the semaphore is closed.
pub(super) async fn trouble(mut player: Player, pace: Arc<Semaphore>, deeds: Arc<Deeds>) {
    while let Ok(permit) = pace.acquire().await {
        permit.forget();
        deeds.steps.fetch_add(1, Ordering::Relaxed);
        match player.rng.random_range(0..1000) {
            0..180 => {
                let polls = player.rng.random_range(1..8);
                if drop_after(player.step(), polls).await.is_none() {
                    deeds.cancelled.fetch_add(1, Ordering::Relaxed);
                }
            }
            180..205 => {
                player.suspended().await;
                deeds.suspensions.fetch_add(1, Ordering::Relaxed);
            }
            205..225 => {
                player.killed().await;
                deeds.killed.fetch_add(1, Ordering::Relaxed);
            }
            225..235 => {
                player.makes_a_tenant().await;
                deeds.made.fetch_add(1, Ordering::Relaxed);
            }
            235..265 => player.dawdles().await,
            _ => drop(player.step().await),
        }
    }
}

impl Player {
    /// Suspended in both databases for a few steps.
    async fn suspended(&mut self) {
        let (tenant, kit_tenant) = (format!("/api/v1/tenants/{}", self.member.tenant), self.kit_cx.tenant_id());
        let _ = self.operator.ask("POST", &format!("{tenant}/suspend")).await;
        let to = TenantChange::status;
        let catalog = self.kit.catalog();
        catalog.update(kit_tenant, to(TenantStatus::Suspended), None, &Actor::System).await.expect("suspend");
        for _ in 0..self.rng.random_range(1..4) {
            self.step().await;
        }
        let _ = self.operator.ask("POST", &format!("{tenant}/resume")).await;
        catalog.update(kit_tenant, to(TenantStatus::Active), None, &Actor::System).await.expect("resume");
    }

    /// Its own backend dies inside its transaction.
    async fn killed(&mut self) {
        let Ok(mut tx) = self.kit.begin(&self.kit_cx).await else { return };
        let _ = sqlx::query("insert into notes (id, body) values ($1, 'unkept')").bind(uuid::Uuid::new_v4()).execute(&mut tx).await;
        let killed = sqlx::query("select pg_terminate_backend(pg_backend_pid())").execute(&mut tx).await;
        assert!(killed.is_err(), "nobody answers after that");
        let _ = tx.commit().await;
    }

    /// A tenant comes and goes.
    async fn makes_a_tenant(&mut self) {
        let slug = format!("brief-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let made = self.operator.post("/api/v1/tenants", &json!({ "slug": slug, "name": "Brief" })).await;
        let brief = self.member.of(&made.expect(201).text("id"));
        let _ = brief.post("/api/v1/projects", &json!({ "name": "Name 1" })).with("idempotency-key", "key-1").await;
        if self.chance(50) {
            let _ = self.operator.ask("DELETE", &format!("/api/v1/tenants/{slug}")).await;
        }
    }

    /// Keeps a transaction open, with locks on what everybody uses.
    async fn dawdles(&mut self) {
        let Ok(mut tx) = self.kit.begin(&self.kit_cx).await else { return };
        let touch = "insert into notes (id, body) select ('0198c0de-0000-7000-8000-' || lpad(to_hex(g), 12, '0'))::uuid, 'dawdled'
                       from generate_series(0, 23) g on conflict (tenant_id, id) do update set body = 'dawdled'";
        let _ = sqlx::query(touch).execute(&mut tx).await;
        let _ = sqlx::query("insert into entries (id, side) select g, 'debit' from generate_series(0, 40) g on conflict do nothing")
            .execute(&mut tx)
            .await;
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(1..15))).await;
        if self.chance(50) {
            let _ = tx.commit().await;
        }
    }
}
