//! What is wrong with volumes.

use serde_json::Value;

use super::env;
use crate::field::Error;
use crate::kinds::{names, tree};
use crate::quantity::Quantity;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Checks all volumes; the names of the good ones may be mounted.
pub fn volumes<'a>(errors: &mut Vec<Error>, path: &str, volumes: &'a [Value]) -> Vec<&'a str> {
    let mut good = Vec::new();
    for (i, volume) in volumes.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let mut own = Vec::new();
        source(&mut own, &path, volume);
        let name = tree::str(volume, "/name");
        if name.is_empty() {
            own.push(Error::required(format!("{path}.name"), ""));
        } else {
            names::label_1123(&mut own, &format!("{path}.name"), name);
        }
        if good.contains(&name) {
            own.push(Error::duplicate(format!("{path}.name"), name));
        }
        if own.is_empty() {
            good.push(name);
        }
        errors.extend(own);
    }
    good
}

fn source(errors: &mut Vec<Error>, path: &str, volume: &Value) {
    let sources: Vec<&str> = tree::entries(volume, "")
        .filter(|(key, value)| *key != "name" && !value.is_null())
        .map(|(key, _)| key.as_str())
        .collect();
    let Some(first) = ORDER.iter().find(|kind| sources.contains(kind)).or(sources.first()) else {
        errors.push(Error::required(path, "must specify a volume type"));
        return;
    };
    one(errors, &format!("{path}.{first}"), first, tree::get(volume, first));
    for other in sources.iter().filter(|other| *other != first) {
        errors.push(Error::forbidden(format!("{path}.{other}"), "may not specify more than 1 volume type"));
    }
}

/// Of several sources the first in this order counts.
const ORDER: [&str; 7] =
    ["emptyDir", "hostPath", "secret", "persistentVolumeClaim", "configMap", "projected", "downwardAPI"];

const HOST_PATHS: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

fn one(errors: &mut Vec<Error>, path: &str, kind: &str, source: &Value) {
    match kind {
        "emptyDir" => {
            let limit = tree::str(source, "/sizeLimit").parse::<Quantity>();
            if limit.is_ok_and(|limit| limit.signum() < 0) {
                let detail = "SizeLimit field must be a valid resource quantity";
                errors.push(Error::forbidden(format!("{path}.sizeLimit"), detail));
            }
        }
        "hostPath" => match tree::str(source, "/path") {
            "" => errors.push(Error::required(format!("{path}.path"), "")),
            target => {
                no_backsteps(errors, &format!("{path}.path"), target);
                names::one_of(errors, &format!("{path}.type"), tree::str(source, "/type"), &HOST_PATHS);
            }
        },
        "secret" => keyed(errors, path, source, "secretName"),
        "configMap" => keyed(errors, path, source, "name"),
        "persistentVolumeClaim" if tree::str(source, "/claimName").is_empty() => {
            errors.push(Error::required(format!("{path}.claimName"), ""));
        }
        "downwardAPI" => {
            mode(errors, &format!("{path}.defaultMode"), tree::get(source, "defaultMode"));
            downward(errors, path, source);
        }
        "projected" => projected(errors, path, source),
        _ => {}
    }
}

fn mode(errors: &mut Vec<Error>, path: &str, mode: &Value) {
    if let Some(mode) = mode.as_i64()
        && !(0..=0o777).contains(&mode)
    {
        errors.push(Error::invalid(path, mode, MODE));
    }
}

fn keyed(errors: &mut Vec<Error>, path: &str, source: &Value, name: &str) {
    if tree::get(source, name).as_str().is_none_or(str::is_empty) {
        errors.push(Error::required(format!("{path}.{name}"), ""));
    }
    mode(errors, &format!("{path}.defaultMode"), tree::get(source, "defaultMode"));
    items(errors, path, source);
}

fn items(errors: &mut Vec<Error>, path: &str, source: &Value) {
    for (i, item) in tree::list(source, "/items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        for key in ["key", "path"] {
            if tree::get(item, key).as_str().is_none_or(str::is_empty) {
                errors.push(Error::required(format!("{path}.{key}"), ""));
            }
        }
        local(errors, &format!("{path}.path"), tree::str(item, "/path"));
        mode(errors, &format!("{path}.mode"), tree::get(item, "mode"));
    }
}

fn downward(errors: &mut Vec<Error>, path: &str, source: &Value) {
    for (i, item) in tree::list(source, "/items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        let target = tree::str(item, "/path");
        if target.is_empty() {
            errors.push(Error::required(format!("{path}.path"), ""));
        }
        local(errors, &format!("{path}.path"), target);
        let (field, amount) = (tree::get(item, "fieldRef"), tree::get(item, "resourceFieldRef"));
        match (field.is_null(), amount.is_null()) {
            (false, true) => {
                let allowed = [
                    "metadata.annotations",
                    "metadata.labels",
                    "metadata.name",
                    "metadata.namespace",
                    "metadata.uid",
                ];
                env::field_ref(errors, &format!("{path}.fieldRef"), field, &allowed);
            }
            (false, false) => {
                errors.push(Error::invalid(
                    path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                ));
            }
            (true, false) => env::resource_ref(errors, &format!("{path}.resourceFieldRef"), amount, true),
            (true, true) => {
                errors.push(Error::required(path, "one of fieldRef and resourceFieldRef is required"))
            }
        }
    }
}

fn projected(errors: &mut Vec<Error>, path: &str, source: &Value) {
    mode(errors, &format!("{path}.defaultMode"), tree::get(source, "defaultMode"));
    for (i, part) in tree::list(source, "/sources").iter().enumerate() {
        let path = format!("{path}.sources[{i}]");
        let kinds: Vec<&String> =
            tree::entries(part, "").filter(|(_, v)| !v.is_null()).map(|(k, _)| k).collect();
        if kinds.len() > 1 {
            errors.push(Error::forbidden(path.as_str(), "may not specify more than 1 volume type"));
        }
        for (kind, part) in tree::entries(part, "") {
            let path = format!("{path}.{kind}");
            match kind.as_str() {
                "secret" | "configMap" => {
                    if tree::str(part, "/name").is_empty() {
                        errors.push(Error::required(format!("{path}.name"), ""));
                    }
                    items(errors, &path, part);
                }
                "downwardAPI" => downward(errors, &path, part),
                "serviceAccountToken" => {
                    if tree::str(part, "/path").is_empty() {
                        errors.push(Error::required(format!("{path}.path"), ""));
                    }
                    let seconds = tree::int(part, "/expirationSeconds");
                    if seconds < 600 {
                        let detail = "may not specify a duration less than 10 minutes";
                        errors.push(Error::invalid(format!("{path}.expirationSeconds"), seconds, detail));
                    }
                }
                _ => {}
            }
        }
    }
}

fn no_backsteps(errors: &mut Vec<Error>, path: &str, target: &str) {
    if target.split('/').any(|part| part == "..") {
        errors.push(Error::invalid(path, target, "must not contain '..'"));
    }
}

/// A path that stays below where it starts.
pub fn descending(errors: &mut Vec<Error>, path: &str, target: &str) {
    if target.starts_with('/') {
        errors.push(Error::invalid(path, target, "must be a relative path"));
    }
    no_backsteps(errors, path, target);
}

fn local(errors: &mut Vec<Error>, path: &str, target: &str) {
    descending(errors, path, target);
    if target.starts_with("..") && !target.starts_with("../") {
        errors.push(Error::invalid(path, target, "must not start with '..'"));
    }
}
