//! How a tenant's service looks: names, addresses, colours and a logo, kept in [`Tenant::branding`](crate::Tenant::branding).
//!
//! What a tenant writes is checked by [`Branding::parse`]. The object may hold more, and older things: [`Branding::read`] takes of it what is
//! valid, so that whatever is shown was checked.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Email;
use crate::config::WebAddress;
use crate::error::{Error, Result};

/// What a tenant's admins set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Branding {
    /// What the service is called: 1 to 100 characters, none of them control characters.
    #[serde(default)]
    pub product_name: Option<String>,
    /// Who helps.
    #[serde(default)]
    pub support_email: Option<Email>,
    /// Where help is.
    #[serde(default)]
    pub support_url: Option<WebAddress>,
    /// The colours.
    #[serde(default)]
    pub theme: Option<Theme>,
}

/// Colours for a light and a dark surrounding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Theme {
    /// The usual ones.
    pub light: Palette,
    /// Those of the dark mode; without them, the usual ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dark: Option<Palette>,
}

/// Colours by what they are for. Those of grounds and of the text on them come in pairs.
pub type Palette = BTreeMap<Token, Color>;

/// What a colour is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
#[expect(missing_docs, reason = "`x` is a ground, and `on_x` the text on it")]
pub enum Token {
    Primary,
    OnPrimary,
    Secondary,
    OnSecondary,
    Background,
    OnBackground,
    Surface,
    OnSurface,
    Error,
    OnError,
}

/// Each ground, and the text on it.
const PAIRS: [(Token, Token); 5] = [
    (Token::Primary, Token::OnPrimary),
    (Token::Secondary, Token::OnSecondary),
    (Token::Background, Token::OnBackground),
    (Token::Surface, Token::OnSurface),
    (Token::Error, Token::OnError),
];

impl Token {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::OnPrimary => "on_primary",
            Self::Secondary => "secondary",
            Self::OnSecondary => "on_secondary",
            Self::Background => "background",
            Self::OnBackground => "on_background",
            Self::Surface => "surface",
            Self::OnSurface => "on_surface",
            Self::Error => "error",
            Self::OnError => "on_error",
        }
    }
}

impl TryFrom<String> for Token {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let known = PAIRS.into_iter().flat_map(|(ground, text)| [ground, text]).find(|token| token.as_str() == name);
        known.ok_or_else(|| {
            format!("must name colours by {}, each also with on_ before it", PAIRS.map(|(ground, _)| ground.as_str()).join(", "))
        })
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        token.as_str().to_owned()
    }
}

/// A colour of the sRGB space: `#rrggbb`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Color([u8; 3]);

impl Color {
    /// The least contrast between text and its ground: WCAG 2.2, success criterion 1.4.3, level AA.
    pub const MIN_CONTRAST: f64 = 4.5;

    /// The contrast of two colours, from 1 to 21 (WCAG 2.2, "contrast ratio"): whichever is the text.
    pub fn contrast(self, other: Self) -> f64 {
        let (one, other) = (self.luminance(), other.luminance());
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    /// WCAG 2.2, "relative luminance".
    fn luminance(self) -> f64 {
        let [r, g, b] = self.0.map(|channel| {
            let c = f64::from(channel) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        });
        0.2126f64.mul_add(r, 0.7152f64.mul_add(g, 0.0722 * b))
    }
}

impl FromStr for Color {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let number = number.ok_or_else(|| Error::invalid("color", "must be #rrggbb, such as #1a73e8"))?;
        let [_, r, g, b] = number.to_be_bytes();
        Ok(Self([r, g, b]))
    }
}

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [r, g, b] = self.0;
        write!(f, "#{r:02x}{g:02x}{b:02x}")
    }
}

impl TryFrom<String> for Color {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|e: Error| e.message().to_owned())
    }
}

impl From<Color> for String {
    fn from(color: Color) -> Self {
        color.to_string()
    }
}

/// The names of the fields, as they are in the object.
const FIELDS: [&str; 4] = ["product_name", "support_email", "support_url", "theme"];

impl Branding {
    /// The branding that `object` says, if all of it is valid.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) with the path; of two colours that can't be told apart with the contrast that they have.
    pub fn parse(object: &Map<String, Value>) -> Result<Self> {
        let branding: Self = serde_path_to_error::deserialize(&Value::Object(object.clone())).map_err(|error| {
            let path = error.path().to_string();
            let field = if matches!(path.as_str(), "." | "?" | "") { "branding".to_owned() } else { path };
            Error::invalid(field, error.inner().to_string())
        })?;
        branding.check()?;
        Ok(branding)
    }

    fn check(&self) -> Result<()> {
        if let Some(name) = &self.product_name {
            let length = name.chars().count();
            if !(1..=100).contains(&length) || name.trim() != name || name.chars().any(char::is_control) {
                let rule = "must have 1 to 100 characters, no control characters, and no white space around it";
                return Err(Error::invalid("product_name", rule));
            }
        }
        let Some(theme) = &self.theme else { return Ok(()) };
        check_palette("theme.light", &theme.light)?;
        theme.dark.as_ref().map_or(Ok(()), |dark| check_palette("theme.dark", dark))
    }

    /// What is valid of `object`, which may hold other things as well.
    pub fn read(object: &Map<String, Value>) -> Self {
        fn field<T: DeserializeOwned>(object: &Map<String, Value>, name: &str) -> Option<T> {
            object.get(name).and_then(|value| T::deserialize(value).ok())
        }
        let mut all = Self {
            product_name: field(object, FIELDS[0]),
            support_email: field(object, FIELDS[1]),
            support_url: field(object, FIELDS[2]),
            theme: field(object, FIELDS[3]),
        };
        if (Self { theme: None, ..all.clone() }).check().is_err() {
            all.product_name = None;
        }
        if all.check().is_err() {
            all.theme = None;
        }
        all
    }

    /// Puts this into `object`, in the place of the branding that it says; other members stay.
    ///
    /// # Errors
    /// None that can happen: every branding has a JSON form.
    pub fn write(&self, object: &mut Map<String, Value>) -> Result<()> {
        let mut fields = self.to_object()?;
        for name in FIELDS {
            match fields.remove(name).filter(|value| !value.is_null()) {
                Some(value) => object.insert(name.to_owned(), value),
                None => object.remove(name),
            };
        }
        Ok(())
    }

    /// This branding with what `change` names in its place; `null` takes a field away.
    ///
    /// # Errors
    /// As [`parse`](Branding::parse).
    pub fn changed(&self, change: &Map<String, Value>) -> Result<Self> {
        let mut object = self.to_object()?;
        object.extend(change.clone());
        Self::parse(&object)
    }

    fn to_object(&self) -> Result<Map<String, Value>> {
        match serde_json::to_value(self) {
            Ok(Value::Object(object)) => Ok(object),
            _ => Err(Error::invalid("branding", "has no JSON form")),
        }
    }
}

fn check_palette(path: &str, palette: &Palette) -> Result<()> {
    for (ground, text) in PAIRS {
        match (palette.get(&ground), palette.get(&text)) {
            (None, None) => {}
            (Some(below), Some(above)) => {
                let contrast = below.contrast(*above);
                if contrast < Color::MIN_CONTRAST {
                    // Rounded down: what is refused must not look as if it were enough.
                    let measured = (contrast * 100.0).floor() / 100.0;
                    let why = format!("has a contrast of {measured:.2}:1 to {}: it must be at least 4.5:1 (WCAG 2.2 AA)", ground.as_str());
                    return Err(Error::invalid(format!("{path}.{}", text.as_str()), why));
                }
            }
            (Some(_), None) => {
                return Err(Error::invalid(format!("{path}.{}", text.as_str()), format!("must be there, beside {}", ground.as_str())));
            }
            (None, Some(_)) => {
                return Err(Error::invalid(format!("{path}.{}", ground.as_str()), format!("must be there, beside {}", text.as_str())));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn contrast_is_that_of_the_standard() {
        let contrast = |one: &str, other: &str| one.parse::<Color>().expect(one).contrast(other.parse().expect(other));
        for (one, other, expected) in [
            ("#000000", "#ffffff", 21.0),
            ("#ffffff", "#000000", 21.0),
            ("#1a73e8", "#1A73E8", 1.0),
            ("#777777", "#ffffff", 4.478),
            ("#767676", "#ffffff", 4.542),
            ("#ff0000", "#ffffff", 3.998),
            ("#0000ff", "#ffffff", 8.592),
        ] {
            assert!((contrast(one, other) - expected).abs() < 0.001, "{one} {other}: {}", contrast(one, other));
        }
    }

    #[test]
    fn colours_are_six_digits() {
        assert_eq!("#1A73e8".parse::<Color>().expect("a colour").to_string(), "#1a73e8");
        for bad in [
            "",
            "#",
            "#fff",
            "1a73e8",
            "#1a73e8ff",
            "#1a73eg",
            "red",
            "#+a73e8",
            "rgb(1,2,3)",
            "#1a73e8;}",
            "url(javascript:x)",
            "#１a73e8",
        ] {
            assert!(bad.parse::<Color>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_path() {
        let good = json!({ "product_name": "Rocket", "support_email": "help@acme.example", "support_url": "https://acme.example/help",
            "theme": { "light": { "primary": "#1a73e8", "on_primary": "#ffffff" }, "dark": { "background": "#101010", "on_background": "#eeeeee" } } });
        let branding = Branding::parse(&object(&good)).expect("valid");
        assert_eq!((branding.product_name.as_deref(), branding.theme.as_ref().map(|theme| theme.light.len())), (Some("Rocket"), Some(2)));
        for (bad, says) in [
            (json!({ "product_name": "" }), "product_name: must have 1 to 100"),
            (json!({ "product_name": "Ro\r\nBcc: x" }), "product_name: must have 1 to 100"),
            (json!({ "support_email": "nobody" }), "support_email: "),
            (json!({ "support_url": "javascript:alert(1)" }), "support_url: must be https://"),
            (json!({ "theme": {} }), "theme: missing field `light`"),
            (json!({ "theme": { "light": { "primary": "red" } } }), "theme.light.primary: must be #rrggbb"),
            (json!({ "theme": { "light": { "shadow": "#000000" } } }), "theme.light.shadow: must name colours by primary, secondary"),
            (json!({ "theme": { "light": { "primary": "#000000" } } }), "theme.light.on_primary: must be there, beside primary"),
            (
                json!({ "theme": { "light": {}, "dark": { "on_surface": "#000000" } } }),
                "theme.dark.surface: must be there, beside on_surface",
            ),
            (
                json!({ "theme": { "light": { "primary": "#ffffff", "on_primary": "#777777" } } }),
                "theme.light.on_primary: has a contrast of 4.47:1 to primary: it must be at least 4.5:1",
            ),
            (json!({ "colour": "#fff" }), "colour: unknown field"),
        ] {
            let error = Branding::parse(&object(&bad)).expect_err("refused").to_string();
            assert!(error.starts_with(says), "{error} is not {says}");
        }
    }

    #[test]
    fn of_an_older_object_only_what_is_valid_is_read_and_the_rest_stays() {
        let old = json!({ "product_name": "Ro\r\nket", "support_email": "help@acme.example", "support_url": "javascript:alert(1)",
            "theme": { "light": { "primary": "#fff" } }, "colour": "#fff", "logo": { "object": "x" } });
        let branding = Branding::read(&object(&old));
        assert_eq!(branding, Branding { support_email: "help@acme.example".parse().ok(), ..Branding::default() });
        let changed = branding.changed(&object(&json!({ "product_name": "Rocket", "support_email": null }))).expect("valid");
        let mut kept = object(&old);
        changed.write(&mut kept).expect("written");
        assert_eq!(json!(kept), json!({ "product_name": "Rocket", "colour": "#fff", "logo": { "object": "x" } }));
        let unreadable = json!({ "theme": { "light": { "primary": "#ffffff", "on_primary": "#eeeeee" } }, "product_name": "x" });
        assert_eq!(Branding::read(&object(&unreadable)), Branding { product_name: Some("x".to_owned()), ..Branding::default() });
    }
}
