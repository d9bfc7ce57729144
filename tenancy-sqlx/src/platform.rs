//! What operators have set for all tenants, as this node knows it: it comes with the catalog, whenever its version is another one.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use tenancy_core::Result;
use tenancy_core::config::Layer;
use tenancy_core::flags::{Flag, FlagDefinition, FlagKind, FlagValue};

use crate::error::from_sqlx;

/// All of it, at one moment.
#[derive(Debug, Default)]
pub(crate) struct Platform {
    pub(crate) version: i64,
    plans: HashMap<String, Layer>,
    flags: BTreeMap<String, Flag>,
}

#[derive(Deserialize)]
struct OfPlan {
    plan: String,
    key: String,
    value: serde_json::Value,
}

#[derive(Deserialize)]
struct Defined {
    name: String,
    kind: FlagKind,
    variants: Vec<String>,
    default_value: FlagValue,
    on_value: FlagValue,
    rollout: u16,
    plans: Vec<String>,
    /// Digests.
    tenants: Vec<String>,
    killed: bool,
}

impl From<Defined> for Flag {
    fn from(defined: Defined) -> Self {
        let Defined { name, kind, variants, default_value: default, on_value: on, rollout, plans, tenants, killed } = defined;
        let mut definition = FlagDefinition::off();
        (definition.kind, definition.variants, definition.default, definition.on) = (kind, variants, default, on);
        (definition.rollout, definition.plans, definition.killed) = (rollout, plans, killed);
        Self::new(name, definition, tenants)
    }
}

impl Platform {
    /// From the row of `tenancy.platform_settings()`.
    pub(crate) fn read(row: &PgRow) -> Result<Self> {
        let Json(settings): Json<Vec<OfPlan>> = row.try_get("plans").map_err(from_sqlx)?;
        let mut plans: HashMap<String, Layer> = HashMap::new();
        for OfPlan { plan, key, value } in settings {
            plans.entry(plan).or_default().insert(key, value);
        }
        let Json(flags): Json<Vec<Defined>> = row.try_get("flags").map_err(from_sqlx)?;
        let flags = flags.into_iter().map(|defined| (defined.name.clone(), defined.into())).collect();
        Ok(Self { version: row.try_get("version").map_err(from_sqlx)?, plans, flags })
    }

    /// A flag, if it is defined.
    pub(crate) fn flag(&self, name: &str) -> Option<&Flag> {
        self.flags.get(name)
    }

    /// All flags, by their names.
    pub(crate) fn flags(&self) -> impl Iterator<Item = &Flag> {
        self.flags.values()
    }

    /// What a plan gives.
    pub(crate) fn plan(&self, name: &str) -> Layer {
        self.plans.get(name).cloned().unwrap_or_default()
    }
}
