//! What the mails say.

use std::fmt::Write as _;

use serde_json::Value;
use tenancy_core::outbox::{Delivery, DeliveryError};

use super::Brand;

/// The longest text that comes from outside, in characters.
const MAX_LINE: usize = 100;
/// The longest link, in bytes.
const MAX_LINK: usize = 2000;

/// A mail without its frame.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) subject: String,
    lines: Vec<String>,
    action: Option<Action>,
}

/// What the receiver is to do.
enum Action {
    Open { label: &'static str, link: String },
    Enter { code: String },
}

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Action")
    }
}

impl Letter {
    pub(super) fn knows(topic: &str) -> bool {
        matches!(
            topic,
            "quota.threshold"
                | "quota.resolved"
                | "member.invited"
                | "member.sign_in"
                | "domain.lost"
                | "webhook.disabled"
                | "link.sent"
                | "share.offered"
        )
    }

    pub(super) fn of(delivery: &Delivery, brand: &Brand) -> Result<Self, DeliveryError> {
        let product = &brand.product;
        let text = |field: &str| delivery.payload[field].as_str().map(line).filter(|text| !text.is_empty());
        let number = |field: &str| delivery.payload[field].as_i64();
        let metric = || text("metric").ok_or_else(|| DeliveryError::Refused("the message names no metric".to_owned()));
        Ok(match delivery.topic.as_str() {
            "quota.threshold" => {
                let (metric, percent) = (metric()?, number("threshold").unwrap_or_default());
                let mut lines = vec![format!("{percent} percent of the quota \"{metric}\" are used.")];
                lines.extend(number("used").zip(number("limit")).map(|(used, limit)| format!("Used: {used} of {limit}.")));
                lines.extend(text("period_start").map(|start| format!("The period began at {start}.")));
                Self { subject: format!("{product}: {percent} % of {metric} used"), lines, action: None }
            }
            "quota.resolved" => {
                let (metric, percent) = (metric()?, number("threshold").unwrap_or_default());
                let mut lines = vec![format!("The use of \"{metric}\" is well below {percent} percent of its quota again.")];
                lines.extend(number("used").zip(number("limit")).map(|(used, limit)| format!("Used: {used} of {limit}.")));
                Self { subject: format!("{product}: {metric} is below {percent} % again"), lines, action: None }
            }
            "member.invited" => {
                let inviter = text("inviter").map_or_else(|| "You are invited".to_owned(), |who| format!("{who} invites you"));
                let role = text("role").map(|role| format!(" as {role}")).unwrap_or_default();
                let lines = vec![format!("{inviter} to join {product}{role}."), "If you did not expect this, ignore it.".to_owned()];
                let action = Some(Action::of(&delivery.secret, "Accept the invitation")?);
                Self { subject: format!("{product}: your invitation"), lines, action }
            }
            "domain.lost" => {
                let domain = text("domain").ok_or_else(|| DeliveryError::Refused("the message names no domain".to_owned()))?;
                let lines = vec![
                    format!("The TXT record that proves {domain} is gone, so nothing is served there any more."),
                    "To have it back, publish the record and verify the domain again.".to_owned(),
                ];
                Self { subject: format!("{product}: {domain} is no longer verified"), lines, action: None }
            }
            "webhook.disabled" => {
                let (host, why) = (text("host").unwrap_or_default(), text("why").unwrap_or_default());
                let lines =
                    vec![format!("A webhook to {host} was disabled: {why}."), "It gets nothing until you enable it again.".to_owned()];
                Self { subject: format!("{product}: a webhook was disabled"), lines, action: None }
            }
            "share.offered" => {
                let owner = text("owner_name").ok_or_else(|| DeliveryError::Refused("the message names no owner".to_owned()))?;
                let resource = text("resource").unwrap_or_default();
                let kind = resource.split(':').next().unwrap_or_default().replace('_', " ");
                let use_ = match text("perms").as_deref() {
                    Some("write") => "read and change",
                    Some("comment") => "read and comment on",
                    _ => "read",
                };
                let lines = vec![
                    format!("{owner} offers to share something with {product}: a {kind}, to {use_}."),
                    "It shows nothing until an admin accepts it.".to_owned(),
                ];
                Self { subject: format!("{product}: {owner} offers to share a {kind}"), lines, action: None }
            }
            "link.sent" => {
                let sender = text("sender").unwrap_or_else(|| "Somebody".to_owned());
                let mut lines = vec![format!("{sender} of {product} sends you a link.")];
                lines.extend(text("label").map(|label| format!("It shows: {label}")));
                if delivery.payload["has_passphrase"] == true {
                    lines.push("It asks for a passphrase, which you get from the sender.".to_owned());
                }
                lines.extend(text("expires_at").map(|until| format!("It can be opened until {until}.")));
                lines.push("It is for you alone: whoever has it can open it.".to_owned());
                let action = Some(Action::of(&delivery.secret, "Open it")?);
                Self { subject: format!("{product}: a link for you"), lines, action }
            }
            _ => {
                let lines = vec![
                    format!("Somebody asked to sign in to {product} with this address."),
                    "If it was not you, ignore this.".to_owned(),
                ];
                Self { subject: format!("{product}: sign in"), lines, action: Some(Action::of(&delivery.secret, "Sign in")?) }
            }
        })
    }

    pub(super) fn text(&self, brand: &Brand) -> String {
        let mut text = format!("{}\n\n", self.lines.join("\n"));
        match &self.action {
            Some(Action::Open { label, link }) => _ = writeln!(text, "{label}: {link}\n"),
            Some(Action::Enter { code }) => _ = writeln!(text, "Your code: {code}\n"),
            None => {}
        }
        _ = writeln!(text, "{}", brand.product);
        if let Some(support) = &brand.support {
            _ = writeln!(text, "Questions: {support}");
        }
        text
    }

    pub(super) fn html(&self, brand: &Brand) -> String {
        let mut html = format!("<!doctype html><html><head><meta charset=\"utf-8\"><title>{}</title></head><body>", escaped(&self.subject));
        for line in &self.lines {
            _ = write!(html, "<p>{}</p>", escaped(line));
        }
        match &self.action {
            Some(Action::Open { label, link }) => _ = write!(html, "<p><a href=\"{}\" rel=\"noreferrer\">{label}</a></p>", escaped(link)),
            Some(Action::Enter { code }) => _ = write!(html, "<p>Your code: <code>{}</code></p>", escaped(code)),
            None => {}
        }
        _ = write!(html, "<p>{}", escaped(&brand.product));
        if let Some(support) = &brand.support {
            let support = escaped(support.as_ref());
            _ = write!(html, "<br>Questions: <a href=\"mailto:{support}\">{support}</a>");
        }
        html.push_str("</p></body></html>");
        html
    }
}

impl Action {
    fn of(secret: &Value, label: &'static str) -> Result<Self, DeliveryError> {
        if let Some(link) = secret["link"].as_str() {
            let web = url::Url::parse(link).is_ok_and(|url| matches!(url.scheme(), "https" | "http") && url.has_host());
            if !web || link.len() > MAX_LINK || !link.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(DeliveryError::Refused("the link must be an http(s) URL".to_owned()));
            }
            return Ok(Self::Open { label, link: link.to_owned() });
        }
        match secret["token"].as_str() {
            Some(code) if !code.is_empty() && code.len() <= MAX_LINK && code.bytes().all(|b| b.is_ascii_graphic()) => {
                Ok(Self::Enter { code: code.to_owned() })
            }
            _ => Err(DeliveryError::Refused("the message has neither link nor token".to_owned())),
        }
    }
}

/// A text as one short line, without what controls: no line break, and nothing that turns the direction of writing.
pub(super) fn line(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    let spaced: String = text.chars().map(|c| if c.is_control() || turns(c) { ' ' } else { c }).collect();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_LINE).collect()
}

/// A text in HTML, also inside an attribute.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_link_is_of_the_web_and_nothing_else() {
        for (secret, good) in [
            (json!({ "link": "https://app.example.com/join#t" }), true),
            (json!({ "token": "abc" }), true),
            (json!({ "link": "javascript:alert(1)" }), false),
            (json!({ "link": "https://x.example/\r\n.\r\n" }), false),
            (json!({ "link": "https://x.example/ y" }), false),
            (json!({ "link": "/join", "token": "abc" }), false),
            (json!({ "token": "a\r\nb" }), false),
            (json!(null), false),
        ] {
            assert_eq!(Action::of(&secret, "Open").is_ok(), good, "{secret}");
        }
    }

    #[test]
    fn a_line_is_one_line_and_html_is_escaped() {
        assert_eq!(line("  a\r\nBcc: b\u{202e}c\0\u{2028}d  "), "a Bcc: b c d");
        assert_eq!(line(&"é".repeat(500)).chars().count(), MAX_LINE);
        assert_eq!(escaped("<a href='x\"&"), "&lt;a href=&#39;x&quot;&amp;");
    }

    #[test]
    fn what_happened_is_told_with_its_name() {
        let brand = Brand { product: "Acme".to_owned(), support: None };
        for (topic, payload, words) in [
            ("domain.lost", json!({ "domain": "shop.example.com" }), ["shop.example.com", "TXT record"]),
            (
                "webhook.disabled",
                json!({ "host": "hooks.example.com", "why": "it answered 410" }),
                ["hooks.example.com", "it answered 410"],
            ),
            (
                "share.offered",
                json!({ "owner_name": "Globex\r\nCorp", "resource": "time_sheet:018f", "perms": "comment" }),
                ["Globex Corp offers", "a time sheet, to read and comment on"],
            ),
        ] {
            let message = tenancy_core::outbox::Message::new(topic, "k", payload).expect("a message");
            let letter = Letter::of(&Delivery::new(1, "k", None, &message, 1), &brand).expect("a letter");
            assert!(Letter::knows(topic) && words.iter().all(|word| letter.text(&brand).contains(word)), "{}", letter.text(&brand));
        }
        let nameless = tenancy_core::outbox::Message::new("domain.lost", "k", json!({})).expect("a message");
        assert!(Letter::of(&Delivery::new(1, "k", None, &nameless, 1), &brand).is_err());
    }
}
