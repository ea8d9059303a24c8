//! Which endpoint a path means (distribution spec, "Endpoints"). Repository names contain slashes, so the path is read from
//! its end.

use oci::{Digest, Reference, reference};

use super::failure::{Code, Failure};

/// An endpoint with its parameters. Names are valid repository names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Root,
    Catalog,
    Tags(Reference),
    Referrers(Reference, Digest),
    Blob(Reference, Digest),
    Uploads(Reference),
    Upload(Reference, String),
    /// The reference: a tag or a digest, not validated.
    Manifest(Reference, String),
}

impl Route {
    pub fn parse(path: &str) -> Result<Self, Failure> {
        let path = decode(path.strip_prefix("/v2").unwrap_or(path));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match parts.as_slice() {
            [""] => Ok(Route::Root),
            ["_catalog"] => Ok(Route::Catalog),
            [name @ .., "tags", "list"] => Ok(Route::Tags(repository(name)?)),
            [name @ .., "referrers", digest] => {
                Ok(Route::Referrers(repository(name)?, parse_digest(digest)?))
            }
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
                Ok(Route::Uploads(repository(name)?))
            }
            [name @ .., "blobs", "uploads", id] => Ok(Route::Upload(repository(name)?, (*id).to_owned())),
            [name @ .., "blobs", digest] => Ok(Route::Blob(repository(name)?, parse_digest(digest)?)),
            [name @ .., "manifests", reference] => {
                Ok(Route::Manifest(repository(name)?, (*reference).to_owned()))
            }
            _ => Err(Failure::new(Code::NotFound, "there is no such endpoint")),
        }
    }
}

/// The repository with a tag or digest.
pub(super) fn with_manifest(name: &Reference, manifest: &str) -> Result<Reference, Failure> {
    if manifest.contains(':') {
        return Ok(name.with_digest(parse_digest(manifest)?));
    }
    if !reference::is_tag(manifest) {
        return Err(Failure::new(Code::ManifestInvalid, format!("{manifest:?} is no valid tag")));
    }
    name.with_tag(manifest).map_err(|e| Failure::new(Code::ManifestInvalid, e.to_string()))
}

pub(super) fn parse_digest(text: &str) -> Result<Digest, Failure> {
    Digest::parse(text).map_err(|e| Failure::new(Code::DigestInvalid, e.to_string()))
}

fn repository(parts: &[&str]) -> Result<Reference, Failure> {
    let name = parts.join("/");
    Reference::embedded(&name)
        .map_err(|_| Failure::new(Code::NameInvalid, format!("{name:?} is no valid repository name")))
}

/// Undoes percent-encoding; what is no UTF-8 becomes a character that no name has.
pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_with_slashes_from_the_end() {
        let name = |n: &str| Reference::embedded(n).unwrap();
        let digest = Digest::of(b"x");
        let cases = [
            ("/v2/".to_owned(), Route::Root),
            ("/v2".to_owned(), Route::Root),
            ("/v2/_catalog".to_owned(), Route::Catalog),
            ("/v2/a/b/tags/list".to_owned(), Route::Tags(name("a/b"))),
            ("/v2/a/blobs/uploads/".to_owned(), Route::Uploads(name("a"))),
            ("/v2/a/blobs/uploads/1-2".to_owned(), Route::Upload(name("a"), "1-2".into())),
            (
                "/v2/blobs/manifests/manifests/t".to_owned(),
                Route::Manifest(name("blobs/manifests"), "t".into()),
            ),
            (format!("/v2/a/blobs/{digest}"), Route::Blob(name("a"), digest.clone())),
            (format!("/v2/a/blobs/{}", digest.as_str().replace(':', "%3A")), Route::Blob(name("a"), digest)),
        ];
        for (path, expect) in cases {
            assert_eq!(Route::parse(&path).unwrap_or_else(|e| panic!("{path}: {e:?}")), expect, "{path}");
        }
        for path in ["/v2/x", "/v2/A/tags/list", "/v2//tags/list", "/v2/a/blobs/x", "/v2/../tags/list"] {
            assert!(Route::parse(path).is_err(), "{path}");
        }
    }
}
