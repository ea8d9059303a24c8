//! What of a Pod this node does not do is said, never passed over: a field that changes isolation is obeyed or refused.
//!
//! Kubelet's own rejections (a forbidden sysctl, AppArmor where there is none, another operating system) end the Pod as
//! kubelet ends it: phase Failed with kubelet's reason. A Pod of a controller waits instead: its controller would replace
//! a failed one at once, without end. What kubelet could do and this node cannot leaves the Pod pending,
//! as a configuration error of its containers, because nothing is wrong with the Pod.
//!
//! [`fields`] has a row for every field of the API's types; a test holds it against the schema.

pub mod fields;
mod sysctl;

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, PodSpec};

/// The annotation by which a container's AppArmor profile was named before there was a field, followed by its name.
const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
/// There on a machine whose kernel enforces SELinux.
const SE_LINUX: &str = "/sys/fs/selinux/enforce";

/// Why kubelet too would reject the Pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Rejection {
    /// `status.reason`, and the event's.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

/// What this node does not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is not supported here; {hint}")]
pub struct Unsupported {
    /// The field, with its path in the Pod.
    pub field: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// Whether kubelet would take the Pod.
pub fn admit(pod: &Pod) -> Result<(), Rejection> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    if let Some(os) = spec.os.as_ref().filter(|os| os.name != "linux") {
        let message =
            format!("Failed to admit pod as the OS field ({}) doesn't match node OS (linux)", os.name);
        return Err(Rejection { reason: "PodOSNotSupported", message });
    }
    sysctl::check(spec).map_err(|message| Rejection { reason: "SysctlForbidden", message })?;
    match app_armor(pod, spec) {
        Some(field) => Err(Rejection {
            reason: "AppArmor",
            message: format!(
                "Cannot enforce AppArmor: {field} names a profile, and this node loads none; leave it out"
            ),
        }),
        None => Ok(()),
    }
}

/// Whether a rejected Pod fails, rather than waits.
pub fn fails(pod: &Pod) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    !owners.into_iter().any(|owner| owner.controller == Some(true))
}

/// The kernel parameters that the Pod sets, by the kernel's own names.
pub fn sysctls(spec: &PodSpec) -> BTreeMap<String, String> {
    sysctl::of(spec)
}

fn all(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// Where an AppArmor profile is asked for.
fn app_armor(pod: &Pod, spec: &PodSpec) -> Option<String> {
    let asks =
        |profile: Option<&AppArmorProfile>| profile.is_some_and(|profile| profile.type_ != "Unconfined");
    if asks(spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref())) {
        return Some("securityContext.appArmorProfile".to_owned());
    }
    let own = all(spec).find(|container| {
        asks(container.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref()))
    });
    if let Some(container) = own {
        return Some(format!("container {}'s securityContext.appArmorProfile", container.name));
    }
    let annotations = pod.metadata.annotations.iter().flatten();
    annotations
        .into_iter()
        .find(|(key, value)| {
            key.starts_with(APP_ARMOR_ANNOTATION) && !matches!(value.as_str(), "" | "unconfined")
        })
        .map(|(key, _)| format!("annotation {key}"))
}

/// Whether this node does all that the Pod and this container of it ask for.
pub fn supported(spec: &PodSpec, container: &Container) -> Result<(), Unsupported> {
    supported_on(spec, container, Path::new(SE_LINUX).exists())
}

fn supported_on(spec: &PodSpec, container: &Container, se_linux: bool) -> Result<(), Unsupported> {
    let pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let of_pod = |wanted: bool, field: &str, hint| (wanted, format!("spec.{field}"), hint);
    let of_own =
        |wanted: bool, field: &str, hint| (wanted, format!("container {}: {field}", container.name), hint);
    let no_namespace = "leave it out: each container has a namespace of its own";
    let resources = container.resources.as_ref();
    let limited = spec.resources.as_ref().is_some_and(|all| {
        all.limits.as_ref().is_some_and(|limits| !limits.is_empty())
            || all.requests.as_ref().is_some_and(|requests| !requests.is_empty())
    });
    let labelled =
        |options: Option<&k8s_openapi::api::core::v1::SELinuxOptions>| se_linux && options.is_some();
    let rows = [
        of_pod(spec.host_pid == Some(true), "hostPID", no_namespace),
        of_pod(spec.host_ipc == Some(true), "hostIPC", no_namespace),
        of_pod(spec.share_process_namespace == Some(true), "shareProcessNamespace", no_namespace),
        of_pod(
            spec.runtime_class_name.as_deref().is_some_and(|name| !name.is_empty()),
            "runtimeClassName",
            "leave it out: there is one runtime",
        ),
        of_pod(
            spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()),
            "resourceClaims",
            "leave it out: no driver allocates devices here",
        ),
        of_pod(limited, "resources", "set requests and limits on the containers"),
        of_pod(spec.set_hostname_as_fqdn == Some(true), "setHostnameAsFQDN", "set hostname"),
        of_pod(
            labelled(pod.and_then(|pod| pod.se_linux_options.as_ref())),
            "securityContext.seLinuxOptions",
            "leave it out: no labels are set",
        ),
        of_own(
            own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked"),
            "securityContext.procMount Unmasked",
            "use Default",
        ),
        of_own(
            labelled(own.and_then(|own| own.se_linux_options.as_ref())),
            "securityContext.seLinuxOptions",
            "leave it out: no labels are set",
        ),
        of_own(
            resources.is_some_and(|all| all.claims.as_ref().is_some_and(|claims| !claims.is_empty())),
            "resources.claims",
            "leave it out: no driver allocates devices here",
        ),
        of_own(
            container.restart_policy_rules.as_ref().is_some_and(|rules| !rules.is_empty()),
            "restartPolicyRules",
            "use restartPolicy",
        ),
        of_own(
            container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()),
            "volumeDevices",
            "use volumeMounts",
        ),
    ];
    match rows.into_iter().find(|(wanted, ..)| *wanted) {
        Some((_, field, hint)) => Err(Unsupported { field, hint }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut whole = spec;
        if whole.get("containers").is_none() {
            whole["containers"] = json!([{"name": "c"}]);
        }
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": whole})).unwrap()
    }

    fn refused(spec: Value) -> Option<String> {
        let pod = pod(spec);
        let spec = pod.spec.as_ref().unwrap();
        if let Err(rejection) = admit(&pod) {
            return Some(rejection.reason.to_owned());
        }
        supported_on(spec, &spec.containers[0], true).err().map(|error| error.to_string())
    }

    fn own(context: Value) -> Value {
        json!({"containers": [{"name": "c", "securityContext": context}]})
    }

    #[test]
    fn what_changes_isolation_is_refused_by_name() {
        assert_eq!(refused(json!({})), None);
        for (spec, expected) in [
            (json!({"hostPID": true}), "spec.hostPID"),
            (json!({"hostIPC": true}), "spec.hostIPC"),
            (json!({"shareProcessNamespace": true}), "spec.shareProcessNamespace"),
            (json!({"runtimeClassName": "gvisor"}), "spec.runtimeClassName"),
            (json!({"resourceClaims": [{"name": "gpu"}]}), "spec.resourceClaims"),
            (json!({"resources": {"limits": {"memory": "1Mi"}}}), "spec.resources"),
            (json!({"setHostnameAsFQDN": true}), "spec.setHostnameAsFQDN"),
            (json!({"os": {"name": "windows"}}), "PodOSNotSupported"),
            (json!({"securityContext": {"seLinuxOptions": {"level": "s0"}}}), "seLinuxOptions"),
            (json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}), "AppArmor"),
            (
                json!({"securityContext": {"sysctls": [{"name": "kernel.panic", "value": "1"}]}}),
                "SysctlForbidden",
            ),
            (own(json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}})), "AppArmor"),
            (own(json!({"procMount": "Unmasked"})), "container c: securityContext.procMount"),
            (own(json!({"seLinuxOptions": {"level": "s0"}})), "container c: securityContext.seLinuxOptions"),
            (
                json!({"containers": [{"name": "c", "resources": {"claims": [{"name": "gpu"}]}}]}),
                "container c: resources.claims",
            ),
            (
                json!({"containers": [{"name": "c", "restartPolicyRules": [{"action": "Restart"}]}]}),
                "container c: restartPolicyRules",
            ),
            (
                json!({"containers": [{"name": "c", "volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]}]}),
                "container c: volumeDevices",
            ),
        ] {
            let found = refused(spec.clone());
            assert!(found.as_ref().is_some_and(|found| found.contains(expected)), "{spec}: {found:?}");
        }
    }

    #[test]
    fn what_asks_for_nothing_is_admitted() {
        for spec in [
            json!({"hostPID": false, "hostIPC": false, "shareProcessNamespace": false}),
            json!({"os": {"name": "linux"}, "runtimeClassName": ""}),
            json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
            own(json!({"procMount": "Default", "appArmorProfile": {"type": "Unconfined"}})),
        ] {
            assert_eq!(refused(spec.clone()), None, "{spec}");
        }
        let mut old = pod(json!({}));
        assert!(fails(&old));
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "1", "controller": true}]);
        old.metadata.owner_references = serde_json::from_value(owner).unwrap();
        assert!(!fails(&old));
        let key = format!("{APP_ARMOR_ANNOTATION}c");
        old.metadata.annotations = Some([(key.clone(), "runtime/default".to_owned())].into());
        assert_eq!(admit(&old).unwrap_err().reason, "AppArmor");
        old.metadata.annotations = Some([(key, "unconfined".to_owned())].into());
        assert_eq!(admit(&old), Ok(()));
    }
}
