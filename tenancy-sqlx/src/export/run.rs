//! The files of an export. An attempt that is stopped is begun anew, from a snapshot of its own.

use std::future::ready;

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row as _};
use tenancy_core::objects::into_error;
use tenancy_core::{Error, ErrorKind, Result, TenantId};

use super::{Export, Format, NewExport, csv, may_be_exported};
use crate::erase::tenant_tables;
use crate::error::from_sqlx;
use crate::operations::{Handler, Operation, Progress};
use crate::tx::{ForTenant, TenantTx};

/// After how many rows or objects it says how far it is.
const TELL: u64 = 10_000;

#[async_trait]
impl Handler for Export {
    async fn run(&self, operation: &Operation, progress: &Progress) -> Result<Value> {
        let tenant = TenantId::from_uuid(operation.tenant_id)?;
        let asked: NewExport = serde_json::from_value(operation.input.clone())
            .map_err(|error| Error::new(ErrorKind::Internal, "the operation can't be read").with_source(error))?;
        let mut tx = progress.begin().await?;
        may_be_exported(&mut tx, tenant).await?;
        let tables = tenant_tables(&mut tx).await?;
        tx.rollback().await?;

        let folder = self.exports.folder(operation, operation.attempts);
        let scope = ForTenant { tenant_id: tenant, request_id: operation.request_id.unwrap_or(operation.id) };
        let mut tx = self.db.begin_unserved(scope, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", true).await?;
        if asked.format == Format::Csv {
            tx.control(csv::SETTINGS).await.map_err(from_sqlx)?;
        }
        let taken_at = self.db.inner().clock.now();
        let (mut files, mut not_read, mut rows) = (Vec::new(), Vec::new(), 0);
        for (oid, table, column) in tables {
            let Some(order) = readable(&mut tx, oid).await? else {
                not_read.push(table);
                continue;
            };
            let name = format!("{}-{}.{}", files.len(), plain(&table), asked.format.extension());
            let mut file = self.exports.create(folder.clone().join(name.as_str()));
            let mut count: u64 = 0;
            let query = match asked.format {
                Format::Ndjson => format!("select row_to_json(t)::text from {table} t where {column} = $1 {order}"),
                Format::Csv => {
                    let columns = csv::columns(&mut tx, oid).await?;
                    format!(
                        "COPY (select {columns} from {table} t where t.{column} = '{tenant}' {order}) TO STDOUT (FORMAT csv, HEADER, ENCODING 'UTF8')"
                    )
                }
            };
            {
                let mut lines = match asked.format {
                    Format::Ndjson => {
                        let rows = sqlx::query_scalar::<_, String>(AssertSqlSafe(query)).bind(tenant.as_uuid()).fetch(&mut tx);
                        rows.map_ok(|row| (row + "\n").into_bytes()).map_err(from_sqlx).boxed()
                    }
                    Format::Csv => {
                        // One message for each row, and one without anything at the end.
                        let rows = tx.copy_out(&query).await?.map_err(from_sqlx).try_filter(|row| ready(!row.is_empty()));
                        let mut lines = rows.map_ok(|row| csv::line(&row)).boxed();
                        if let Some(header) = lines.try_next().await? {
                            file.write(&header).await?;
                        }
                        lines
                    }
                };
                while let Some(line) = lines.try_next().await? {
                    if count.is_multiple_of(TELL) {
                        progress.at(&format!("writing {table}"), rows + count, None, "rows").await?;
                    }
                    file.write(&line).await?;
                    count += 1;
                }
            }
            rows += count;
            let written = file.close().await?;
            files.push(json!({ "table": table, "file": name, "rows": count, "bytes": written.bytes, "sha256": written.sha256 }));
        }
        drop(tx);
        let objects = self.objects(tenant, &folder, progress).await?;
        let manifest = json!({
            "tenant_id": tenant,
            "operation_id": operation.id,
            "taken_at": taken_at,
            "format": asked.format,
            "tables": files,
            "objects": objects,
            "not_read": not_read,
            "version": env!("CARGO_PKG_VERSION"),
        });
        let mut file = self.exports.create(folder.join("manifest.json"));
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::new(ErrorKind::Internal, "can't be written").with_source(e))?;
        file.write(&text).await?;
        let written = file.close().await?;
        progress.at("tidying", rows, Some(rows), "rows").await?; // fails if another node has taken over
        self.exports.tidy(operation).await?;
        Ok(
            json!({ "attempt": operation.attempts, "rows": rows, "objects": objects["objects"], "manifest": "manifest.json", "sha256": written.sha256 }),
        )
    }
}

impl Export {
    /// Copies the tenant's objects to `objects/…`, and lists them in `objects.ndjson`.
    async fn objects(&self, tenant: TenantId, folder: &Path, progress: &Progress) -> Result<Value> {
        let Some(objects) = &self.objects else { return Ok(Value::Null) };
        let store = objects.dangerous_scope(tenant)?;
        let mut list = self.exports.create(folder.clone().join("objects.ndjson"));
        let (mut count, mut bytes): (u64, u64) = (0, 0);
        let mut listed = store.list(None);
        while let Some(meta) = listed.try_next().await.map_err(into_error)? {
            if count.is_multiple_of(TELL) {
                progress.at("copying objects", count, None, "objects").await?;
            }
            let at: Path = folder.clone().join("objects").parts().chain(meta.location.parts()).collect();
            let mut content = match store.get(&meta.location).await {
                Ok(content) => content.into_stream(),
                Err(object_store::Error::NotFound { .. }) => continue, // deleted meanwhile
                Err(error) => return Err(into_error(error)),
            };
            let mut file = self.exports.create(at);
            while let Some(chunk) = content.try_next().await.map_err(into_error)? {
                file.write(&chunk).await?;
            }
            let written = file.close().await?;
            let line = json!({ "file": format!("objects/{}", meta.location), "bytes": written.bytes, "sha256": written.sha256 });
            list.write(format!("{line}\n").as_bytes()).await?;
            count += 1;
            bytes = bytes.saturating_add(written.bytes);
        }
        let written = list.close().await?;
        Ok(json!({ "file": "objects.ndjson", "objects": count, "bytes": bytes, "sha256": written.sha256 }))
    }
}

/// In which order the tenant's rows of a table come, if the application's role may read them.
async fn readable(tx: &mut TenantTx, oid: i64) -> Result<Option<String>> {
    let row = sqlx::query(
        "select has_schema_privilege(c.relnamespace, 'usage') and has_table_privilege(c.oid, 'select'),
                (select string_agg('t.' || quote_ident(a.attname), ', ' order by k.ord) from pg_index i, unnest(i.indkey) with ordinality k (num, ord), pg_attribute a
                  where i.indrelid = c.oid and i.indisprimary and a.attrelid = c.oid and a.attnum = k.num)
           from pg_class c where c.oid = $1::oid",
    )
    .bind(sqlx::postgres::types::Oid(u32::try_from(oid).unwrap_or_default()))
    .fetch_one(tx)
    .await
    .map_err(from_sqlx)?;
    let (may, key): (bool, Option<String>) = (row.try_get(0).map_err(from_sqlx)?, row.try_get(1).map_err(from_sqlx)?);
    Ok(may.then(|| key.map_or_else(String::new, |key| format!("order by {key}"))))
}

/// A table's name as a file's.
fn plain(table: &str) -> String {
    table.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' }).collect()
}
