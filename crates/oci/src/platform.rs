//! Platforms: operating system, architecture, variant (image spec, image-index.md).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What an image runs on, in Go's words (`linux`, `amd64`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

/// Why a text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("platform {0:?} is not os/architecture or os/architecture/variant")]
pub struct Error(String);

impl Platform {
    /// The platform `os/architecture`.
    pub fn new(os: &str, architecture: &str) -> Self {
        Platform {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            variant: None,
            os_version: None,
            os_features: Vec::new(),
        }
    }

    /// The machine that this runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Platform::new("linux", architecture)
    }

    /// Can an image for `other` be used where `self` is wanted? A variant that either leaves out is not compared.
    pub fn accepts(&self, other: &Platform) -> bool {
        let variant = |p: &Platform| match (p.architecture.as_str(), p.variant.as_deref()) {
            ("arm64", Some("v8")) | ("amd64", Some("v1")) => None,
            (_, variant) => variant.map(str::to_owned),
        };
        let variants_fit = match (variant(self), variant(other)) {
            (Some(wanted), Some(given)) => wanted == given,
            (None, Some(_)) => self.architecture == "arm",
            (_, None) => true,
        };
        self.os == other.os && self.architecture == other.architecture && variants_fit
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let valid = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(valid) {
            return Err(Error(text.to_owned()));
        }
        let mut platform = Platform::new(parts[0], parts[1]);
        platform.variant = parts.get(2).map(|v| (*v).to_owned());
        Ok(platform)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_matches() {
        let wanted: Platform = "linux/arm64".parse().unwrap();
        assert!(wanted.accepts(&"linux/arm64/v8".parse().unwrap()));
        assert!(!wanted.accepts(&"linux/amd64".parse().unwrap()));
        assert!(!Platform::new("linux", "amd64").accepts(&"linux/amd64/v3".parse().unwrap()));
        assert!("linux".parse::<Platform>().is_err());
        assert!("linux//".parse::<Platform>().is_err());
        assert_eq!("linux/arm/v7".parse::<Platform>().unwrap().to_string(), "linux/arm/v7");
    }
}
