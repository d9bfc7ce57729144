//! `tenancy-server backup …`: takes backups of tenants, lists, restores and clones them, and proves that they can be restored.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde_json::{Value, json};
use tenancy_core::backup::{Keep, Schedule};
use tenancy_core::{Error, Result, TenantHint, TenantSlug};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::backup::{NewClone, NewRestore};
use tenancy_sqlx::operations::Operation;
use uuid::Uuid;

use super::{say, tenant, work};
use crate::app::{backups, operations};
use crate::attachment_store;
use crate::config::Config;
use crate::database::Database;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Take a backup of a tenant
    Take {
        /// Slug or id
        tenant: TenantHint,
        /// Print JSON: the operation, whose `result` is the backup
        #[arg(long)]
        json: bool,
    },
    /// List the backups of a tenant, the newest first
    List {
        /// Slug or id
        tenant: TenantHint,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put a tenant back to how it was in a backup; how it is now is backed up first
    Restore {
        /// Slug or id
        tenant: TenantHint,
        /// Which backup [default with --as-of: the newest one before]
        #[arg(required_unless_present = "as_of")]
        backup: Option<Uuid>,
        /// As it was in this moment, by the tenant's journal: 2026-11-26T14:32:10Z
        #[arg(long)]
        as_of: Option<DateTime<Utc>>,
        /// Only tell what would change
        #[arg(long)]
        dry_run: bool,
        /// Only these tables, as the backup names them: public.documents. Settings and objects stay as they are
        #[arg(long = "table", value_name = "TABLE")]
        tables: Vec<String>,
        /// Leave out what the database has no table or column for any more
        #[arg(long)]
        may_lose: bool,
        /// Don't back up first
        #[arg(long)]
        without_backup: bool,
        /// Have what only reads go on until the rows are put in place
        #[arg(long, conflicts_with = "dry_run")]
        reads: bool,
        /// Print JSON: the operation
        #[arg(long)]
        json: bool,
    },
    /// Make another tenant of a backup
    Clone {
        /// Slug or id
        tenant: TenantHint,
        /// Which backup
        backup: Uuid,
        /// The new tenant's name in addresses
        slug: TenantSlug,
        /// Its name for people [default: that of the other one]
        #[arg(long)]
        name: Option<String>,
        /// Give its rows ids of their own, wherever they are referred to
        #[arg(long)]
        new_ids: bool,
        /// Print JSON: the operation, whose `result` says what still names an old id
        #[arg(long)]
        json: bool,
    },
    /// Show when a tenant is backed up by itself and what is kept, or give it a schedule of its own: what is not said has its default
    Schedule {
        /// Slug or id
        tenant: TenantHint,
        /// Back it up so often, in hours
        #[arg(long, value_name = "HOURS", conflicts_with_all = ["never", "default"])]
        every: Option<u16>,
        /// Never back it up by itself
        #[arg(long, conflicts_with = "default")]
        never: bool,
        /// Back to the schedule of all tenants that have none of their own
        #[arg(long)]
        default: bool,
        /// Keep the newest so many
        #[arg(long, requires = "every", value_name = "N")]
        keep_last: Option<u16>,
        /// Keep the newest of so many days
        #[arg(long, requires = "every", value_name = "N")]
        keep_daily: Option<u16>,
        /// Keep the newest of so many weeks
        #[arg(long, requires = "every", value_name = "N")]
        keep_weekly: Option<u16>,
        /// Keep the newest of so many months
        #[arg(long, requires = "every", value_name = "N")]
        keep_monthly: Option<u16>,
        /// Prove that it can be restored so often, in days; 0 is never
        #[arg(long, requires = "every", value_name = "DAYS")]
        drill: Option<u16>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Call off a backup, restore, clone or drill that is not over
    Cancel {
        /// Which one: its operation
        operation: Uuid,
        /// Print JSON: the operation
        #[arg(long)]
        json: bool,
    },
    /// List the drills of a tenant, the newest first
    Drills {
        /// Slug or id
        tenant: TenantHint,
        /// Print JSON: with the reports
        #[arg(long)]
        json: bool,
    },
    /// Keep a journal of a tenant's row changes, so that it can be restored as of any moment; it begins with the next backup
    Journal {
        /// Slug or id
        tenant: TenantHint,
        /// For so many days
        #[arg(long, required_unless_present = "off")]
        days: Option<u16>,
        /// Keep none any more
        #[arg(long, conflicts_with = "days")]
        off: bool,
    },
    /// Prove that a backup can be restored: into a tenant that nobody ever sees
    Drill {
        /// Slug or id
        tenant: TenantHint,
        /// Which backup [default: the newest]
        #[arg(long)]
        backup: Option<Uuid>,
        /// Print JSON: the operation, whose `result` is the report
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(config: &Config, verb: Verb) -> Result<ExitCode> {
    let database = Database::from_config(config).await?;
    if database.is_embedded() {
        database.migrate().await?;
    }
    database.with(config, async |db| act(config, db, verb).await).await
}

async fn act(config: &Config, db: &TenantDb, verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Take { tenant, json } => {
            let found = tenant::find(&db.catalog(), &tenant).await?;
            let mut tx = db.dangerous().begin_system("back up a tenant").await?;
            let id = tx.request_backup(found.id, None).await?.id;
            tx.commit().await?;
            finish(config, db, id, json, |done| {
                let result = done.result.clone().unwrap_or_default();
                format!("backup {id}: {} rows, {} objects, {} bytes", result["rows"], result["objects"], result["bytes"])
            })
            .await
        }
        Verb::List { tenant, json } => {
            let found = tenant::find(&db.catalog(), &tenant).await?;
            let backups = db.dangerous().begin_system("list backups").await?.backups(found.id, None, 200).await?;
            if json {
                say(json!({ "items": backups }));
                return Ok(ExitCode::SUCCESS);
            }
            for backup in backups {
                let held = backup.hold.map(|why| format!("  held: {why}")).unwrap_or_default();
                let taken = backup.taken_at.format("%Y-%m-%d %H:%M:%S");
                say(format_args!(
                    "{}  {taken}  {:>9} rows  {:>7} objects  {}{held}",
                    backup.id, backup.rows, backup.objects, backup.reason
                ));
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Restore { tenant, backup, as_of, dry_run, tables, may_lose, without_backup, reads, json } => {
            let found = tenant::find(&db.catalog(), &tenant).await?;
            let mut asked = match (backup, as_of) {
                (Some(backup), None) => NewRestore::new(backup),
                (Some(backup), Some(at)) => NewRestore::new(backup).with_as_of(at),
                (None, Some(at)) => NewRestore::as_of(at),
                (None, None) => return Err(Error::invalid("backup", "must say which one, or --as-of a moment")),
            };
            asked.tables = (!tables.is_empty()).then_some(tables);
            (asked.dry_run, asked.may_lose, asked.without_backup, asked.reads) = (dry_run, may_lose, without_backup, reads);
            let mut tx = db.dangerous().begin_system("restore a tenant").await?;
            let id = tx.request_restore(found.id, &asked, None).await?.id;
            tx.commit().await?;
            finish(config, db, id, json, |done| table(&done.result.clone().unwrap_or_default())).await
        }
        Verb::Clone { tenant, backup, slug, name, new_ids, json } => {
            let found = tenant::find(&db.catalog(), &tenant).await?;
            let mut asked = NewClone::new(backup, slug);
            (asked.name, asked.new_ids) = (name, new_ids);
            let mut tx = db.dangerous().begin_system("clone a tenant").await?;
            let id = tx.request_clone(found.id, &asked, None).await?.id;
            tx.commit().await?;
            let new = |done: &Operation| done.result.clone().unwrap_or_default();
            finish(config, db, id, json, |done| {
                let left: Vec<String> =
                    new(done)["left"].as_object().into_iter().flatten().map(|(column, values)| format!("{column} ({values})")).collect();
                let left = if left.is_empty() { String::new() } else { format!("; still with old ids: {}", left.join(", ")) };
                format!("{} is active: {} rows{left}", new(done)["slug"].as_str().unwrap_or_default(), new(done)["rows"])
            })
            .await
        }
        Verb::Schedule { tenant, every, never, default, keep_last, keep_daily, keep_weekly, keep_monthly, drill, json } => {
            let found = tenant::find(&db.catalog(), &tenant).await?;
            let mut schedule = Schedule::default();
            if never {
                schedule = Schedule::NONE;
            }
            schedule.every_hours = every;
            let keep = &mut schedule.keep;
            for (place, said) in [
                (&mut keep.last, keep_last),
                (&mut keep.daily, keep_daily),
                (&mut keep.weekly, keep_weekly),
                (&mut keep.monthly, keep_monthly),
            ] {
                *place = said.unwrap_or(*place);
            }
            if let Some(days) = drill {
                schedule.drill_days = Some(days).filter(|days| *days > 0);
            }
            let mut tx = db.dangerous().begin_system("schedule backups").await?;
            if every.is_some() || never || default {
                tx.set_backup_schedule(found.id, (!default).then_some(&schedule)).await?;
            }
            let standing = backups(db, &attachment_store::store(config)?, config)?.standing(&mut tx, found.id).await?;
            tx.commit().await?;
            if json {
                say(json!(standing));
                return Ok(ExitCode::SUCCESS);
            }
            let so_often = |n: Option<u16>, unit: &str| n.map_or_else(|| "never".to_owned(), |n| format!("every {n} {unit}"));
            let when = |at: Option<DateTime<Utc>>| at.map_or_else(|| "never".to_owned(), |at| at.format("%Y-%m-%d %H:%M:%S").to_string());
            let Keep { last, daily, weekly, monthly, .. } = standing.schedule.keep;
            say(format_args!(
                "backed up {}, drilled {}{}\nkept: the newest {last}, of {daily} days, {weekly} weeks and {monthly} months\nnewest backup: {}\nlast drill: {}",
                so_often(standing.schedule.every_hours, "hours"),
                so_often(standing.schedule.drill_days, "days"),
                if standing.own { "" } else { ", as all tenants without a schedule of their own" },
                when(standing.backed_up_at),
                when(standing.drilled_at),
            ));
            for (what, at) in [("backup", standing.backup_failed_at), ("drill", standing.drill_failed_at)] {
                if at.is_some() {
                    say(format_args!("the last {what} failed: {}", when(at)));
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Cancel { operation, json } => {
            let mut tx = db.dangerous().begin_system("cancel an operation").await?;
            let cancelled = tx.cancel_operation(operation).await?;
            tx.commit().await?;
            if json {
                say(json!(cancelled));
            } else if cancelled.state == "cancelled" {
                say("it is cancelled");
            } else {
                say("the node that has it undoes what it did, within some seconds");
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Drills { tenant, json } => {
            let found = tenant::find(&db.catalog(), &tenant).await?;
            let drills = db.dangerous().begin_system("list drills").await?.drills(found.id).await?;
            if json {
                say(json!({ "items": drills }));
                return Ok(ExitCode::SUCCESS);
            }
            for drill in drills {
                let backup = drill.input["backup"].as_str().unwrap_or_default();
                let why = drill.error.map(|why| format!("  {why}")).unwrap_or_default();
                say(format_args!("{}  {}  backup {backup}  {}{why}", drill.id, drill.updated_at.format("%Y-%m-%d %H:%M:%S"), drill.state));
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Journal { tenant, days, .. } => {
            let found = tenant::find(&db.catalog(), &tenant).await?;
            let mut tx = db.dangerous().begin_system("keep a tenant's journal, or end it").await?;
            match days {
                Some(days) => tx.keep_journal(found.id, days).await?,
                None => tx.end_journal(found.id).await?,
            }
            tx.commit().await?;
            say(match days {
                Some(days) => format!("a journal is kept for {days} days: it begins with the next backup"),
                None => "no journal is kept".to_owned(),
            });
            Ok(ExitCode::SUCCESS)
        }
        Verb::Drill { tenant, backup, json } => {
            let found = tenant::find(&db.catalog(), &tenant).await?;
            let mut tx = db.dangerous().begin_system("drill a tenant's restoration").await?;
            let id = tx.request_drill(found.id, backup, None).await?.id;
            tx.commit().await?;
            finish(config, db, id, json, |done| {
                let report = done.result.clone().unwrap_or_default();
                let rows: i64 = report["tables"].as_object().into_iter().flatten().filter_map(|(_, table)| table["rows"].as_i64()).sum();
                format!(
                    "backup {} can be restored: {rows} rows and {} objects in {} ms",
                    report["backup"].as_str().unwrap_or_default(),
                    report["objects"]["count"],
                    report["took_ms"]
                )
            })
            .await
        }
    }
}

async fn finish(config: &Config, db: &TenantDb, id: Uuid, json: bool, done: impl FnOnce(&Operation) -> String) -> Result<ExitCode> {
    let worker = operations(db, &attachment_store::store(config)?, config)?;
    work::finish(db, worker, id, json, done).await
}

/// What a restore changed, or would change.
fn table(result: &Value) -> String {
    let mut text = format!("{:<40}  {:>9}  {:>9}  {:>9}", "", "removed", "changed", "added");
    let none = serde_json::Map::new();
    let tables = result["tables"].as_object().unwrap_or(&none).iter().map(|(name, counts)| (name.as_str(), counts));
    for (name, counts) in tables.chain(result["objects"].is_object().then_some(("objects", &result["objects"]))) {
        let count = |how: &str| counts[how].as_i64().unwrap_or_default();
        text.push_str(&format!("\n{name:<40}  {:>9}  {:>9}  {:>9}", count("removed"), count("changed"), count("added")));
    }
    if let Some(missing) = result["objects_missing"].as_array().filter(|missing| !missing.is_empty()) {
        let some: Vec<&str> = missing.iter().take(3).filter_map(Value::as_str).collect();
        text.push_str(&format!("\n{} objects that rows name are gone: {}", missing.len(), some.join(", ")));
    }
    if let Some(lost) = result["left_out"].as_array().filter(|lost| !lost.is_empty()) {
        let all: Vec<&str> = lost.iter().filter_map(Value::as_str).collect();
        text.push_str(&format!("\nleft out, as the database has them no more: {}", all.join(", ")));
    }
    if let Some(before) = result["before"].as_str() {
        text.push_str(&format!("\nas it was before: backup {before}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn what_was_left_out_of_a_restore_is_said() {
        let mut result = serde_json::json!({ "tables": {}, "left_out": ["public.projects.\"note\""] });
        assert!(table(&result).ends_with("no more: public.projects.\"note\""), "{}", table(&result));
        result["left_out"] = serde_json::json!([]);
        assert!(!table(&result).contains("left out"));
    }
}
