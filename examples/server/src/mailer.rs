//! Mail to tenants: who gets it, how it leaves, and the folder that keeps it where there is no mail server.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use tenancy_core::outbox::{Delivery, DeliveryError};
use tenancy_core::{Error, ErrorKind, Result, TenantCatalog as _};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::mail::{MailSink, MailTransport, Recipients};
use tenancy_sqlx::outbox::{Worker, WorkerOptions};

use crate::config::{Config, given};

/// How many mails the mailbox lists.
const LISTED: usize = 100;

/// Begins to deliver the outbox by mail; also the mailbox, if mail is kept there.
pub(crate) async fn start(db: &TenantDb, config: &Config) -> Result<(Worker, Option<Mailbox>)> {
    let about = |variable: &str, error: Error| Error::new(error.kind(), format!("{variable}: {}", error.message())).with_source(error);
    let (transport, mailbox) = match given(&config.smtp) {
        Some(url) => (MailTransport::smtp(url).map_err(|e| about("TENANCY_SMTP", e))?, None),
        None => {
            let folder = config.data_dir.join("mailbox");
            (MailTransport::folder(&folder).map_err(|e| about("TENANCY_DATA_DIR", e))?, Some(Mailbox { folder }))
        }
    };
    let sink = MailSink::new(db, transport, &config.mail_from).map_err(|e| about("TENANCY_MAIL_FROM", e))?;
    let sink = sink.with_recipients(Support { db: db.clone() });
    Ok((Worker::start(db, Arc::new(sink), WorkerOptions::default()).await?, mailbox))
}

/// What names no receiver goes to the support address of the tenant's branding.
struct Support {
    db: TenantDb,
}

#[async_trait]
impl Recipients for Support {
    async fn of(&self, delivery: &Delivery) -> Result<Vec<String>, DeliveryError> {
        let Some(tenant) = delivery.tenant_id else { return Ok(Vec::new()) };
        let found = self.db.catalog().find(&tenant.into()).await.map_err(|error| DeliveryError::Retry(error.to_string()))?;
        let address = found.as_ref().and_then(|tenant| tenant.branding.get("support_email")?.as_str());
        Ok(address.map(str::to_owned).into_iter().collect())
    }
}

/// The mails that were kept instead of sent.
#[derive(Debug)]
pub(crate) struct Mailbox {
    folder: PathBuf,
}

impl Mailbox {
    /// The ids of the newest mails, the newest first.
    pub(crate) fn list(&self) -> Result<Vec<String>> {
        let failed = |source| Error::new(ErrorKind::Unavailable, "the mailbox can't be read").with_source(source);
        let mut mails: Vec<(SystemTime, String)> = fs::read_dir(&self.folder)
            .map_err(failed)?
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let id = entry.file_name().to_str()?.strip_suffix(".eml")?.to_owned();
                is_id(&id).then_some((entry.metadata().and_then(|file| file.modified()).ok()?, id))
            })
            .collect();
        mails.sort_unstable_by(|a, b| b.cmp(a));
        Ok(mails.into_iter().take(LISTED).map(|(_, id)| id).collect())
    }

    /// One mail, as it would have been sent.
    pub(crate) fn read(&self, id: &str) -> Result<Vec<u8>> {
        if !is_id(id) {
            return Err(Error::not_found());
        }
        fs::read(self.folder.join(format!("{id}.eml"))).map_err(|source| Error::not_found().with_source(source))
    }
}

fn is_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
