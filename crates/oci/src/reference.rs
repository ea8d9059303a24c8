//! References to images: `[domain/]path[:tag][@digest]`, by the grammar that Docker made common.
//!
//! A name without a domain is Docker Hub's. The domain `localhost`, with any port or none, is the embedded store.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Digest, digest};

/// The domain of a bare name.
pub const DOCKER_HUB: &str = "docker.io";

/// The tag when none is given.
pub const LATEST: &str = "latest";

/// The longest `domain/path`.
pub const NAME_LEN_MAX: usize = 255;

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("image reference is empty")]
    Empty,
    #[error("image reference {0:?}: {1:?} is no valid repository name")]
    Path(String, String),
    #[error("image reference {0:?}: {1:?} is no valid registry address")]
    Domain(String, String),
    #[error("image reference {0:?}: {1:?} is no valid tag")]
    Tag(String, String),
    #[error("image reference {0:?}: invalid digest")]
    Digest(String, #[source] digest::Error),
    #[error("image reference {0:?}: the name is longer than {NAME_LEN_MAX} characters")]
    TooLong(String),
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let (Error::Path(text, _) | Error::Tag(text, _)) = self else { return None };
        let lower = text.to_lowercase();
        let tried = (lower != *text).then(|| Reference::parse(&lower).ok()).flatten()?;
        Some(format!("repository names are lower case: try {}", tried.familiar()))
    }
}

/// A parsed reference. A tag of `latest` is not added by parsing: see [`Reference::tag_or_latest`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses as Docker does: a first component with a dot, a colon or upper case, or `localhost`, is a domain.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Empty);
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let digest = Digest::parse(digest).map_err(|e| Error::Digest(text.to_owned(), e))?;
                (name, Some(digest))
            }
            None => (text, None),
        };
        let (domain, rest) = split_domain(name);
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if !is_domain(domain) {
            return Err(Error::Domain(text.to_owned(), domain.to_owned()));
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(Error::Tag(text.to_owned(), tag.to_owned()));
        }
        let domain = if domain == "index.docker.io" { DOCKER_HUB } else { domain };
        let path = match path {
            path if domain == DOCKER_HUB && !path.contains('/') => format!("library/{path}"),
            path => path.to_owned(),
        };
        if !is_path(&path) {
            return Err(Error::Path(text.to_owned(), rest.to_owned()));
        }
        if domain.len() + 1 + path.len() > NAME_LEN_MAX {
            return Err(Error::TooLong(text.to_owned()));
        }
        Ok(Reference { domain: domain.to_owned(), path, tag: tag.map(str::to_owned), digest })
    }

    /// A repository of the embedded store, without tag or digest.
    pub fn embedded(path: &str) -> Result<Self, Error> {
        if !is_path(path) || path.len() + "localhost/".len() > NAME_LEN_MAX {
            return Err(Error::Path(path.to_owned(), path.to_owned()));
        }
        Ok(Reference { domain: "localhost".into(), path: path.to_owned(), tag: None, digest: None })
    }

    /// The registry's address as written (`docker.io` for Docker Hub).
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, when one was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The tag, or `latest`.
    pub fn tag_or_latest(&self) -> &str {
        self.tag.as_deref().unwrap_or(LATEST)
    }

    /// What stands behind `/manifests/`: the digest, else the tag, else `latest`.
    pub fn manifest(&self) -> &str {
        self.digest.as_ref().map_or_else(|| self.tag_or_latest(), Digest::as_str)
    }

    /// Is it in the embedded store?
    pub fn is_embedded(&self) -> bool {
        self.domain == "localhost" || self.domain.starts_with("localhost:")
    }

    /// `domain/path`, with the embedded store's port left out, as it plays no part there.
    pub fn name(&self) -> String {
        format!("{}/{}", if self.is_embedded() { "localhost" } else { &self.domain }, self.path)
    }

    /// The same name with this tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, Error> {
        if !is_tag(tag) {
            return Err(Error::Tag(self.to_string(), tag.to_owned()));
        }
        Ok(Reference { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same name with this digest and no tag.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// As people write it: without Docker Hub's domain and `library/`.
    pub fn familiar(&self) -> String {
        let text = self.to_string();
        let hub = text.strip_prefix("docker.io/").map(|t| t.strip_prefix("library/").unwrap_or(t));
        hub.map_or_else(|| text.clone(), str::to_owned)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Reference::parse(text)
    }
}

impl Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Reference::parse(&text).map_err(serde::de::Error::custom)
    }
}

fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DOCKER_HUB, name),
    }
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((ip, after)) if ip.parse::<std::net::Ipv6Addr>().is_ok() => {
                ("v6", after.strip_prefix(':').or(after.is_empty().then_some("0")))
            }
            _ => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, Some("0")),
        },
    };
    let port_valid = port.is_some_and(|p| p.parse::<u16>().is_ok() && !p.starts_with('+'));
    let label_valid = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    port_valid && host.split('.').all(label_valid)
}

/// Is it a repository path by the distribution spec's grammar?
pub fn is_path(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(is_path_component)
}

fn is_path_component(component: &str) -> bool {
    let mut separator = "";
    let bytes = component.as_bytes();
    let mut start = 0;
    for (i, b) in bytes.iter().enumerate() {
        match b {
            b'a'..=b'z' | b'0'..=b'9' => {
                let valid =
                    matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-');
                if !valid {
                    return false;
                }
                separator = "";
                start = i + 1;
            }
            b'.' | b'_' | b'-' if i > 0 => separator = &component[start..=i],
            _ => return false,
        }
    }
    !component.is_empty() && separator.is_empty()
}

/// Is it a tag by the distribution spec's grammar?
pub fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && tag.len() <= 128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_as_docker_does() {
        let cases = [
            ("nginx", "docker.io", "library/nginx", None),
            ("nginx:1.27", "docker.io", "library/nginx", Some("1.27")),
            ("grafana/loki:3", "docker.io", "grafana/loki", Some("3")),
            ("localhost/hello", "localhost", "hello", None),
            ("localhost:5050/a/b__c:x", "localhost:5050", "a/b__c", Some("x")),
            ("ghcr.io/o/r.x-y:v1", "ghcr.io", "o/r.x-y", Some("v1")),
            ("127.0.0.1:5000/x", "127.0.0.1:5000", "x", None),
            ("[::1]:5000/x", "[::1]:5000", "x", None),
            ("index.docker.io/nginx", "docker.io", "library/nginx", None),
            ("hello:5000", "docker.io", "library/hello", Some("5000")),
        ];
        for (text, domain, path, tag) in cases {
            let r = Reference::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((r.domain(), r.path(), r.tag()), (domain, path, tag), "{text}");
            assert_eq!(Reference::parse(&r.to_string()).unwrap(), r, "{text}");
            assert_eq!(Reference::parse(&r.familiar()).unwrap(), r, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_reference() {
        let bad = [
            "",
            "Nginx",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:b c",
            "a@sha256:1",
            "..",
            "a/../b",
            "a___b",
            "-a",
            "a-",
            "a..b",
            "localhost:x/y",
            "a.b:99999/c",
            "[::g]/x",
            "a b",
            "x@y@z",
            "-.io/x",
        ];
        for text in bad {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
        assert!(Reference::parse(&format!("localhost/{}", "a".repeat(250))).is_err());
        assert_eq!(
            Reference::parse("Nginx").unwrap_err().hint().unwrap(),
            "repository names are lower case: try nginx"
        );
    }

    #[test]
    fn localhost_is_the_embedded_store_whatever_the_port() {
        let with_port = Reference::parse("localhost:5050/hello:v1").unwrap();
        let without = Reference::parse("localhost/hello:v1").unwrap();
        assert!(with_port.is_embedded() && without.is_embedded());
        assert_eq!(with_port.name(), without.name());
        assert!(!Reference::parse("localhost.example.com/hello").unwrap().is_embedded());
        assert!(!Reference::parse("hello").unwrap().is_embedded());
    }

    #[test]
    fn names_the_manifest() {
        let digest = Digest::of(b"x");
        let r = Reference::parse(&format!("a:t@{digest}")).unwrap();
        assert_eq!(r.manifest(), digest.as_str());
        assert_eq!(Reference::parse("a").unwrap().manifest(), "latest");
    }
}
