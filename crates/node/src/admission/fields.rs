//! Every field of a Pod that a node could pass over, and what becomes of it. A test holds the rows against the schema of
//! the API's types, so that a release with a new field cannot be taken without a decision.

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// As kubelet does.
    Obeyed,
    /// The Pod is told that it is not supported: see [`super::admit`] and [`super::supported`].
    Refused,
    /// It changes nothing here, and why.
    Inert(&'static str),
}

use Treatment::{Inert, Obeyed, Refused};

/// Type, field, treatment; sorted by field within a type.
pub const FIELDS: &[(&str, &str, Treatment)] = &[
    ("PodSpec", "activeDeadlineSeconds", Obeyed),
    (
        "PodSpec",
        "affinity",
        Inert("node affinity is obeyed by the scheduler; on one node affinity between Pods decides nothing"),
    ),
    ("PodSpec", "automountServiceAccountToken", Obeyed),
    ("PodSpec", "containers", Obeyed),
    ("PodSpec", "dnsConfig", Obeyed),
    ("PodSpec", "dnsPolicy", Obeyed),
    ("PodSpec", "enableServiceLinks", Obeyed),
    (
        "PodSpec",
        "ephemeralContainers",
        Inert("only the subresource adds them, and it is not served; of a stored Pod none is run"),
    ),
    ("PodSpec", "hostAliases", Obeyed),
    ("PodSpec", "hostIPC", Refused),
    ("PodSpec", "hostNetwork", Obeyed),
    ("PodSpec", "hostPID", Refused),
    ("PodSpec", "hostUsers", Obeyed),
    ("PodSpec", "hostname", Obeyed),
    ("PodSpec", "hostnameOverride", Obeyed),
    ("PodSpec", "imagePullSecrets", Obeyed),
    ("PodSpec", "initContainers", Obeyed),
    ("PodSpec", "nodeName", Obeyed),
    ("PodSpec", "nodeSelector", Obeyed),
    ("PodSpec", "os", Refused),
    ("PodSpec", "overhead", Obeyed),
    ("PodSpec", "preemptionPolicy", Inert("nothing is preempted")),
    ("PodSpec", "priority", Obeyed),
    ("PodSpec", "priorityClassName", Inert("priority is what counts")),
    ("PodSpec", "readinessGates", Obeyed),
    ("PodSpec", "resourceClaims", Refused),
    ("PodSpec", "resources", Refused),
    ("PodSpec", "restartPolicy", Obeyed),
    ("PodSpec", "runtimeClassName", Refused),
    ("PodSpec", "schedulerName", Obeyed),
    ("PodSpec", "schedulingGates", Obeyed),
    ("PodSpec", "schedulingGroup", Inert("Pods are scheduled one by one")),
    ("PodSpec", "securityContext", Obeyed),
    ("PodSpec", "serviceAccount", Obeyed),
    ("PodSpec", "serviceAccountName", Obeyed),
    ("PodSpec", "setHostnameAsFQDN", Refused),
    ("PodSpec", "shareProcessNamespace", Refused),
    ("PodSpec", "subdomain", Obeyed),
    ("PodSpec", "terminationGracePeriodSeconds", Obeyed),
    ("PodSpec", "tolerations", Obeyed),
    ("PodSpec", "topologySpreadConstraints", Inert("there is one node")),
    ("PodSpec", "volumes", Obeyed),
    ("Container", "args", Obeyed),
    ("Container", "command", Obeyed),
    ("Container", "env", Obeyed),
    ("Container", "envFrom", Obeyed),
    ("Container", "image", Obeyed),
    ("Container", "imagePullPolicy", Obeyed),
    ("Container", "lifecycle", Obeyed),
    ("Container", "livenessProbe", Obeyed),
    ("Container", "name", Obeyed),
    (
        "Container",
        "ports",
        Inert(
            "names are obeyed; hostPort is not, a Service of type LoadBalancer or NodePort publishes a port",
        ),
    ),
    ("Container", "readinessProbe", Obeyed),
    ("Container", "resizePolicy", Inert("nothing is resized in place")),
    ("Container", "resources", Obeyed),
    ("Container", "restartPolicy", Obeyed),
    ("Container", "restartPolicyRules", Refused),
    ("Container", "securityContext", Obeyed),
    ("Container", "startupProbe", Obeyed),
    ("Container", "stdin", Obeyed),
    ("Container", "stdinOnce", Obeyed),
    ("Container", "terminationMessagePath", Obeyed),
    ("Container", "terminationMessagePolicy", Obeyed),
    ("Container", "tty", Obeyed),
    ("Container", "volumeDevices", Refused),
    ("Container", "volumeMounts", Obeyed),
    ("Container", "workingDir", Obeyed),
    ("SecurityContext", "allowPrivilegeEscalation", Obeyed),
    ("SecurityContext", "appArmorProfile", Refused),
    ("SecurityContext", "capabilities", Obeyed),
    ("SecurityContext", "privileged", Obeyed),
    ("SecurityContext", "procMount", Refused),
    ("SecurityContext", "readOnlyRootFilesystem", Obeyed),
    ("SecurityContext", "runAsGroup", Obeyed),
    ("SecurityContext", "runAsNonRoot", Obeyed),
    ("SecurityContext", "runAsUser", Obeyed),
    ("SecurityContext", "seLinuxOptions", Refused),
    ("SecurityContext", "seccompProfile", Obeyed),
    ("SecurityContext", "windowsOptions", Inert("for Windows")),
    ("PodSecurityContext", "appArmorProfile", Refused),
    ("PodSecurityContext", "fsGroup", Obeyed),
    (
        "PodSecurityContext",
        "fsGroupChangePolicy",
        Inert("volumes are made for their Pod, so there is nothing to change again"),
    ),
    ("PodSecurityContext", "runAsGroup", Obeyed),
    ("PodSecurityContext", "runAsNonRoot", Obeyed),
    ("PodSecurityContext", "runAsUser", Obeyed),
    ("PodSecurityContext", "seLinuxChangePolicy", Inert("without labels there is nothing to change")),
    ("PodSecurityContext", "seLinuxOptions", Refused),
    ("PodSecurityContext", "seccompProfile", Obeyed),
    ("PodSecurityContext", "supplementalGroups", Obeyed),
    ("PodSecurityContext", "supplementalGroupsPolicy", Obeyed),
    ("PodSecurityContext", "sysctls", Obeyed),
    ("PodSecurityContext", "windowsOptions", Inert("for Windows")),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_field_of_the_schema_has_a_row_and_every_row_a_field() {
        let types: BTreeSet<&str> = FIELDS.iter().map(|row| row.0).collect();
        assert_eq!(types.len(), 4);
        for kind in types {
            let schema = resources::schema::of(&format!("io.k8s.api.core.v1.{kind}")).unwrap();
            let fields: BTreeSet<&str> = schema.fields.iter().map(|field| field.name).collect();
            let rows: Vec<&str> = FIELDS.iter().filter(|row| row.0 == kind).map(|row| row.1).collect();
            assert!(rows.windows(2).all(|pair| pair[0] < pair[1]), "{kind}: sorted and unique");
            assert_eq!(fields, rows.into_iter().collect(), "{kind}");
        }
    }

    #[test]
    fn what_does_nothing_says_why() {
        assert!(FIELDS.iter().all(|row| !matches!(row.2, Inert(why) if why.is_empty())));
    }
}
