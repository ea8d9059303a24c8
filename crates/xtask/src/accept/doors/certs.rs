//! Certificates whose time runs out while a daemon runs.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::{Door, Stage};
use crate::load::until;

pub(super) const DOORS: &[Door] = &[Door {
    name: "certs-run-out",
    wanted: "certificates that run out are renewed while the daemon serves: its own, and those in kubeconfigs",
    short: true,
    attack: run_out,
}];

/// Days that the planted certificates are still good for: fewer than the daemon lets them have.
const DAYS_LEFT: i64 = 20;
/// And what a new one has at least.
const DAYS_RENEWED: i64 = 300;
/// Longest wait for the renewal, in seconds.
const RENEWED_SECONDS_MAX: u64 = 60;

/// Once, or again after the first renewal.
fn run_out(stage: &Stage) -> Result<String> {
    let mut days = 0;
    for _ in 0..stage.setting.times(2, 1) {
        days = run_out_once(stage)?;
    }
    // A rollout needs the proxy's own connection, and a client with the renewed kubeconfig.
    stage.sandbox.kubectl(["rollout", "restart", "deployment/hello"])?;
    stage.sandbox.kubectl(["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    Ok(format!("renewed in place, {days} days left"))
}

/// Plants certificates of the state folder's own authority that run out in three weeks, and has the daemon look at them,
/// as it does each hour. Answers the days that the new ones are good for.
fn run_out_once(stage: &Stage) -> Result<i64> {
    let state = stage.sandbox.state();
    let authority = Planter::open(&state.join("ca"))?;
    let (certificate, key) = authority.issue("kube-apiserver", None)?;
    std::fs::write(state.join("ca/server.key"), key)?;
    std::fs::write(state.join("ca/server.crt"), certificate)?;
    let kubeconfigs = [
        (state.join("kubeconfig"), "admin", "system:masters"),
        (state.join("run/proxy.kubeconfig"), "system:gantry:proxy", "system:gantry"),
    ];
    for (path, user, group) in &kubeconfigs {
        let mut config: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(path)?)?;
        let (certificate, key) = authority.issue(user, Some(group))?;
        let user = &mut config["users"][0]["user"];
        user["client-certificate-data"] = STANDARD.encode(certificate).into();
        user["client-key-data"] = STANDARD.encode(key).into();
        std::fs::write(path, serde_yaml_ng::to_string(&config)?)?;
        ensure!(days_of(path)? <= DAYS_LEFT, "{} was not planted", path.display());
    }
    let daemon = stage.sandbox.daemon_pid()?;
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGHUP).context("send SIGHUP")?;
    let renewed =
        || kubeconfigs.iter().all(|(path, ..)| days_of(path).is_ok_and(|days| days >= DAYS_RENEWED));
    let runtime = super::super::runtime()?;
    let all = runtime.block_on(until(RENEWED_SECONDS_MAX, || async {
        renewed() && shown_days(stage).is_ok_and(|days| days >= DAYS_RENEWED)
    }));
    ensure!(all, "not renewed: the server shows one with {:?} days left", shown_days(stage));
    ensure!(stage.sandbox.daemon_pid()? == daemon, "the daemon was started again");
    let status: Value = serde_json::from_str(&stage.sandbox.ok(["daemon", "status", "-o", "json"])?)?;
    let days =
        status["certificate_days_left"].as_i64().context("daemon status does not say the days left")?;
    ensure!(days >= DAYS_RENEWED, "daemon status says {days} days");
    Ok(days)
}

fn days_left(pem: &str) -> Result<i64> {
    let mut command = std::process::Command::new("openssl");
    command.args(["x509", "-noout", "-enddate", "-dateopt", "iso_8601"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().context("run openssl")?;
    use std::io::Write as _;
    child.stdin.take().context("no pipe to openssl")?.write_all(pem.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let end = said.trim().strip_prefix("notAfter=").with_context(|| format!("openssl said {said:?}"))?;
    let end: Timestamp = end.replace(' ', "T").parse().with_context(|| format!("{end:?} is no time"))?;
    Ok(end.duration_since(Timestamp::now()).as_hours() / 24)
}

fn days_of(kubeconfig: &std::path::Path) -> Result<i64> {
    let config: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(kubeconfig)?)?;
    let text = config["users"][0]["user"]["client-certificate-data"].as_str().context("no certificate")?;
    days_left(&String::from_utf8(STANDARD.decode(text)?)?)
}

/// Days left of the certificate that a client is shown.
fn shown_days(stage: &Stage) -> Result<i64> {
    let address = stage.sandbox.endpoint("kubernetes")?;
    let mut command = std::process::Command::new("openssl");
    command.args(["s_client", "-connect", &address, "-servername", "localhost"]);
    command.stdin(std::process::Stdio::null());
    let output = crate::sandbox::output(command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let begin = text.find("-----BEGIN CERTIFICATE-----").context("the server showed no certificate")?;
    const END: &str = "-----END CERTIFICATE-----";
    let end = text[begin..].find(END).context("the server's certificate has no end")?;
    days_left(&text[begin..begin + end + END.len()])
}

/// The state folder's authority, in the hands of the test.
struct Planter {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Planter {
    fn open(ca: &std::path::Path) -> Result<Self> {
        let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(ca.join("ca.key"))?)?;
        let issuer = rcgen::Issuer::from_ca_cert_pem(&std::fs::read_to_string(ca.join("ca.crt"))?, key)?;
        Ok(Self { issuer })
    }

    /// A certificate for this user and group and for every name of the API server's, and its key.
    fn issue(&self, user: &str, group: Option<&str>) -> Result<(String, String)> {
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let mut params = rcgen::CertificateParams::new(names.map(str::to_owned).to_vec())?;
        for address in ["127.0.0.1", "::1"] {
            params.subject_alt_names.push(rcgen::SanType::IpAddress(address.parse()?));
        }
        let mut name = rcgen::DistinguishedName::new();
        if let Some(group) = group {
            name.push(rcgen::DnType::OrganizationName, group);
        }
        name.push(rcgen::DnType::CommonName, user);
        params.distinguished_name = name;
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let date = |days: i64| -> Result<_> {
            let day = Timestamp::from_second(Timestamp::now().as_second() + days * 86_400)?;
            let date = day.to_zoned(jiff::tz::TimeZone::UTC).date();
            let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
            Ok(rcgen::date_time_ymd(date.year().into(), month, day))
        };
        params.not_before = date(-1)?;
        params.not_after = date(DAYS_LEFT)?;
        let key = rcgen::KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}
