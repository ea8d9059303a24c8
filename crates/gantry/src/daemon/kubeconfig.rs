//! Kubeconfigs: how clients find the API server, and who they are to it.

use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::pki::{Authority, Issued};

/// Writes a kubeconfig with one context, `gantry`; mode 0600, as it holds a key.
pub fn write(path: &Path, server: &str, authority: &Authority, user: &str, issued: &Issued) -> Result<()> {
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
    let text = serde_yaml_ng::to_string(&config).context("write a kubeconfig")?;
    durable::write_with_mode(path, text.as_bytes(), 0o600)
        .with_context(|| format!("write {}", path.display()))
}
