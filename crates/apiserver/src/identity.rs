//! Who asks: from a client certificate, or given by code in the same process.

use rustls_pki_types::CertificateDer;

/// A user and the groups that the user is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

impl Identity {
    /// A user with groups; every authenticated user is also in `system:authenticated`.
    pub fn new(user: impl Into<String>, groups: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(Into::into).collect();
        if !groups.iter().any(|group| group == "system:authenticated") {
            groups.push("system:authenticated".into());
        }
        Identity { user: user.into(), groups }
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Identity { user: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()] }
    }

    /// Whoever may do everything.
    pub fn admin() -> Self {
        Identity::new("admin", ["system:masters"])
    }

    /// The controllers of the daemon.
    pub fn controllers() -> Self {
        Identity::new("system:gantry:controllers", ["system:gantry"])
    }

    /// The scheduler of the daemon.
    pub fn scheduler() -> Self {
        Identity::new("system:gantry:scheduler", ["system:gantry"])
    }

    /// The proxy.
    pub fn proxy() -> Self {
        Identity::new("system:gantry:proxy", ["system:gantry"])
    }

    /// The agent of a node.
    pub fn node(name: &str) -> Self {
        Identity::new(format!("system:node:{name}"), ["system:nodes"])
    }

    /// Whether the identity is in `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|name| name == group)
    }

    /// From a verified client certificate: the common name is the user, organisations are groups.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate.as_ref()).ok()?;
        let subject = parsed.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups: Vec<String> =
            subject.iter_organization().filter_map(|name| name.as_str().ok()).map(str::to_owned).collect();
        (!user.is_empty()).then(|| Identity::new(user, groups))
    }
}
