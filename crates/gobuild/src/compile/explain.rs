//! What Go's own lines mean, as far as a user can be helped.

use super::{CgoPackage, Error};

/// What a failed `go` command complains about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    DiskFull,
    ToolchainTooOld {
        wanted: String,
        running: String,
    },
    ToolchainMissing,
    ModuleNotFound {
        module: String,
    },
    ProxyUnreachable {
        module: String,
    },
    /// The module is there, the package is not.
    NoPackage {
        package: String,
    },
    ModuleInvalid,
    NoModule,
    ModuleIncomplete,
    NothingToBuild,
    NotMain,
    Replaced,
    Source,
}

impl Reason {
    /// Without cgo, files with `import "C"` are left out: what they define is missing then.
    pub fn may_be_cgo(&self) -> bool {
        matches!(self, Self::Source | Self::NothingToBuild)
    }

    pub fn into_error(self, program: String, architecture: String, output: String) -> Error {
        match self {
            Self::DiskFull => Error::DiskFull { output },
            Self::ToolchainTooOld { wanted, running } => Error::ToolchainTooOld { program, wanted, running },
            Self::ToolchainMissing => Error::ToolchainMissing { program, output },
            Self::ModuleNotFound { module } | Self::NoPackage { package: module } => {
                Error::ModuleNotFound { module, output }
            }
            Self::ProxyUnreachable { module } => Error::ProxyUnreachable { module, output },
            Self::ModuleInvalid => Error::ModuleInvalid { program, output },
            Self::NoModule => Error::NoModule { program, output },
            Self::ModuleIncomplete => Error::ModuleIncomplete { program, output },
            Self::NothingToBuild => Error::NothingToBuild { program, architecture, output },
            Self::NotMain | Self::Replaced | Self::Source => Error::Compiler { program, output },
        }
    }
}

/// Reads Go's stderr. The order matters: the first lines that fit name the cause, later ones its effects.
pub(super) fn classify(output: &str) -> Reason {
    let has = |part: &str| output.contains(part);
    if has("no space left on device") {
        return Reason::DiskFull;
    }
    if has("GOTOOLCHAIN=local")
        && let Some((wanted, running)) = versions(output)
    {
        return Reason::ToolchainTooOld { wanted, running };
    }
    if has("toolchain not available") || has("invalid toolchain") || has("golang.org/toolchain@") {
        return Reason::ToolchainMissing;
    }
    if has("errors parsing ")
        || has("parsing go.mod")
        || has("invalid go version")
        || has("malformed module path")
    {
        return Reason::ModuleInvalid;
    }
    if has("replace directives") || has("exclude directives") {
        return Reason::Replaced;
    }
    if has("is not a main package") {
        return Reason::NotMain;
    }
    if has("go.mod file not found") {
        return Reason::NoModule;
    }
    if let Some(module) = module_in(output, UNREACHABLE) {
        return Reason::ProxyUnreachable { module };
    }
    if let Some(package) = module_in(output, &["does not contain package"]) {
        return Reason::NoPackage { package };
    }
    if let Some(module) = module_in(output, MISSING) {
        return Reason::ModuleNotFound { module };
    }
    let incomplete = [
        "missing go.sum entry",
        "updates to go.mod needed",
        "no required module provides package",
        "is not in go.mod",
        "inconsistent vendoring",
        "go mod tidy",
    ];
    if incomplete.into_iter().any(has) {
        return Reason::ModuleIncomplete;
    }
    if has("build constraints exclude all Go files") || has("no Go files in") {
        return Reason::NothingToBuild;
    }
    Reason::Source
}

/// `… requires go >= 1.99 (running go 1.26.8; GOTOOLCHAIN=local)`
fn versions(output: &str) -> Option<(String, String)> {
    let (_, wanted) = output.split_once("requires go >= ")?;
    let (wanted, rest) = wanted.split_once(' ')?;
    let (_, running) = rest.split_once("running go ")?;
    let end = running.find([';', ')'])?;
    Some((wanted.to_owned(), running[..end].to_owned()))
}

/// What is said when nobody could be asked.
const UNREACHABLE: &[&str] =
    &["dial tcp", "no such host", "i/o timeout", "connection refused", "TLS handshake"];

/// What a proxy or a version control system says when it has no such module.
const MISSING: &[&str] = &[
    "404 Not Found",
    "410 Gone",
    "403 Forbidden",
    "no matching versions",
    "unknown revision",
    "invalid version",
    "unrecognized import path",
    "cannot find module providing package",
    "module lookup disabled by GOPROXY=off",
    "repository not found",
    "could not read Username",
];

/// The module in the first line that has one of the sayings.
fn module_in(output: &str, sayings: &[&str]) -> Option<String> {
    let line = output.lines().find(|line| sayings.iter().any(|saying| line.contains(saying)))?;
    let line = line.strip_prefix("go: ").unwrap_or(line).trim_start_matches("module ");
    // `main.go:3:8: path…` puts the place before it.
    let words = line.split([' ', '\t']).map(|word| word.trim_end_matches(':'));
    let module = words.clone().find(|word| {
        let path = word.split('@').next().unwrap_or_default();
        !path.contains(':') && path.split('/').next().is_some_and(|domain| domain.contains('.'))
    });
    Some(module.unwrap_or(line).to_owned())
}

/// The packages with C in them that failing packages are, or import.
pub(super) fn cgo(packages: &[CgoPackage], output: &str) -> Vec<String> {
    let with_c: Vec<&CgoPackage> =
        packages.iter().filter(|package| !package.standard && !package.cgo_files.is_empty()).collect();
    let failing = packages.iter().filter(|package| {
        let path = &package.import_path;
        output.lines().any(|line| {
            // Files named one by one, each with C in it: none is left.
            line == "go: no Go source files"
                || line.strip_prefix("# ").is_some_and(|header| header.split(' ').next() == Some(path))
                || (line.contains("build constraints exclude all Go files")
                    && (line.contains(&format!("{path}:"))
                        || line.ends_with(&*package.dir.to_string_lossy())))
        })
    });
    let mut named: Vec<String> = failing
        .flat_map(|failing| {
            with_c.iter().filter(|package| {
                package.import_path == failing.import_path || failing.imports.contains(&package.import_path)
            })
        })
        .map(|package| match package.import_path.as_str() {
            "command-line-arguments" => format!("main ({})", package.cgo_files.join(", ")),
            path => path.to_owned(),
        })
        .collect();
    named.sort();
    named.dedup();
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_says_has_a_reason() {
        let module = |path: &str| Reason::ModuleNotFound { module: path.to_owned() };
        let cases = [
            (
                "go: go.mod requires go >= 1.99 (running go 1.26.8; GOTOOLCHAIN=local)",
                Reason::ToolchainTooOld { wanted: "1.99".into(), running: "1.26.8".into() },
            ),
            ("go: download go1.99 for linux/amd64: toolchain not available", Reason::ToolchainMissing),
            (
                "go: rsc.io/nothere/xx@latest: module rsc.io/nothere/xx: reading https://p/rsc.io/nothere/xx/@v/list: 403 Forbidden",
                module("rsc.io/nothere/xx@latest"),
            ),
            ("go: module example.com/x: no matching versions for query \"v9\"", module("example.com/x")),
            (
                "go: golang.org/x/example/nope@latest: module golang.org/x/example@latest found (v0.1.0), but does not contain package golang.org/x/example/nope",
                Reason::NoPackage { package: "golang.org/x/example/nope@latest".into() },
            ),
            (
                "go: example.com/x@v1: module example.com/x: Get \"https://p/x\": dial tcp: network is unreachable",
                Reason::ProxyUnreachable { module: "example.com/x@v1".into() },
            ),
            (
                "m.go:2:8: example.com/n@v1.0.0: missing go.sum entry for go.mod file; to add it:",
                Reason::ModuleIncomplete,
            ),
            (
                "main.go:3:8: no required module provides package rsc.io/quote; to add it:",
                Reason::ModuleIncomplete,
            ),
            (
                "main.go:3:8: no required module provides package rsc.io/quote: go.mod file not found in current directory",
                Reason::NoModule,
            ),
            ("go: errors parsing go.mod:\ngo.mod:1: unknown directive: modul", Reason::ModuleInvalid),
            ("package example.com/x is not a main package", Reason::NotMain),
            ("# x\n./m.go:2:14: declared and not used: x", Reason::Source),
            ("write /tmp/x: no space left on device", Reason::DiskFull),
            ("package x: build constraints exclude all Go files in /x", Reason::NothingToBuild),
        ];
        for (said, reason) in cases {
            assert_eq!(classify(said), reason, "{said}");
        }
    }

    #[test]
    fn packages_with_c_are_named_only_when_they_are_the_cause() {
        let package = |path: &str, cgo: bool, imports: &[&str]| CgoPackage {
            import_path: path.to_owned(),
            cgo_files: if cgo { vec!["c.go".to_owned()] } else { vec![] },
            imports: imports.iter().map(|&i| i.to_owned()).collect(),
            dir: format!("/src/{path}").into(),
            ..CgoPackage::default()
        };
        let packages = [package("x/c", true, &[]), package("x", false, &["x/c"]), package("y", false, &[])];
        assert_eq!(cgo(&packages, "# x\n./m.go:3: undefined: c.Do\n"), ["x/c"]);
        assert_eq!(
            cgo(&packages, "package x\n\timports x/c: build constraints exclude all Go files in /src/x/c"),
            ["x/c"]
        );
        let bare = [package("command-line-arguments", true, &["C"])];
        assert_eq!(cgo(&bare, "go: no Go source files\n"), ["main (c.go)"]);
        assert!(cgo(&packages, "# y\n./m.go:3: undefined: z\n").is_empty());
    }
}
