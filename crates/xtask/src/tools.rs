//! The clients that others wrote: built from their Go modules, or installed from Debian.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where built tools are kept between runs.
pub(crate) fn folder() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let folder = cache.context("neither XDG_CACHE_HOME nor HOME is set")?.join("gantry/tools");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Cargo, as a person would run it here.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    // What cargo sets for this process would look like a changed environment to build scripts, and half of the
    // dependencies would be built again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO";
        if ours {
            command.env_remove(&name);
        }
    }
    command
}

/// The release binary, built if it is not current.
pub(crate) fn gantry() -> Result<PathBuf> {
    build(None)
}

fn build(version: Option<&str>) -> Result<PathBuf> {
    let mut command = cargo();
    match version {
        Some(version) => command.env("GANTRY_VERSION", version),
        None => command.env_remove("GANTRY_VERSION"),
    };
    let output = command
        .args(["build", "--release", "--package", "gantry", "--message-format", "json-render-diagnostics"])
        .current_dir(crate::tidy::root()?)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("run cargo build")?;
    if !output.status.success() {
        bail!("cargo build: {}", output.status);
    }
    for line in String::from_utf8_lossy(&output.stdout).lines().rev() {
        let message: serde_json::Value = serde_json::from_str(line).context("read cargo's messages")?;
        if message["target"]["name"] == "gantry"
            && let Some(path) = message["executable"].as_str()
        {
            return Ok(PathBuf::from(path));
        }
    }
    bail!("cargo build named no executable")
}

/// A build of the same source that says it is of another release. The usual build is current again afterwards.
pub(crate) fn gantry_of(version: &str) -> Result<PathBuf> {
    // Only the crate of the binary looks at the variable, so only that is built anew.
    let built = build(Some(version))?;
    let kept = folder()?.join(format!("gantry-{version}"));
    std::fs::copy(&built, &kept).with_context(|| format!("copy {}", built.display()))?;
    gantry()?;
    Ok(kept)
}

/// A tool that is one main package of a Go module, at a fixed version.
pub(crate) fn go_install(name: &str, package: &str, version: &str) -> Result<PathBuf> {
    let folder = folder()?.join(format!("{name}-{version}"));
    let binary = folder.join(name);
    if binary.exists() {
        return Ok(binary);
    }
    crate::say(&format!("building {name} {version}"));
    let status = Command::new("go")
        .args(["install", &format!("{package}@{version}")])
        .env("GOBIN", &folder)
        .env("GOFLAGS", "-trimpath")
        .status()
        .context("run go install")?;
    if !status.success() {
        bail!("go install {package}@{version}: {status}");
    }
    Ok(binary)
}

/// `crane`, which pushes, pulls, lists and deletes.
pub(crate) fn crane() -> Result<PathBuf> {
    go_install("crane", "github.com/google/go-containerregistry/cmd/crane", "v0.20.6")
}

/// The release whose API gantry serves.
pub(crate) const KUBERNETES: &str = "1.36.3";
/// The oldest release whose kubectl has to work.
pub(crate) const KUBERNETES_OLDEST: &str = "1.32.13";

/// A command (`kubectl`, `kube-apiserver`, …) of the Kubernetes release whose API gantry serves.
pub(crate) fn kubernetes(command: &str) -> Result<PathBuf> {
    kubernetes_at(KUBERNETES, command)
}

/// A command of a Kubernetes release, built from its Go module.
pub(crate) fn kubernetes_at(version: &str, command: &str) -> Result<PathBuf> {
    let folder = folder()?.join(format!("kubernetes-{version}"));
    let binary = folder.join(command);
    if binary.exists() {
        return Ok(binary);
    }
    crate::say(&format!("building {command} {version}"));
    let module = folder.join(format!("module-{command}"));
    std::fs::create_dir_all(&module)?;
    std::fs::write(module.join("go.mod"), dependent(version, &module_file(version)?)?)?;
    let import = format!("package tools\nimport _ \"k8s.io/kubernetes/cmd/{command}\"\n");
    std::fs::write(module.join("tools.go"), format!("//go:build tools\n\n{import}"))?;
    go(&module, &["mod", "tidy"])?;
    let (major, minor) = release(version)?;
    let prefix = "-X k8s.io/component-base/version";
    let flags = format!("{prefix}.gitVersion=v{version} {prefix}.gitMajor={major} {prefix}.gitMinor={minor}");
    let output = binary.to_str().context("the tools' folder is no text")?;
    go(&module, &["build", "-ldflags", &flags, "-o", output, &format!("k8s.io/kubernetes/cmd/{command}")])?;
    Ok(binary)
}

/// Major and minor of a release.
fn release(version: &str) -> Result<(&str, &str)> {
    let mut numbers = version.split('.');
    let both = numbers.next().zip(numbers.next());
    both.with_context(|| format!("{version:?} is no release"))
}

/// The `go.mod` of `k8s.io/kubernetes` itself.
fn module_file(version: &str) -> Result<String> {
    let answer = go(&folder()?, &["mod", "download", "-json", &format!("k8s.io/kubernetes@v{version}")])?;
    let answer: serde_json::Value = serde_json::from_str(&answer).context("read go's answer")?;
    let path = answer["GoMod"].as_str().context("go names no go.mod")?;
    std::fs::read_to_string(path).with_context(|| format!("read {path}"))
}

/// A `go.mod` that depends on Kubernetes. Kubernetes replaces its staging modules by its own folders, and sets the
/// language and its compatibility settings; all of which a dependent has to repeat.
fn dependent(version: &str, original: &str) -> Result<String> {
    let patch = version.strip_prefix("1.").with_context(|| format!("{version:?} is no release 1.x"))?;
    let mut text = String::from("module tools\n");
    for line in original.lines().map(str::trim) {
        if line.starts_with("go ") || line.starts_with("godebug ") {
            text.push_str(&format!("{line}\n"));
        } else if let Some((name, _)) = line.split_once(" => ./staging/") {
            text.push_str(&format!("replace {name} => {name} v0.{patch}\n"));
        }
    }
    text.push_str(&format!("require k8s.io/kubernetes v{version}\n"));
    Ok(text)
}

fn go(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("go").args(arguments).current_dir(folder).output().context("run go")?;
    if !output.status.success() {
        bail!("go {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependent_repeats_what_go_does_not_take_over() {
        let original = "module k8s.io/kubernetes\n\ngo 1.23.0\n\ngodebug default=go1.23\n\nrequire (\n\tk8s.io/api v0.0.0\n)\n\n\
                        replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let expected = "module tools\ngo 1.23.0\ngodebug default=go1.23\nreplace k8s.io/api => k8s.io/api v0.32.13\n\
                        require k8s.io/kubernetes v1.32.13\n";
        assert_eq!(dependent("1.32.13", original).unwrap(), expected);
        assert_eq!(release("1.32.13").unwrap(), ("1", "32"));
        assert!(release("1").is_err() && dependent("2.0.0", original).is_err());
    }
}
