//! The whole way with the machine's own Go: source to image layout, and that nothing but the source counts.

use std::{fs, io::Read as _, path::Path};

use gobuild::{Options, Plan, Target, compile, go::Toolchain, image, layout::Layout};
use tokio_util::sync::CancellationToken;

const PROGRAM: &str = "package main\n\nfunc main() { println(\"hi\") }\n";

fn write(root: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

async fn plan(folder: &Path, options: Options) -> Plan {
    let toolchain = Toolchain::find(std::env::var_os("PATH").as_deref(), folder.into()).unwrap();
    let target = Target::Folder(folder.into());
    Plan::resolve(&target, options, toolchain, &CancellationToken::new()).await.unwrap()
}

async fn compile(folder: &Path, options: Options) -> Result<gobuild::Binary, compile::Error> {
    plan(folder, options).await.compile(&CancellationToken::new(), &|_| ()).await
}

async fn digest(folder: &Path, options: Options) -> (String, Vec<u8>) {
    let binary = compile(folder, options).await.unwrap();
    let layout = Layout::default();
    let image = image::assemble(&binary, &image::Options::default(), &layout).await.unwrap();
    let mut tar = Vec::new();
    layout.write(Some("localhost/x:latest"), &mut tar).unwrap();
    (image.descriptor.digest.to_string(), tar)
}

#[tokio::test]
async fn folder_parallelism_and_version_control_do_not_count() {
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (root.path().join("one"), root.path().join("deep/two"));
    let go_mod = "module example.com/x\n\ngo 1.21\n";
    write(&one, &[("go.mod", go_mod), ("main.go", PROGRAM), ("kodata/a", "x")]);
    write(
        &two,
        &[("go.mod", go_mod), ("main.go", PROGRAM), ("kodata/a", "x"), (".git/HEAD", "ref: refs/heads/m")],
    );
    let (first, tar) = digest(&one, Options { parallel: Some(1), ..Options::default() }).await;
    let (second, _) = digest(&two, Options { parallel: Some(2), ..Options::default() }).await;
    assert_eq!(first, second);

    let mut names = Vec::new();
    for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        if name == "index.json" {
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            assert!(text.contains(&first) && text.contains("localhost/x:latest"), "{text}");
        }
        names.push(name);
    }
    // Marker, index, folders; base, data, program, configuration, manifest.
    assert_eq!(
        names.iter().filter(|name| name.starts_with("blobs/sha256/") && name.len() > 70).count(),
        5,
        "{names:?}"
    );

    // Without a module not even the folder's name counts.
    let (bare, other) = (root.path().join("bare"), root.path().join("other"));
    write(&bare, &[("main.go", PROGRAM)]);
    write(&other, &[("main.go", PROGRAM)]);
    assert_eq!(digest(&bare, Options::default()).await.0, digest(&other, Options::default()).await.0);
}

#[tokio::test]
async fn what_the_linker_noted_is_read() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), &[("go.mod", "module example.com/x\n\ngo 1.21\n"), ("main.go", PROGRAM)]);
    let binary = compile(root.path(), Options::default()).await.unwrap();
    assert!(binary.info.go.starts_with("go1."), "{:?}", binary.info);
    assert_eq!(binary.info.package, "example.com/x");
    assert_eq!(binary.name, "x");
    let arm = Options { architecture: "arm64".to_owned(), ..Options::default() };
    assert_eq!(compile(root.path(), arm).await.unwrap().info.machine, 183);
}

#[tokio::test]
async fn failures_say_why() {
    let root = tempfile::tempdir().unwrap();
    let go_mod = "module example.com/x\n\ngo 1.21\n";
    let fail = async |name: &str, files: &[(&str, &str)]| {
        let folder = root.path().join(name);
        write(&folder, files);
        compile(&folder, Options::default()).await.unwrap_err()
    };

    let error =
        fail("wrong", &[("go.mod", go_mod), ("main.go", "package main\nfunc main() { x() }\n")]).await;
    assert!(error.output().unwrap().contains("./main.go:2:15: undefined: x"), "{error:?}");

    let c =
        "package c\n\n// int one() { return 1; }\nimport \"C\"\n\nfunc One() int { return int(C.one()) }\n";
    let main = "package main\n\nimport \"example.com/x/c\"\n\nfunc main() { println(c.One()) }\n";
    let error = fail("cgo", &[("go.mod", go_mod), ("c/c.go", c), ("main.go", main)]).await;
    let compile::Error::NeedsCgo { packages, .. } = &error else { panic!("{error:?}") };
    assert_eq!(packages, &["example.com/x/c"]);
    let own =
        "package main\n\n// int one() { return 1; }\nimport \"C\"\n\nfunc main() { println(C.one()) }\n";
    let error = fail("own", &[("go.mod", go_mod), ("main.go", own)]).await;
    assert!(
        matches!(&error, compile::Error::NeedsCgo { packages, .. } if packages == &["example.com/x"]),
        "{error:?}"
    );

    let error =
        fail("future", &[("go.mod", "module example.com/x\n\ngo 1.999\n"), ("main.go", PROGRAM)]).await;
    let is_version =
        matches!(error, compile::Error::ToolchainTooOld { .. } | compile::Error::ToolchainMissing { .. });
    assert!(is_version, "{error:?}");

    let error = fail("torn", &[("go.mod", "modul example.com/x\n"), ("main.go", PROGRAM)]).await;
    assert!(matches!(error, compile::Error::ModuleInvalid { .. }), "{error:?}");

    let imports = "package main\n\nimport _ \"example.com/y\"\n\nfunc main() {}\n";
    let error = fail("untidy", &[("go.mod", go_mod), ("main.go", imports)]).await;
    assert!(matches!(error, compile::Error::ModuleIncomplete { .. }), "{error:?}");
    let error = fail("bare", &[("main.go", imports)]).await;
    assert!(matches!(error, compile::Error::NoModule { .. }), "{error:?}");

    let darwin = "//go:build darwin\n\npackage main\n\nfunc main() {}\n";
    let error = fail("darwin", &[("go.mod", go_mod), ("main.go", darwin)]).await;
    assert!(matches!(error, compile::Error::NothingToBuild { .. }), "{error:?}");
}
