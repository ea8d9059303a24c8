//! What is wrong with a container.

use serde_json::Value;

use super::{env, probe, security};
use crate::field::Error;
use crate::kinds::{names, tree};
use crate::quantity::Quantity;

/// What a container's check needs to know of its Pod.
pub struct Context<'a> {
    pub spec: &'a Value,
    pub volumes: &'a [&'a str],
    pub is_pod: bool,
}

fn all_of<'a>(spec: &'a Value, key: &str) -> &'a [Value] {
    tree::list(tree::get(spec, key), "")
}

/// `spec.containers`.
pub fn regular(errors: &mut Vec<Error>, path: &str, context: &Context) {
    let containers = all_of(context.spec, "containers");
    if containers.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let mut seen = Vec::new();
    for (i, container) in containers.iter().enumerate() {
        let path = format!("{path}[{i}]");
        common(errors, &path, container, context);
        let name = tree::str(container, "/name");
        if seen.contains(&name) {
            errors.push(Error::duplicate(format!("{path}.name"), name));
        }
        seen.push(name);
        probe::lifecycle(errors, &path, container, context.spec);
        probe::probes(errors, &path, container);
        restart_rules(errors, &path, container);
    }
    host_ports(errors, path, containers, 0);
}

/// `spec.initContainers`.
pub fn init(errors: &mut Vec<Error>, path: &str, context: &Context) {
    let mut seen: Vec<&str> =
        all_of(context.spec, "containers").iter().map(|c| tree::str(c, "/name")).collect();
    for (i, container) in all_of(context.spec, "initContainers").iter().enumerate() {
        let list = path;
        let path = format!("{path}[{i}]");
        common(errors, &path, container, context);
        restart_rules(errors, &path, container);
        let name = tree::str(container, "/name");
        if seen.contains(&name) {
            errors.push(Error::duplicate(format!("{path}.name"), name));
        }
        seen.push(name);
        host_ports(errors, list, std::slice::from_ref(container), i);
        if tree::str(container, "/restartPolicy") == "Always" {
            probe::lifecycle(errors, &path, container, context.spec);
            probe::probes(errors, &path, container);
            continue;
        }
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if !tree::get(container, key).is_null() {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errors.push(Error::forbidden(format!("{path}.{key}"), detail));
            }
        }
    }
}

/// `spec.ephemeralContainers`.
pub fn ephemeral(errors: &mut Vec<Error>, path: &str, context: &Context) {
    let others: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|key| all_of(context.spec, key))
        .map(|c| tree::str(c, "/name"))
        .collect();
    let mut seen = others.clone();
    for (i, container) in all_of(context.spec, "ephemeralContainers").iter().enumerate() {
        let path = format!("{path}[{i}]");
        common(errors, &path, container, context);
        let name = tree::str(container, "/name");
        if seen.contains(&name) {
            errors.push(Error::duplicate(format!("{path}.name"), name));
        }
        seen.push(name);
        let target = tree::str(container, "/targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            errors.push(Error::not_found(format!("{path}.targetContainerName"), target));
        }
        for key in ["ports", "lifecycle", "livenessProbe", "readinessProbe", "startupProbe", "resizePolicy"] {
            if !tree::get(container, key).is_null() {
                errors.push(Error::forbidden(
                    format!("{path}.{key}"),
                    "cannot be set for an Ephemeral Container",
                ));
            }
        }
    }
}

fn common(errors: &mut Vec<Error>, path: &str, container: &Value, context: &Context) {
    let name = tree::str(container, "/name");
    if name.is_empty() {
        errors.push(Error::required(format!("{path}.name"), ""));
    } else {
        names::label_1123(errors, &format!("{path}.name"), name);
    }
    let image = tree::str(container, "/image");
    if image.is_empty() {
        errors.push(Error::required(format!("{path}.image"), ""));
    } else if context.is_pod && image.trim() != image {
        errors.push(Error::invalid(
            format!("{path}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    names::one_of(
        errors,
        &format!("{path}.terminationMessagePolicy"),
        tree::str(container, "/terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    );
    ports(errors, &format!("{path}.ports"), tree::list(container, "/ports"));
    env::variables(errors, &format!("{path}.env"), tree::list(container, "/env"));
    env::sources(errors, &format!("{path}.envFrom"), tree::list(container, "/envFrom"));
    mounts(errors, &format!("{path}.volumeMounts"), container, context.volumes);
    names::one_of(
        errors,
        &format!("{path}.imagePullPolicy"),
        tree::str(container, "/imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    );
    resources(errors, &format!("{path}.resources"), tree::get(container, "resources"));
    security::container(errors, &format!("{path}.securityContext"), tree::get(container, "securityContext"));
}

fn ports(errors: &mut Vec<Error>, path: &str, ports: &[Value]) {
    let mut seen = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let name = tree::str(port, "/name");
        if !name.is_empty() {
            let problems = names::port_problems(name);
            if !problems.is_empty() {
                names::report(errors, &format!("{path}.name"), name, problems);
            } else if seen.contains(&name) {
                errors.push(Error::duplicate(format!("{path}.name"), name));
            } else {
                seen.push(name);
            }
        }
        let number = tree::int(port, "/containerPort");
        if number == 0 {
            errors.push(Error::required(format!("{path}.containerPort"), ""));
        } else if let Some(problem) = names::port_number_problem(number) {
            errors.push(Error::invalid(format!("{path}.containerPort"), number, problem));
        }
        let host = tree::int(port, "/hostPort");
        if host != 0
            && let Some(problem) = names::port_number_problem(host)
        {
            errors.push(Error::invalid(format!("{path}.hostPort"), host, problem));
        }
        let protocol = tree::str(port, "/protocol");
        names::one_of(errors, &format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
    }
}

/// No two containers take the same port of the host.
fn host_ports(errors: &mut Vec<Error>, path: &str, containers: &[Value], first: usize) {
    let mut seen = Vec::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in tree::list(container, "/ports").iter().enumerate() {
            let host = tree::int(port, "/hostPort");
            if host == 0 {
                continue;
            }
            let key = format!("{}/{}/{host}", tree::str(port, "/protocol"), tree::str(port, "/hostIP"));
            if seen.contains(&key) {
                let path = format!("{path}[{}].ports[{j}].hostPort", first + i);
                errors.push(Error::duplicate(path, key.as_str()));
            }
            seen.push(key);
        }
    }
}

fn mounts(errors: &mut Vec<Error>, path: &str, container: &Value, volumes: &[&str]) {
    let mut seen = Vec::new();
    let privileged = tree::bool(container, "/securityContext/privileged");
    for (i, mount) in tree::list(container, "/volumeMounts").iter().enumerate() {
        let item = format!("{path}[{i}]");
        let name = tree::str(mount, "/name");
        if name.is_empty() {
            errors.push(Error::required(format!("{item}.name"), ""));
        }
        if !volumes.contains(&name) {
            errors.push(Error::not_found(format!("{item}.name"), name));
        }
        let target = tree::str(mount, "/mountPath");
        if target.is_empty() {
            errors.push(Error::required(format!("{item}.mountPath"), ""));
        }
        if seen.contains(&target) {
            errors.push(Error::invalid(format!("{item}.mountPath"), target, "must be unique"));
        }
        seen.push(target);
        let (sub, expression) = (tree::str(mount, "/subPath"), tree::str(mount, "/subPathExpr"));
        if !sub.is_empty() {
            super::volume::descending(errors, &format!("{path}.subPath"), sub);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.push(Error::invalid(format!("{item}.subPathExpr"), expression, detail));
            }
            super::volume::descending(errors, &format!("{path}.subPathExpr"), expression);
        }
        if let Some(mode) = tree::at(mount, "/mountPropagation").as_str() {
            let path = format!("{path}.mountPropagation");
            names::one_of(errors, &path, mode, &["Bidirectional", "HostToContainer", "None"]);
            if mode == "Bidirectional" && !privileged {
                let detail = "Bidirectional mount propagation is available only to privileged containers";
                errors.push(Error::forbidden(path, detail));
            }
        }
    }
}

fn parse(amount: &Value) -> Option<Quantity> {
    amount.as_str()?.parse().ok()
}

/// Resources that a container may ask for without a domain.
const RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

fn resource_name(errors: &mut Vec<Error>, path: &str, name: &str) {
    let problems = names::qualified_problems(name);
    if !problems.is_empty() {
        names::report(errors, path, name, problems);
    } else if !name.contains('/') && !RESOURCES.contains(&name) && !name.starts_with("hugepages-") {
        errors.push(Error::invalid(path, name, "must be a standard resource type or fully qualified"));
        errors.push(Error::invalid(path, name, "must be a standard resource for containers"));
    }
}

fn amount(errors: &mut Vec<Error>, path: &str, name: &str, value: &Value) {
    let Some(quantity) = parse(value) else { return };
    if quantity.signum() < 0 {
        errors.push(Error::invalid(path, value.clone(), "must be greater than or equal to 0"));
    }
    if name.contains('/') && quantity.milli() % 1000 != 0 {
        errors.push(Error::invalid(path, value.clone(), "must be an integer"));
    }
}

fn resources(errors: &mut Vec<Error>, path: &str, resources: &Value) {
    let limits = tree::get(resources, "limits");
    for (name, value) in tree::entries(limits, "") {
        let path = format!("{path}.limits[{name}]");
        resource_name(errors, &path, name);
        amount(errors, &path, name, value);
    }
    for (name, value) in tree::entries(resources, "/requests") {
        let item = format!("{path}.requests[{name}]");
        resource_name(errors, &item, name);
        amount(errors, &item, name, value);
        // Extended resources and huge pages cannot be shared out beyond what there is.
        let shared = !name.contains('/') && !name.starts_with("hugepages-");
        let Some(request) = parse(value) else { continue };
        match parse(tree::get(limits, name)) {
            Some(limit) if !shared && request != limit => errors.push(Error::invalid(
                format!("{path}.requests"),
                value.clone(),
                format!("must be equal to {name} limit of {limit}"),
            )),
            Some(limit) if request > limit => errors.push(Error::invalid(
                format!("{path}.requests"),
                value.clone(),
                format!("must be less than or equal to {name} limit of {limit}"),
            )),
            None if !shared => errors.push(Error::required(
                format!("{path}.limits"),
                "Limit must be set for non overcommitable resources",
            )),
            _ => {}
        }
    }
}

const RULES_MAX: usize = 20;

fn restart_rules(errors: &mut Vec<Error>, path: &str, container: &Value) {
    let rules = tree::list(container, "/restartPolicyRules");
    match tree::at(container, "/restartPolicy").as_str() {
        None if !rules.is_empty() => errors.push(Error::required(
            format!("{path}.restartPolicy"),
            "must specify restartPolicy when restart rules are used",
        )),
        None => {}
        Some(policy) => {
            names::one_of(
                errors,
                &format!("{path}.restartPolicy"),
                policy,
                &["Always", "Never", "OnFailure"],
            );
        }
    }
    if rules.len() > RULES_MAX {
        errors.push(Error::too_many(format!("{path}.restartPolicyRules"), rules.len(), RULES_MAX));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("{path}.restartPolicyRules[{i}]");
        names::one_of(errors, &format!("{path}.action"), tree::str(rule, "/action"), &["Restart"]);
        let codes = tree::get(rule, "exitCodes");
        if codes.is_null() {
            errors.push(Error::required(format!("{path}.exitCodes"), "must be specified"));
        } else {
            let operator = tree::str(codes, "/operator");
            names::one_of(errors, &format!("{path}.exitCodes.operator"), operator, &["In", "NotIn"]);
        }
    }
}
