//! `network.json`: the ranges, chosen once.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::cidr::{self, Cidr, NotACidr};
use crate::route::Router;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) services: Cidr,
    pub(crate) pods: Cidr,
}

/// Why `network.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("read or write the file")]
    File(#[from] io::Error),
    #[error("parse it as JSON")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Range(#[from] NotACidr),
    #[error("version {0} is of a newer gantry")]
    Version(u8),
    #[error("the ranges overlap, or are smaller than /24")]
    Unfit,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    version: u8,
    service_cidr: String,
    pod_cidr: String,
}

/// Reads the ranges, or chooses ones that the calling thread's namespace has no route to, and keeps them.
pub(crate) fn load_or_choose(path: &Path) -> Result<Settings, Error> {
    let broken = |source: Broken| Error::Settings { path: path.to_owned(), source };
    match std::fs::read(path) {
        Ok(bytes) => parse(&bytes).map_err(broken),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let taken = Router::open()
                .and_then(|mut router| router.ranges())
                .map_err(|source| Error::Router { source })?;
            let (services, pods) = cidr::choose(&taken).ok_or(Error::NoFreeRange)?;
            let file = File { version: 1, service_cidr: services.to_string(), pod_cidr: pods.to_string() };
            let bytes = serde_json::to_vec(&file).map_err(|error| broken(error.into()))?;
            durable::write(path, &bytes).map_err(|error| broken(error.into()))?;
            Ok(Settings { services, pods })
        }
        Err(error) => Err(broken(error.into())),
    }
}

fn parse(bytes: &[u8]) -> Result<Settings, Broken> {
    let file: File = serde_json::from_slice(bytes)?;
    if file.version != 1 {
        return Err(Broken::Version(file.version));
    }
    let (services, pods): (Cidr, Cidr) = (file.service_cidr.parse()?, file.pod_cidr.parse()?);
    let fit = services.prefix() <= 24 && pods.prefix() <= 24 && !services.overlaps(&pods);
    fit.then_some(Settings { services, pods }).ok_or(Broken::Unfit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_chosen_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("network.json");
        let first = load_or_choose(&path).unwrap();
        let again = load_or_choose(&path).unwrap();
        assert_eq!((first.services, first.pods), (again.services, again.pods));
        assert!(!first.services.overlaps(&first.pods));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_refused() {
        let check = |text: &str| parse(text.as_bytes()).unwrap_err().to_string();
        assert!(check("{").contains("JSON"));
        assert!(
            check(r#"{"version":9,"serviceCidr":"10.96.0.0/16","podCidr":"10.244.0.0/16"}"#)
                .contains("newer")
        );
        assert!(
            check(r#"{"version":1,"serviceCidr":"10.0.0.0/8","podCidr":"10.244.0.0/16"}"#)
                .contains("overlap")
        );
    }
}
