//! Blobs: read whole or in part, and deleted.

use std::{io::SeekFrom, sync::Arc};

use axum::{
    body::Body,
    extract::Request,
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use oci::Digest;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::{
    CONTENT_DIGEST, Reply, Server, blocking,
    failure::{Code, Failure},
    value,
};

/// Bytes read from the disk at once.
const CHUNK_LEN: usize = 256 << 10;

pub(super) async fn get(server: Arc<Server>, digest: Digest, request: Request) -> Reply {
    let unknown = |_| Failure::new(Code::BlobUnknown, format!("blob {digest} is not known"));
    let store = server.store.clone();
    let wanted = digest.clone();
    // A client that is told that a blob is here will not send it: keep it until its manifest comes.
    let size = blocking(move || store.reserve(&wanted)).await?.ok_or(()).map_err(unknown)?;
    let range = match request.headers().get(header::RANGE).map(|range| parse_range(range.as_bytes(), size)) {
        None | Some(Range::Ignored) => None,
        Some(Range::Part(start, end)) => Some((start, end)),
        Some(Range::Unsatisfiable) => {
            let content_range = value(format!("bytes */{size}"));
            return Err(Failure::new(Code::RangeInvalid, "the range is not in the blob")
                .header(header::CONTENT_RANGE, content_range));
        }
    };
    let (status, start, len) = match range {
        Some((start, end)) => (StatusCode::PARTIAL_CONTENT, start, end - start + 1),
        None => (StatusCode::OK, 0, size),
    };
    let body = match request.method() == Method::HEAD {
        true => Body::empty(),
        false => {
            let mut file =
                tokio::fs::File::open(server.store.blob_path(&digest)).await.map_err(|_| unknown(()))?;
            if start > 0 {
                file.seek(SeekFrom::Start(start)).await.map_err(|_| unknown(()))?;
            }
            Body::from_stream(ReaderStream::with_capacity(file.take(len), CHUNK_LEN))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, value("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, len.into());
    headers.insert(header::ACCEPT_RANGES, value("bytes"));
    headers.insert(header::ETAG, value(format!("\"{digest}\"")));
    headers.insert(CONTENT_DIGEST, value(digest.as_str()));
    if status == StatusCode::PARTIAL_CONTENT {
        let content_range = value(format!("bytes {start}-{}/{size}", start + len - 1));
        headers.insert(header::CONTENT_RANGE, content_range);
    }
    Ok(response)
}

pub(super) async fn delete(server: Arc<Server>, digest: Digest) -> Reply {
    let store = server.store.clone();
    let wanted = digest.clone();
    if blocking(move || store.remove_blob(&wanted)).await? {
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    Err(Failure::new(Code::BlobUnknown, format!("blob {digest} is not known")))
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// Inclusive.
    Part(u64, u64),
    Unsatisfiable,
    /// Not understood, or of several parts: the whole is a valid answer (RFC 9110, 14.2).
    Ignored,
}

fn parse_range(text: &[u8], size: u64) -> Range {
    let spec = std::str::from_utf8(text).ok().and_then(|t| t.trim().strip_prefix("bytes="));
    let Some((start, end)) = spec.and_then(|s| s.split_once('-')) else { return Range::Ignored };
    match (start.parse::<u64>(), end.parse::<u64>()) {
        (Ok(start), _) if start >= size && (end.is_empty() || end.parse::<u64>().is_ok()) => {
            Range::Unsatisfiable
        }
        (Ok(start), Ok(end)) if start <= end => Range::Part(start, end.min(size - 1)),
        (Ok(_), Ok(_)) => Range::Unsatisfiable,
        (Ok(start), Err(_)) if end.is_empty() => Range::Part(start, size - 1),
        (Err(_), Ok(suffix)) if start.is_empty() && suffix > 0 && size > 0 => {
            Range::Part(size.saturating_sub(suffix), size - 1)
        }
        (Err(_), Ok(_)) if start.is_empty() => Range::Unsatisfiable,
        _ => Range::Ignored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ranges_as_http_means_them() {
        let cases = [
            ("bytes=0-4", Range::Part(0, 4)),
            ("bytes=5-", Range::Part(5, 9)),
            ("bytes=-3", Range::Part(7, 9)),
            ("bytes=-30", Range::Part(0, 9)),
            ("bytes=2-99", Range::Part(2, 9)),
            ("bytes=10-", Range::Unsatisfiable),
            ("bytes=10-12", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=5-4", Range::Unsatisfiable),
            ("bytes=0-1,3-4", Range::Ignored),
            ("lines=1-2", Range::Ignored),
            ("bytes=a-b", Range::Ignored),
        ];
        for (text, expect) in cases {
            assert_eq!(parse_range(text.as_bytes(), 10), expect, "{text}");
        }
        assert_eq!(parse_range(b"bytes=0-", 0), Range::Unsatisfiable);
    }
}
