//! Which paths a tenant may name.

use object_store::path::{DELIMITER_CHAR, Path};

use crate::{Error, Result};

/// The longest key that the known object stores accept, in bytes.
const MAX_KEY_LEN: usize = 1024;

/// The longest path of a tenant, in bytes. What is left of the 1024 bytes that object stores accept belongs to the tenant's prefix.
pub const MAX_PATH_LEN: usize = 896;

/// The longest segment of a path, in bytes: file systems accept 255, of which the local store needs some for its temporary names.
pub const MAX_SEGMENT_LEN: usize = 240;

/// The longest root: with a delimiter, the tenant's UUID, another delimiter and the longest path, it fills a key.
pub(super) const MAX_ROOT_LEN: usize = MAX_KEY_LEN - MAX_PATH_LEN - 38;

/// How often a path may be percent-encoded.
const MAX_ENCODINGS: usize = 4;

/// The path that untrusted `text` names; it is refused where it is not plain, and never repaired.
///
/// Refused are: the empty path; more than [`MAX_PATH_LEN`] bytes, or [`MAX_SEGMENT_LEN`] in a segment; a leading, trailing or double
/// `/`; the segments `.` and `..`; control characters and `\`; a last segment that ends in `#` and digits, which the local store keeps
/// for itself; and whatever would be `.`, `..`, a separator or a control character after percent-decoding, once or more often.
///
/// ```
/// use tenancy_core::objects::parse_path;
///
/// assert!(parse_path("invoices/2026/41 (copy).pdf").is_ok());
/// for bad in ["", "/etc/passwd", "a/../../b", "a/%2e%2E/b", "a%2fb", "a\\b", "a//b", "a\0"] {
///     assert!(parse_path(bad).is_err());
/// }
/// ```
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) at `path`.
pub fn parse_path(text: &str) -> Result<Path> {
    let parsed = check(text, Encoded::Nothing).and_then(|()| Path::parse(text).map_err(|_| "is not a path"));
    parsed.map_err(|why| Error::invalid("path", why))
}

/// Which separators may hide in percent-encoding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoded {
    /// None: the text is untrusted, and nobody encodes what is plain.
    Nothing,
    /// `/` and `\` inside a segment, as [`Path::from_iter`] encodes them.
    Separators,
}

/// Whether `path` is plain; if not, why.
pub(super) fn check(path: &str, encoded: Encoded) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("must not be empty");
    }
    if path.len() > MAX_PATH_LEN {
        return Err("must have at most 896 bytes");
    }
    if path.contains('\\') {
        return Err("must not contain '\\'");
    }
    for segment in path.split(DELIMITER_CHAR) {
        if segment.is_empty() {
            return Err("must not begin or end with '/', nor contain '//'");
        }
        if segment.len() > MAX_SEGMENT_LEN {
            return Err("must have at most 240 bytes between two '/'");
        }
    }
    let name = path.rsplit(DELIMITER_CHAR).next().unwrap_or(path);
    if name.split_once('#').is_some_and(|(_, digits)| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())) {
        return Err("must not end in '#' and digits");
    }
    check_traversal(path)?;

    let mut text = path.to_owned();
    for _ in 0..MAX_ENCODINGS {
        let Some(decoded) = decode(&text)? else { return Ok(()) };
        check_traversal(&decoded)?;
        if encoded == Encoded::Nothing && count_separators(&decoded) != count_separators(&text) {
            return Err("must not contain an encoded separator");
        }
        text = decoded;
    }
    Err("is percent-encoded too often")
}

fn check_traversal(text: &str) -> Result<(), &'static str> {
    if text.chars().any(char::is_control) {
        return Err("must not contain control characters");
    }
    if text.split(is_separator).any(|segment| matches!(segment, "." | "..")) {
        return Err("must not contain the segments '.' and '..'");
    }
    Ok(())
}

fn is_separator(c: char) -> bool {
    matches!(c, '/' | '\\')
}

fn count_separators(text: &str) -> usize {
    text.chars().filter(|c| is_separator(*c)).count()
}

/// `text` with every `%` and two hexadecimal digits decoded; `None` if there are none.
fn decode(text: &str) -> Result<Option<String>, &'static str> {
    let hex = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16)).and_then(|digit| u8::try_from(digit).ok());
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(high << 4 | low);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    if decoded.len() == bytes.len() {
        return Ok(None);
    }
    // Also refuses overlong forms, such as `%c0%ae` for a dot.
    String::from_utf8(decoded).map(Some).map_err(|_| "must be UTF-8 after percent-decoding")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn plain_paths_are_kept_as_they_are() {
        let longest = vec!["a".repeat(240); 3].join("/") + "/" + &"b".repeat(MAX_PATH_LEN - 723);
        let good = ["a", "a/b/c.pdf", "ä/😀 x.txt", "...", "a..b", ".hidden", "100%", "%Q", "a%20b", "v1%2E2", "#1/x", "a#1.pdf", &longest];
        for text in good {
            assert_eq!(parse_path(text).unwrap().as_ref(), text);
        }
    }

    #[test]
    fn hostile_paths_are_refused() {
        let (long, long_segment) = (vec!["a".repeat(100); 9].join("/"), "a".repeat(MAX_SEGMENT_LEN + 1));
        let bad = [
            "",
            "/",
            "//",
            ".",
            "..",
            "/a",
            "a/",
            "a//b",
            "./a",
            "a/.",
            "../a",
            "a/../b",
            "a/..",
            "\\",
            "a\\b",
            "..\\a",
            "C:\\x",
            "a\0b",
            "a\nb",
            "a\u{7f}",
            "a\u{85}",
            "%2e",
            "%2E%2e/a",
            "a/.%2e",
            "a%2fb",
            "a%2Fb",
            "%2f",
            "a%5cb",
            "a%5C..%5cb",
            "a%00b",
            "a%0ab",
            "%252e%252e/a",
            "a%252fb",
            "%25252e%25252e",
            "%2525252525252e",
            "%c0%ae%c0%ae/a",
            "%ff",
            "a#1",
            "x/a#22",
            &long,
            &long_segment,
        ];
        for text in bad {
            let error = parse_path(text).expect_err(text);
            assert_eq!((error.kind(), error.field()), (ErrorKind::Invalid, Some("path")), "{text}");
        }
    }

    #[test]
    fn what_object_store_itself_encodes_is_a_path_of_a_tenant_unless_it_traverses() {
        let accepted = |path: Path| check(path.as_ref(), Encoded::Separators).is_ok();
        assert!(accepted(Path::from_iter(["a", "b/c", "100% ~"])));
        assert!(accepted(Path::from("a\\b")));
        for hostile in
            [Path::from("a/../b"), Path::from(".."), Path::from_iter(["a", "../b"]), Path::from_iter(["x\\..\\y"]), Path::from("a\0")]
        {
            assert!(!accepted(hostile));
        }
        assert!(!accepted(Path::ROOT));
        assert!(!accepted(Path::parse("a%2F%2e%2e%2Fb").unwrap()));
    }
}
