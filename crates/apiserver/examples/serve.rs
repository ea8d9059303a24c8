//! Serves the API on a loopback port, with a CA of its own, for trying clients by hand.
//!
//! `cargo run -p apiserver --example serve -- FOLDER` keeps the store in FOLDER and writes `FOLDER/kubeconfig`.
#![expect(clippy::print_stdout, reason = "an example talks to who started it")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

struct Keys {
    ca_pem: String,
    server: rustls::ServerConfig,
    client_pem: String,
    client_key_pem: String,
}

fn keys() -> Result<Keys, Box<dyn Error>> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "example");
    let ca_key = KeyPair::generate()?;
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    let mut server = CertificateParams::new(vec!["localhost".to_owned()])?;
    server.subject_alt_names.push(SanType::IpAddress("127.0.0.1".parse()?));
    let server_key = KeyPair::generate()?;
    let server_certificate = server.signed_by(&server_key, &issuer)?;
    let mut client = CertificateParams::new(Vec::new())?;
    client.distinguished_name.push(DnType::CommonName, "admin");
    client.distinguished_name.push(DnType::OrganizationName, "system:masters");
    let client_key = KeyPair::generate()?;
    let client_certificate = client.signed_by(&client_key, &issuer)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca_certificate.der().to_vec()))?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
    let config = rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(
        vec![CertificateDer::from(server_certificate.der().to_vec())],
        PrivateKeyDer::try_from(server_key.serialize_der())?,
    )?;
    Ok(Keys {
        ca_pem: ca_certificate.pem(),
        server: config,
        client_pem: client_certificate.pem(),
        client_key_pem: client_key.serialize_pem(),
    })
}

fn write_kubeconfig(folder: &Path, port: u16, keys: &Keys) -> Result<PathBuf, Box<dyn Error>> {
    let path = folder.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: example\n\
         clusters:\n- name: example\n  cluster:\n    server: https://127.0.0.1:{port}\n    certificate-authority-data: {}\n\
         contexts:\n- name: example\n  context: {{cluster: example, user: admin}}\n\
         users:\n- name: admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        STANDARD.encode(&keys.ca_pem),
        STANDARD.encode(&keys.client_pem),
        STANDARD.encode(&keys.client_key_pem),
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder: PathBuf = std::env::args().nth(1).ok_or("usage: serve FOLDER")?.into();
    std::fs::create_dir_all(&folder)?;
    let store = store::Store::open(&folder.join("store"), store::Options::default())?;
    let server = apiserver::Server::open(apiserver::Config::new(store)).await?;
    let keys = keys()?;
    let scope = lifecycle::Scope::new("example");
    let address = server.listen("127.0.0.1:0".parse()?, keys.server.clone(), &scope).await?;
    let path = write_kubeconfig(&folder, address.port(), &keys)?;
    println!("https://{address} KUBECONFIG={}", path.display());
    tokio::signal::ctrl_c().await?;
    scope.shutdown(Duration::from_secs(10)).await;
    Ok(())
}
