//! `tenancy-server tenant export`: writes a tenant's rows and objects into a folder, as files that anybody can read.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use futures_util::TryStreamExt as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tenancy_core::{Error, ErrorKind, Result, TenantHint};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::export::{Exports, Format, NewExport};
use tenancy_sqlx::operations::Operation;

use super::{tenant, work};
use crate::app::operations;
use crate::attachment_store;
use crate::config::Config;

/// Where an export's list of files is, and that of its objects.
const MANIFEST: &str = "manifest.json";

pub(super) async fn run(config: &Config, db: &TenantDb, hint: &TenantHint, into: &Path, csv: bool, json: bool) -> Result<ExitCode> {
    let found = tenant::find(&db.catalog(), hint).await?;
    if fs::read_dir(into).is_ok_and(|mut there| there.next().is_some()) {
        return Err(Error::invalid("into", "must be a folder that is empty, or is not there yet"));
    }
    let store = attachment_store::store(config)?;
    let worker = operations(db, &store, config)?;
    let asked = NewExport::default().with_format(if csv { Format::Csv } else { Format::Ndjson });
    let mut tx = db.dangerous().begin_system("export a tenant").await?;
    let id = tx.request_export(found.id, &asked, None).await?.id;
    tx.commit().await?;
    let done = work::ended(db, worker, id).await?;
    let files = Copied { exports: attachment_store::exports(store), of: &done, into }.all().await?;
    work::report(&done, json, format!("{} is exported: {files} files in {}", found.slug, into.display()))
}

/// The files of an export, on their way into a folder.
struct Copied<'a> {
    exports: Exports,
    of: &'a Operation,
    into: &'a Path,
}

impl Copied<'_> {
    async fn all(&self) -> Result<u64> {
        let manifest: Value = serde_json::from_slice(&fs::read(self.file(MANIFEST, None).await?).map_err(unwritable)?)
            .map_err(|error| Error::new(ErrorKind::Internal, "the export's manifest can't be read").with_source(error))?;
        let mut files = 1;
        for table in manifest["tables"].as_array().into_iter().flatten() {
            self.listed(table).await?;
            files += 1;
        }
        if manifest["objects"].is_null() {
            return Ok(files);
        }
        let list = fs::read_to_string(self.listed(&manifest["objects"]).await?).map_err(unwritable)?;
        for line in list.lines() {
            let object = serde_json::from_str(line)
                .map_err(|error| Error::new(ErrorKind::Internal, "the export's list of objects can't be read").with_source(error))?;
            self.listed(&object).await?;
            files += 1;
        }
        Ok(files + 1)
    }

    /// A file that is listed with its hash.
    async fn listed(&self, entry: &Value) -> Result<PathBuf> {
        self.file(entry["file"].as_str().unwrap_or_default(), entry["sha256"].as_str()).await
    }

    async fn file(&self, name: &str, sha256: Option<&str>) -> Result<PathBuf> {
        // Names of objects are their tenant's: none may lead out of the folder.
        if name.is_empty() || !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::new(ErrorKind::Conflict, format!("the export has a file that can't be one here: {name}")));
        }
        let at = self.into.join(name);
        fs::create_dir_all(at.parent().unwrap_or(self.into)).map_err(unwritable)?;
        let mut file = File::create_new(&at).map_err(unwritable)?;
        let mut content = self.exports.file(self.of, name).await?.into_stream();
        let mut hash = Sha256::new();
        while let Some(bytes) = content.try_next().await.map_err(tenancy_core::objects::into_error)? {
            hash.update(&bytes);
            file.write_all(&bytes).map_err(unwritable)?;
        }
        let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if sha256.is_some_and(|said| said != hash) {
            return Err(Error::new(ErrorKind::Conflict, format!("{name} is not what was exported: export anew")));
        }
        Ok(at)
    }
}

fn unwritable(error: std::io::Error) -> Error {
    Error::invalid("into", format!("can't be written: {error}")).with_source(error)
}
