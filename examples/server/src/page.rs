//! Lists, a page at a time: `{"items": […], "next_cursor": …}`, the newest first.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use tenancy_core::{Error, Result};
use uuid::Uuid;

/// Which list a cursor belongs to: one of another list is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    Tenants = b't' as isize,
    Projects = b'p' as isize,
    Documents = b'd' as isize,
    Members = b'm' as isize,
    Outbox = b'o' as isize,
    Audit = b'a' as isize,
    Invites = b'i' as isize,
    ApiTokens = b'k' as isize,
    Config = b'c' as isize,
    Operators = b'O' as isize,
    Impersonations = b'I' as isize,
    Shares = b's' as isize,
    Links = b'l' as isize,
    AllDocuments = b'u' as isize,
    Peers = b'P' as isize,
    Outgoing = b'F' as isize,
    Incoming = b'f' as isize,
    Comments = b'C' as isize,
}

/// One page.
#[derive(Debug, Serialize)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// A page of at most `limit` from `items`, which has one more if there is a next page.
    pub(crate) fn from_one_more(mut items: Vec<T>, limit: usize, list: List, id: impl Fn(&T) -> Uuid) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(|last| encode(list, id(last)));
        Self { items, next_cursor }
    }
}

/// The query of a list that has no filters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    limit: Option<usize>,
    cursor: Option<String>,
}

impl PageQuery {
    const DEFAULT_LIMIT: usize = 50;
    const MAX_LIMIT: usize = 200;

    /// For a list that has filters beside.
    pub(crate) const fn new(limit: Option<usize>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    pub(crate) fn limit(&self) -> Result<usize> {
        match self.limit {
            None => Ok(Self::DEFAULT_LIMIT),
            Some(limit) if (1..=Self::MAX_LIMIT).contains(&limit) => Ok(limit),
            Some(_) => Err(Error::invalid("limit", "must be 1 to 200")),
        }
    }

    /// Only ids before this one are on the page.
    pub(crate) fn before(&self, list: List) -> Result<Uuid> {
        self.after(list).map(|last| last.unwrap_or(Uuid::max()))
    }

    /// The last one of the page before.
    pub(crate) fn after(&self, list: List) -> Result<Option<Uuid>> {
        self.cursor.as_deref().map(|cursor| decode(list, cursor)).transpose()
    }
}

/// Opaque to clients: the list and the last id of a page. It opens nothing: what the next page shows is decided anew.
pub(crate) fn encode(list: List, last: Uuid) -> String {
    let mut bytes = [list as u8; 17];
    bytes[1..].copy_from_slice(last.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn decode(list: List, cursor: &str) -> Result<Uuid> {
    let mut bytes = [0; 17];
    let decoded = URL_SAFE_NO_PAD.decode_slice(cursor, &mut bytes);
    match bytes {
        [tag, id @ ..] if decoded == Ok(17) && tag == list as u8 => Ok(Uuid::from_bytes(id)),
        _ => Err(Error::invalid("cursor", "must be the next_cursor of a page of this list")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_of_one_list() {
        let id = Uuid::now_v7();
        let cursor = encode(List::Projects, id);
        assert!(cursor.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')), "{cursor}");
        assert_eq!(decode(List::Projects, &cursor).expect("ours"), id);
        assert_eq!(decode(List::Tenants, &cursor).expect_err("another list").field(), Some("cursor"));
        for bad in ["", "x", &cursor[1..], &format!("{cursor}A"), &format!("{cursor}="), &id.to_string(), &"A".repeat(5000), "é"] {
            assert!(decode(List::Projects, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_page_has_no_cursor() {
        let ids: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
        let page = Page::from_one_more(ids.clone(), 2, List::Projects, |id| *id);
        assert_eq!((page.items.len(), page.next_cursor), (2, Some(encode(List::Projects, ids[1]))));
        assert_eq!(Page::from_one_more(ids, 3, List::Projects, |id| *id).next_cursor, None);
    }

    #[test]
    fn limits_are_bounded() {
        let limit = |limit| PageQuery { limit, cursor: None }.limit();
        assert_eq!(limit(None).expect("default"), 50);
        assert!(limit(Some(0)).is_err() && limit(Some(201)).is_err() && limit(Some(200)).is_ok());
    }
}
