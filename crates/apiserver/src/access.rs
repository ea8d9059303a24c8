//! Who may do what: a table of rules for the daemon's own components; `system:masters` may do everything.

use resources::status::{Status, Target};

use crate::identity::Identity;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Action<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

/// A row: who, and what they may do. "*" stands for all.
struct Rule {
    who: Who,
    verbs: &'static [&'static str],
    group: &'static str,
    /// `resource` or `resource/subresource`.
    resources: &'static [&'static str],
    /// Only in this namespace; "" is everywhere.
    namespace: &'static str,
}

enum Who {
    User(&'static str),
    Group(&'static str),
}

const READ: &[&str] = &["get", "list", "watch"];
const ALL: &[&str] = &["*"];
const CONTROLLERS: Who = Who::User("system:gantry:controllers");
const SCHEDULER: Who = Who::User("system:gantry:scheduler");
const PROXY: Who = Who::User("system:gantry:proxy");
const NODES: Who = Who::Group("system:nodes");
const AUTHENTICATED: Who = Who::Group("system:authenticated");

const fn rule(
    who: Who,
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
) -> Rule {
    Rule { who, verbs, group, resources, namespace: "" }
}

const fn within(mut rule: Rule, namespace: &'static str) -> Rule {
    rule.namespace = namespace;
    rule
}

static RULES: &[Rule] = &[
    // Controllers own the objects that they make; garbage collection and namespaces reach every kind.
    rule(CONTROLLERS, ALL, "*", &["*"]),
    rule(SCHEDULER, READ, "*", &["*"]),
    rule(SCHEDULER, &["create"], "", &["pods/binding", "bindings"]),
    rule(SCHEDULER, &["patch", "update"], "", &["pods/status"]),
    rule(SCHEDULER, &["create", "patch", "update"], "", &["events"]),
    rule(SCHEDULER, &["create", "patch", "update"], "events.k8s.io", &["events"]),
    rule(
        NODES,
        READ,
        "",
        &["pods", "services", "configmaps", "secrets", "nodes", "namespaces", "serviceaccounts"],
    ),
    rule(NODES, READ, "discovery.k8s.io", &["endpointslices"]),
    rule(NODES, READ, "coordination.k8s.io", &["leases"]),
    rule(NODES, &["create", "update", "patch", "delete"], "", &["nodes"]),
    rule(NODES, &["update", "patch"], "", &["nodes/status", "pods/status"]),
    rule(NODES, &["create", "update", "patch", "delete"], "", &["pods"]),
    rule(NODES, &["create", "update", "patch"], "", &["events"]),
    rule(NODES, &["create", "update", "patch"], "events.k8s.io", &["events"]),
    within(
        rule(NODES, &["create", "update", "patch", "delete"], "coordination.k8s.io", &["leases"]),
        "kube-node-lease",
    ),
    rule(PROXY, READ, "", &["pods", "services", "nodes", "namespaces"]),
    rule(PROXY, READ, "discovery.k8s.io", &["endpointslices"]),
    rule(PROXY, &["patch", "update"], "", &["pods/status", "services/status"]),
    rule(PROXY, &["create", "update", "patch"], "", &["events"]),
    rule(PROXY, &["create", "update", "patch"], "events.k8s.io", &["events"]),
    within(rule(PROXY, ALL, "coordination.k8s.io", &["leases"]), "gantry-system"),
    rule(
        AUTHENTICATED,
        &["create"],
        "authorization.k8s.io",
        &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
    ),
    rule(AUTHENTICATED, &["create"], "authentication.k8s.io", &["selfsubjectreviews"]),
];

/// Paths that are no resources and that everybody may read.
const OPEN_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];
/// Paths that are no resources and that every authenticated user may read.
const AUTHENTICATED_PATHS: &[&str] = &["/", "/api", "/apis", "/openapi", "/metrics"];

fn under(path: &str, roots: &[&str]) -> bool {
    roots.iter().any(|root| {
        path == *root || path.strip_prefix(root).is_some_and(|rest| *root != "/" && rest.starts_with('/'))
    })
}

/// Whether a path that is no resource may be read.
pub(crate) fn path_allowed(identity: &Identity, path: &str) -> bool {
    let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    identity.is_in("system:masters")
        || under(path, OPEN_PATHS)
        || identity.is_in("system:authenticated") && under(path, AUTHENTICATED_PATHS)
}

fn matches(rule: &Rule, identity: &Identity, action: &Action<'_>) -> bool {
    let who = match rule.who {
        Who::User(name) => identity.user == name,
        Who::Group(name) => identity.is_in(name),
    };
    let full = match action.subresource {
        "" => action.resource.to_owned(),
        sub => format!("{}/{sub}", action.resource),
    };
    who && (rule.verbs.contains(&"*") || rule.verbs.contains(&action.verb))
        && (rule.group == "*" || rule.group == action.group)
        && (rule.resources.contains(&"*") || rule.resources.contains(&full.as_str()))
        && (rule.namespace.is_empty() || rule.namespace == action.namespace)
}

/// Whether the action is allowed.
pub(crate) fn allowed(identity: &Identity, action: &Action<'_>) -> bool {
    identity.is_in("system:masters") || RULES.iter().any(|rule| matches(rule, identity, action))
}

/// The rules that hold for an identity in a namespace, for SelfSubjectRulesReview:
/// verbs, group, resources.
pub(crate) fn rules_of(
    identity: &Identity,
    namespace: &str,
) -> Vec<(&'static [&'static str], &'static str, &'static [&'static str])> {
    if identity.is_in("system:masters") {
        return vec![(ALL, "*", ALL)];
    }
    RULES
        .iter()
        .filter(|rule| match rule.who {
            Who::User(name) => identity.user == name,
            Who::Group(name) => identity.is_in(name),
        })
        .filter(|rule| rule.namespace.is_empty() || rule.namespace == namespace)
        .map(|rule| (rule.verbs, rule.group, rule.resources))
        .collect()
}

/// 403, as clients expect it.
pub(crate) fn forbidden(identity: &Identity, action: &Action<'_>) -> Status {
    let resource = match action.subresource {
        "" => action.resource.to_owned(),
        sub => format!("{}/{sub}", action.resource),
    };
    let scope = match action.namespace {
        "" => " at the cluster scope".to_owned(),
        namespace => format!(" in the namespace \"{namespace}\""),
    };
    let why = format!(
        "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\"{scope}",
        identity.user, action.verb, action.group
    );
    Status::forbidden(Target { group: action.group, resource: action.resource, name: action.name }, &why)
}

/// 403 for a path that is no resource.
pub(crate) fn path_forbidden(identity: &Identity, verb: &str, path: &str) -> Status {
    let why = format!("User \"{}\" cannot {verb} path \"{path}\"", identity.user);
    Status::forbidden(Target { group: "", resource: "", name: "" }, &why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action<'a>(verb: &'a str, group: &'a str, resource: &'a str, subresource: &'a str) -> Action<'a> {
        Action { verb, group, resource, subresource, namespace: "default", name: "" }
    }

    #[test]
    fn components_may_do_their_work_and_no_more() {
        let node = Identity::node("n");
        assert!(allowed(&node, &action("patch", "", "pods", "status")));
        assert!(!allowed(&node, &action("create", "apps", "deployments", "")));
        assert!(!allowed(&node, &action("create", "coordination.k8s.io", "leases", "")));
        let proxy = Identity::proxy();
        assert!(allowed(&proxy, &action("patch", "", "pods", "status")));
        assert!(!allowed(&proxy, &action("get", "", "secrets", "")));
        assert!(allowed(&Identity::admin(), &action("delete", "", "secrets", "")));
        assert!(!allowed(&Identity::anonymous(), &action("get", "", "pods", "")));
    }

    #[test]
    fn anonymous_reads_health_and_version_only() {
        let nobody = Identity::anonymous();
        for path in ["/healthz", "/readyz/ping", "/livez", "/version"] {
            assert!(path_allowed(&nobody, path), "{path}");
        }
        for path in ["/", "/api", "/apis", "/openapi/v3", "/metrics", "/healthzz"] {
            assert!(!path_allowed(&nobody, path), "{path}");
        }
        assert!(path_allowed(&Identity::proxy(), "/openapi/v3/api/v1"));
    }
}
