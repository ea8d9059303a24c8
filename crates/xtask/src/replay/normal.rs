//! What two runs never have in common: names, uids, versions, times, addresses.

use std::collections::BTreeMap;

use jiff::{Timestamp, ToSpan as _};
use serde_json::Value;

/// Replaces everything that differs from run to run.
pub fn normalise(value: &mut Value, variables: &BTreeMap<String, String>) {
    walk(value, "", variables);
    unordered(value);
}

/// Sorts what kube-apiserver itself gives in an order of chance: managers by the second of their last write, the
/// causes of an error by Go's maps.
fn unordered(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(managers) = map.get_mut("managedFields").and_then(Value::as_array_mut) {
                managers.sort_by_key(|m| format!("{} {} {}", m["manager"], m["operation"], m["subresource"]));
            }
            if map.get("kind").is_some_and(|kind| kind == "Status") {
                causes(map);
            }
            map.values_mut().for_each(unordered);
        }
        Value::Array(list) => list.iter_mut().for_each(unordered),
        _ => {}
    }
}

/// Sorts causes, each once, and leaves the message as far as it does not repeat them.
fn causes(status: &mut serde_json::Map<String, Value>) {
    let causes = status.get_mut("details").and_then(|d| d.get_mut("causes")).and_then(Value::as_array_mut);
    let Some(causes) = causes else { return };
    causes.sort_by_key(Value::to_string);
    // Kubernetes tells a cause as often as its checks overlap.
    causes.dedup();
    if causes.len() < 2 {
        return;
    }
    if let Some(Value::String(message)) = status.get_mut("message")
        && let Some((before, _)) = message.split_once(": [").or(message.split_once(" conflicts: "))
    {
        *message = format!("{before} <causes>");
    }
}

fn walk(value: &mut Value, key: &str, variables: &BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            let generated = map.get("generateName").and_then(Value::as_str).map(str::to_owned);
            if let (Some(prefix), Some(name)) = (generated, map.get_mut("name")) {
                *name = format!("{prefix}<suffix>").into();
            }
            map.remove("storageVersionHash");
            for (key, value) in map.iter_mut() {
                walk(value, key, variables);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| walk(item, key, variables)),
        Value::Number(number) => {
            if matches!(key, "nodePort" | "healthCheckNodePort")
                && number.as_u64().is_some_and(|n| n >= 30000)
            {
                *value = "<port>".into();
            }
        }
        Value::String(text) => *text = string(text, key, variables),
        Value::Null | Value::Bool(_) => {}
    }
}

fn string(text: &str, key: &str, variables: &BTreeMap<String, String>) -> String {
    match key {
        "resourceVersion" if !text.is_empty() && text != "0" => return "<version>".to_owned(),
        "serverAddress" => return "<address>".to_owned(),
        "continue" if !text.is_empty() => return "<continue>".to_owned(),
        "cells" if is_age(text) => return "<age>".to_owned(),
        _ => {}
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        let now = Timestamp::now();
        let near = now.checked_sub(24.hours()).is_ok_and(|day| time > day) && time < now + 24.hours();
        return if near { "<time>".to_owned() } else { text.to_owned() };
    }
    let mut out = text.replace(&variables["ns"], "${ns}").replace(&variables["run"], "${run}");
    for (name, value) in variables {
        // Short values and versions would match by chance.
        if value.len() > 5
            && !value.bytes().all(|b| b.is_ascii_digit())
            && !matches!(name.as_str(), "ns" | "run")
        {
            out = out.replace(value.as_str(), &format!("${{{name}}}"));
        }
    }
    let mut out = words(&echoed_time(&out));
    if key == "cells"
        && let Some((before, after)) = out.split_once(" (")
        && let Some(age) = after.strip_suffix(" ago)")
        && is_age(age)
    {
        out = format!("{before} (<age> ago)");
    }
    out
}

/// An age as `kubectl` shows it: `5m`, `3d4h`.
fn is_age(text: &str) -> bool {
    let mut digits = false;
    let mut units = 0;
    for c in text.chars() {
        match c {
            '0'..='9' => digits = true,
            's' | 'm' | 'h' | 'd' | 'y' if digits => {
                digits = false;
                units += 1;
            }
            _ => return false,
        }
    }
    units > 0 && !digits
}

/// Uids, cluster addresses, node ports and versions inside a text.
fn words(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '-')).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        out.push_str(word_of(word, &out));
        let Some(separator) = after.chars().next() else { break };
        out.push(separator);
        rest = &after[separator.len_utf8()..];
    }
    out
}

fn word_of<'a>(word: &'a str, before: &str) -> &'a str {
    let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    let bare = word.trim_end_matches('.');
    if is_uid(word) && word != "00000000-0000-0000-0000-000000000000" {
        "<uid>"
    } else if bare.starts_with("10.96.") && bare.parse::<std::net::Ipv4Addr>().is_ok() {
        "<ip>"
    } else if digits
        && before.ends_with(':')
        && word.parse::<u32>().is_ok_and(|n| (30000..=32767).contains(&n))
    {
        "<port>"
    } else if digits && VERSION_BEFORE.iter().any(|words| before.ends_with(words)) {
        "<version>"
    } else {
        word
    }
}

/// The time of creation in an object that a message repeats.
fn echoed_time(text: &str) -> String {
    const KEY: &str = r#"creationTimestamp\":\""#;
    match text.split_once(KEY).and_then(|(before, after)| Some((before, after.split_once('\\')?.1))) {
        Some((before, after)) => format!("{before}{KEY}<time>\\{after}"),
        None => text.to_owned(),
    }
}

/// What a resourceVersion in a text stands after.
const VERSION_BEFORE: [&str; 4] =
    ["object meta: ", "in record (", "resource version: 1 (", r#"resourceVersion\":\""#];

fn is_uid(word: &str) -> bool {
    let parts: Vec<usize> = word.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12] && word.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

const GROUPS: [&str; 5] = ["", "apps", "coordination.k8s.io", "discovery.k8s.io", "events.k8s.io"];
const RESOURCES: [&str; 13] = [
    "configmaps",
    "deployments",
    "endpointslices",
    "events",
    "leases",
    "namespaces",
    "nodes",
    "pods",
    "replicasets",
    "secrets",
    "serviceaccounts",
    "services",
    "controllerrevisions",
];
const SUBRESOURCES: [&str; 9] =
    ["attach", "binding", "eviction", "exec", "finalize", "log", "scale", "status", "ephemeralcontainers"];

/// Keeps what both servers serve of a discovery document.
pub fn only_our_kinds(answer: &mut Value) {
    let Some(body) = answer.get_mut("body") else { return };
    retain(body, "groups", |group| GROUPS.contains(&text(group, "/name")));
    retain(body, "resources", |resource| ours(text(resource, "/name")));
    retain(body, "items", |group| GROUPS.contains(&text(group, "/metadata/name")));
    for group in body.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        for version in group.get_mut("versions").and_then(Value::as_array_mut).into_iter().flatten() {
            retain(version, "resources", |resource| ours(text(resource, "/resource")));
            for resource in version.get_mut("resources").and_then(Value::as_array_mut).into_iter().flatten() {
                retain(resource, "subresources", |sub| SUBRESOURCES.contains(&text(sub, "/subresource")));
                // A resource whose subresources are all left out shows none.
                if resource.get("subresources").and_then(Value::as_array).is_some_and(Vec::is_empty)
                    && let Some(map) = resource.as_object_mut()
                {
                    map.remove("subresources");
                }
            }
        }
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn ours(name: &str) -> bool {
    match name.split_once('/') {
        None => RESOURCES.contains(&name),
        Some((resource, sub)) => RESOURCES.contains(&resource) && SUBRESOURCES.contains(&sub),
    }
}

fn retain(value: &mut Value, key: &str, keep: impl Fn(&Value) -> bool) {
    if let Some(list) = value.get_mut(key).and_then(Value::as_array_mut) {
        list.retain(keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_differ_from_run_to_run() {
        let text = "UID: 12345678-9abc-def0-1234-56789abcdef0, object meta: 77, 10.96.3.4. 80:31234/TCP";
        assert_eq!(words(text), "UID: <uid>, object meta: <version>, <ip> 80:<port>/TCP");
        assert_eq!(words("failed to allocate IP 192.0.2.1: x"), "failed to allocate IP 192.0.2.1: x");
    }

    #[test]
    fn ages() {
        assert!(is_age("5m") && is_age("3d4h") && is_age("6y20d"));
        assert!(!is_age("s") && !is_age("5") && !is_age("main") && !is_age(""));
    }
}
