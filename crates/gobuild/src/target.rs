//! What a user names as the program to build.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// A program: a folder on this machine, or an import path that Go finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A folder with a main package, with or without `go.mod`.
    Folder(PathBuf),
    /// An import path; without a version it is looked up in the caller's module first, then as `@latest`.
    Import { path: String, version: Option<String> },
}

impl Target {
    /// Reads what stands on a command line or after `ko://`: a path when it looks like one or exists.
    pub fn parse(text: &str) -> Self {
        let text = text.strip_prefix("ko://").unwrap_or(text);
        let looks_like_path = text.is_empty()
            || text == "."
            || text == ".."
            || text.starts_with("./")
            || text.starts_with("../")
            || text.starts_with('/');
        if looks_like_path || Path::new(text).exists() {
            return Self::Folder(PathBuf::from(if text.is_empty() { "." } else { text }));
        }
        let (path, version) = match text.split_once('@') {
            Some((path, version)) => (path, Some(version.to_owned())),
            None => (text, None),
        };
        // The first element of an import path that a proxy can serve has a dot (`go help importpath`).
        let domain = path.split('/').next().unwrap_or_default();
        if version.is_some() || domain.contains('.') {
            Self::Import { path: path.trim_end_matches('/').to_owned(), version }
        } else {
            Self::Folder(PathBuf::from(text))
        }
    }

    /// The target after `ko://`, where a bare name is an import path of the caller's module, as ko reads it.
    pub fn parse_ko(text: &str) -> Self {
        let text = text.strip_prefix("ko://").unwrap_or(text);
        if text.starts_with('.') || text.starts_with('/') {
            return Self::Folder(PathBuf::from(text));
        }
        match text.split_once('@') {
            Some((path, version)) => {
                Self::Import { path: path.to_owned(), version: Some(version.to_owned()) }
            }
            None => Self::Import { path: text.to_owned(), version: None },
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Import { path, version: Some(version) } => write!(f, "{path}@{version}"),
            Self::Import { path, version: None } => f.write_str(path),
        }
    }
}

/// The name that Go gives to a program: the last element of its import path, a major version aside.
pub(crate) fn program_name(import_path: &str) -> &str {
    let mut elements = import_path.rsplit('/').filter(|e| !e.is_empty());
    let last = elements.next().unwrap_or(import_path);
    let is_major = last.len() > 1 && last.starts_with('v') && last[1..].bytes().all(|b| b.is_ascii_digit());
    let name = if is_major { elements.next().unwrap_or(last) } else { last };
    // gopkg.in writes the major version behind a dot.
    match name.rsplit_once(".v") {
        Some((stem, digits)) if !stem.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => stem,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_import_paths_are_told_apart() {
        let import = |path: &str, version: Option<&str>| Target::Import {
            path: path.to_owned(),
            version: version.map(str::to_owned),
        };
        assert_eq!(Target::parse("."), Target::Folder(".".into()));
        assert_eq!(Target::parse("./cmd/x"), Target::Folder("./cmd/x".into()));
        assert_eq!(Target::parse("no-such-folder"), Target::Folder("no-such-folder".into()));
        assert_eq!(Target::parse("example.com/x/cmd/y"), import("example.com/x/cmd/y", None));
        assert_eq!(Target::parse("example.com/x@v1.2.3"), import("example.com/x", Some("v1.2.3")));
        assert_eq!(Target::parse("ko://example.com/x"), import("example.com/x", None));
        assert_eq!(Target::parse_ko("ko://hello/cmd"), import("hello/cmd", None));
        assert_eq!(Target::parse_ko("ko://./cmd"), Target::Folder("./cmd".into()));
    }

    #[test]
    fn a_program_is_named_as_go_names_it() {
        assert_eq!(program_name("example.com/x/cmd/y"), "y");
        assert_eq!(program_name("example.com/tool/v2"), "tool");
        assert_eq!(program_name("gopkg.in/tool.v3"), "tool");
        assert_eq!(program_name("hello"), "hello");
        assert_eq!(program_name("v2"), "v2");
    }
}
