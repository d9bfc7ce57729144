//! Mail to tenants: who gets it, how it leaves, and the folder that keeps it where there is no mail server.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use tenancy_core::outbox::{Delivery, DeliveryError, Each};
use tenancy_core::{Actor, Error, ErrorKind, Principal, Result, TenantCatalog as _, TenantContext, TenantId};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::mail::{MailSink, MailTransport, Recipients};
use tenancy_sqlx::outbox::{Worker, WorkerOptions};
use tenancy_sqlx::webhook::WebhookSink;

use crate::config::{Config, given};

/// How many mails the mailbox lists.
const LISTED: usize = 100;
/// How many of a tenant's admins get a mail: those who were members first.
const MOST_RECEIVERS: i64 = 20;

/// Begins to deliver the outbox, to webhooks and by mail; also the mailbox, if mail is kept there.
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
    let sink = sink.with_recipients(Admins { db: db.clone() });
    // Webhooks first: a message that comes again is no second delivery to them.
    let webhooks = WebhookSink::new(db)?.with_loopback(config.webhooks_loopback);
    let sinks = Each::new(vec![Arc::new(webhooks), Arc::new(sink)]);
    // Receivers of webhooks may be slow: what one tenant may have under way is a small part of all.
    let options = WorkerOptions::default().with_concurrency(64, 4);
    Ok((Worker::start(db, Arc::new(sinks), options).await?, mailbox))
}

/// What names no receiver goes to the tenant's admins and owners; where it has none, to the support address of its branding.
struct Admins {
    db: TenantDb,
}

#[async_trait]
impl Recipients for Admins {
    async fn of(&self, delivery: &Delivery) -> Result<Vec<String>, DeliveryError> {
        let Some(tenant) = delivery.tenant_id else { return Ok(Vec::new()) };
        self.addresses(tenant).await.map_err(|error| DeliveryError::Retry(error.to_string()))
    }
}

impl Admins {
    async fn addresses(&self, tenant: TenantId) -> Result<Vec<String>> {
        let Some(tenant) = self.db.catalog().find(&tenant.into()).await? else { return Ok(Vec::new()) };
        let support = tenant.branding.get("support_email").and_then(|address| address.as_str()).map(str::to_owned);
        let mail = Principal::Job { name: "mail".to_owned(), on_behalf_of: Actor::System };
        let cx = TenantContext::establish(tenant.into_active()?, mail);
        let admins = self.db.read(&cx).await?.admin_addresses(MOST_RECEIVERS).await?;
        Ok(if admins.is_empty() { support.into_iter().collect() } else { admins.into_iter().map(String::from).collect() })
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
