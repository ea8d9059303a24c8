//! Query parameters, and the options that they and bodies carry.

use axum::extract::Query as Form;
use http::Uri;
use resources::field;
use resources::status::{Status, Target};
use serde_json::Value;

/// The parameters of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn of(uri: &Uri) -> Result<Self, Status> {
        Form::<Vec<(String, String)>>::try_from_uri(uri)
            .map(|Form(pairs)| Query(pairs))
            .map_err(|error| Status::bad_request(error.to_string()))
    }

    /// The first value of a parameter; "" when it is missing.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.all(name).next().unwrap_or("")
    }

    pub(crate) fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// As Kubernetes reads booleans: anything but "false" and "0" is true.
    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.all(name).next().map(|value| !(value.eq_ignore_ascii_case("false") || value == "0"))
    }

    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>, Status> {
        let text = self.get(name);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            Status::bad_request(format!("strconv.ParseInt: parsing {}: invalid syntax", field::quote(text)))
        })
    }
}

/// What is done about fields that the schema does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// Options of a create, an update or a patch.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteOptions {
    pub dry_run: bool,
    pub manager: String,
    pub validation: FieldValidation,
    /// Apply only: take fields from other managers.
    pub force: bool,
}

fn invalid(kind: &str, errors: &[field::Error]) -> Status {
    Status::invalid(Target { group: "meta.k8s.io", resource: kind, name: "" }, errors)
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut Vec<field::Error>) -> bool {
    let values: Vec<&str> = values.collect();
    if values.iter().any(|value| *value != "All") {
        errors.push(field::Error::not_supported("dryRun", values.clone(), &["All"]));
    }
    !values.is_empty()
}

impl WriteOptions {
    /// Reads and checks them; `kind` is "CreateOptions", "UpdateOptions" or "PatchOptions".
    pub(crate) fn parse(
        query: &Query,
        kind: &str,
        apply: bool,
        user_agent: Option<&str>,
    ) -> Result<Self, Status> {
        let mut errors = Vec::new();
        let manager = query.get("fieldManager");
        let force = query.flag("force");
        if kind == "PatchOptions" {
            if apply && manager.is_empty() {
                errors.push(field::Error::required("fieldManager", "is required for apply patch"));
            }
            if !apply && force.is_some() {
                errors.push(field::Error::forbidden("force", "may not be specified for non-apply patch"));
            }
        }
        if manager.len() > 128 {
            errors.push(field::Error::too_long("fieldManager", 128));
        }
        for (at, character) in manager.char_indices() {
            if character.is_control() {
                let detail = format!("invalid character U+{:04X} (at position {at})", u32::from(character));
                errors.push(field::Error::invalid("fieldManager", manager, detail));
            }
        }
        let dry_run = dry_run(query.all("dryRun"), &mut errors);
        let validation = match query.get("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                errors.push(field::Error::not_supported(
                    "fieldValidation",
                    other,
                    &["", "Ignore", "Strict", "Warn"],
                ));
                FieldValidation::Warn
            }
        };
        if !errors.is_empty() {
            return Err(invalid(kind, &errors));
        }
        let manager = match manager {
            "" => prefix_of_agent(user_agent),
            given => given.to_owned(),
        };
        Ok(WriteOptions { dry_run, manager, validation, force: force.unwrap_or(false) })
    }
}

/// The manager of a writer who names none: the user agent up to its first slash.
fn prefix_of_agent(agent: Option<&str>) -> String {
    let agent = agent.unwrap_or("");
    let name = agent.split('/').next().unwrap_or("");
    let printable: String = name.chars().filter(|character| !character.is_control()).collect();
    let mut end = printable.len().min(128);
    while !printable.is_char_boundary(end) {
        end -= 1;
    }
    match &printable[..end] {
        "" => "unknown".to_owned(),
        name => name.to_owned(),
    }
}

/// Options of a list or a watch.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    pub watch: bool,
    pub bookmarks: bool,
    pub resource_version: String,
    pub version_match: String,
    pub timeout_seconds: Option<i64>,
    pub limit: i64,
    pub continuation: String,
    pub send_initial: Option<bool>,
}

impl ListOptions {
    pub(crate) fn parse(query: &Query) -> Result<Self, Status> {
        let options = ListOptions {
            label_selector: query.get("labelSelector").to_owned(),
            field_selector: query.get("fieldSelector").to_owned(),
            watch: query.flag("watch").unwrap_or(false),
            bookmarks: query.flag("allowWatchBookmarks").unwrap_or(false),
            resource_version: query.get("resourceVersion").to_owned(),
            version_match: query.get("resourceVersionMatch").to_owned(),
            timeout_seconds: query.integer("timeoutSeconds")?,
            limit: query.integer("limit")?.unwrap_or(0),
            continuation: query.get("continue").to_owned(),
            send_initial: query.flag("sendInitialEvents"),
        };
        let errors = if options.watch { options.check_watch() } else { options.check_list() };
        if errors.is_empty() { Ok(options) } else { Err(invalid("ListOptions", &errors)) }
    }

    fn check_list(&self) -> Vec<field::Error> {
        let mut errors = Vec::new();
        let matching = self.version_match.as_str();
        if !matching.is_empty() {
            let path = "resourceVersionMatch";
            if self.resource_version.is_empty() {
                let detail = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                errors.push(field::Error::forbidden(path, detail));
            }
            if !self.continuation.is_empty() {
                let detail = "resourceVersionMatch is forbidden when continue is provided";
                errors.push(field::Error::forbidden(path, detail));
            }
            if !matches!(matching, "Exact" | "NotOlderThan") {
                errors.push(field::Error::not_supported(path, matching, &["Exact", "NotOlderThan", ""]));
            }
            if matching == "Exact" && self.resource_version == "0" {
                let detail = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                errors.push(field::Error::forbidden(path, detail));
            }
        }
        if self.send_initial.is_some() {
            let detail = "sendInitialEvents is forbidden for list";
            errors.push(field::Error::forbidden("sendInitialEvents", detail));
        }
        errors
    }

    fn check_watch(&self) -> Vec<field::Error> {
        let mut errors = Vec::new();
        let matching = self.version_match.as_str();
        let path = "resourceVersionMatch";
        if self.send_initial.is_some() && matching != "NotOlderThan" {
            let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            errors.push(field::Error::forbidden(path, detail));
        }
        if !matching.is_empty() {
            if self.send_initial.is_none() {
                let detail =
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                errors.push(field::Error::forbidden(path, detail));
            }
            if matching != "NotOlderThan" {
                errors.push(field::Error::not_supported(path, matching, &["NotOlderThan"]));
            }
            if !self.continuation.is_empty() {
                let detail = "resourceVersionMatch is forbidden when continue is provided";
                errors.push(field::Error::forbidden(path, detail));
            }
        }
        errors
    }
}

/// What becomes of the objects that belong to a deleted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// Options of a delete.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    pub dry_run: bool,
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    /// The deprecated way to say it.
    pub orphan: Option<bool>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// From the body when there is one, else from the query.
    pub(crate) fn parse(query: &Query, body: Option<&Value>) -> Result<Self, Status> {
        let mut errors = Vec::new();
        let text = |name: &str| match body {
            Some(body) => body.get(name).and_then(Value::as_str).map(str::to_owned),
            None => query.all(name).next().filter(|text| !text.is_empty()).map(str::to_owned),
        };
        let grace_seconds = match body {
            Some(body) => body.get("gracePeriodSeconds").and_then(Value::as_i64),
            None => query.integer("gracePeriodSeconds")?,
        };
        let orphan = match body {
            Some(body) => body.get("orphanDependents").and_then(Value::as_bool),
            None => query.flag("orphanDependents"),
        };
        let policy = text("propagationPolicy");
        if let (Some(_), Some(policy)) = (orphan, &policy) {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(field::Error::invalid("propagationPolicy", policy.as_str(), detail));
        }
        let propagation = match policy.as_deref() {
            None => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                errors.push(field::Error::not_supported(
                    "propagationPolicy",
                    other,
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
                None
            }
        };
        let dry_run = match body {
            Some(body) => {
                let values = body.get("dryRun").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                dry_run(values.iter().filter_map(Value::as_str), &mut errors)
            }
            None => dry_run(query.all("dryRun"), &mut errors),
        };
        let precondition = |name: &str| {
            body.and_then(|body| body.pointer(&format!("/preconditions/{name}")))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        if !errors.is_empty() {
            return Err(invalid("DeleteOptions", &errors));
        }
        Ok(DeleteOptions {
            dry_run,
            grace_seconds,
            propagation,
            orphan,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::of(&format!("/x?{text}").parse().unwrap()).unwrap()
    }

    #[test]
    fn apply_needs_a_manager_and_other_patches_no_force() {
        let error = WriteOptions::parse(&query(""), "PatchOptions", true, None).unwrap_err();
        assert_eq!(
            error.message,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
        );
        assert!(WriteOptions::parse(&query("force=true"), "PatchOptions", false, None).is_err());
        let options =
            WriteOptions::parse(&query("dryRun=All"), "CreateOptions", false, Some("kubectl/v1.36"));
        let options = options.unwrap();
        assert!(options.dry_run);
        assert_eq!(options.manager, "kubectl");
    }

    #[test]
    fn list_options_are_checked() {
        assert!(ListOptions::parse(&query("resourceVersionMatch=Exact")).is_err());
        assert!(ListOptions::parse(&query("limit=x")).is_err());
        let watch =
            "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        assert_eq!(ListOptions::parse(&query(watch)).unwrap().send_initial, Some(true));
        assert!(ListOptions::parse(&query("watch=1&sendInitialEvents=true")).is_err());
    }
}
