//! What somebody must be told, or a job that must be done, written in the transaction that causes it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};

use crate::{Error, Result, TenantId};

/// A message for the outbox: it is delivered if, and only if, the transaction that posts it commits.
///
/// Delivered at least once: whoever receives it tells a repetition by its key.
#[derive(Clone, PartialEq)]
pub struct Message {
    topic: String,
    key: String,
    payload: Value,
    secret: Value,
}

impl Message {
    /// The longest topic and key, in bytes.
    pub const MAX_LEN: usize = 200;

    /// A message of kind `topic` (`noun.verb`, such as `member.invited`) about `payload`. Of several messages of one tenant with the same
    /// `key`, the first is kept.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), naming the field.
    pub fn new(topic: impl Into<String>, key: impl Into<String>, payload: Value) -> Result<Self> {
        let (topic, key) = (topic.into(), key.into());
        let word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if topic.len() > Self::MAX_LEN || !topic.contains('.') || !topic.split('.').all(word) {
            return Err(Error::invalid("topic", "must be two or more words of a-z and '_', with dots between them"));
        }
        if key.is_empty() || key.len() > Self::MAX_LEN || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::invalid("key", "must have 1 to 200 visible ASCII characters"));
        }
        Ok(Self { topic, key, payload, secret: Value::Null })
    }

    /// Adds what only the receiver may see, such as a token: it is removed when the message is delivered or given up.
    #[must_use]
    pub fn with_secret(mut self, secret: Map<String, Value>) -> Self {
        self.secret = Value::Object(secret);
        self
    }

    /// Which kind.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// What makes it the same message when it is posted again.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What it says.
    pub fn payload(&self) -> &Value {
        &self.payload
    }

    /// What it says to the receiver alone: an object, or null.
    pub fn secret(&self) -> &Value {
        &self.secret
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("topic", &self.topic)
            .field("key", &self.key)
            .field("payload", &self.payload)
            .finish_non_exhaustive()
    }
}

/// A message on its way to whoever must be told.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Delivery {
    /// Its number: it grows with the order of posting.
    pub id: i64,
    /// The same at each repetition, and different from every other message's, also of other tenants.
    pub key: String,
    /// Whose it is; `None` is the platform's own.
    pub tenant_id: Option<TenantId>,
    /// Which kind.
    pub topic: String,
    /// What it says.
    pub payload: Value,
    /// What it says to the receiver alone: an object, or null. It must not be logged.
    pub secret: Value,
    /// The how-manieth try this is, from 1.
    pub attempt: u32,
}

impl Delivery {
    /// The `attempt`th try of `message`.
    pub fn new(id: i64, key: impl Into<String>, tenant_id: Option<TenantId>, message: &Message, attempt: u32) -> Self {
        let Message { topic, payload, secret, .. } = message.clone();
        Self { id, key: key.into(), tenant_id, topic, payload, secret, attempt }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("id", &self.id)
            .field("key", &self.key)
            .field("tenant_id", &self.tenant_id)
            .field("topic", &self.topic)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// Why a message was not delivered. The text is kept for operators: no secret belongs in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeliveryError {
    /// It may succeed later.
    #[error("{0}")]
    Retry(String),
    /// It is not to be delivered now, and this is no try: the tenant is suspended, say.
    #[error("{0}")]
    Held(String),
    /// It will never succeed: no such address, say.
    #[error("{0}")]
    Refused(String),
}

/// Where messages go: mail, a queue, a log.
///
/// # Contract
/// - A message may come again, with the same key: after a lost answer, or when the worker was lost. Whoever minds compares keys.
/// - Messages come in no particular order, and several at once.
/// - A call that takes too long is dropped, and counts as [`DeliveryError::Retry`].
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Delivers a message, or says why not. A message that is none of this sink's business is `Ok`.
    async fn deliver(&self, delivery: &Delivery) -> Result<(), DeliveryError>;
}

/// Several sinks: each gets every message, in this order, until one of them fails. Those before it get it again then.
#[derive(Clone)]
pub struct Each(Vec<Arc<dyn Sink>>);

impl Each {
    /// These, in their order: first those to which a repetition makes no difference.
    pub fn new(sinks: Vec<Arc<dyn Sink>>) -> Self {
        Self(sinks)
    }
}

impl fmt::Debug for Each {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Each").field("sinks", &self.0.len()).finish()
    }
}

#[async_trait]
impl Sink for Each {
    async fn deliver(&self, delivery: &Delivery) -> Result<(), DeliveryError> {
        for sink in &self.0 {
            sink.deliver(delivery).await?;
        }
        Ok(())
    }
}

/// How often, and how far apart, delivery is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    attempts: u32,
    first: Duration,
    longest: Duration,
}

impl Default for RetryPolicy {
    /// 12 tries in about four hours.
    fn default() -> Self {
        Self::new(12, Duration::from_secs(10), Duration::from_secs(3600))
    }
}

impl RetryPolicy {
    /// At most `attempts` tries; `first` after the first of them, then twice as long each time, up to `longest`.
    pub const fn new(attempts: u32, first: Duration, longest: Duration) -> Self {
        Self { attempts, first, longest }
    }

    /// The most tries.
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long to wait after the `attempt`th try (from 1) has failed; `None` when it was the last. `luck` from 0 to 1 takes up to half
    /// of it off, so that what failed together is not tried together.
    pub fn wait(&self, attempt: u32, luck: f64) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        let doubled = 2_u32.checked_pow(attempt.saturating_sub(1)).and_then(|times| self.first.checked_mul(times));
        let full = doubled.unwrap_or(self.longest).min(self.longest);
        Some(full.mul_f64(1.0 - luck.clamp(0.0, 1.0) / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn topics_and_keys_are_checked_and_a_secret_is_not_printed() {
        let secret = Map::from_iter([("token".to_owned(), "s3cret".into())]);
        let message = Message::new("member.invited", "invite:1", Value::Null).expect("a message").with_secret(secret);
        assert!(!format!("{message:?}").contains("s3cret") && message.secret()["token"] == "s3cret");
        for (topic, key) in
            [("invited", "x"), ("", "x"), ("a..b", "x"), ("A.b", "x"), ("a.b ", "x"), ("a.b", ""), ("a.b", "x y"), ("a.b", "é")]
        {
            assert_eq!(Message::new(topic, key, Value::Null).expect_err("refused").kind(), ErrorKind::Invalid, "{topic:?} {key:?}");
        }
        assert!(Message::new("a.b", "x".repeat(201), Value::Null).is_err());
    }

    #[test]
    fn waits_double_up_to_the_longest_and_end() {
        let policy = RetryPolicy::new(6, Duration::from_secs(10), Duration::from_secs(60));
        let waits: Vec<_> = (1..=7).map(|attempt| policy.wait(attempt, 0.0).map(|wait| wait.as_secs())).collect();
        assert_eq!(waits, [Some(10), Some(20), Some(40), Some(60), Some(60), None, None]);
        assert_eq!(policy.wait(2, 1.0), Some(Duration::from_secs(10)), "luck takes half off");
        assert_eq!(policy.wait(2, 7.0), Some(Duration::from_secs(10)), "and no more");
        let endless = RetryPolicy::new(u32::MAX, Duration::from_secs(10), Duration::from_secs(60));
        assert_eq!(endless.wait(u32::MAX - 1, 0.0), Some(Duration::from_secs(60)));
        assert_eq!(RetryPolicy::new(1, Duration::ZERO, Duration::ZERO).wait(1, 0.0), None);
    }

    #[test]
    fn a_delivery_does_not_print_what_it_says() {
        let secret = Map::from_iter([("token".to_owned(), "s3cret".into())]);
        let message = Message::new("member.invited", "k", serde_json::json!({ "to": "ada@example.com" })).expect("a message");
        let delivery = Delivery::new(1, "platform:member.invited:k", None, &message.with_secret(secret), 1);
        let printed = format!("{delivery:?}");
        assert!(!printed.contains("s3cret") && !printed.contains("ada@") && printed.contains("member.invited"));
    }
}
