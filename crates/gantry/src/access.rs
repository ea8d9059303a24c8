//! What the daemon leaves for its clients: where it listens, and the credentials to speak to it.
//!
//! ```text
//! <state>/endpoints.json   addresses in use; readable by all
//! <state>/kubeconfig       client certificate of an administrator; root's
//! <state>/registry-token   the registry's token, one line; root's
//! ~/.config/gantry/…       the last two for the user who started the daemon by sudo
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    failure::{Failure, Result},
    settings::Settings,
};

/// `endpoints.json`: the addresses in use, by the listener's name. The daemon writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Endpoints {
    /// `https://127.0.0.1:6443`
    pub kubernetes: String,
    /// `http://127.0.0.1:5050`
    pub registry: String,
    /// `http://127.0.0.1:7070`
    #[serde(skip_serializing_if = "String::is_empty")]
    pub console: String,
    /// The daemon's release; the first one did not say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
}

impl Endpoints {
    /// Reads them; `None` when no daemon has ever listened.
    pub fn read(state_dir: &Path) -> Result<Option<Self>> {
        let path = state_dir.join("endpoints.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::from_error(&error).context(format!("read {}", path.display()))),
        };
        let read = serde_json::from_slice(&bytes);
        read.map(Some)
            .map_err(|error| Failure::from_error(&error).context(format!("read {}", path.display())))
    }
}

/// The daemon's lock, which holds its process id.
pub fn lock_path(state_dir: &Path) -> PathBuf {
    state_dir.join("run/daemon.lock")
}

/// The daemon's log file.
pub fn log_path(state_dir: &Path) -> PathBuf {
    state_dir.join("logs/daemon.log")
}

impl Endpoints {
    /// Where the console listens.
    pub fn console_address(&self) -> Option<std::net::SocketAddr> {
        let address = self.console.rsplit_once("//").map_or(&*self.console, |(_, rest)| rest);
        address.trim_end_matches('/').parse().ok()
    }
}

/// The binary that a service manager starts: a copy, so that it is what was installed or upgraded to, whatever becomes
/// of the file that was copied.
pub fn installed_binary(state_dir: &Path) -> PathBuf {
    state_dir.join("bin/gantry")
}

/// The binary that is to take over; it becomes the installed one when its daemon serves.
pub fn staged_binary(state_dir: &Path) -> PathBuf {
    state_dir.join("bin/gantry.new")
}

/// Listening sockets that a service manager may hold for the daemon.
pub const STORED_LISTENERS_MAX: usize = 4096;

pub const DAY_SECONDS: i64 = 24 * 3600;

/// Whole days until a certificate, in PEM, runs out; negative when it has. `None`: it is no certificate.
pub fn days_left(certificate: &str, now: jiff::Timestamp) -> Option<i64> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).ok()?;
    let end = pem.parse_x509().ok()?.validity().not_after.timestamp();
    Some((end - now.as_second()).div_euclid(DAY_SECONDS))
}

/// Files with credentials that this user may read.
#[derive(Clone, Debug)]
pub struct Access {
    pub kubeconfig: PathBuf,
    pub registry_token: PathBuf,
}

impl Access {
    /// Where the daemon writes root's.
    pub fn of_state(state_dir: &Path) -> Self {
        Self { kubeconfig: state_dir.join("kubeconfig"), registry_token: state_dir.join("registry-token") }
    }

    /// Where the daemon writes those of the user behind sudo.
    pub fn of_user(user_dir: &Path) -> Self {
        Self::of_state(user_dir)
    }

    /// The first that this user may read: given, the state folder's, the user's own.
    pub fn find(settings: &Settings) -> Result<Self> {
        if let Some(kubeconfig) = &settings.kubeconfig {
            let beside = kubeconfig.parent().unwrap_or(Path::new(".")).join("registry-token");
            return Ok(Self { kubeconfig: kubeconfig.clone(), registry_token: beside });
        }
        let of_state = Self::of_state(&settings.state_dir);
        let mut candidates = vec![of_state.clone()];
        candidates.extend(settings.user_dir.as_deref().map(Self::of_user));
        for candidate in candidates {
            if fs::File::open(&candidate.kubeconfig).is_ok() {
                return Ok(candidate);
            }
        }
        Err(Failure::new(format!(
            "no credentials for the daemon: {} cannot be read",
            of_state.kubeconfig.display()
        ))
        .hint(format!("sudo gantry daemon start{} gives them to you", settings.state_flag())))
    }

    /// Days that the client certificate is still good for; `None` if there is none.
    pub fn days_left(&self) -> Option<i64> {
        use base64::Engine as _;
        let config: serde_json::Value = serde_yaml_ng::from_slice(&fs::read(&self.kubeconfig).ok()?).ok()?;
        let text = config["users"][0]["user"]["client-certificate-data"].as_str()?;
        let pem = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
        days_left(std::str::from_utf8(&pem).ok()?, jiff::Timestamp::now())
    }

    /// The registry's token.
    pub fn token(&self) -> Result<String> {
        let path = &self.registry_token;
        let text = fs::read_to_string(path);
        let text =
            text.map_err(|error| Failure::from_error(&error).context(format!("read {}", path.display())))?;
        Ok(text.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_the_first_format_are_read() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/formats/1");
        let endpoints = Endpoints::read(&dir).unwrap().unwrap();
        assert_eq!(
            (endpoints.kubernetes.as_str(), endpoints.version.as_str()),
            ("https://127.0.0.1:6443", "")
        );
    }

    #[test]
    fn endpoints_survive_a_newer_daemon() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Endpoints::read(folder.path()).unwrap(), None);
        let text = r#"{"kubernetes":"https://127.0.0.1:6443","registry":"http://127.0.0.1:5050","new":"x"}"#;
        fs::write(folder.path().join("endpoints.json"), text).unwrap();
        assert_eq!(Endpoints::read(folder.path()).unwrap().unwrap().registry, "http://127.0.0.1:5050");
    }
}
