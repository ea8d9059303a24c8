//! Which main package a target means, and how it is going to be built.
//!
//! The usual folder is decided by reading the package clauses of its files: a `go` command costs 10 ms and more.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::{
    go::{self, Toolchain},
    target::{Target, program_name},
};

/// Bytes of a source file within which its package clause is looked for.
const CLAUSE_BYTES_MAX: u64 = 256 << 10;
/// Main packages that are read from `go list` before the rest is left out.
const MAIN_PACKAGES_MAX: usize = 200;

/// How to build, whatever is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `GOARCH`; the operating system is always Linux.
    pub architecture: String,
    /// Added to `-s -w`.
    pub ldflags: Option<String>,
    /// Build tags, comma-separated.
    pub tags: Option<String>,
    /// `-p`: how many programs Go starts at a time.
    pub parallel: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self { architecture: host_architecture().to_owned(), ldflags: None, tags: None, parallel: None }
    }
}

/// `GOARCH` of this machine.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A decided build.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) toolchain: Toolchain,
    pub(crate) options: Options,
    pub(crate) build: Build,
    /// What the user sees the program called.
    pub(crate) name: String,
    /// The file name in the image: as Go would call it, so that the folder's name stays out of the digest.
    pub(crate) binary: String,
    /// The main package's folder, when it is on this machine.
    pub(crate) source: Option<PathBuf>,
}

/// What `go` is told to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// `go build ARGUMENTS` in a folder.
    Package { folder: PathBuf, arguments: Vec<OsString> },
    /// `go install PATH@VERSION` from the module proxy.
    Remote { path: String, version: String },
}

/// Why a target cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no such folder: {folder}")]
    NoSuchFolder { folder: PathBuf },
    #[error("{path} is a file, not a folder with a Go program")]
    NotAFolder { path: PathBuf },
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("no Go files in {folder}")]
    NoGoFiles { folder: PathBuf, below: Vec<String> },
    #[error("no main package in {place}: it holds {found}")]
    NoMainPackage { place: String, found: String },
    #[error("{} main packages in {place}: {}", .packages.len(), .packages.join(", "))]
    SeveralMainPackages { place: String, packages: Vec<String> },
    #[error("list the packages of {place}")]
    List { place: String, output: String },
    #[error(transparent)]
    Go(#[from] go::Error),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotAFolder { path } => {
                let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
                Some(format!("name its folder: gantry up {}", folder.unwrap_or(Path::new(".")).display()))
            }
            Self::NoSuchFolder { .. } => Some(
                "name a folder (gantry up ./hello) or an import path (gantry up example.com/cmd/app@latest)"
                    .to_owned(),
            ),
            Self::NoGoFiles { below, .. } => Some(match below.first() {
                Some(first) => format!("there is one below: gantry up {first}"),
                None => "name the folder that has the program's main.go: gantry up DIR".to_owned(),
            }),
            Self::NoMainPackage { .. } => Some(
                "a program starts in `package main` with `func main()`; name the folder that has one"
                    .to_owned(),
            ),
            Self::SeveralMainPackages { packages, .. } => {
                packages.first().map(|first| format!("name one of them: gantry up {first}"))
            }
            Self::Go(error) => error.hint(),
            Self::Read { .. } | Self::List { .. } => None,
        }
    }

    /// Lines that a tool said, to be shown as they are.
    pub fn output(&self) -> Option<&str> {
        match self {
            Self::List { output, .. } => Some(output),
            _ => None,
        }
    }
}

impl Plan {
    /// Decides what a target means. Starts no process in the usual case.
    pub async fn resolve(
        target: &Target,
        options: Options,
        toolchain: Toolchain,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        match target {
            Target::Folder(folder) => Self::folder(folder, options, toolchain, cancel).await,
            Target::Import { path, version } => {
                Ok(Self::import(path, version.as_deref(), options, toolchain))
            }
        }
    }

    /// What the user sees the program called.
    pub fn name(&self) -> &str {
        &self.name
    }

    async fn folder(
        target: &Path,
        options: Options,
        toolchain: Toolchain,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let read = |source| Error::Read { path: target.into(), source };
        let folder = toolchain.folder.join(target);
        let meta = match fs::metadata(&folder) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoSuchFolder { folder: target.into() });
            }
            Err(error) => return Err(read(error)),
        };
        if !meta.is_dir() {
            return Err(Error::NotAFolder { path: target.into() });
        }
        let folder = fs::canonicalize(&folder).map_err(read)?;
        let module = Module::of(&folder);
        let files = sources(&folder).map_err(read)?;
        let plan = |folder: PathBuf| Self::in_folder(folder, module.as_ref(), &files, &options, &toolchain);
        if !files.is_empty() && files.iter().all(|file| file.package == "main") {
            return Ok(plan(folder));
        }
        let Some(module) = &module else {
            if files.is_empty() {
                let below = below(&folder, target);
                return Err(Error::NoGoFiles { folder: target.into(), below });
            }
            let found = format!("package {}", files[0].package);
            return Err(Error::NoMainPackage { place: target.display().to_string(), found });
        };
        let packages = list(&toolchain, &folder, &options, cancel, target).await?;
        // Files that build constraints leave out may have misled us: Go's own word counts.
        if packages.iter().any(|package| package.name == "main" && package.folder == folder) {
            return Ok(plan(folder));
        }
        let mut mains: Vec<_> = packages.iter().filter(|package| package.name == "main").collect();
        match (mains.len(), packages.len()) {
            (1, _) => {
                let only = mains.remove(0);
                Ok(Self::in_folder(only.folder.clone(), Some(module), &[], &options, &toolchain))
            }
            (0, 0) => Err(Error::NoGoFiles { folder: target.into(), below: below(&folder, target) }),
            (0, _) => {
                let names: Vec<_> = packages.iter().take(5).map(|p| p.import_path.as_str()).collect();
                let found = format!("no program, only {}", names.join(", "));
                Err(Error::NoMainPackage { place: target.display().to_string(), found })
            }
            _ => {
                let packages = mains.iter().map(|package| shown(&package.folder, &folder, target)).collect();
                Err(Error::SeveralMainPackages { place: target.display().to_string(), packages })
            }
        }
    }

    fn in_folder(
        folder: PathBuf,
        module: Option<&Module>,
        files: &[SourceFile],
        options: &Options,
        toolchain: &Toolchain,
    ) -> Self {
        let last = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        let last = last.filter(|name| !name.is_empty());
        let (name, binary, arguments) = match module {
            Some(module) => {
                let below = folder.strip_prefix(&module.root).unwrap_or(Path::new(""));
                let path = format!("{}/{}", module.path, below.display());
                let name = program_name(&path).to_owned();
                (name.clone(), name, vec![OsString::from(".")])
            }
            // Without a module Go builds named files only, and calls the package command-line-arguments.
            None => (
                last.unwrap_or_else(|| "main".to_owned()),
                "main".to_owned(),
                files.iter().map(|file| file.name.clone()).collect(),
            ),
        };
        Self {
            toolchain: toolchain.clone(),
            options: options.clone(),
            build: Build::Package { folder: folder.clone(), arguments },
            name,
            binary,
            source: Some(folder),
        }
    }

    fn import(path: &str, version: Option<&str>, options: Options, toolchain: Toolchain) -> Self {
        let name = program_name(path).to_owned();
        let local = match version {
            Some(_) => None,
            None => Module::of(&toolchain.folder).filter(|module| module.knows(path)),
        };
        let (build, source) = match local {
            Some(module) => {
                let below = path.strip_prefix(&module.path).map(|rest| rest.trim_start_matches('/'));
                let source = below.map(|below| module.root.join(below));
                let folder = toolchain.folder.clone();
                (Build::Package { folder, arguments: vec![OsString::from(path)] }, source)
            }
            None => {
                let version = version.unwrap_or("latest").to_owned();
                (Build::Remote { path: path.to_owned(), version }, None)
            }
        };
        Self { toolchain, options, build, binary: name.clone(), name, source }
    }
}

/// The module that a folder belongs to.
#[derive(Debug)]
struct Module {
    root: PathBuf,
    path: String,
    text: String,
}

impl Module {
    fn of(folder: &Path) -> Option<Self> {
        if std::env::var_os("GO111MODULE").is_some_and(|value| value == "off") {
            return None;
        }
        folder.ancestors().find_map(|root| {
            let text = fs::read_to_string(root.join("go.mod")).ok()?;
            let path = module_path(&text).unwrap_or_default().to_owned();
            Some(Self { root: root.to_owned(), path, text })
        })
    }

    /// Whether an import path without a version is this module's or one that it requires.
    fn knows(&self, path: &str) -> bool {
        let holds = |module: &str| {
            path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let is_path = |word: &&str| word.contains('/') || word.contains('.');
        holds(&self.path)
            || self.text.lines().flat_map(|line| line.split("//").next()).any(|line| {
                line.split_whitespace().filter(|word| *word != "require").find(is_path).is_some_and(holds)
            })
    }
}

/// The path in a `module` directive.
fn module_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| {
        let line = line.split("//").next().unwrap_or_default().trim();
        let path = line.strip_prefix("module")?;
        path.starts_with([' ', '\t', '"']).then(|| path.trim().trim_matches(['"', '`']))
    })
}

struct SourceFile {
    name: OsString,
    package: String,
}

/// The folder's Go files that are no tests, sorted by name, with their package clauses.
fn sources(folder: &Path) -> io::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let is_source = text.ends_with(".go") && !text.ends_with("_test.go");
        if !is_source || text.starts_with(['_', '.']) || entry.path().is_dir() {
            continue;
        }
        let mut start = Vec::new();
        fs::File::open(entry.path())?.take(CLAUSE_BYTES_MAX).read_to_end(&mut start)?;
        // Without a clause the compiler is to say what is wrong with the file.
        let package = package_clause(&start).unwrap_or("main").to_owned();
        files.push(SourceFile { name, package });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// The name in a file's package clause, which only comments may precede.
fn package_clause(source: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(source) {
        Ok(text) => text,
        // A cut at the end of what was read may split a character.
        Err(error) => std::str::from_utf8(&source[..error.valid_up_to()]).ok()?,
    };
    let mut rest = text.trim_start_matches('\u{feff}');
    loop {
        rest = rest.trim_start();
        if let Some(comment) = rest.strip_prefix("//") {
            rest = comment.split_once('\n')?.1;
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/")?.1;
        } else {
            let name = rest.strip_prefix("package")?.trim_start();
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            return (end > 0).then(|| &name[..end]);
        }
    }
}

/// Folders with a bare program close below, for a hint.
fn below(folder: &Path, shown_as: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut level = vec![folder.to_owned()];
    for _ in 0..3 {
        let mut next = Vec::new();
        for parent in level.iter().take(200) {
            let Ok(entries) = fs::read_dir(parent) else { continue };
            let folders = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
            next.extend(folders.filter(|path| !hidden(path)));
        }
        next.sort();
        for path in &next {
            if sources(path).is_ok_and(|files| files.iter().any(|file| file.package == "main")) {
                found.push(shown(path, folder, shown_as));
            }
        }
        level = next;
    }
    found
}

fn hidden(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.starts_with(['.', '_']) || name == "vendor" || name == "testdata" || name == "node_modules"
}

/// A folder below `base` as the user would write it.
fn shown(path: &Path, base: &Path, base_shown_as: &Path) -> String {
    let below = path.strip_prefix(base).unwrap_or(path);
    let joined = base_shown_as.join(below);
    let is_relative = joined.is_relative() && !joined.starts_with(".") && !joined.starts_with("..");
    if is_relative { format!("./{}", joined.display()) } else { joined.display().to_string() }
}

/// A package as `go list` sees it.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    #[serde(rename = "Name", default)]
    pub name: String,
    #[serde(rename = "ImportPath", default)]
    pub import_path: String,
    #[serde(rename = "Dir", default)]
    pub folder: PathBuf,
}

pub(crate) fn parse_list(stdout: &[u8]) -> Vec<Package> {
    let packages = serde_json::Deserializer::from_slice(stdout).into_iter::<Package>();
    packages
        .map_while(Result::ok)
        .filter(|package| !package.name.is_empty())
        .take(MAIN_PACKAGES_MAX)
        .collect()
}

async fn list(
    toolchain: &Toolchain,
    folder: &Path,
    options: &Options,
    cancel: &CancellationToken,
    shown_as: &Path,
) -> Result<Vec<Package>, Error> {
    let arguments = ["list", "-e", "-json=Name,ImportPath,Dir", "./..."].map(OsString::from);
    let variables = [("GOOS", "linux".into()), ("GOARCH", options.architecture.clone().into())];
    let output = toolchain.run(folder, &arguments, &variables, cancel, &|_| ()).await?;
    if !output.status.success() {
        let place = shown_as.display().to_string();
        return Err(Error::List { place, output: output.stderr });
    }
    Ok(parse_list(&output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_clauses_are_found_behind_comments() {
        assert_eq!(package_clause(b"package main\n"), Some("main"));
        assert_eq!(package_clause(b"\xef\xbb\xbf// x\n/* y\n*/ package  a_b;"), Some("a_b"));
        assert_eq!(package_clause(b"//go:build ignore\n\npackage main"), Some("main"));
        assert_eq!(package_clause(b"// only a comment"), None);
        assert_eq!(package_clause(b"func main() {}"), None);
    }

    #[test]
    fn module_paths_are_read_as_go_reads_them() {
        assert_eq!(module_path("// c\nmodule example.com/x // d\n\ngo 1.26\n"), Some("example.com/x"));
        assert_eq!(module_path("module \"x y\"\n"), Some("x y"));
        assert_eq!(module_path("modules\n"), None);
        let text = "module example.com/x\nrequire (\n\texample.com/dep v1.0.0 // indirect\n)\n";
        let module = Module { root: "/".into(), path: "example.com/x".into(), text: text.into() };
        assert!(module.knows("example.com/x/cmd/y"));
        assert!(module.knows("example.com/dep/cmd"));
        assert!(!module.knows("example.com/xy"));
        assert!(!module.knows("example.com/other"));
    }

    fn toolchain(folder: &Path) -> Toolchain {
        Toolchain::find(std::env::var_os("PATH").as_deref(), folder.into()).expect("the tests need Go")
    }

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    async fn resolve(root: &Path, target: &str) -> Result<Plan, Error> {
        let target = Target::parse_ko(target);
        Plan::resolve(&target, Options::default(), toolchain(root), &CancellationToken::new()).await
    }

    #[tokio::test]
    async fn a_bare_program_is_named_by_its_folder_and_built_from_its_files() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[("greet/main.go", "package main"), ("greet/main_test.go", "package main")]);
        let plan = resolve(root.path(), "./greet").await.unwrap();
        assert_eq!((plan.name.as_str(), plan.binary.as_str()), ("greet", "main"));
        let Build::Package { arguments, .. } = plan.build else { panic!() };
        assert_eq!(arguments, ["main.go"]);
    }

    #[tokio::test]
    async fn a_module_names_its_program() {
        let root = tempfile::tempdir().unwrap();
        let go_mod = "module example.com/app/v2\n\ngo 1.21\n";
        write(
            root.path(),
            &[("go.mod", go_mod), ("main.go", "package main"), ("cmd/y/y.go", "package main")],
        );
        assert_eq!(resolve(root.path(), ".").await.unwrap().name, "app");
        assert_eq!(resolve(root.path(), "./cmd/y").await.unwrap().name, "y");
        let plan = resolve(root.path(), "example.com/app/v2/cmd/y").await.unwrap();
        assert_eq!(plan.source, Some(root.path().join("cmd/y")));
        let remote = resolve(root.path(), "example.com/z").await.unwrap();
        assert_eq!(remote.build, Build::Remote { path: "example.com/z".into(), version: "latest".into() });
    }

    #[tokio::test]
    async fn the_only_program_of_a_module_is_found_and_several_are_listed() {
        let root = tempfile::tempdir().unwrap();
        let go_mod = ("go.mod", "module example.com/app\n\ngo 1.21\n");
        write(
            root.path(),
            &[go_mod, ("lib.go", "package app"), ("cmd/one/m.go", "package main\nfunc main(){}")],
        );
        let plan = resolve(root.path(), ".").await.unwrap();
        assert_eq!(plan.name, "one");
        write(root.path(), &[("cmd/two/m.go", "package main\nfunc main(){}")]);
        let error = resolve(root.path(), ".").await.unwrap_err();
        assert_eq!(error.to_string(), "2 main packages in .: ./cmd/one, ./cmd/two");
        assert_eq!(error.hint().unwrap(), "name one of them: gantry up ./cmd/one");
    }

    #[tokio::test]
    async fn what_is_no_program_is_said() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[("empty/readme", ""), ("lib/l.go", "package lib"), ("x/y/main.go", "package main")],
        );
        let said = async |target: &str| {
            let error = resolve(root.path(), target).await.unwrap_err();
            format!("{error} | {}", error.hint().unwrap_or_default())
        };
        assert_eq!(said("./none").await.split(" | ").next(), Some("no such folder: ./none"));
        assert!(said("./empty").await.starts_with("no Go files in ./empty | name the folder"));
        assert_eq!(said("./x").await, "no Go files in ./x | there is one below: gantry up ./x/y");
        assert!(said("./lib").await.starts_with("no main package in ./lib: it holds package lib"));
        assert!(said("./lib/l.go").await.contains("| name its folder: gantry up ./lib"));
    }
}
