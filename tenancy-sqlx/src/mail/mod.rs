//! A sink of the outbox that sends e-mail in the tenant's name.
//!
//! | topic | what it needs | what it says |
//! |---|---|---|
//! | `quota.threshold`, `quota.resolved` | what the kit posts | how much of a quota is used |
//! | `member.invited` | `secret.link` or `secret.token`; `payload.inviter`, `payload.role` if known | the invitation |
//! | `domain.lost`, `webhook.disabled` | what the kit posts | that something stopped, and why |
//! | `share.offered` | what the kit posts | who offers to share what |
//! | `link.sent` | `secret.link`; `payload.sender`, `payload.label` if known | a link that somebody shares |
//! | `member.sign_in` | `secret.link` or `secret.token` | the link or code to sign in with |
//!
//! Other topics are nobody's mail: they count as delivered. The receivers are in `payload.to`, a text or a list of them, or the host
//! [knows](Recipients) them.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use lettre::Message as Mail;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart};
use lettre::{Address, address::Envelope};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use tenancy_core::outbox::{Delivery, DeliveryError, Sink};
use tenancy_core::{Error, ErrorKind, Result, TenantCatalog as _};

use self::letter::{Letter, line};
use crate::db::TenantDb;

mod letter;
mod transport;

pub use transport::MailTransport;

/// The most receivers of one message.
const MAX_RECIPIENTS: usize = 50;

/// Who is told of what, where the message does not say it: the admins of the tenant, say.
#[async_trait]
pub trait Recipients: Send + Sync + 'static {
    /// The addresses; none if nobody is to be told.
    async fn of(&self, delivery: &Delivery) -> Result<Vec<String>, DeliveryError>;
}

/// Sends the mail of the topics [above](self), with the product's name and support address from the tenant's `branding`
/// (`product_name`, `support_email`).
///
/// Each receiver gets a mail of their own. Its Message-ID comes from the message's key, so that a repetition can be told.
///
/// # Security
/// Addresses are parsed, so that none holds more than itself; texts lose what controls before they come near a header, and are escaped
/// in HTML. Nothing but the receiver's mail holds the secret.
pub struct MailSink {
    db: TenantDb,
    transport: MailTransport,
    sender: Address,
    recipients: Option<Arc<dyn Recipients>>,
}

impl fmt::Debug for MailSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MailSink").field("transport", &self.transport).field("sender", &self.sender).finish_non_exhaustive()
    }
}

impl MailSink {
    /// Mail from the address `sender`.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) if it is not one.
    pub fn new(db: &TenantDb, transport: MailTransport, sender: &str) -> Result<Self> {
        let wrong = || Error::new(ErrorKind::Misconfigured, "the sender of e-mail must be such as no-reply@example.com");
        let sender = address(sender).ok_or_else(wrong)?;
        Ok(Self { db: db.clone(), transport, sender, recipients: None })
    }

    /// Whom to tell where the message does not say it.
    #[must_use]
    pub fn with_recipients(mut self, recipients: impl Recipients) -> Self {
        self.recipients = Some(Arc::new(recipients));
        self
    }

    async fn receivers(&self, delivery: &Delivery) -> Result<Vec<Address>, DeliveryError> {
        let named = match (&delivery.payload["to"], &self.recipients) {
            (Value::String(one), _) => vec![one.clone()],
            (Value::Array(some), _) => some.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            (_, Some(recipients)) => recipients.of(delivery).await?,
            (_, None) => Vec::new(),
        };
        if named.len() > MAX_RECIPIENTS {
            return Err(DeliveryError::Refused(format!("more than {MAX_RECIPIENTS} receivers")));
        }
        let parsed: Option<Vec<_>> = named.iter().map(|text| address(text)).collect();
        parsed.ok_or_else(|| DeliveryError::Refused("a receiver is not an e-mail address".to_owned()))
    }

    async fn brand(&self, delivery: &Delivery) -> Result<Brand, DeliveryError> {
        let Some(tenant) = delivery.tenant_id else { return Ok(Brand::new("Notifications", &Map::new())) };
        let found = self.db.catalog().find(&tenant.into()).await;
        match found {
            Ok(Some(tenant)) => Ok(Brand::new(&tenant.name, &tenant.branding)),
            Ok(None) => Err(DeliveryError::Refused("the tenant is gone".to_owned())),
            Err(error) => Err(DeliveryError::Retry(error.to_string())),
        }
    }

    fn mail(&self, delivery: &Delivery, brand: &Brand, letter: &Letter, to: &Address) -> Result<(String, Mail), DeliveryError> {
        let id = Sha256::digest(format!("{}\n{to}", delivery.key)).iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>();
        let wrong = |error: &dyn fmt::Display| DeliveryError::Refused(format!("the mail can't be written: {error}"));
        let envelope = Envelope::new(Some(self.sender.clone()), vec![to.clone()]).map_err(|e| wrong(&e))?;
        let mut mail = Mail::builder()
            .envelope(envelope)
            .from(Mailbox::new(Some(brand.product.clone()), self.sender.clone()))
            .to(Mailbox::new(None, to.clone()))
            .subject(&letter.subject)
            .message_id(Some(format!("<{id}@{}>", self.sender.domain())))
            .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()));
        if let Some(support) = &brand.support {
            mail = mail.reply_to(Mailbox::new(None, support.clone()));
        }
        let body = MultiPart::alternative_plain_html(letter.text(brand), letter.html(brand));
        Ok((id, mail.multipart(body).map_err(|e| wrong(&e))?))
    }
}

#[async_trait]
impl Sink for MailSink {
    async fn deliver(&self, delivery: &Delivery) -> Result<(), DeliveryError> {
        if !Letter::knows(&delivery.topic) {
            return Ok(());
        }
        let receivers = self.receivers(delivery).await?;
        if receivers.is_empty() {
            tracing::debug!(id = delivery.id, topic = delivery.topic, "nobody is to be told by e-mail");
            return Ok(());
        }
        let brand = self.brand(delivery).await?;
        let letter = Letter::of(delivery, &brand)?;
        let (mut sent, mut failed) = (false, None);
        for to in &receivers {
            let (id, mail) = self.mail(delivery, &brand, &letter, to)?;
            match self.transport.send(&id, mail).await {
                Ok(()) => sent = true,
                // What may succeed later outweighs what never will; the others get it again then, with the same Message-ID.
                Err(error @ DeliveryError::Retry(_)) => failed = Some(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(DeliveryError::Refused(why)) if sent => {
                tracing::warn!(id = delivery.id, topic = delivery.topic, why, "some of the receivers were refused");
                Ok(())
            }
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// In whose name a mail is.
struct Brand {
    product: String,
    support: Option<Address>,
}

impl Brand {
    fn new(name: &str, branding: &Map<String, Value>) -> Self {
        let text = |field: &str| branding.get(field).and_then(Value::as_str);
        let product = text("product_name").map(line).filter(|text| !text.is_empty()).unwrap_or_else(|| line(name));
        Self { product, support: text("support_email").and_then(address) }
    }
}

/// An address, if it is one: visible ASCII characters without anything that quotes or comments.
fn address(text: &str) -> Option<Address> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"@.!#$%&'*+-/=?^_`{|}~".contains(&b);
    (text.len() <= 254 && text.bytes().all(plain)).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_nothing_but_an_address() {
        for good in ["ada@example.com", "ada+news@mail.example.com", "o'neil@example.com"] {
            assert!(address(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "ada@example.com\r\nBcc: eve@example.com",
            "ada@example.com, eve@example.com",
            "Ada <ada@example.com>",
            "\"a b\"@example.com",
            "ada@example.com>",
            "ada(x)@example.com",
            "ädä@example.com",
            "a@b@example.com",
        ] {
            assert!(address(bad).is_none(), "{bad:?}");
        }
        assert!(address(&format!("{}@example.com", "x".repeat(250))).is_none());
    }

    #[test]
    fn a_brand_has_safe_defaults() {
        let branding = |value: Value| value.as_object().cloned().unwrap_or_default();
        let brand = Brand::new("Acme", &branding(serde_json::json!({ "product_name": 7, "support_email": "not one" })));
        assert_eq!((brand.product.as_str(), brand.support), ("Acme", None));
        let brand = Brand::new("Acme", &branding(serde_json::json!({ "product_name": "Ro\r\nBcc: x", "support_email": "a@b.example" })));
        assert_eq!((brand.product.as_str(), brand.support.is_some()), ("Ro Bcc: x", true));
    }
}
