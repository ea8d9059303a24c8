//! Compiling a plan, and saying why that failed.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::{
    buildinfo::{self, BuildInfo},
    folder::Folder,
    go::{self, Output, Progress},
    plan::{self, Build, Plan},
};

mod explain;
mod remote;

/// ELF machine numbers of what can be built.
const MACHINES: &[(&str, u16)] = &[("amd64", 62), ("arm64", 183), ("riscv64", 243), ("386", 3), ("arm", 40)];

/// A compiled program; its file lives as long as this value.
#[derive(Debug)]
pub struct Binary {
    _folder: Folder,
    /// The stripped executable.
    pub path: PathBuf,
    /// Bytes of the executable.
    pub size: u64,
    /// What the user sees the program called.
    pub name: String,
    /// The file name in the image.
    pub file_name: String,
    /// `GOARCH`
    pub architecture: String,
    /// What the linker noted: toolchain, package, module.
    pub info: BuildInfo,
    /// The main package's folder, when it is on this machine.
    pub source: Option<PathBuf>,
    /// How long Go worked.
    pub elapsed: Duration,
}

/// Why there is no binary.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{program} does not compile")]
    Compiler { program: String, output: String },
    #[error("{program} needs cgo, which gantry builds without: {}", .packages.join(", "))]
    NeedsCgo { program: String, packages: Vec<String>, output: String },
    #[error("module not found: {module}")]
    ModuleNotFound { module: String, output: String },
    #[error("the module proxy cannot be reached for {module}")]
    ProxyUnreachable { module: String, output: String },
    #[error("{program} asks for Go {wanted}, and this is Go {running} with GOTOOLCHAIN=local")]
    ToolchainTooOld { program: String, wanted: String, running: String },
    #[error("the toolchain that {program} asks for cannot be had")]
    ToolchainMissing { program: String, output: String },
    #[error("the go.mod of {program} is not complete")]
    ModuleIncomplete { program: String, output: String },
    #[error("the go.mod or go.work of {program} cannot be read")]
    ModuleInvalid { program: String, output: String },
    #[error("{program} imports other modules, but has no go.mod")]
    NoModule { program: String, output: String },
    #[error("no file of {program} is for linux/{architecture}")]
    NothingToBuild { program: String, architecture: String, output: String },
    #[error("the disk is full: Go could not write its files")]
    DiskFull { output: String },
    #[error("{program} is no program that runs on linux/{architecture}")]
    NotExecutable { program: String, architecture: String, source: buildinfo::Error },
    #[error("{program} was built for another machine than linux/{architecture}")]
    WrongMachine { program: String, architecture: String },
    #[error("make a temporary folder")]
    Temporary { source: io::Error },
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Plan(#[from] plan::Error),
    #[error(transparent)]
    Go(#[from] go::Error),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Compiler { .. } => {
                "the lines above are the compiler's; correct them and run the command again"
            }
            Self::NeedsCgo { .. } => {
                "replace the package by one in pure Go (for SQLite: modernc.org/sqlite), or build it without cgo by a tag (--tags)"
            }
            Self::ModuleNotFound { .. } => {
                "check the path and the version, and which proxy is asked: go env GOPROXY GOPRIVATE"
            }
            Self::ProxyUnreachable { .. } => "check the network, and which proxy is asked: go env GOPROXY",
            Self::ToolchainTooOld { .. } => "let Go fetch it: GOTOOLCHAIN=auto gantry up …",
            Self::ToolchainMissing { .. } => "check the go and toolchain lines of go.mod, and go env GOPROXY",
            Self::ModuleIncomplete { .. } => "run `go mod tidy` in the program's folder",
            Self::ModuleInvalid { .. } => "correct the line that Go names above",
            Self::NoModule { .. } => {
                "make one in the program's folder: go mod init example.com/app && go mod tidy"
            }
            Self::NothingToBuild { .. } => {
                "build constraints (file names, //go:build lines) leave out every file; set the tags it needs with --tags"
            }
            Self::DiskFull { .. } => "free space in $TMPDIR and in the Go cache (go clean -cache)",
            Self::NotExecutable { .. } | Self::WrongMachine { .. } => {
                "see whether GOFLAGS sets another -buildmode: go env GOFLAGS"
            }
            Self::Plan(error) => return error.hint(),
            Self::Go(error) => return error.hint(),
            Self::Temporary { .. } => "see that $TMPDIR can be written and has space",
            Self::Read { .. } => return None,
        };
        Some(hint.to_owned())
    }

    /// The toolchain's own lines, to be shown as they are.
    pub fn output(&self) -> Option<&str> {
        match self {
            Self::Compiler { output, .. }
            | Self::NeedsCgo { output, .. }
            | Self::ModuleNotFound { output, .. }
            | Self::ProxyUnreachable { output, .. }
            | Self::ToolchainMissing { output, .. }
            | Self::ModuleIncomplete { output, .. }
            | Self::ModuleInvalid { output, .. }
            | Self::NoModule { output, .. }
            | Self::NothingToBuild { output, .. }
            | Self::DiskFull { output } => Some(output),
            Self::Plan(error) => error.output(),
            _ => None,
        }
    }

    /// Whether this is the user's own interruption.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Go(go::Error::Cancelled) | Self::Plan(plan::Error::Go(go::Error::Cancelled)))
    }
}

impl Plan {
    /// Compiles the program: one `go` command, unless that fails and the reason is looked for.
    pub async fn compile(&self, cancel: &CancellationToken, progress: Progress<'_>) -> Result<Binary, Error> {
        let started = Instant::now();
        // Beside Go's own work folder, so that the linker's output is renamed and not copied.
        let folder = Folder::new().map_err(|source| Error::Temporary { source })?;
        let path = match &self.build {
            Build::Package { folder: source, arguments } => {
                let path = folder.path().join("program");
                let output = self.go_build(source, &path, &[], arguments, cancel, progress).await?;
                if !output.status.success() {
                    return Err(self.explain(source, arguments, output.stderr, cancel).await);
                }
                path
            }
            Build::Remote { path, version } => {
                self.remote(path, version, folder.path(), cancel, progress).await?
            }
        };
        let elapsed = started.elapsed();
        let (program, architecture) = (self.name.clone(), self.options.architecture.clone());
        let info = match buildinfo::read(&path) {
            Ok(info) => info,
            Err(source) => return Err(Error::NotExecutable { program, architecture, source }),
        };
        if MACHINES.iter().any(|(name, machine)| *name == architecture && *machine != info.machine) {
            return Err(Error::WrongMachine { program, architecture });
        }
        let size = path.metadata().map_err(|source| Error::Read { path: path.clone(), source })?.len();
        Ok(Binary {
            _folder: folder,
            path,
            size,
            name: program,
            file_name: self.binary.clone(),
            architecture,
            info,
            source: self.source.clone(),
            elapsed,
        })
    }

    async fn go_build(
        &self,
        folder: &Path,
        output: &Path,
        flags: &[OsString],
        packages: &[OsString],
        cancel: &CancellationToken,
        progress: Progress<'_>,
    ) -> Result<Output, Error> {
        let mut arguments = vec![OsString::from("build"), "-o".into(), output.into()];
        arguments.extend(self.flags());
        arguments.extend_from_slice(flags);
        arguments.push("--".into());
        arguments.extend_from_slice(packages);
        Ok(self.toolchain.run(folder, &arguments, &self.variables(), cancel, progress).await?)
    }

    /// The flags that make the output depend on nothing but source, toolchain and options.
    fn flags(&self) -> Vec<OsString> {
        // The linker's own build ID repeats what the digest says; without it `-p` and caches cannot matter.
        let mut ldflags = "-s -w -buildid=".to_owned();
        if let Some(more) = &self.options.ldflags {
            ldflags = format!("{ldflags} {more}");
        }
        let mut flags =
            vec!["-trimpath".to_owned(), "-buildvcs=false".to_owned(), format!("-ldflags={ldflags}")];
        flags.extend(self.options.tags.as_ref().map(|tags| format!("-tags={tags}")));
        flags.extend(self.options.parallel.map(|count| format!("-p={count}")));
        flags.into_iter().map(OsString::from).collect()
    }

    fn variables(&self) -> Vec<(&'static str, OsString)> {
        let mut variables: Vec<(&'static str, OsString)> = vec![
            ("CGO_ENABLED", "0".into()),
            ("GOOS", "linux".into()),
            ("GOARCH", self.options.architecture.clone().into()),
        ];
        if let Build::Remote { .. } = &self.build {
            // A go.work that the module ships is about its authors' checkout, one of the caller's about the caller's
            // modules; and Go refuses -modfile beside either.
            variables.push(("GOWORK", "off".into()));
        }
        variables
    }

    /// Turns what a failed build wrote into a reason.
    async fn explain(
        &self,
        folder: &Path,
        packages: &[OsString],
        output: String,
        cancel: &CancellationToken,
    ) -> Error {
        let program = self.name.clone();
        let reason = explain::classify(&output);
        if reason.may_be_cgo() {
            match self.cgo_packages(folder, packages, &output, cancel).await {
                Ok(packages) if !packages.is_empty() => return Error::NeedsCgo { program, packages, output },
                Err(go::Error::Cancelled) => return go::Error::Cancelled.into(),
                _ => {}
            }
        }
        reason.into_error(program, self.options.architecture.clone(), output)
    }

    /// The packages with C in them that the failing packages are or import.
    async fn cgo_packages(
        &self,
        folder: &Path,
        packages: &[OsString],
        output: &str,
        cancel: &CancellationToken,
    ) -> Result<Vec<String>, go::Error> {
        let mut arguments: Vec<OsString> =
            ["list", "-e", "-deps", "-json=ImportPath,CgoFiles,Standard,Imports,Dir"].map(Into::into).into();
        arguments.extend(self.options.tags.as_ref().map(|tags| format!("-tags={tags}").into()));
        arguments.push("--".into());
        arguments.extend_from_slice(packages);
        let mut variables = self.variables();
        variables[0].1 = "1".into();
        let listed = self.toolchain.run(folder, &arguments, &variables, cancel, &|_| ()).await?;
        let listed: Vec<CgoPackage> =
            serde_json::Deserializer::from_slice(&listed.stdout).into_iter().map_while(Result::ok).collect();
        Ok(explain::cgo(&listed, output))
    }
}

/// A package as `go list` sees it with cgo on.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CgoPackage {
    import_path: String,
    cgo_files: Vec<String>,
    standard: bool,
    imports: Vec<String>,
    dir: PathBuf,
}
