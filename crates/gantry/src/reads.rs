//! Who may read from the registry: a setting of the state folder, `registry.json`.
//!
//! ```text
//! {"version":1,"reads":"open"}     every local user; the default
//! {"version":1,"reads":"login"}    who has the token
//! ```

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;
const FILE: &str = "registry.json";

/// Who may read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Reads {
    /// Every user of this machine
    #[default]
    Open,
    /// Who has the registry's token (gantry registry login)
    Login,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u8,
    reads: Reads,
}

/// Why the setting cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} {}", path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not this release's: correct or remove it", path.display())]
    Format { path: PathBuf },
}

impl Reads {
    /// The setting of a state folder. What cannot be read is an error and not the default: it may say `login`.
    pub fn load(state_dir: &Path) -> Result<Self, Error> {
        let path = state_dir.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(Error::Io { step: "read", path, source }),
        };
        match serde_json::from_slice::<File>(&bytes) {
            Ok(File { version: VERSION, reads }) => Ok(reads),
            _ => Err(Error::Format { path }),
        }
    }

    /// Keeps it.
    pub fn save(self, state_dir: &Path) -> Result<(), Error> {
        let path = state_dir.join(FILE);
        let bytes = serde_json::to_vec(&File { version: VERSION, reads: self }).map_err(io::Error::other);
        let written = bytes.and_then(|bytes| durable::write(&path, &bytes));
        written.map_err(|source| Error::Io { step: "write", path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_does_not_open_the_registry() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Reads::load(dir.path()).unwrap(), Reads::Open);
        Reads::Login.save(dir.path()).unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join(FILE)).unwrap(),
            r#"{"version":1,"reads":"login"}"#
        );
        assert_eq!(Reads::load(dir.path()).unwrap(), Reads::Login);
        for torn in ["", "{", r#"{"version":2,"reads":"open"}"#, r#"{"version":1,"reads":"none"}"#] {
            std::fs::write(dir.path().join(FILE), torn).unwrap();
            assert!(matches!(Reads::load(dir.path()), Err(Error::Format { .. })), "{torn}");
        }
    }
}
