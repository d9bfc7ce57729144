//! The probe: it acts. Where [`inspect`] reads what the catalogs say, the probe tries to cross.
//!
//! Three throw-away tenants are made: an attacker and a victim, each with a canary row in every table that has a tenant, and one that has no row. Over the
//! pool's own connections, as the application's role, the attacker then reads, writes, moves, counts and refers to what is the victim's; what
//! crosses is a [`Finding`] that names the rule of the inspection which explains it. Every attempt is rolled back, and in the end the
//! canaries and their tenants are removed.
//!
//! `docs/isolation/probe.md` says what is tried, what stays, and what can't be shown.

use serde::Serialize;
use tenancy_core::{Actor, Error, ErrorKind, NewTenant, Principal, Result, Role, TenantCatalog, TenantContext};

use super::{Finding, inspect};
use crate::db::TenantDb;
use crate::isolation::probe::attempts::Prober;
use crate::isolation::probe::facts::Facts;
use crate::isolation::probe::plant::{Admin, Side};
use crate::isolation::probe::report::{Crossing, Kind};

mod attempts;
mod facts;
mod pattern;
mod plant;
mod report;
mod server;
mod values;

/// The probe's tenants are known by this name.
const NAME: &str = "isolation probe";

/// What the probe did.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Probed {
    /// What crossed, by rule; empty if nothing did.
    pub findings: Vec<Finding>,
    /// Tables in which no canary could be planted, each with the reason: about them the probe says little.
    pub unplanted: Vec<String>,
    /// Tables that still hold something of the probe's: it may not delete there.
    pub left: Vec<String>,
    /// How many statements were tried.
    pub attempts: u64,
}

/// Tries to cross from one tenant to another, in every table and around them, and removes its traces.
///
/// Run it on a copy of the production schema: where a fence is missing, the attempts lock real rows until they are rolled back.
///
/// # Errors
/// [`Misconfigured`](ErrorKind::Misconfigured) without [administrative credentials](crate::Options::with_admin_url), or with such that may not
/// create tenants; [`Unavailable`](ErrorKind::Unavailable).
///
/// # Cancel safety
/// A dropped future leaves its tenants, named "isolation probe", and their rows; the next probe that starts more than an hour later removes them.
pub async fn probe(db: &TenantDb) -> Result<Probed> {
    let mut admin = Admin::connect(db).await?;
    let app = db.inner().pool.connect_options().get_username().to_owned();
    let inspected = inspect(&mut admin.conn, &db.inner().roles, &app).await?;
    let facts = facts::read(&mut admin.conn, &db.inner().roles, &app).await?;
    let stale = plant::abandoned(&mut admin, NAME).await?;
    plant::remove(&mut admin, &facts, &stale).await;

    let mut tenants = Vec::new();
    let mut filled = Vec::new();
    let done = act(db, &mut admin, &facts, &mut tenants, &mut filled).await;
    let ids: Vec<String> = tenants.iter().map(|cx| cx.tenant_id().to_string()).collect();
    let left = plant::remove(&mut admin, &facts, &ids).await;
    for view in &filled {
        plant::refresh(&mut admin, view).await;
    }
    for table in &left {
        tracing::warn!("the probe's rows of {table} could not be removed");
    }
    let (crossed, unplanted, attempts) = done?;
    Ok(Probed { findings: report::findings(crossed, &inspected, &app), unplanted, left, attempts })
}

/// Everything between the making of tenants and their removal.
async fn act(
    db: &TenantDb,
    admin: &mut Admin,
    facts: &Facts,
    tenants: &mut Vec<TenantContext>,
    filled: &mut Vec<String>,
) -> Result<(Vec<Crossing>, Vec<String>, u64)> {
    const CHANGED: Kind = Kind { name: "a lasting change", rules: &["rls-off"] };
    for _ in 0..3 {
        tenants.push(tenant(db).await?);
    }
    let [attacker, victim, empty] = tenants.as_slice() else {
        return Err(Error::new(ErrorKind::Internal, "the probe needs three tenants"));
    };
    let side = |cx: &TenantContext| Side::new(cx.tenant_id().to_string());
    let mut sides = [side(attacker), side(victim)];
    let (recipes, unplanted) = plant::plant(admin, facts, &mut sides).await?;
    filled.extend(plant::refresh_empty(admin, facts).await);
    let before = plant::fingerprint(admin, facts, &sides[1].marks.tenant).await?;

    let [mine, theirs] = &sides;
    let nobody = side(empty);
    let mut prober = Prober {
        db,
        facts,
        recipes: &recipes,
        attacker: (attacker, mine),
        victim: (victim, theirs),
        empty: (empty, &nobody),
        crossed: Vec::new(),
        attempts: 0,
    };
    prober.run().await?;
    prober.run_around(admin).await?;
    let after = plant::fingerprint(admin, facts, &theirs.marks.tenant).await?;
    for relation in &facts.relations {
        if before.get(&relation.sql) != after.get(&relation.sql) {
            prober.crossed(&CHANGED, relation, "", "after all attempts were rolled back, the victim's rows are not as before");
        }
    }
    Ok((prober.crossed, unplanted, prober.attempts))
}

/// A tenant of the probe's own.
async fn tenant(db: &TenantDb) -> Result<TenantContext> {
    let slug = format!("probe-{:016x}", rand::random::<u64>());
    let tenant = db.catalog().create(NewTenant::new(slug.parse()?, NAME).active(), &Actor::System).await?;
    Ok(TenantContext::establish(tenant.into_active()?, Principal::Member { subject: "probe".parse()?, role: Role::Owner }))
}
