//! What operators have set for all tenants, as this node knows it: it comes with the catalog, whenever its version is another one.

use std::collections::HashMap;

use serde::Deserialize;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use tenancy_core::Result;
use tenancy_core::config::Layer;

use crate::error::from_sqlx;

/// All of it, at one moment.
#[derive(Debug, Default)]
pub(crate) struct Platform {
    pub(crate) version: i64,
    plans: HashMap<String, Layer>,
}

#[derive(Deserialize)]
struct OfPlan {
    plan: String,
    key: String,
    value: serde_json::Value,
}

impl Platform {
    /// From the row of `tenancy.platform_settings()`.
    pub(crate) fn read(row: &PgRow) -> Result<Self> {
        let Json(settings): Json<Vec<OfPlan>> = row.try_get("plans").map_err(from_sqlx)?;
        let mut plans: HashMap<String, Layer> = HashMap::new();
        for OfPlan { plan, key, value } in settings {
            plans.entry(plan).or_default().insert(key, value);
        }
        Ok(Self { version: row.try_get("version").map_err(from_sqlx)?, plans })
    }

    /// What a plan gives.
    pub(crate) fn plan(&self, name: &str) -> Layer {
        self.plans.get(name).cloned().unwrap_or_default()
    }
}
