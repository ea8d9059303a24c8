//! Why a command ends without what it was asked for: one `error:`, and a `hint:` that can be followed.

use std::fmt;

/// An error on its way to the user.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    output: Option<String>,
    code: u8,
}

/// What a command gives back.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure that is the user's or the world's: exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, output: None, code: 1 }
    }

    /// A command line that cannot be meant: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, ..Self::new(message) }
    }

    /// The user's own interruption; says what is left behind. Exit code 130, as shells have it.
    pub fn interrupted(left: impl fmt::Display) -> Self {
        Self { code: 130, ..Self::new(format!("interrupted: {left}")) }
    }

    /// An error with all its causes on one line.
    pub fn from_error(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(chain(error))
    }

    /// What the user can do about it.
    pub fn hint(mut self, hint: impl Into<Option<String>>) -> Self {
        self.hint = hint.into().or(self.hint);
        self
    }

    /// Lines of a tool or a program, shown before the error as they are.
    pub fn output(mut self, output: Option<&str>) -> Self {
        self.output = output.filter(|text| !text.trim().is_empty()).map(str::to_owned);
        self
    }

    /// Puts what was being done in front.
    pub fn context(mut self, step: impl fmt::Display) -> Self {
        self.message = format!("{step}: {}", self.message);
        self
    }

    /// Adds a sentence to the message.
    pub fn adding(mut self, sentence: &str) -> Self {
        self.message = format!("{}; {sentence}", self.message);
        self
    }

    /// What went wrong, without `error:` and hint.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(output) = &self.output {
            writeln!(f, "{}", output.trim_end())?;
        }
        writeln!(f, "error: {}", self.message)?;
        if let Some(hint) = &self.hint {
            writeln!(f, "hint: {hint}")?;
        }
        Ok(())
    }
}

/// An error and its causes; a cause that its parent repeats is said once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text.replace('\n', " ")
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::from_error(error.as_ref())
    }
}

impl From<crate::kernel::Error> for Failure {
    fn from(error: crate::kernel::Error) -> Self {
        Self::from_error(&error).hint(error.hint())
    }
}

impl From<gobuild::go::Error> for Failure {
    fn from(error: gobuild::go::Error) -> Self {
        Self::from_error(&error).hint(error.hint())
    }
}

impl From<gobuild::plan::Error> for Failure {
    fn from(error: gobuild::plan::Error) -> Self {
        Self::from_error(&error).hint(error.hint()).output(error.output())
    }
}

impl From<gobuild::compile::Error> for Failure {
    fn from(error: gobuild::compile::Error) -> Self {
        if error.is_cancelled() {
            return Self::interrupted("nothing was changed");
        }
        Self::from_error(&error).hint(error.hint()).output(error.output())
    }
}

impl From<gobuild::image::Error> for Failure {
    fn from(error: gobuild::image::Error) -> Self {
        Self::from_error(&error).hint(error.hint())
    }
}

impl From<gobuild::files::Error> for Failure {
    fn from(error: gobuild::files::Error) -> Self {
        gobuild::image::Error::from(error).into()
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            // The server's own sentence names object and field.
            kube::Error::Api(status) => Self::new(status.message.replace('\n', " ")),
            kube::Error::Service(_) | kube::Error::HyperError(_) => Self::from_error(&error)
                .context("the daemon does not answer")
                .hint("see what it says: gantry daemon status".to_owned()),
            other => Self::from_error(&other),
        }
    }
}

impl From<kube::runtime::watcher::Error> for Failure {
    fn from(error: kube::runtime::watcher::Error) -> Self {
        Self::from_error(&error).context("watch the daemon's objects")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_comes_first_then_error_then_hint() {
        let failure =
            Failure::new("x does not compile").hint("correct it".to_owned()).output(Some("a.go:1: no\n"));
        assert_eq!(failure.to_string(), "a.go:1: no\nerror: x does not compile\nhint: correct it\n");
        assert_eq!(failure.code(), 1);
    }

    #[test]
    fn causes_are_said_once() {
        let cause = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = anyhow::Error::from(cause).context("read /x").context("start");
        assert_eq!(Failure::from(error).to_string(), "error: start: read /x: no such file\n");
    }
}
