//! The `Status` object that every failed request gets, worded as kube-apiserver words it
//! (apimachinery `api/errors`, apiserver `endpoints/handlers`).

use serde_json::{Value, json};

use crate::field;

/// Machine-readable reason, with its HTTP code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// "": nothing more is known.
    Unknown,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 409 on create.
    AlreadyExists,
    /// 409 on write.
    Conflict,
    /// 410.
    Gone,
    /// 410: a resourceVersion or continue token that is too old.
    Expired,
    /// 422.
    Invalid,
    /// 500: try again.
    ServerTimeout,
    /// 504.
    Timeout,
    /// 429.
    TooManyRequests,
    /// 400.
    BadRequest,
    /// 405.
    MethodNotAllowed,
    /// 406.
    NotAcceptable,
    /// 413.
    RequestEntityTooLarge,
    /// 415.
    UnsupportedMediaType,
    /// 500.
    InternalError,
    /// 503.
    ServiceUnavailable,
}

impl Reason {
    /// As it stands in `Status.reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Unknown => "",
            Reason::Unauthorized => "Unauthorized",
            Reason::Forbidden => "Forbidden",
            Reason::NotFound => "NotFound",
            Reason::AlreadyExists => "AlreadyExists",
            Reason::Conflict => "Conflict",
            Reason::Gone => "Gone",
            Reason::Expired => "Expired",
            Reason::Invalid => "Invalid",
            Reason::ServerTimeout => "ServerTimeout",
            Reason::Timeout => "Timeout",
            Reason::TooManyRequests => "TooManyRequests",
            Reason::BadRequest => "BadRequest",
            Reason::MethodNotAllowed => "MethodNotAllowed",
            Reason::NotAcceptable => "NotAcceptable",
            Reason::RequestEntityTooLarge => "RequestEntityTooLarge",
            Reason::UnsupportedMediaType => "UnsupportedMediaType",
            Reason::InternalError => "InternalError",
            Reason::ServiceUnavailable => "ServiceUnavailable",
        }
    }

    /// The HTTP status code.
    pub const fn code(self) -> u16 {
        match self {
            Reason::Unauthorized => 401,
            Reason::Forbidden => 403,
            Reason::NotFound => 404,
            Reason::AlreadyExists | Reason::Conflict => 409,
            Reason::Gone | Reason::Expired => 410,
            Reason::Invalid => 422,
            Reason::Timeout => 504,
            Reason::TooManyRequests => 429,
            Reason::BadRequest => 400,
            Reason::MethodNotAllowed => 405,
            Reason::NotAcceptable => 406,
            Reason::RequestEntityTooLarge => 413,
            Reason::UnsupportedMediaType => 415,
            Reason::ServiceUnavailable => 503,
            Reason::Unknown | Reason::ServerTimeout | Reason::InternalError => 500,
        }
    }
}

/// The object a request was about, as messages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// API group, "" for core.
    pub group: &'a str,
    /// Plural for most errors, kind for [`Status::invalid`].
    pub resource: &'a str,
    /// Object name, "" for none.
    pub name: &'a str,
}

impl Target<'_> {
    fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }
}

/// One detail of a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// "FieldValueRequired", "FieldManagerConflict" …
    pub reason: String,
    /// Text.
    pub message: String,
    /// Path of the field, or "".
    pub field: String,
}

/// `Status.details`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Object name.
    pub name: String,
    /// API group.
    pub group: String,
    /// Plural or kind.
    pub kind: String,
    /// UID, for a success of DELETE.
    pub uid: String,
    /// Everything that is wrong.
    pub causes: Vec<Cause>,
    /// When to try again.
    pub retry_after_seconds: u32,
}

/// A failure (or the success of a DELETE) as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// HTTP code.
    pub code: u16,
    /// Reason.
    pub reason: Reason,
    /// Text for a person.
    pub message: String,
    /// More, for a program.
    pub details: Option<Box<Details>>,
    /// With 410 for a page: a token that goes on from where the page would have been.
    pub continuation: String,
}

impl Status {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Status {
            code: reason.code(),
            reason,
            message: message.into(),
            details: None,
            continuation: String::new(),
        }
    }

    fn about(mut self, target: Target<'_>) -> Self {
        self.details = Some(Box::new(Details {
            name: target.name.to_owned(),
            group: target.group.to_owned(),
            kind: target.resource.to_owned(),
            ..Details::default()
        }));
        self
    }

    /// `pods "x" not found`.
    pub fn not_found(target: Target<'_>) -> Self {
        let message = format!("{} {} not found", target.qualified(), field::quote(target.name));
        Self::new(Reason::NotFound, message).about(target)
    }

    /// A path that nothing serves.
    pub fn path_not_found() -> Self {
        let mut status = Self::new(Reason::NotFound, "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    /// `pods "x" already exists`.
    pub fn already_exists(target: Target<'_>) -> Self {
        let message = format!("{} {} already exists", target.qualified(), field::quote(target.name));
        Self::new(Reason::AlreadyExists, message).about(target)
    }

    /// `Operation cannot be fulfilled on pods "x": why`.
    pub fn conflict(target: Target<'_>, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {}: {why}",
            target.qualified(),
            field::quote(target.name)
        );
        Self::new(Reason::Conflict, message).about(target)
    }

    /// A write with a resourceVersion that is no longer the newest.
    pub fn modified(target: Target<'_>) -> Self {
        Self::conflict(
            target,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Another field manager owns what this apply sets.
    pub fn apply_conflict(message: String, causes: Vec<Cause>) -> Self {
        let mut status = Self::new(Reason::Conflict, message);
        status.details = Some(Box::new(Details { causes, ..Details::default() }));
        status
    }

    /// `Deployment.apps "x" is invalid: …`; `target.resource` is the kind.
    pub fn invalid(target: Target<'_>, errors: &[field::Error]) -> Self {
        let causes = errors
            .iter()
            .map(|e| Cause { reason: e.kind.reason().to_owned(), message: e.body(), field: e.path.clone() })
            .collect();
        let mut message = format!("{} {} is invalid", target.qualified(), field::quote(target.name));
        if !errors.is_empty() {
            message = format!("{message}: {}", field::aggregate(errors));
        }
        let mut status = Self::new(Reason::Invalid, message).about(target);
        if let Some(details) = &mut status.details {
            details.causes = causes;
        }
        status
    }

    /// 422 for a patch that cannot be applied.
    pub fn unprocessable() -> Self {
        let mut status =
            Self::new(Reason::Invalid, "the server rejected our request due to an error in our request");
        status.details = Some(Box::default());
        status
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// A body that its kind's decoder refuses: `Pod in version "v1" cannot be handled as a Deployment: why`.
    pub fn unhandled(kind: &str, version: &str, expected: &str, why: &str) -> Self {
        let version = field::quote(version);
        Self::bad_request(format!("{kind} in version {version} cannot be handled as a {expected}: {why}"))
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    /// `pods "x" is forbidden: why`.
    pub fn forbidden(target: Target<'_>, why: &str) -> Self {
        let message = match (target.resource.is_empty(), target.name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{} is forbidden: {why}", target.qualified()),
            (false, false) => {
                format!("{} {} is forbidden: {why}", target.qualified(), field::quote(target.name))
            }
        };
        Self::new(Reason::Forbidden, message).about(target)
    }

    /// A resourceVersion or continue token that is older than what is kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    /// A watch or list that starts before what is kept.
    pub fn too_old(requested: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// 410 Gone.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(Reason::Gone, message)
    }

    /// `delete is not supported on resources of kind "pods"`.
    pub fn method_not_supported(target: Target<'_>, action: &str) -> Self {
        let message =
            format!("{action} is not supported on resources of kind {}", field::quote(&target.qualified()));
        Self::new(Reason::MethodNotAllowed, message).about(Target { name: "", ..target })
    }

    /// A method that the path does not know at all.
    pub fn method_not_allowed() -> Self {
        let mut status = Self::new(
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource",
        );
        status.details = Some(Box::default());
        status
    }

    /// None of the media types in Accept.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("406: Not Acceptable\n\nAvailable representations: {}", accepted.join(", "));
        let mut status = Self::new(Reason::NotAcceptable, message);
        status.details = Some(Box::default());
        status
    }

    /// A patch in a media type that is no patch's.
    pub fn unknown_patch_type() -> Self {
        let mut status = Self::new(Reason::UnsupportedMediaType, "415: Unsupported Media Type");
        status.details = Some(Box::default());
        status
    }

    /// A body in a media type that is not understood.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// A body beyond the bound.
    pub fn too_large(message: &str) -> Self {
        Self::new(Reason::RequestEntityTooLarge, format!("Request entity too large: {message}"))
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut status = Self::new(Reason::TooManyRequests, message);
        status.details = Some(Box::new(Details { retry_after_seconds, ..Details::default() }));
        status
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, message)
    }

    /// 500, "try again".
    pub fn server_timeout(target: Target<'_>, operation: &str, retry_after_seconds: u32) -> Self {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            target.qualified()
        );
        let mut status = Self::new(Reason::ServerTimeout, message).about(target);
        if let Some(details) = &mut status.details {
            details.retry_after_seconds = retry_after_seconds;
        }
        status
    }

    /// 504.
    pub fn timeout(message: &str, retry_after_seconds: u32) -> Self {
        let mut status = Self::new(Reason::Timeout, format!("Timeout: {message}"));
        status.details = Some(Box::new(Details { retry_after_seconds, ..Details::default() }));
        status
    }

    /// 500 without a reason: an error that Kubernetes does not classify.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(Reason::Unknown, message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        let mut status = Self::new(Reason::InternalError, format!("Internal error occurred: {message}"));
        let cause = Cause { message, ..Cause::default() };
        status.details = Some(Box::new(Details { causes: vec![cause], ..Details::default() }));
        status
    }

    /// The object, ready to be sent.
    pub fn to_value(&self) -> Value {
        let mut object = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "code": self.code,
        });
        if !self.continuation.is_empty() {
            object["metadata"]["continue"] = self.continuation.clone().into();
        }
        if !self.message.is_empty() {
            object["message"] = self.message.clone().into();
        }
        if self.reason != Reason::Unknown {
            object["reason"] = self.reason.as_str().into();
        }
        if let Some(details) = &self.details {
            object["details"] = details.to_value();
        }
        object
    }

    /// What DELETE answers when the object is gone at once.
    pub fn success(target: Target<'_>, uid: &str) -> Value {
        let details = Details {
            name: target.name.to_owned(),
            group: target.group.to_owned(),
            kind: target.resource.to_owned(),
            uid: uid.to_owned(),
            ..Details::default()
        };
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": details.to_value(),
        })
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut object = serde_json::Map::new();
        for (key, text) in
            [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)]
        {
            if !text.is_empty() {
                object.insert(key.to_owned(), text.clone().into());
            }
        }
        if !self.causes.is_empty() {
            object.insert("causes".to_owned(), self.causes.iter().map(Cause::to_value).collect());
        }
        if self.retry_after_seconds > 0 {
            object.insert("retryAfterSeconds".to_owned(), self.retry_after_seconds.into());
        }
        Value::Object(object)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut object = serde_json::Map::new();
        for (key, text) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !text.is_empty() {
                object.insert(key.to_owned(), text.clone().into());
            }
        }
        Value::Object(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_lists_causes() {
        let target = Target { group: "apps", resource: "Deployment", name: "x" };
        let status = Status::invalid(target, &[field::Error::required("spec.selector", "")]).to_value();
        assert_eq!(status["message"], r#"Deployment.apps "x" is invalid: spec.selector: Required value"#);
        assert_eq!(status["code"], 422);
        assert_eq!(status["details"]["causes"][0]["reason"], "FieldValueRequired");
        assert_eq!(status["details"]["kind"], "Deployment");
    }

    #[test]
    fn success_has_no_code() {
        let target = Target { group: "", resource: "pods", name: "x" };
        assert!(Status::success(target, "u").get("code").is_none());
    }
}
