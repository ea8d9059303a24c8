//! What is in configMap, secret, downwardAPI and projected volumes. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, KeyToPath, Pod, Volume, VolumeProjection,
};

use super::Error;
use super::atomic::{File, Files};
use crate::env::Sources;
use crate::fields;

const MODE: u32 = 0o644;

/// Service account tokens that were asked for, by their path in the volume.
pub type Tokens = BTreeMap<String, String>;

/// Names of the ConfigMaps and Secrets that a Pod's volumes show.
pub fn names(pod: &Pod) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        if let Some(source) = &volume.config_map {
            maps.push(source.name.clone());
        }
        if let Some(name) = volume.secret.as_ref().and_then(|source| source.secret_name.clone()) {
            secrets.push(name);
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            maps.extend(source.config_map.iter().map(|source| source.name.clone()));
            secrets.extend(source.secret.iter().map(|source| source.name.clone()));
        }
    }
    (maps, secrets)
}

/// The files of a volume; `None` if its files do not come from the API.
pub fn of(pod: &Pod, volume: &Volume, sources: &Sources, tokens: &Tokens) -> Result<Option<Files>, Error> {
    let mode = |mode: Option<i32>| mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(MODE);
    if let Some(source) = &volume.config_map {
        let optional = source.optional == Some(true);
        let mode = mode(source.default_mode);
        return config_map(&source.name, source.items.as_deref(), optional, mode, sources).map(Some);
    }
    if let Some(source) = &volume.secret {
        let optional = source.optional == Some(true);
        let name = source.secret_name.as_deref().unwrap_or_default();
        return secret(name, source.items.as_deref(), optional, mode(source.default_mode), sources).map(Some);
    }
    if let Some(source) = &volume.downward_api {
        let mode = mode(source.default_mode);
        return downward(pod, source.items.as_deref().unwrap_or_default(), mode, sources).map(Some);
    }
    if let Some(source) = &volume.projected {
        let mode = mode(source.default_mode);
        let mut files = Files::new();
        for source in source.sources.iter().flatten() {
            files.extend(projection(pod, source, mode, sources, tokens)?);
        }
        return Ok(Some(files));
    }
    Ok(None)
}

fn projection(
    pod: &Pod,
    source: &VolumeProjection,
    mode: u32,
    sources: &Sources,
    tokens: &Tokens,
) -> Result<Files, Error> {
    if let Some(source) = &source.config_map {
        let optional = source.optional == Some(true);
        return config_map(&source.name, source.items.as_deref(), optional, mode, sources);
    }
    if let Some(source) = &source.secret {
        let optional = source.optional == Some(true);
        return secret(&source.name, source.items.as_deref(), optional, mode, sources);
    }
    if let Some(source) = &source.downward_api {
        return downward(pod, source.items.as_deref().unwrap_or_default(), mode, sources);
    }
    if let Some(source) = &source.service_account_token {
        let token = tokens.get(&source.path).ok_or_else(|| Error::Token(source.path.clone()))?;
        let file = File { bytes: token.clone().into_bytes(), mode };
        return Ok([(source.path.clone(), file)].into());
    }
    Err(Error::Unsupported { volume: "projected".to_owned(), kind: "clusterTrustBundle or podCertificate" })
}

fn config_map(
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    sources: &Sources,
) -> Result<Files, Error> {
    let Some(map) = sources.config_maps.get(name) else {
        return missing(optional, "configmap", name);
    };
    let text = map.data.iter().flatten().map(|(key, value)| (key, value.as_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key, value.0.as_slice()));
    select(
        text.chain(binary).map(|(key, value)| (key.as_str(), value)).collect(),
        items,
        optional,
        mode,
        name,
    )
}

fn secret(
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    sources: &Sources,
) -> Result<Files, Error> {
    let Some(secret) = sources.secrets.get(name) else {
        return missing(optional, "secret", name);
    };
    let data = secret.data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
    select(data.collect(), items, optional, mode, name)
}

fn missing(optional: bool, kind: &'static str, name: &str) -> Result<Files, Error> {
    match optional {
        true => Ok(Files::new()),
        false => Err(Error::NotFound { kind, name: name.to_owned() }),
    }
}

fn select(
    data: BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    name: &str,
) -> Result<Files, Error> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let file = |bytes: &[u8]| File { bytes: bytes.to_vec(), mode };
        return Ok(data.into_iter().map(|(key, bytes)| (key.to_owned(), file(bytes))).collect());
    };
    let mut files = Files::new();
    for item in items {
        match data.get(item.key.as_str()) {
            Some(bytes) => {
                let mode = item.mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(mode);
                files.insert(item.path.clone(), File { bytes: bytes.to_vec(), mode });
            }
            None if optional => {}
            None => return Err(Error::Key { key: item.key.clone(), name: name.to_owned() }),
        }
    }
    Ok(files)
}

fn downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    mode: u32,
    sources: &Sources,
) -> Result<Files, Error> {
    let nobody = Container::default();
    let mut files = Files::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            fields::pod(pod, &field.field_path, &sources.node)
                .ok_or_else(|| Error::Field(field.field_path.clone()))?
        } else if let Some(resource) = &item.resource_field_ref {
            fields::resource(pod, &nobody, resource, &sources.node)
                .ok_or_else(|| Error::Field(resource.resource.clone()))?
        } else {
            String::new()
        };
        let mode = item.mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(mode);
        files.insert(item.path.clone(), File { bytes: text.into_bytes(), mode });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn files(volume: Value, sources: &Sources) -> Result<Vec<(String, u32)>, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "labels": {"a": "b"}},
            "spec": {"containers": []}}))
        .unwrap();
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let files = of(&pod, &volume, sources, &Tokens::new()).map_err(|error| error.to_string())?;
        Ok(files.unwrap().into_iter().map(|(path, file)| (path, file.mode)).collect())
    }

    #[test]
    fn keys_become_files() {
        let sources = Sources {
            config_maps: [(
                "m".to_owned(),
                serde_json::from_value(json!({"data": {"k": "v", "l": "w"}})).unwrap(),
            )]
            .into(),
            ..Sources::default()
        };
        for (volume, expected) in [
            (
                json!({"name": "v", "configMap": {"name": "m"}}),
                Ok(vec![("k".to_owned(), 0o644), ("l".to_owned(), 0o644)]),
            ),
            (
                json!({"name": "v", "configMap": {"name": "m", "defaultMode": 256, "items": [{"key": "k", "path": "a/b"}]}}),
                Ok(vec![("a/b".to_owned(), 0o400)]),
            ),
            (
                json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "z", "path": "z"}]}}),
                Err("references non-existent config key: z of m".to_owned()),
            ),
            (json!({"name": "v", "secret": {"secretName": "s"}}), Err("secret \"s\" not found".to_owned())),
            (json!({"name": "v", "secret": {"secretName": "s", "optional": true}}), Ok(vec![])),
            (
                json!({"name": "v", "projected": {"sources": [{"configMap": {"name": "m"}},
                    {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}),
                Ok(vec![("k".to_owned(), 0o644), ("l".to_owned(), 0o644), ("labels".to_owned(), 0o644)]),
            ),
        ] {
            assert_eq!(files(volume.clone(), &sources), expected, "{volume}");
        }
    }
}
