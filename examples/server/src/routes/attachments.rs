//! Attachments: files of a document. The row is in the database and the content in object storage; see
//! [`attachment_store`](crate::attachment_store) for which of the two is written first.
//!
//! What is served was written by somebody else, so it is never shown as a page of this origin: it is an attachment, of exactly the type
//! that it was given, in a sandbox.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use object_store::{GetResult, ObjectStoreExt as _, WriteMultipart};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use sqlx::FromRow;
use tenancy_core::objects::{TenantStore, into_error, parse_path};
use tenancy_core::quota::Metric;
use tenancy_core::{AuditEvent, Error, ErrorKind, Result, Role, TenantContext};
use tenancy_sqlx::quota::Reservation;
use tenancy_sqlx::{TenantTx, from_sqlx};
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::documents;
use crate::app::{App, uncancelled};
use crate::attachment_store::{self, discard};
use crate::extract::{Caller, Id, NoQuery, Path, Query, content_length};
use crate::page::Page;
use crate::plans::ROOM_SLACK;
use crate::precondition::{Preconditions, etag, mismatch};
use crate::settings::uploads_enabled;

/// The most attachments of a document: a list of them has one page.
const MAX_PER_DOCUMENT: i64 = 100;
const MAX_NAME: usize = 200;
/// What is read of an upload before it is given to the store, in bytes.
const PART: usize = 1024 * 1024;
/// How many parts of an upload may be on their way to the store.
const PARTS_IN_FLIGHT: usize = 2;

#[derive(Debug, Serialize, FromRow)]
pub(super) struct Attachment {
    pub(super) name: String,
    pub(super) size: i64,
    sha256: String,
    pub(super) content_type: String,
    created_at: DateTime<Utc>,
    #[serde(skip)]
    object: Uuid,
}

pub(super) const COLUMNS: &str = "name, size, sha256, content_type, created_at, object";

/// An attachment as a share or a link shows it, with whose it is.
#[derive(Debug, FromRow)]
pub(super) struct Shared {
    tenant_id: Uuid,
    #[sqlx(flatten)]
    attachment: Attachment,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(document): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Page<Attachment>>, Problem> {
    cx.require(Role::Viewer)?;
    let mut tx = app.db.read(&cx).await?;
    exists(&mut tx, *document).await?;
    let items = sqlx::query_as(
        "select name, size, sha256, content_type, created_at, object from attachments
          where tenant_id = $1 and document_id = $2 order by name",
    )
    .bind(cx.tenant_id().as_uuid())
    .bind(*document)
    .fetch_all(&mut tx)
    .await
    .map_err(from_sqlx)?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

pub(super) async fn download(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path((document, name)): Path<(Id, String)>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    cx.require(Role::Viewer)?;
    check_name(&name)?;
    let found: Attachment = sqlx::query_as(
        "select name, size, sha256, content_type, created_at, object from attachments
          where tenant_id = $1 and document_id = $2 and name = $3",
    )
    .bind(cx.tenant_id().as_uuid())
    .bind(*document)
    .bind(&name)
    .fetch_one(&mut app.db.read(&cx).await?)
    .await
    .map_err(from_sqlx)?;
    let tag = etag(&found.sha256);
    if preconditions.not_modified(&tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    let content = app.objects.scope(&cx)?.get(&attachment_store::path(found.object)).await.map_err(into_error)?;
    Ok(sent(found, content))
}

/// The content of what the database has just shown, from its owner's objects.
pub(super) async fn send_shared(app: &App, Shared { tenant_id, attachment }: Shared, preconditions: &Preconditions) -> Result<Response> {
    let tag = etag(&attachment.sha256);
    if preconditions.not_modified(&tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    let content = app.objects.dangerous_get_shared(tenant_id.try_into()?, &attachment_store::path(attachment.object)).await?;
    Ok(sent(attachment, content))
}

fn sent(found: Attachment, content: GetResult) -> Response {
    let headers: [(HeaderName, String); 5] = [
        (CONTENT_DISPOSITION, disposition(&found.name)),
        (CONTENT_TYPE, found.content_type),
        (CONTENT_LENGTH, found.size.to_string()),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox".to_owned()),
        (ETAG, etag(&found.sha256)),
    ];
    (headers, Body::from_stream(content.into_stream())).into_response()
}

/// Writes the content under a fresh key while it arrives, then the row; replaces an attachment of the same name.
///
/// An upload that is broken off at any point leaves neither: until the content is complete the store has nothing, and from there on the
/// work goes on without the client.
pub(super) async fn upload(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path((document, name)): Path<(Id, String)>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    request: Request,
) -> Result<Response, Problem> {
    cx.require(Role::Member)?;
    check_name(&name)?;
    let content_type = content_type(request.headers())?;
    let too_large = || Error::new(ErrorKind::TooLarge, format!("an attachment must have at most {} bytes", app.max_attachment));
    if content_length(request.headers()).is_some_and(|length| length > app.max_attachment) {
        return Err(too_large().into());
    }
    exists(&mut app.db.read(&cx).await?, *document).await?;
    if !uploads_enabled(&app.configs, &cx).await? {
        return Err(Error::new(ErrorKind::Forbidden, "the tenant's settings allow no attachments to be added").into());
    }
    // Where nobody says how long it is, there must be room for the longest.
    let room = Room::reserve(&app, &cx, content_length(request.headers()).unwrap_or(app.max_attachment)).await?;

    let (store, object) = (app.objects.scope(&cx)?, Uuid::now_v7());
    let mut writing =
        WriteMultipart::new_with_chunk_size(store.put_multipart(&attachment_store::path(object)).await.map_err(into_error)?, PART);
    let (mut size, mut hash) = (0, Sha256::new());
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = match chunk {
            Ok(chunk) if size + chunk.len() as u64 <= app.max_attachment.min(room.amount()) => chunk,
            refused => {
                abandon(writing).await;
                return Err(refused
                    .map_or_else(|error| Error::invalid("body", "was not received whole").with_source(error), |_| too_large())
                    .into());
            }
        };
        size += chunk.len() as u64;
        hash.update(&chunk);
        if let Err(error) = writing.wait_for_capacity(PARTS_IN_FLIGHT).await {
            abandon(writing).await;
            return Err(into_error(error).into());
        }
        writing.put(chunk);
    }
    let attachment = Attachment {
        name,
        size: i64::try_from(size).map_err(|_| too_large())?,
        sha256: hash.finalize().iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        }),
        content_type,
        created_at: app.now(),
        object,
    };
    let location = format!("/api/v1/documents/{}/attachments/{}", *document, percent_encode(&attachment.name));
    let (attachment, replaced) =
        uncancelled(finish(app, cx, *document, attachment, preconditions, Arrived { writing, store, room })).await?;
    let tag = [(ETAG, etag(&attachment.sha256))];
    let status = if replaced { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, tag, [(axum::http::header::LOCATION, location)], axum::Json(attachment)).into_response())
}

async fn abandon(writing: WriteMultipart) {
    if let Err(error) = writing.abort().await {
        tracing::warn!("a part of an upload may be left over: {error}");
    }
}

/// A content that is all there, and its room.
struct Arrived {
    writing: WriteMultipart,
    store: TenantStore,
    room: Room,
}

/// Completes the content, then writes the row; if that fails the content is deleted again.
async fn finish(
    app: Arc<App>,
    cx: TenantContext,
    document: Uuid,
    attachment: Attachment,
    preconditions: Preconditions,
    Arrived { writing, store, room }: Arrived,
) -> Result<(Attachment, bool)> {
    writing.finish().await.map_err(into_error)?;
    match record(&app, &cx, document, &attachment, &preconditions, room).await {
        Ok(replaced) => {
            let had = replaced.is_some();
            discard(&store, replaced.into_iter().collect()).await;
            Ok((attachment, had))
        }
        Err(error) => {
            // Where nobody knows whether the row was kept, its content stays.
            if error.kind() != ErrorKind::OutcomeUnknown {
                discard(&store, vec![attachment.object]).await;
            }
            Err(error)
        }
    }
}

/// Writes the row; returns the object of the one that it replaces.
async fn record(
    app: &App,
    cx: &TenantContext,
    document: Uuid,
    attachment: &Attachment,
    preconditions: &Preconditions,
    mut room: Room,
) -> Result<Option<Uuid>> {
    let mut tx = app.db.begin(cx).await?;
    documents::lock(&mut tx, document, &Preconditions::default()).await?;
    let replaced = current(&mut tx, document, &attachment.name, preconditions).await?;
    if replaced.is_none() {
        let count: i64 = sqlx::query_scalar("select count(*) from attachments where tenant_id = $1 and document_id = $2")
            .bind(cx.tenant_id().as_uuid())
            .bind(document)
            .fetch_one(&mut tx)
            .await
            .map_err(from_sqlx)?;
        if count >= MAX_PER_DOCUMENT {
            return Err(Error::new(ErrorKind::Conflict, format!("a document has at most {MAX_PER_DOCUMENT} attachments")));
        }
    }
    sqlx::query(
        "insert into attachments (tenant_id, document_id, name, object, size, sha256, content_type, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8)
         on conflict (tenant_id, document_id, name) do update set object = excluded.object, size = excluded.size,
            sha256 = excluded.sha256, content_type = excluded.content_type, created_at = excluded.created_at",
    )
    .bind(cx.tenant_id().as_uuid())
    .bind(document)
    .bind(&attachment.name)
    .bind(attachment.object)
    .bind(attachment.size)
    .bind(&attachment.sha256)
    .bind(&attachment.content_type)
    .bind(attachment.created_at)
    .execute(&mut tx)
    .await
    .map_err(from_sqlx)?;
    let size = u64::try_from(attachment.size).unwrap_or_default();
    if let Some((_, replaced)) = replaced {
        tx.shrink(Metric::STORAGE, replaced).await?;
    }
    if let Some(reservation) = &room.reservation {
        tx.settle(reservation, size).await?;
    }
    let committed = tx.commit().await;
    // Where nobody knows whether it was kept, the room is free again when it expires.
    if committed.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::OutcomeUnknown) {
        room.reservation = None;
    }
    committed.map(|()| replaced.map(|(object, _)| object))
}

/// Room in the tenant's storage for an upload under way. Dropped before it was settled, it is given back.
struct Room {
    app: Arc<App>,
    cx: TenantContext,
    reservation: Option<Reservation>,
}

impl Room {
    async fn reserve(app: &Arc<App>, cx: &TenantContext, amount: u64) -> Result<Self> {
        let mut room = Self { app: Arc::clone(app), cx: cx.clone(), reservation: None };
        if amount > 0 {
            let mut tx = app.db.begin(cx).await?;
            let reservation = tx.reserve(Metric::STORAGE, amount, app.upload_timeout + ROOM_SLACK).await?;
            tx.commit().await?;
            room.reservation = Some(reservation);
        }
        Ok(room)
    }

    fn amount(&self) -> u64 {
        self.reservation.as_ref().map_or(0, Reservation::amount)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let Some(reservation) = self.reservation.take() else { return };
        let (app, cx) = (Arc::clone(&self.app), self.cx.clone());
        tokio::spawn(async move {
            let given_back = async {
                let mut tx = app.db.begin(&cx).await?;
                tx.settle(&reservation, 0).await?;
                tx.commit().await
            };
            if let Err(error) = given_back.await {
                tracing::warn!(?error, "an upload's room is kept until it expires");
            }
        });
    }
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path((document, name)): Path<(Id, String)>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<StatusCode, Problem> {
    cx.require(Role::Member)?;
    check_name(&name)?;
    let store = app.objects.scope(&cx)?;
    let mut tx = app.db.begin(&cx).await?;
    let (object, size) = current(&mut tx, *document, &name, &preconditions).await?.ok_or_else(Error::not_found)?;
    sqlx::query("delete from attachments where tenant_id = $1 and document_id = $2 and name = $3")
        .bind(cx.tenant_id().as_uuid())
        .bind(*document)
        .bind(&name)
        .execute(&mut tx)
        .await
        .map_err(from_sqlx)?;
    let mut event = AuditEvent::new(cx.principal().actor(), "attachment.delete", format!("{}/{name}", *document));
    event.request_id = Some(cx.request_id());
    tx.audit(event).await?;
    tx.shrink(Metric::STORAGE, size).await?;
    uncancelled(async move {
        tx.commit().await?;
        discard(&store, vec![object]).await;
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The object of the attachment and its size, if there is one; its row is locked. Fails if the caller expects another one.
async fn current(tx: &mut TenantTx, document: Uuid, name: &str, preconditions: &Preconditions) -> Result<Option<(Uuid, u64)>> {
    let found: Option<(Uuid, String, i64)> =
        sqlx::query_as("select object, sha256, size from attachments where tenant_id = $1 and document_id = $2 and name = $3 for update")
            .bind(tx.tenant_id().as_uuid())
            .bind(document)
            .bind(name)
            .fetch_optional(tx)
            .await
            .map_err(from_sqlx)?;
    if preconditions.permit(found.as_ref().map(|(_, sha256, _)| etag(sha256)).as_deref()) {
        Ok(found.map(|(object, _, size)| (object, u64::try_from(size).unwrap_or_default())))
    } else {
        Err(mismatch())
    }
}

pub(super) async fn exists(tx: &mut TenantTx, document: Uuid) -> Result<()> {
    let query = sqlx::query("select from documents where tenant_id = $1 and id = $2").bind(tx.tenant_id().as_uuid()).bind(document);
    query.fetch_one(tx).await.map(drop).map_err(from_sqlx)
}

/// A name is one plain segment of a path, also after further decoding, so that it is safe to save a file under it.
pub(super) fn check_name(name: &str) -> Result<()> {
    let why = match parse_path(name) {
        Err(error) => error.message().to_owned(),
        Ok(_) if name.contains('/') => "must not contain '/'".to_owned(),
        Ok(_) if name.chars().count() > MAX_NAME => format!("must have at most {MAX_NAME} characters"),
        Ok(_) => return Ok(()),
    };
    Err(Error::invalid("name", why))
}

/// The type that the attachment will be served with.
fn content_type(headers: &HeaderMap) -> Result<String> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok("application/octet-stream".to_owned()) };
    let fits = |text: &&str| text.len() <= 255 && text.contains('/') && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    let text = value.to_str().ok().filter(fits);
    text.map(str::to_owned).ok_or_else(|| Error::invalid("content-type", "must be a media type of at most 255 ASCII characters"))
}

/// Names the file for all clients: a plain form, and one for any script (RFC 6266).
fn disposition(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '%' | ';') { c } else { '_' }).collect();
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{}", percent_encode(name))
}

/// Encodes all but the characters that need it nowhere in a URL.
pub(super) fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_plain_segment() {
        for good in ["a.pdf", "Übersicht 2026 (1).txt", "100%", ".env"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "/a", "a\\b", "..%2fa", "%2e%2e", "a\0", "a\nb", &"x".repeat(201)] {
            assert_eq!(check_name(bad).expect_err(bad).field(), Some("name"), "{bad}");
        }
    }

    #[test]
    fn a_name_can_not_break_out_of_its_header() {
        assert_eq!(disposition("a\"; x=\"é.txt"), "attachment; filename=\"a___x=__.txt\"; filename*=UTF-8''a%22%3B%20x%3D%22%C3%A9.txt");
        assert!(disposition("naïve\u{202e}.txt").is_ascii());
    }

    #[test]
    fn types_are_short_and_ascii() {
        let with = |value: &str| content_type(&HeaderMap::from_iter([(CONTENT_TYPE, value.parse().expect("a header"))]));
        assert_eq!(with("text/plain; charset=utf-8").expect("valid"), "text/plain; charset=utf-8");
        assert_eq!(content_type(&HeaderMap::new()).expect("a default"), "application/octet-stream");
        assert!(with("plain").is_err() && with(&format!("a/{}", "b".repeat(300))).is_err());
    }
}
