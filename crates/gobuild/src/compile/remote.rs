//! Programs from the module proxy.
//!
//! `go install PATH@VERSION` is what their authors test, and it stamps the version. It refuses modules with
//! replace directives and says nothing about other main packages; then the module's own folder in the module
//! cache is looked at, and the program is built there as the module's own developers would.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{Error, explain};
use crate::{
    go::{self, Progress},
    plan::{self, Plan, host_architecture},
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Module {
    path: String,
    version: String,
    dir: PathBuf,
}

/// What `go mod edit -json` says of a `go.mod`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModuleFile {
    replace: Option<Vec<Replace>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Replace {
    old: Replaced,
    new: Replaced,
}

/// One side of a replacement: a module, or without a version a folder.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Replaced {
    path: String,
    version: Option<String>,
}

impl Plan {
    /// Builds a program from the proxy below `folder`, and gives the executable.
    pub(super) async fn remote(
        &self,
        path: &str,
        version: &str,
        folder: &Path,
        cancel: &CancellationToken,
        progress: Progress<'_>,
    ) -> Result<PathBuf, Error> {
        let wanted = format!("{path}@{version}");
        let mut arguments = vec![OsString::from("install")];
        arguments.extend(self.flags());
        arguments.push("--".into());
        arguments.push(wanted.clone().into());
        let installed = folder.join("bin");
        let mut variables = self.variables();
        // An explicit GOFLAGS=-mod=… is about the caller's module, not about this one.
        if self.options.architecture == host_architecture() {
            variables.push(("GOBIN", installed.clone().into()));
        } else {
            // With GOBIN set Go refuses to install for another machine.
            variables.push(("GOMODCACHE", self.module_cache(folder, cancel).await?));
            variables.push(("GOPATH", folder.into()));
            variables.push(("GOBIN", OsString::new()));
        }
        let output = self.toolchain.run(folder, &arguments, &variables, cancel, progress).await?;
        if output.status.success() {
            return executable(&installed);
        }
        let reason = explain::classify(&output.stderr);
        let module = match reason {
            explain::Reason::NotMain | explain::Reason::NoPackage { .. } | explain::Reason::Replaced => {
                self.download(path, version, folder, cancel, progress).await?
            }
            ref other if other.may_be_cgo() => {
                let module = self.download(path, version, folder, cancel, progress).await;
                let Ok(Some(module)) = module else {
                    return Err(reason.into_error(wanted, self.options.architecture.clone(), output.stderr));
                };
                return Err(self.explain(&module.dir, &[path.into()], output.stderr, cancel).await);
            }
            _ => None,
        };
        let Some(module) = module else {
            return Err(reason.into_error(wanted, self.options.architecture.clone(), output.stderr));
        };
        let path = match reason {
            explain::Reason::Replaced => path.to_owned(),
            _ => self.only_main(path, &module, folder, cancel).await?,
        };
        self.in_module(&module, &path, folder, cancel, progress).await
    }

    /// Builds a package of a downloaded module as if that module were the main one.
    async fn in_module(
        &self,
        module: &Module,
        path: &str,
        folder: &Path,
        cancel: &CancellationToken,
        progress: Progress<'_>,
    ) -> Result<PathBuf, Error> {
        let flags = self.module_flags(module, folder, cancel).await?;
        let executable = folder.join("program");
        let packages = [OsString::from(path)];
        let output = self.go_build(&module.dir, &executable, &flags, &packages, cancel, progress).await?;
        if output.status.success() {
            return Ok(executable);
        }
        Err(self.explain(&module.dir, &packages, output.stderr, cancel).await)
    }

    /// The one main package at or below an import path.
    async fn only_main(
        &self,
        path: &str,
        module: &Module,
        folder: &Path,
        cancel: &CancellationToken,
    ) -> Result<String, Error> {
        let mut arguments: Vec<OsString> = ["list", "-e", "-json=Name,ImportPath,Dir"].map(Into::into).into();
        arguments.extend(self.module_flags(module, folder, cancel).await?);
        arguments.push("--".into());
        arguments.push(format!("{path}/...").into());
        let output = self.toolchain.run(&module.dir, &arguments, &self.variables(), cancel, &|_| ()).await?;
        let mut mains: Vec<String> = plan::parse_list(&output.stdout)
            .into_iter()
            .filter(|package| package.name == "main")
            .map(|package| package.import_path)
            .collect();
        let place = format!("{path}@{}", module.version);
        match mains.len() {
            1 => Ok(mains.remove(0)),
            0 => Err(plan::Error::NoMainPackage { place, found: "no program".to_owned() }.into()),
            _ => {
                let packages = mains.iter().map(|main| format!("{main}@{}", module.version)).collect();
                Err(plan::Error::SeveralMainPackages { place, packages }.into())
            }
        }
    }

    /// Finds the module that holds an import path: the longest prefix that the proxy knows.
    async fn download(
        &self,
        path: &str,
        version: &str,
        folder: &Path,
        cancel: &CancellationToken,
        progress: Progress<'_>,
    ) -> Result<Option<Module>, Error> {
        let mut prefix = path;
        loop {
            let arguments = ["mod", "download", "-json", &format!("{prefix}@{version}")].map(OsString::from);
            let output = self.toolchain.run(folder, &arguments, &[], cancel, progress).await?;
            if output.status.success()
                && let Ok(module) = serde_json::from_slice::<Module>(&output.stdout)
            {
                return Ok(Some(module));
            }
            match prefix.rsplit_once('/') {
                Some((shorter, _)) if shorter.contains('.') => prefix = shorter,
                _ => return Ok(None),
            }
        }
    }

    /// Flags for `go` in a downloaded module's folder.
    async fn module_flags(
        &self,
        module: &Module,
        folder: &Path,
        cancel: &CancellationToken,
    ) -> Result<[OsString; 2], Error> {
        copy_module_files(module, folder)?;
        let modfile = folder.join("go.mod");
        self.drop_absent(module, &modfile, folder, cancel).await?;
        let mut flag = OsString::from("-modfile=");
        flag.push(modfile);
        Ok(["-mod=mod".into(), flag])
    }

    /// Drops replacements by folders that only the authors' repository has: what was published requires the
    /// published siblings.
    async fn drop_absent(
        &self,
        module: &Module,
        modfile: &Path,
        folder: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let edit = |flags: Vec<OsString>| {
            let mut arguments: Vec<OsString> = ["mod", "edit"].map(Into::into).into();
            arguments.extend(flags);
            arguments.push(modfile.into());
            arguments
        };
        let read = self.toolchain.run(folder, &edit(vec!["-json".into()]), &[], cancel, &|_| ()).await?;
        let Ok(file) = serde_json::from_slice::<ModuleFile>(&read.stdout) else { return Ok(()) };
        let absent = file.replace.unwrap_or_default().into_iter().filter(|one| {
            one.new.version.is_none() && !module.dir.join(&one.new.path).join("go.mod").exists()
        });
        let flags: Vec<OsString> = absent
            .map(|Replace { old, .. }| match old.version {
                Some(version) => format!("-dropreplace={}@{version}", old.path).into(),
                None => format!("-dropreplace={}", old.path).into(),
            })
            .collect();
        if !flags.is_empty() {
            self.toolchain.run(folder, &edit(flags), &[], cancel, &|_| ()).await?;
        }
        Ok(())
    }

    async fn module_cache(&self, folder: &Path, cancel: &CancellationToken) -> Result<OsString, go::Error> {
        let arguments = ["env", "GOMODCACHE"].map(OsString::from);
        let output = self.toolchain.run(folder, &arguments, &[], cancel, &|_| ()).await?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned().into())
    }
}

/// The module cache is read-only: what Go has to add to `go.mod` and `go.sum` goes into copies.
fn copy_module_files(module: &Module, folder: &Path) -> Result<(), Error> {
    for name in ["go.mod", "go.sum"] {
        let (from, to) = (module.dir.join(name), folder.join(name));
        match fs::read(&from) {
            Ok(text) => fs::write(&to, text).map_err(|source| Error::Read { path: to, source })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && name == "go.mod" => {
                let text = format!("module {}\n", module.path);
                fs::write(&to, text).map_err(|source| Error::Read { path: to, source })?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Read { path: from, source }),
        }
    }
    Ok(())
}

/// The one file that `go install` wrote, which stands in a folder of the platform's when it was a cross build.
fn executable(folder: &Path) -> Result<PathBuf, Error> {
    let read = |source| Error::Read { path: folder.into(), source };
    let entries: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(read)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(read)?;
    match entries.into_iter().next() {
        Some(path) if path.is_dir() => executable(&path),
        Some(path) => Ok(path),
        None => Err(read(std::io::ErrorKind::NotFound.into())),
    }
}
