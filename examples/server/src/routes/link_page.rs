//! The page of a link, for people: plain HTML without a script or a style. Everything that somebody wrote is escaped.

use super::public::Shown;

/// What a link shows.
pub(super) fn document(shown: &Shown) -> String {
    let title = escape(&shown.document.title);
    let mut body = format!("<h1>{title}</h1>\n<pre>{}</pre>\n", escape(&shown.document.content));
    if !shown.attachments.is_empty() {
        body += "<h2>Attachments</h2>\n<ul>\n";
        for attachment in &shown.attachments {
            let (href, name) = (escape(&attachment.href), escape(&attachment.name));
            body += &format!("<li><a href=\"{href}\" rel=\"noreferrer\">{name}</a> ({} bytes)</li>\n", attachment.size);
        }
        body += "</ul>\n<p>The attachments can be saved for ten minutes; open the link again for more time.</p>\n";
    }
    page(&title, &body)
}

/// Asks for the passphrase.
pub(super) fn passphrase(was_wrong: bool) -> String {
    let why = if was_wrong { "<p>That is not the passphrase.</p>\n" } else { "" };
    let form = "<form method=\"post\">\n<label>Passphrase: <input type=\"password\" name=\"passphrase\" autocomplete=\"off\" required></label>\n\
                <button>Open</button>\n</form>\n";
    page("A passphrase is needed", &format!("<h1>A passphrase is needed</h1>\n{why}{form}"))
}

/// For every link that shows nothing.
pub(super) fn nothing() -> String {
    page("There is nothing here", "<h1>There is nothing here</h1>\n<p>The link is wrong, or it shows nothing any more.</p>\n")
}

/// Both are HTML already.
fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

/// The text as HTML, inside an element or a quoted attribute.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut html, c| {
        match c {
            '&' => html += "&amp;",
            '<' => html += "&lt;",
            '>' => html += "&gt;",
            '"' => html += "&quot;",
            '\'' => html += "&#39;",
            c => html.push(c),
        }
        html
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_somebody_wrote_is_markup() {
        assert_eq!(escape("<img src=x onerror='a()'> & \"q\""), "&lt;img src=x onerror=&#39;a()&#39;&gt; &amp; &quot;q&quot;");
        assert_eq!(escape("&lt;"), "&amp;lt;");
        assert_eq!(escape("Straße"), "Straße");
    }
}
