//! What somebody must be told, or a job that must be done, written in the transaction that causes it.

use std::fmt;

use serde_json::{Map, Value};

use crate::{Error, Result};

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
}
