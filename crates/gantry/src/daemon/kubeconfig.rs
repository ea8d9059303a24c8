//! Kubeconfigs: how clients find the API server, and who they are to it.

use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::pki::{Authority, Issued};

/// Sees to it that `path` holds a kubeconfig for this user and group with time left; whether it had to be written.
pub fn ensure(path: &Path, server: &str, authority: &Authority, user: &str, group: &str) -> Result<bool> {
    if let Some(issued) = read(path, server, authority)
        && authority.is_current(&issued, user, Some(group))
    {
        return Ok(false);
    }
    let issued = authority.client(user, Some(group))?;
    write(path, server, authority, user, &issued)?;
    Ok(true)
}

/// The credentials in a kubeconfig, if it is for this server and authority.
fn read(path: &Path, server: &str, authority: &Authority) -> Option<Issued> {
    let config: serde_json::Value = serde_yaml_ng::from_slice(&std::fs::read(path).ok()?).ok()?;
    let decoded = |value: &serde_json::Value| String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok();
    let cluster = &config["clusters"][0]["cluster"];
    let is_ours = cluster["server"] == server
        && decoded(&cluster["certificate-authority-data"])? == authority.certificate();
    let user = &config["users"][0]["user"];
    let (certificate, key) = (&user["client-certificate-data"], &user["client-key-data"]);
    is_ours.then_some(Issued { certificate: decoded(certificate)?, key: decoded(key)? })
}

/// Writes a kubeconfig; mode 0600, as it holds a key.
pub fn write(path: &Path, server: &str, authority: &Authority, user: &str, issued: &Issued) -> Result<()> {
    let text = text(server, authority, user, issued)?;
    durable::write(path, text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

/// A kubeconfig with one context, `gantry`.
pub fn text(server: &str, authority: &Authority, user: &str, issued: &Issued) -> Result<String> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "gantry",
        "clusters": [{"name": "gantry", "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(authority.certificate()),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate-data": STANDARD.encode(&issued.certificate),
            "client-key-data": STANDARD.encode(&issued.key),
        }}],
        "contexts": [{"name": "gantry", "context": {"cluster": "gantry", "user": user}}],
    });
    serde_yaml_ng::to_string(&config).context("write a kubeconfig")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_kubeconfig_is_written_only_when_it_does_not_serve_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let clock = |days: i64| -> super::super::pki::Clock {
            Arc::new(move || jiff::Timestamp::from_second(1_800_000_000 + days * 86_400).unwrap())
        };
        let authority = Authority::open(&dir.path().join("ca"), clock(0)).unwrap();
        let path = dir.path().join("kubeconfig");
        let server = "https://127.0.0.1:6443";
        let ensure = |authority: &Authority, server: &str| {
            ensure(&path, server, authority, "admin", "system:masters").unwrap()
        };
        assert!(ensure(&authority, server));
        assert!(!ensure(&authority, server));
        assert!(ensure(&authority, "https://127.0.0.1:6444"), "the server has moved");
        let later = Authority::open(&dir.path().join("ca"), clock(320)).unwrap();
        assert!(ensure(&later, "https://127.0.0.1:6444"), "the time runs out");
        let other = Authority::open(&dir.path().join("other"), clock(320)).unwrap();
        assert!(ensure(&other, "https://127.0.0.1:6444"), "of another authority");
        std::fs::write(&path, "torn").unwrap();
        assert!(ensure(&other, "https://127.0.0.1:6444"));
    }
}
