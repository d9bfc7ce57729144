//! A picture that strangers' browsers will show: what it is is read from its bytes, it is measured before it is unpacked, and only its
//! pixels are kept.

use std::io::Cursor;

use image::codecs::png::PngEncoder;
use image::{DynamicImage, ImageDecoder as _, ImageFormat, ImageReader, Limits};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tenancy_core::{Error, ErrorKind, Result};
use tokio::sync::Semaphore;

/// The largest picture, in bytes.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;
/// The largest width and height, in pixels.
const MAX_SIDE: u32 = 2048;
/// The largest picture as it is kept, in bytes: photographs take more room without loss.
const MAX_KEPT: usize = 4 * 1024 * 1024;
/// What unpacking may take, in bytes: 2048 × 2048 pixels of four 16-bit channels, and as much again.
const MAX_ALLOC: u64 = 64 * 1024 * 1024;

/// How many are unpacked at a time: each takes memory.
static AT_A_TIME: Semaphore = Semaphore::const_new(2);

/// A tenant's logo, as `logo` in its branding names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Logo {
    /// The object's name in the tenant's store.
    pub(crate) object: String,
    pub(crate) sha256: String,
    pub(crate) size: u64,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl Logo {
    pub(crate) const FIELD: &str = "logo";

    /// The one that a branding names, if it names one.
    pub(crate) fn read(branding: &Map<String, Value>) -> Option<Self> {
        Self::deserialize(branding.get(Self::FIELD)?).ok()
    }
}

/// Pixels as a PNG file, and nothing else.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) png: Vec<u8>,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// Makes a [`Picture`] of what was sent, beside the threads that serve requests.
///
/// # Errors
/// Those of [`normalize`].
pub(crate) async fn normalized(bytes: Vec<u8>) -> Result<Picture> {
    let failed = || Error::new(ErrorKind::Internal, "the picture was not read");
    let turn = AT_A_TIME.acquire().await.map_err(|source| failed().with_source(source))?;
    let work = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        normalize(&bytes)
    });
    work.await.map_err(|source| failed().with_source(source))?
}

/// # Errors
/// [`Invalid`](ErrorKind::Invalid) at `body`, [`TooLarge`](ErrorKind::TooLarge).
fn normalize(bytes: &[u8]) -> Result<Picture> {
    let refuse = |why: &'static str| Error::invalid("body", why);
    if bytes.len() > MAX_BYTES {
        return Err(Error::new(ErrorKind::TooLarge, "a logo must have at most 1 MiB"));
    }
    let kind = image::guess_format(bytes).ok();
    let (Some(format), Some(end)) = (kind, kind.and_then(|format| end(format, bytes))) else {
        return Err(refuse("must be a whole PNG, JPEG or WebP picture"));
    };
    if end != bytes.len() {
        return Err(refuse("must be a picture and nothing else: something comes after its end"));
    }
    let broken = |source| refuse("must be a whole PNG, JPEG or WebP picture").with_source(source);
    let reader = || {
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut limits = Limits::default();
        (limits.max_image_width, limits.max_image_height, limits.max_alloc) = (Some(MAX_SIDE), Some(MAX_SIDE), Some(MAX_ALLOC));
        reader.limits(limits);
        reader
    };
    // Only the head is read here: a small file can say that it is vast.
    let mut decoder = reader().into_decoder().map_err(|source| match source {
        image::ImageError::Limits(_) => refuse("must have at most 2048 × 2048 pixels").with_source(source),
        other => broken(other),
    })?;
    let (width, height) = decoder.dimensions();
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(refuse("must have at most 2048 × 2048 pixels"));
    }
    let orientation = decoder.orientation().map_err(broken)?;
    let mut pixels = DynamicImage::from_decoder(decoder).map_err(broken)?;
    pixels.apply_orientation(orientation);
    let pixels = pixels.into_rgba8();
    let mut png = Vec::new();
    pixels.write_with_encoder(PngEncoder::new(&mut png)).map_err(broken)?;
    if png.len() > MAX_KEPT {
        return Err(refuse("must be simpler or smaller: as PNG it takes more than 4 MiB"));
    }
    Ok(Picture { png, width: pixels.width(), height: pixels.height() })
}

/// Where the file ends by its own account. `None` if it is none of the three kinds, or ends too early.
fn end(format: ImageFormat, bytes: &[u8]) -> Option<usize> {
    match format {
        ImageFormat::Png => png_end(bytes),
        ImageFormat::Jpeg => jpeg_end(bytes),
        ImageFormat::WebP => {
            let size = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
            Some(usize::try_from(size).ok()?.checked_add(8)?.next_multiple_of(2))
        }
        _ => None,
    }
    .filter(|end| *end <= bytes.len())
}

/// Chunks of length, type, content and checksum, the last one of type IEND.
fn png_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 8;
    loop {
        let head = bytes.get(at..at + 8)?;
        let length = u32::from_be_bytes(head[..4].try_into().ok()?);
        at = at.checked_add(usize::try_from(length).ok()?)?.checked_add(12)?;
        if &head[4..] == b"IEND" {
            return Some(at);
        }
    }
}

/// Segments behind a marker each; those of a scan are followed by data in which FF is followed by 00 or a restart marker.
fn jpeg_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 2;
    loop {
        if *bytes.get(at)? != 0xff {
            return None;
        }
        match *bytes.get(at + 1)? {
            0xff => at += 1,
            0xd9 => return Some(at + 2),
            0x01 | 0xd0..=0xd8 => at += 2,
            marker => {
                let length = u16::from_be_bytes(bytes.get(at + 2..at + 4)?.try_into().ok()?);
                at += 2 + usize::from(length).max(2);
                if marker == 0xda {
                    let data = bytes.get(at..)?;
                    at += data.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7))?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgba, RgbaImage};

    use super::*;

    fn picture(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
        let image = RgbaImage::from_fn(width, height, |x, y| Rgba([x.to_le_bytes()[0], y.to_le_bytes()[0], 128, 255]));
        let image = if format == ImageFormat::Jpeg { DynamicImage::from(image).into_rgb8().into() } else { DynamicImage::from(image) };
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).expect("written");
        bytes.into_inner()
    }

    fn says(bytes: &[u8]) -> String {
        normalize(bytes).expect_err("refused").to_string()
    }

    #[test]
    fn three_kinds_become_one_without_what_is_not_pixels() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            let bytes = picture(format, 40, 30);
            let kept = normalize(&bytes).expect("a picture");
            assert_eq!((kept.width, kept.height, image::guess_format(&kept.png).ok()), (40, 30, Some(ImageFormat::Png)), "{format:?}");
            assert_eq!(normalize(&kept.png).expect("itself").png, kept.png, "{format:?}");
        }
        // A comment, put before the end.
        let mut commented = picture(ImageFormat::Png, 4, 4);
        let text = b"Comment\0<script>alert(1)</script>";
        let mut chunk = u32::try_from(text.len()).expect("small").to_be_bytes().to_vec();
        chunk.extend(b"tEXt");
        chunk.extend(text);
        chunk.extend(crc(&chunk[4..]).to_be_bytes());
        let end = commented.len() - 12;
        commented.splice(end..end, chunk);
        let kept = normalize(&commented).expect("a picture");
        assert!(!String::from_utf8_lossy(&kept.png).contains("script"), "the comment stayed");
        assert!(String::from_utf8_lossy(&commented).contains("script"), "the control: it was there");
    }

    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
        })
    }

    #[test]
    fn what_is_two_things_at_once_or_none_of_them_is_refused() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            let whole = picture(format, 8, 8);
            for tail in [&b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..], b"<script>alert(1)</script>", b"\0"] {
                assert!(says(&[&whole, tail].concat()).contains("after its end"), "{format:?}");
            }
            for short in [1, whole.len() / 2, whole.len() - 1] {
                assert!(says(&whole[..short]).contains("must be a whole"), "{format:?} {short}");
            }
        }
        for other in [
            &b""[..],
            b"<svg xmlns=\"http://www.w3.org/2000/svg\"><script>alert(1)</script></svg>",
            b"<?xml version=\"1.0\"?><svg/>",
            b"GIF89a/*\x01\0\x01\0\0\0\0;*/=alert(1);",
            b"BM1234567890",
            b"%PDF-1.7",
            b"PK\x03\x04",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0",
            b"RIFF\x04\0\0\0WEBP",
        ] {
            assert!(says(other).starts_with("body: must be a"), "{other:?}");
        }
    }

    #[test]
    fn a_vast_picture_is_refused_by_its_head() {
        // 60000 × 60000 pixels, of which nothing is there.
        let mut bomb = picture(ImageFormat::Png, 1, 1);
        bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        let sum = crc(&bomb[12..29]).to_be_bytes();
        bomb[29..33].copy_from_slice(&sum);
        assert!(says(&bomb).contains("2048"), "{}", says(&bomb));
        assert!(says(&picture(ImageFormat::Png, 2049, 1)).contains("2048"));
        assert!(normalize(&picture(ImageFormat::Png, 2048, 1)).is_ok());
        assert_eq!(normalize(&vec![0; MAX_BYTES + 1]).expect_err("too large").kind(), ErrorKind::TooLarge);
    }
}
