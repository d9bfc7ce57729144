//! What tenants can set of this service.

use std::sync::LazyLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tenancy_core::config::{Period, Setting, Settings, WebAddress};
use tenancy_core::{Result, TenantContext};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::config::Configs;

/// How often a summary is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Digest {
    Off,
    Daily,
    Weekly,
}

const DAY: Duration = Duration::from_secs(86_400);

/// Whether attachments can be added.
static UPLOADS: LazyLock<Setting<bool>> =
    LazyLock::new(|| Setting::new("uploads.enabled", true).about("Whether attachments can be added; what is there stays readable"));

/// All of them. Clients read the others; they say what people see.
fn settings() -> Result<Settings> {
    let minute = Period::from(Duration::from_secs(60));
    Settings::new()
        .with(&UPLOADS)?
        .with(&Setting::new("digest.frequency", Digest::Weekly).about("How often admins get a summary"))?
        .with(
            &Setting::new("session.idle", Period::from(30 * Duration::from_secs(60)))
                .within(minute..=Period::from(30 * DAY))
                .about("How long a session may be idle"),
        )?
        .with(&Setting::new("page.size", 50u32).within(10..=200).about("How many items a page shows"))?
        .with(
            &Setting::line("ui.locale", "en", 2..=35)
                .made_of("letters, digits and '-'", |c| c.is_ascii_alphanumeric() || c == '-')
                .about("The language of the interface, as a BCP 47 tag"),
        )?
        .with(&Setting::new("help.url", None::<WebAddress>).about("Where the help is"))
}

/// The values of all of them, in `db`.
///
/// # Errors
/// None: a test makes them.
pub(crate) fn configs(db: &TenantDb) -> Result<Configs> {
    Ok(Configs::new(db, settings()?))
}

/// Whether the tenant lets attachments be added.
///
/// # Errors
/// Those of [`Configs::of`].
pub(crate) async fn uploads_enabled(configs: &Configs, cx: &TenantContext) -> Result<bool> {
    Ok(configs.of(cx).await?.0.get(&UPLOADS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_declared_well() {
        let config = settings().expect("valid").effective(&Default::default(), &Default::default());
        assert!(config.get(&UPLOADS) && config.entries().count() == 6);
    }
}
