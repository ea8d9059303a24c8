//! Scenarios as they stand in files.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// A file of `cases/`.
#[derive(Debug)]
pub struct Case {
    pub name: String,
    pub steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    steps: Vec<Step>,
}

/// One request, with `${variables}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub name: String,
    request: String,
    body: Option<Value>,
    raw: Option<String>,
    #[serde(rename = "type")]
    media: Option<String>,
    accept: Option<String>,
    user: Option<String>,
    #[serde(default)]
    pub save: BTreeMap<String, String>,
    events: Option<usize>,
    #[serde(default)]
    pub kinds: bool,
}

/// A request that can be sent.
#[derive(Debug)]
pub struct Request {
    pub method: http::Method,
    pub path: String,
    pub content_type: Option<String>,
    pub accept: String,
    pub body: Vec<u8>,
    pub user: Option<String>,
    /// Of a watch: so many events are read.
    pub events: Option<usize>,
}

impl Request {
    /// A plain POST of JSON by the administrator.
    pub fn post(path: &str, body: &Value) -> Self {
        Request {
            method: http::Method::POST,
            path: path.to_owned(),
            content_type: Some("application/json".to_owned()),
            accept: "application/json".to_owned(),
            body: body.to_string().into_bytes(),
            user: None,
            events: None,
        }
    }
}

/// All scenarios of a folder, sorted by name.
pub fn read(folder: &Path, only: Option<&str>) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_none_or(|e| e != "yaml") || only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let file: File = serde_yaml_ng::from_str(&text).with_context(|| path.display().to_string())?;
        let mut names: Vec<&str> = file.steps.iter().map(|s| s.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("{}: two steps are called {:?}", path.display(), twice[0]);
        }
        cases.push(Case { name, steps: file.steps });
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

const JSON: &str = "application/json";

impl Step {
    /// The request with its variables filled in.
    pub fn request(&self, variables: &BTreeMap<String, String>) -> Result<Request> {
        let (method, path) = self.request.split_once(' ').context("a request is METHOD PATH")?;
        let body = match (&self.body, &self.raw) {
            (Some(body), None) => Some(fill(&body.to_string(), variables)?),
            (None, Some(raw)) => Some(fill(raw, variables)?),
            (None, None) => None,
            (Some(_), Some(_)) => bail!("a step has body or raw, not both"),
        };
        let media = match self.media.as_deref() {
            None | Some("json") => JSON,
            Some("json-patch") => "application/json-patch+json",
            Some("merge") => "application/merge-patch+json",
            Some("strategic") => "application/strategic-merge-patch+json",
            Some("apply") => "application/apply-patch+yaml",
            Some(other) => other,
        };
        let accept = match self.accept.as_deref() {
            None | Some("json") => JSON,
            Some("table") => "application/json;as=Table;v=v1;g=meta.k8s.io",
            Some("partial") => "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
            Some("partial-list") => "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
            Some("aggregated") => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Some(other) => other,
        };
        Ok(Request {
            method: method.parse()?,
            path: fill(path, variables)?,
            content_type: body.is_some().then(|| media.to_owned()),
            accept: accept.to_owned(),
            body: body.unwrap_or_default().into_bytes(),
            user: self.user.clone(),
            events: self.events,
        })
    }
}

fn fill(text: &str, variables: &BTreeMap<String, String>) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').context("${ without }")?;
        out.push_str(before);
        out.push_str(variables.get(name).with_context(|| format!("no variable {name}"))?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}
