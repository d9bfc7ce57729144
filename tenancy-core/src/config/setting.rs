//! One setting: its key, its type, its default and its rule.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};

type Rule<T> = Arc<dyn Fn(&T) -> Result<(), Cow<'static, str>> + Send + Sync>;

/// A setting of type `T`: any type that serde reads, such as `bool`, a number, an enum, a [`Period`](super::Period), a
/// [`WebAddress`](super::WebAddress) or a struct.
#[derive(Clone)]
pub struct Setting<T> {
    key: &'static str,
    about: &'static str,
    default: T,
    rules: Vec<Rule<T>>,
}

impl<T> Setting<T> {
    /// A setting that takes any value of its type.
    pub const fn new(key: &'static str, default: T) -> Self {
        Self { key, about: "", default, rules: Vec::new() }
    }

    /// Says what it is for.
    #[must_use]
    pub fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    /// Also asks `rule`, whose error says what is allowed.
    #[must_use]
    pub fn checked(mut self, rule: impl Fn(&T) -> Result<(), Cow<'static, str>> + Send + Sync + 'static) -> Self {
        self.rules.push(Arc::new(rule));
        self
    }

    /// Only values in `range`.
    #[must_use]
    pub fn within(self, range: RangeInclusive<T>) -> Self
    where
        T: PartialOrd + fmt::Display + Send + Sync + 'static,
    {
        self.checked(move |value| {
            let allowed = range.contains(value);
            if allowed { Ok(()) } else { Err(format!("must be from {} to {}", range.start(), range.end()).into()) }
        })
    }

    /// The name.
    pub const fn key(&self) -> &'static str {
        self.key
    }

    /// What counts where nobody sets it.
    pub const fn default_value(&self) -> &T {
        &self.default
    }

    pub(super) const fn describes(&self) -> &'static str {
        self.about
    }
}

impl Setting<String> {
    /// One line of text of so many characters.
    pub fn line(key: &'static str, default: impl Into<String>, length: RangeInclusive<usize>) -> Self {
        Self::new(key, default.into()).checked(move |text| {
            if length.contains(&text.chars().count()) && !text.chars().any(char::is_control) {
                return Ok(());
            }
            Err(format!("must have {} to {} characters, and no control characters", length.start(), length.end()).into())
        })
    }

    /// Only texts whose every character is one of those that `named` describes.
    #[must_use]
    pub fn made_of(self, named: &'static str, allowed: fn(char) -> bool) -> Self {
        self.checked(move |text| if text.chars().all(allowed) { Ok(()) } else { Err(format!("must consist of {named}").into()) })
    }
}

impl<T: DeserializeOwned> Setting<T> {
    /// `value` as this setting's, if it may have it.
    pub(super) fn parse(&self, value: &Value) -> Result<T> {
        let parsed: T = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            let field = if matches!(path.as_str(), "." | "?" | "") { self.key.to_owned() } else { format!("{}.{path}", self.key) };
            Error::invalid(field, error.inner().to_string())
        })?;
        for rule in &self.rules {
            rule(&parsed).map_err(|why| Error::invalid(self.key, why))?;
        }
        Ok(parsed)
    }
}

impl<T: fmt::Debug> fmt::Debug for Setting<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting").field("key", &self.key).field("default", &self.default).finish_non_exhaustive()
    }
}
