//! What the client can read and what it sent: Accept and Content-Type.

use http::{HeaderMap, HeaderValue, header};
use resources::field;
use resources::status::Status;
use resources::table::IncludeObject;

use crate::query::Query;

pub(crate) const JSON: &str = "application/json";
pub(crate) const YAML: &str = "application/yaml";
/// Read, never written: who sends it takes JSON too.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// How answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
}

/// How bodies are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFormat {
    Json,
    Yaml,
    Protobuf,
}

impl Format {
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Format::Json => JSON,
            Format::Yaml => YAML,
        }
    }
}

/// What is shown of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Whole,
    Table(IncludeObject),
    /// PartialObjectMetadata, or a list of it.
    Partial {
        list: bool,
    },
}

/// How a request's answer is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub format: Format,
    pub shape: Shape,
    pub pretty: bool,
}

impl Accepted {
    /// Plain JSON.
    pub(crate) const PLAIN: Accepted = Accepted { format: Format::Json, shape: Shape::Whole, pretty: false };

    /// Whether stored bytes can be sent as they are.
    pub(crate) fn is_plain(&self) -> bool {
        self.format == Format::Json && self.shape == Shape::Whole && !self.pretty
    }
}

/// One alternative of an Accept header.
pub(crate) struct Clause<'a> {
    pub kind: &'a str,
    pub parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    pub(crate) fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }
}

/// The alternatives, the preferred first.
pub(crate) fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let mut all: Vec<Clause<'_>> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let kind = parts.next().filter(|kind| !kind.is_empty())?;
            let parameters: Vec<(&str, &str)> = parts
                .filter_map(|part| part.split_once('='))
                .map(|(key, value)| (key.trim(), value.trim()))
                .collect();
            let quality = parameters
                .iter()
                .find(|(key, _)| *key == "q")
                .and_then(|(_, value)| value.parse().ok())
                .unwrap_or(1.0);
            Some(Clause { kind, parameters, quality })
        })
        .collect();
    all.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    all
}

fn format_of(kind: &str) -> Option<Format> {
    match kind {
        "application/json" | "application/*" | "*/*" => Some(Format::Json),
        "application/yaml" => Some(Format::Yaml),
        _ => None,
    }
}

fn shape_of(clause: &Clause<'_>, include: IncludeObject) -> Option<Shape> {
    let versioned =
        clause.parameter("g") == "meta.k8s.io" && matches!(clause.parameter("v"), "v1" | "v1beta1");
    match clause.parameter("as") {
        "" => Some(Shape::Whole),
        "Table" if versioned => Some(Shape::Table(include)),
        "PartialObjectMetadata" if versioned => Some(Shape::Partial { list: false }),
        "PartialObjectMetadataList" if versioned => Some(Shape::Partial { list: true }),
        _ => None,
    }
}

/// The way to answer that the client prefers and that exists.
pub(crate) fn accept(headers: &HeaderMap, query: &Query) -> Result<Accepted, Status> {
    let include = query.get("includeObject");
    let include = IncludeObject::parse(include);
    let clauses = clauses(headers);
    let pretty = query.flag("pretty").unwrap_or_else(|| {
        // People at a terminal or a browser get lines.
        let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or("");
        ["curl", "Wget", "Mozilla/5.0"].iter().any(|name| agent.starts_with(name))
    });
    if clauses.is_empty() {
        return Ok(Accepted { pretty, ..Accepted::PLAIN });
    }
    let found = clauses.iter().find_map(|clause| {
        let format = format_of(clause.kind)?;
        let shape = shape_of(clause, include.unwrap_or_default())?;
        Some(Accepted { format, shape, pretty: pretty || clause.parameter("pretty") == "1" })
    });
    match found {
        Some(Accepted { shape: Shape::Table(_), .. }) if include.is_none() => {
            Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', 'None', or empty",
                field::quote(query.get("includeObject"))
            )))
        }
        Some(accepted) => Ok(accepted),
        None => Err(Status::not_acceptable(&[JSON, YAML, "application/json;stream=watch"])),
    }
}

/// The media type of a body without its parameters; JSON when none is said.
pub(crate) fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value: &HeaderValue| value.to_str().ok());
    let kind = value.unwrap_or("").split(';').next().unwrap_or("").trim();
    if kind.is_empty() { JSON } else { kind }
}

/// The format of an object in a body.
pub(crate) fn body_format(headers: &HeaderMap) -> Result<BodyFormat, Status> {
    match content_type(headers) {
        "application/json" | "*/*" => Ok(BodyFormat::Json),
        "application/yaml" => Ok(BodyFormat::Yaml),
        PROTOBUF => Ok(BodyFormat::Protobuf),
        _ => Err(Status::unsupported_media_type(&[JSON, YAML, PROTOBUF])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(value: &str) -> Result<Accepted, Status> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, value.parse().unwrap());
        accept(&headers, &Query::default())
    }

    #[test]
    fn what_kubectl_and_client_go_send() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accepted(table).unwrap().shape, Shape::Table(IncludeObject::Metadata));
        let protobuf = "application/vnd.kubernetes.protobuf,application/json";
        assert!(accepted(protobuf).unwrap().is_plain());
        let partial = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(accepted(partial).unwrap().shape, Shape::Partial { list: true });
        assert_eq!(accepted("application/yaml").unwrap().format, Format::Yaml);
        assert_eq!(accepted("application/json;q=0.1, application/yaml").unwrap().format, Format::Yaml);
        assert!(accepted("*/*").unwrap().is_plain());
        assert_eq!(accepted("application/vnd.kubernetes.protobuf").unwrap_err().code, 406);
        assert_eq!(accepted("text/html").unwrap_err().code, 406);
    }
}
