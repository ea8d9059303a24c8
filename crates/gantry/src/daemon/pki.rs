//! The certificate authority of a state folder, and what it issues.
//!
//! ```text
//! ca/ca.crt ca/ca.key        made once, valid for ten years
//! ca/server.crt server.key   for the API server; renewed when its names change or its time runs out
//! ```
//!
//! Time runs out while the daemon runs, too: see [`super::certificates`].
//!
//! Client certificates are issued when they are asked for and live in the kubeconfig that carries them. A subject's
//! common name is the user, its organisation the user's group (Kubernetes' X.509 convention).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;

use crate::access::{DAY_SECONDS, days_left};

const CA_DAYS: i64 = 3650;
pub const LEAF_DAYS: i64 = 365;
/// A certificate that runs out sooner is replaced.
pub const RENEW_DAYS: i64 = 60;
/// Clocks of clients may be behind by this much.
const SKEW_SECONDS: i64 = 3600;

/// What time it is.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The authority.
pub struct Authority {
    clock: Clock,
    dir: PathBuf,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    /// Opens the authority in `dir`, or makes it.
    pub fn open(dir: &Path, clock: Clock) -> Result<Self> {
        durable::create_dir_all_with_mode(dir, 0o700).with_context(|| format!("make {}", dir.display()))?;
        let (certificate_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !certificate_path.exists() {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name = name("gantry", None);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![
                KeyUsagePurpose::KeyCertSign,
                KeyUsagePurpose::CrlSign,
                KeyUsagePurpose::DigitalSignature,
            ];
            valid_for(&mut params, clock(), CA_DAYS)?;
            let certificate = params.self_signed(&key)?;
            // The key first: a certificate without its key would be taken for a whole authority.
            durable::write_with_mode(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
            durable::write(&certificate_path, certificate.pem().as_bytes())?;
        }
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        let pem = read(&certificate_path)?;
        let key =
            KeyPair::from_pem(&read(&key_path)?).with_context(|| format!("read {}", key_path.display()))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key)
            .with_context(|| format!("read {}", certificate_path.display()))?;
        Ok(Self { clock, dir: dir.to_owned(), pem, issuer })
    }

    /// Whether a certificate of this authority belongs to its key, names this user and group, and has time left.
    pub fn is_current(&self, issued: &Issued, user: &str, group: Option<&str>) -> bool {
        let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(issued.certificate.as_bytes()) else {
            return false;
        };
        let (Ok(parsed), Ok(key)) = (pem.parse_x509(), KeyPair::from_pem(&issued.key)) else { return false };
        let subject = parsed.subject();
        let is = |mut found: Vec<&str>, wanted: Option<&str>| found.pop() == wanted && found.is_empty();
        let users = subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect();
        let groups = subject.iter_organization().filter_map(|name| name.as_str().ok()).collect();
        is(users, Some(user))
            && is(groups, group)
            && parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
            && days_left(&issued.certificate, (self.clock)()).is_some_and(|days| days >= RENEW_DAYS)
    }

    /// What time it is to this authority.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The authority's own certificate, in PEM.
    pub fn certificate(&self) -> &str {
        &self.pem
    }

    /// A client certificate for `user` in `group`.
    pub fn client(&self, user: &str, group: Option<&str>) -> Result<Issued> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    fn issue(&self, mut params: CertificateParams) -> Result<Issued> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        valid_for(&mut params, (self.clock)(), LEAF_DAYS)?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// The API server's certificate for these names and addresses: the one on disk if it still fits.
    fn server(&self, names: &[String], addresses: &[IpAddr]) -> Result<Issued> {
        let (certificate_path, key_path) = (self.dir.join("server.crt"), self.dir.join("server.key"));
        if let (Ok(certificate), Ok(key)) =
            (std::fs::read_to_string(&certificate_path), std::fs::read_to_string(&key_path))
            && fits(&certificate, &key, names, addresses, (self.clock)())
        {
            return Ok(Issued { certificate, key });
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = name("kube-apiserver", None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for one in names {
            params.subject_alt_names.push(SanType::DnsName(one.as_str().try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        let issued = self.issue(params)?;
        durable::write_with_mode(&key_path, issued.key.as_bytes(), 0o600)?;
        durable::write(&certificate_path, issued.certificate.as_bytes())?;
        Ok(issued)
    }

    /// What the API server's listeners speak: HTTP/2 or 1.1, a client certificate of this authority or none.
    pub fn serve(self: &Arc<Self>, names: Vec<String>, addresses: Vec<IpAddr>) -> Result<Served> {
        let issued = self.server(&names, &addresses)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes())?)?;
        let clients = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
        let current = Arc::new(Current { key: RwLock::new(certified(&issued)?) });
        let mut config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let authority = Arc::clone(self);
        Ok(Served { authority, names, addresses, current, config: Arc::new(config) })
    }
}

/// The API server's certificate in use.
pub struct Served {
    authority: Arc<Authority>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    current: Arc<Current>,
    config: Arc<rustls::ServerConfig>,
}

impl Served {
    /// For listeners; stays as it is when the certificate is renewed.
    pub fn config(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Looks at the certificate on disk, replaces it when it does not fit or its time runs out, and serves it from now
    /// on. Connections that are open go on.
    pub fn renew(&self) -> Result<()> {
        let key = certified(&self.authority.server(&self.names, &self.addresses)?)?;
        *self.current.key.write().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }
}

/// What is shown to whoever connects.
#[derive(Debug)]
struct Current {
    key: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.key.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn certified(issued: &Issued) -> Result<Arc<CertifiedKey>> {
    let chain =
        CertificateDer::pem_slice_iter(issued.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes())?;
    let provider = rustls::crypto::ring::default_provider();
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider)?))
}

fn name(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, user);
    name
}

fn valid_for(params: &mut CertificateParams, now: Timestamp, days: i64) -> Result<()> {
    let now = now.as_second();
    let date = |seconds: i64| -> Result<_> {
        let date = Timestamp::from_second(seconds)?.to_zoned(jiff::tz::TimeZone::UTC).date();
        Ok(rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs()))
    };
    params.not_before = date(now - SKEW_SECONDS)?;
    params.not_after = date(now + days * DAY_SECONDS)?;
    Ok(())
}

/// Whether a stored certificate belongs to its key, names all of these, and has time left.
fn fits(certificate: &str, key: &str, names: &[String], addresses: &[IpAddr], now: Timestamp) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()) else {
        return false;
    };
    let (Ok(parsed), Ok(key)) = (pem.parse_x509(), KeyPair::from_pem(key)) else {
        return false;
    };
    if days_left(certificate, now).is_none_or(|days| days < RENEW_DAYS)
        || parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw()
    {
        return false;
    }
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else {
        return false;
    };
    let mut known_names = Vec::new();
    let mut known_addresses = Vec::new();
    for one in &alternatives.value.general_names {
        match one {
            x509_parser::extensions::GeneralName::DNSName(name) => known_names.push(*name),
            x509_parser::extensions::GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                known_addresses.extend(v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)));
            }
            _ => {}
        }
    }
    names.iter().all(|name| known_names.contains(&name.as_str()))
        && addresses.iter().all(|address| known_addresses.contains(address))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    /// A clock that stands still until it is set forward, in days.
    fn clock() -> (Arc<AtomicI64>, Clock) {
        let days = Arc::new(AtomicI64::new(0));
        let read = Arc::clone(&days);
        let now = move || {
            Timestamp::from_second(1_800_000_000 + read.load(Ordering::Relaxed) * DAY_SECONDS).unwrap()
        };
        (days, Arc::new(now))
    }

    #[test]
    fn the_authority_and_a_fitting_server_certificate_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (_, clock) = clock();
        let first = Authority::open(dir.path(), Arc::clone(&clock)).unwrap();
        let second = Authority::open(dir.path(), clock).unwrap();
        assert_eq!(first.certificate(), second.certificate());
        let names = ["localhost".to_owned()];
        let address = ["127.0.0.1".parse().unwrap()];
        let one = first.server(&names, &address).unwrap();
        assert_eq!(one.certificate, second.server(&names, &address).unwrap().certificate);
        let other = second.server(&["elsewhere".to_owned()], &address).unwrap();
        assert_ne!(one.certificate, other.certificate);
    }

    #[test]
    fn a_client_certificate_names_user_and_group() {
        let dir = tempfile::tempdir().unwrap();
        let (days, clock) = clock();
        let authority = Authority::open(dir.path(), clock).unwrap();
        let issued = authority.client("ann", Some("system:masters")).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(issued.certificate.as_bytes()).unwrap();
        let subject = pem.parse_x509().unwrap().subject().to_string();
        assert_eq!(subject, "O=system:masters, CN=ann");
        assert!(authority.is_current(&issued, "ann", Some("system:masters")));
        assert!(!authority.is_current(&issued, "bob", Some("system:masters")));
        assert!(!authority.is_current(&issued, "ann", None));
        days.store(LEAF_DAYS - RENEW_DAYS + 1, Ordering::Relaxed);
        assert!(!authority.is_current(&issued, "ann", Some("system:masters")), "its time runs out");
    }

    #[test]
    fn the_server_s_certificate_is_renewed_while_it_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let (days, clock) = clock();
        let authority = Arc::new(Authority::open(dir.path(), clock).unwrap());
        let served = authority.serve(vec!["localhost".to_owned()], Vec::new()).unwrap();
        let shown = || served.current.key.read().unwrap().cert[0].clone();
        let first = shown();
        days.store(LEAF_DAYS - RENEW_DAYS - 1, Ordering::Relaxed);
        served.renew().unwrap();
        assert_eq!(first, shown(), "it has time left");
        days.store(LEAF_DAYS - RENEW_DAYS + 1, Ordering::Relaxed);
        served.renew().unwrap();
        assert_ne!(first, shown());
        let kept = std::fs::read_to_string(dir.path().join("server.crt")).unwrap();
        let left = days_left(&kept, (authority.clock)()).unwrap();
        assert!((LEAF_DAYS - 2..=LEAF_DAYS).contains(&left), "{left}");
    }
}
