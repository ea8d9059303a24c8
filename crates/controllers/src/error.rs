//! What can go wrong with one key.

/// Why a key was not brought to its desired state. It is tried again, with back-off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("{verb} {object}")]
    Api {
        /// What was asked: create, delete, patch, replace.
        verb: &'static str,
        /// On what: `pods/default/hello`.
        object: String,
        /// Its answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// A watch did not deliver this controller's own write in time; looking again is safe, acting on old state not.
    #[error("the watch of {kind} is behind revision {revision}")]
    Behind {
        /// The watched kind.
        kind: &'static str,
        /// What was written.
        revision: u64,
    },
    /// An object of the API cannot be written as JSON.
    #[error("encode {object}")]
    Encode {
        /// Which.
        object: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    pub(crate) fn api(verb: &'static str, object: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let object = object.into();
        move |source| Self::Api { verb, object, source: Box::new(source) }
    }

    /// The status code of the API server's answer, if it gave one.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => code(source),
            _ => None,
        }
    }
}

/// The status code in a client's error.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// A delete, or a patch of what may be gone: NotFound is what was wanted.
pub(crate) fn absent_is_fine<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The error and its causes in one line, for logs and conditions.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
