//! Settings that a service declares in Rust, and whose values come in layers: what the tenant set, else what its plan gives, else the default.
//!
//! ```
//! use std::time::Duration;
//! use tenancy_core::config::{Layer, Period, Setting, Settings, Source};
//!
//! let idle = Setting::new("session.idle", Period::from(Duration::from_secs(1800))).about("How long a session may be idle");
//! let seats = Setting::new("board.columns", 5u32).within(1..=20);
//! let settings = Settings::new().with(&idle)?.with(&seats)?;
//!
//! let layer = |json: &str| serde_json::from_str::<Layer>(json).expect("an object");
//! let config = settings.effective(&layer(r#"{"board.columns": 10}"#), &layer(r#"{"session.idle": "15m"}"#));
//! assert_eq!((config.get(&seats), config.source("board.columns")), (10, Some(Source::Plan)));
//! assert_eq!((*config.get(&idle), config.source("session.idle")), (Duration::from_secs(900), Some(Source::Tenant)));
//! assert_eq!(settings.check(&layer(r#"{"board.columns": 21}"#)).unwrap_err().to_string(), "board.columns: must be from 1 to 20");
//! # Ok::<_, tenancy_core::Error>(())
//! ```

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

mod setting;
mod value;

pub use setting::Setting;
pub use value::{Period, WebAddress};

/// What one level has set: values by their keys.
pub type Layer = Map<String, Value>;

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Source {
    /// Nobody has set it.
    Default,
    /// The tenant's plan.
    Plan,
    /// The tenant.
    Tenant,
}

type Check = Box<dyn Fn(&Value) -> Result<()> + Send + Sync>;

struct Declared {
    about: &'static str,
    default: Value,
    check: Check,
}

/// The settings that there are. Others are refused.
#[derive(Default)]
pub struct Settings(BTreeMap<&'static str, Declared>);

impl Settings {
    /// The longest value, in bytes of JSON text.
    pub const MAX_VALUE_LEN: usize = 4096;

    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares one more.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) at the key: it is declared already, is no key, or its own default breaks its rule.
    pub fn with<T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static>(mut self, setting: &Setting<T>) -> Result<Self> {
        let key = setting.key();
        let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.');
        if key.len() > 100 || !key.bytes().all(plain) || !key.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(Error::invalid(key, "must be a key of at most 100 characters of a-z, 0-9, '_' and '.'"));
        }
        let default = serde_json::to_value(setting.default_value()).map_err(|e| Error::invalid(key, "has no JSON form").with_source(e))?;
        setting.parse(&default)?;
        let (rule, object) = (setting.clone(), default.is_object());
        let check = move |value: &Value| {
            // serde would also take an array for a struct: its fields in their order, without their names.
            if object && !value.is_object() {
                return Err(Error::invalid(key, "must be an object"));
            }
            rule.parse(value).map(drop)
        };
        let declared = Declared { about: setting.describes(), default, check: Box::new(check) };
        if self.0.insert(key, declared).is_some() {
            return Err(Error::invalid(key, "is declared twice"));
        }
        Ok(self)
    }

    /// Whether every key is declared and every value allowed; `null`, which unsets a key, always is.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) at the first key (or the place inside its value) that isn't.
    pub fn check(&self, change: &Layer) -> Result<()> {
        for (key, value) in change {
            let Some(declared) = self.0.get(key.as_str()) else {
                return Err(Error::invalid(field(key), "is no setting of this service"));
            };
            if !value.is_null() {
                fits(key, value).and_then(|()| (declared.check)(value))?;
            }
        }
        Ok(())
    }

    /// What counts for a tenant. A value that is not allowed (any more) is passed over, as if it had not been set.
    pub fn effective(&self, plan: &Layer, tenant: &Layer) -> Config {
        let entries = self.0.iter().map(|(key, declared)| {
            let of = |layer: &Layer| layer.get(*key).filter(|value| (declared.check)(value).is_ok()).cloned();
            let (value, source) = of(tenant)
                .map(|value| (value, Source::Tenant))
                .or_else(|| of(plan).map(|value| (value, Source::Plan)))
                .unwrap_or_else(|| (declared.default.clone(), Source::Default));
            (*key, Entry { value, source, default: declared.default.clone(), about: declared.about })
        });
        Config(entries.collect())
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Settings").field(&self.0.keys().collect::<Vec<_>>()).finish()
    }
}

fn fits(key: &str, value: &Value) -> Result<()> {
    let text = value.to_string();
    if text.len() > Settings::MAX_VALUE_LEN || text.contains("\\u0000") {
        return Err(Error::invalid(field(key), "must have at most 4096 bytes of JSON text, and not the character U+0000"));
    }
    Ok(())
}

/// A key as the path of an error. What can't be one is not repeated.
fn field(key: &str) -> String {
    let plain = key.len() <= 100 && !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic());
    if plain { key.to_owned() } else { "settings".to_owned() }
}

/// One setting as it counts for a tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// What counts.
    pub value: Value,
    /// Why.
    #[serde(rename = "from")]
    pub source: Source,
    /// What counts where nobody sets it.
    pub default: Value,
    /// What it is for.
    pub about: &'static str,
}

/// Every declared setting, as it counts for one tenant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config(BTreeMap<&'static str, Entry>);

impl Config {
    /// The value of `setting`: its default if it was never declared.
    pub fn get<T: DeserializeOwned + Clone>(&self, setting: &Setting<T>) -> T {
        let entry = self.0.get(setting.key());
        entry.and_then(|entry| T::deserialize(&entry.value).ok()).unwrap_or_else(|| setting.default_value().clone())
    }

    /// Where the value of `key` comes from, if there is such a setting.
    pub fn source(&self, key: &str) -> Option<Source> {
        self.0.get(key).map(|entry| entry.source)
    }

    /// All of them, by their keys.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, &Entry)> {
        self.0.iter().map(|(key, entry)| (*key, entry))
    }
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase", deny_unknown_fields)]
    enum Digest {
        Daily,
        Weekly,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Hours {
        from: u8,
        to: u8,
    }

    fn settings() -> (Settings, Setting<u32>, Setting<Hours>) {
        let size = Setting::new("page.size", 50u32).within(1..=200);
        let hours = Setting::new("support.hours", Hours { from: 9, to: 17 })
            .checked(|hours| if hours.from < hours.to { Ok(()) } else { Err("must end after it begins".into()) });
        let settings = Settings::new()
            .with(&size)
            .and_then(|all| all.with(&hours))
            .and_then(|all| all.with(&Setting::new("digest", Digest::Weekly)))
            .and_then(|all| all.with(&Setting::line("greeting", "Hello", 1..=20)))
            .and_then(|all| all.with(&Setting::new("beta", false)));
        (settings.expect("declared"), size, hours)
    }

    fn layer(value: &Value) -> Layer {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn the_tenants_value_counts_then_the_plans_then_the_default() {
        let (settings, size, hours) = settings();
        let (plan, tenant) = (layer(&json!({ "page.size": 100, "beta": true })), layer(&json!({ "page.size": 20 })));
        for (plan, tenant, value, source) in [
            (&Layer::new(), &Layer::new(), 50, Source::Default),
            (&plan, &Layer::new(), 100, Source::Plan),
            (&Layer::new(), &tenant, 20, Source::Tenant),
            (&plan, &tenant, 20, Source::Tenant),
        ] {
            let config = settings.effective(plan, tenant);
            assert_eq!((config.get(&size), config.source("page.size")), (value, Some(source)));
            assert_eq!(config.get(&hours), Hours { from: 9, to: 17 });
            assert_eq!(config.entries().count(), 5);
        }
        // What a newer version of the service does not take any more does not stop it.
        let old = layer(&json!({ "page.size": 5000, "gone": 1, "support.hours": "always" }));
        let config = settings.effective(&plan, &old);
        assert_eq!((config.get(&size), config.source("page.size"), config.source("gone")), (100, Some(Source::Plan), None));
        assert_eq!(config.source("support.hours"), Some(Source::Default));
    }

    #[test]
    fn what_is_not_allowed_is_told_with_its_path() {
        let (settings, ..) = settings();
        let good =
            json!({ "page.size": 1, "digest": "daily", "greeting": "Grüezi", "beta": null, "support.hours": { "from": 1, "to": 2 } });
        settings.check(&layer(&good)).expect("allowed");
        for (change, says) in [
            (json!({ "page.size": 0 }), "page.size: must be from 1 to 200"),
            (json!({ "page.size": 1.5 }), "page.size: invalid type: floating point `1.5`, expected u32"),
            (json!({ "page.size": "1" }), "page.size: invalid type: string \"1\", expected u32"),
            (json!({ "digest": "hourly" }), "digest: unknown variant `hourly`, expected `daily` or `weekly`"),
            (json!({ "support.hours": { "from": 9, "to": "x" } }), "support.hours.to: invalid type: string \"x\", expected u8"),
            (json!({ "support.hours": { "from": 9, "to": 9 } }), "support.hours: must end after it begins"),
            (json!({ "support.hours": [9, 17] }), "support.hours: must be an object"),
            (json!({ "greeting": "" }), "greeting: must have 1 to 20 characters, and no control characters"),
            (json!({ "greeting": "a\r\nBcc: x" }), "greeting: must have 1 to 20 characters, and no control characters"),
            (json!({ "nope": 1 }), "nope: is no setting of this service"),
            (json!({ "a\r\nb": 1 }), "settings: is no setting of this service"),
            (json!({ "greeting": "x".repeat(5000) }), "greeting: must have at most 4096 bytes of JSON text, and not the character U+0000"),
        ] {
            let error = settings.check(&layer(&change)).expect_err("refused");
            assert_eq!((error.kind(), error.to_string().as_str()), (crate::ErrorKind::Invalid, says));
        }
    }

    #[test]
    fn a_declaration_must_make_sense() {
        let wrong = |added: Result<Settings>| added.expect_err("refused").message().to_owned();
        assert!(wrong(Settings::new().with(&Setting::new("x", 300).within(1..=200))).contains("1 to 200"), "a default out of range");
        assert_eq!(wrong(Settings::new().with(&Setting::new("x", 1)).and_then(|all| all.with(&Setting::new("x", 2)))), "is declared twice");
        assert!(wrong(Settings::new().with(&Setting::new("X y", 1))).contains("a-z"));
    }
}
