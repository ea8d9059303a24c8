//! Programs from a module proxy: one in a folder, filled by Go itself.

use std::{ffi::OsString, fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use gobuild::{Options, Plan, Target, go::Toolchain};
use tokio_util::sync::CancellationToken;

/// Writes a module of the proxy's: `PATH VERSION FOLDER` on the command line, the folder below the proxy's.
const PUBLISH: &str = r#"package main

import (
	"archive/zip"
	"os"
	"path/filepath"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	proxy, path, version, source := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	at := filepath.Join(proxy, path, "@v")
	check(os.MkdirAll(at, 0o755))
	check(os.WriteFile(filepath.Join(at, "list"), []byte(version+"\n"), 0o644))
	info := `{"Version":"` + version + `","Time":"2026-01-01T00:00:00Z"}`
	check(os.WriteFile(filepath.Join(at, version+".info"), []byte(info), 0o644))
	mod, err := os.ReadFile(filepath.Join(source, "go.mod"))
	check(err)
	check(os.WriteFile(filepath.Join(at, version+".mod"), mod, 0o644))
	file, err := os.Create(filepath.Join(at, version+".zip"))
	check(err)
	archive := zip.NewWriter(file)
	entries, err := os.ReadDir(source)
	check(err)
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(source, entry.Name()))
		check(err)
		writer, err := archive.Create(path + "@" + version + "/" + entry.Name())
		check(err)
		_, err = writer.Write(text)
		check(err)
	}
	check(archive.Close())
}
"#;

fn write(root: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// A `go` that asks the folder's proxy only and keeps what it fetches below it.
fn toolchain(root: &Path) -> Toolchain {
    let real = Toolchain::find(std::env::var_os("PATH").as_deref(), root.into()).unwrap();
    let script = format!(
        "#!/bin/sh\nexport GOPROXY=file://{proxy} GOSUMDB=off GOMODCACHE={cache} GOFLAGS=-modcacherw\nexec {go} \"$@\"\n",
        proxy = root.join("proxy").display(),
        cache = root.join("cache").display(),
        go = real.command().display(),
    );
    let go = root.join("bin/go");
    write(root, &[("bin/go", &script)]);
    fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).unwrap();
    Toolchain::find(Some(&OsString::from(root.join("bin"))), root.into()).unwrap()
}

/// Puts the folders of these names into the proxy, as modules of version 1.0.0.
fn publish(root: &Path, toolchain: &Toolchain, names: &[&str]) {
    for name in names {
        let status = Command::new(toolchain.command())
            .args(["run", "publish.go", "proxy", &format!("example.com/{name}"), "v1.0.0", name])
            .current_dir(root)
            .status();
        assert!(status.unwrap().success());
    }
}

/// What a program from the proxy writes.
async fn said(toolchain: Toolchain, path: &str) -> String {
    let target = Target::Import { path: path.into(), version: Some("v1.0.0".into()) };
    let cancel = CancellationToken::new();
    let plan = Plan::resolve(&target, Options::default(), toolchain, &cancel).await.unwrap();
    let binary = plan.compile(&cancel, &|_| ()).await.unwrap();
    let output = Command::new(&binary.path).output().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_replacement_that_was_not_published_gives_way_to_the_sibling_that_was() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let app = "module example.com/app\n\ngo 1.21\n\nrequire example.com/lib v1.0.0\n\nreplace example.com/lib => ../lib\n";
    let main = "package main\n\nimport \"example.com/lib\"\n\nfunc main() { print(lib.Name) }\n";
    write(
        root,
        &[
            ("publish.go", PUBLISH),
            ("app/go.mod", app),
            ("app/main.go", main),
            ("lib/go.mod", "module example.com/lib\n\ngo 1.21\n"),
            ("lib/lib.go", "package lib\n\nconst Name = \"the published sibling\"\n"),
        ],
    );
    let toolchain = toolchain(root);
    publish(root, &toolchain, &["app", "lib"]);
    assert_eq!(said(toolchain, "example.com/app").await, "the published sibling");
}

#[tokio::test]
async fn a_module_that_ships_a_workspace_is_built_without_it() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    // Of Prometheus' shape: replaced, so that `go install` refuses it, and a go.work beside go.mod.
    let app = "module example.com/app\n\ngo 1.21\n\nrequire example.com/lib v1.0.0\n\nreplace example.com/lib => example.com/lib v1.0.0\n";
    let main = "package main\n\nimport \"example.com/lib\"\n\nfunc main() { print(lib.Name) }\n";
    write(
        root,
        &[
            ("publish.go", PUBLISH),
            ("app/go.mod", app),
            ("app/go.work", "go 1.21\n\nuse (\n\t.\n\t./tools\n)\n"),
            ("app/main.go", main),
            ("lib/go.mod", "module example.com/lib\n\ngo 1.21\n"),
            ("lib/lib.go", "package lib\n\nconst Name = \"no workspace\"\n"),
        ],
    );
    let toolchain = toolchain(root);
    publish(root, &toolchain, &["app", "lib"]);
    assert_eq!(said(toolchain, "example.com/app").await, "no workspace");
}
