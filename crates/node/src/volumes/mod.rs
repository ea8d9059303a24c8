//! A Pod's volumes on disk, under `<state>/pods/<uid>/volumes/<name>`.
//!
//! Secrets and `medium: Memory` are on tmpfs. Nothing here survives its Pod, so nothing is synced.

pub mod atomic;
pub mod content;
mod mounts;

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{HostPathVolumeSource, Pod, Volume};

use crate::env::Sources;
use crate::{limits, quantity};

pub use mounts::{sub_path, unmount_below};

/// Why a volume could not be made; the event `FailedMount` says it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object that it shows is not there.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// configmap or secret.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("references non-existent config key: {key} of {name}")]
    Key {
        /// The key.
        key: String,
        /// The ConfigMap or Secret.
        name: String,
    },
    /// A field that the downward API does not offer.
    #[error("unsupported field {0}")]
    Field(String),
    /// The API gave no token.
    #[error("no service account token for {0}")]
    Token(String),
    /// A kind of volume that this node does not know.
    #[error(
        "volume {volume}: {kind} is not supported here; emptyDir, hostPath, configMap, secret, downwardAPI and projected are"
    )]
    Unsupported {
        /// The volume.
        volume: String,
        /// Its kind.
        kind: &'static str,
    },
    /// The host path is not what its type says.
    #[error("hostPath type check failed: {path} is not a {expected}")]
    HostPath {
        /// The path.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// A `subPath` that leaves the volume or cannot be followed.
    #[error("subPath {path:?} of volume {volume}")]
    SubPath {
        /// The volume.
        volume: String,
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file system operation.
    #[error("{step} {path}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    fn io<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + use<'a> {
        move |source| Error::Io { step, path: path.to_owned(), source }
    }
}

/// The folder of a volume; a hostPath volume's is the host's.
pub fn path(pod_dir: &Path, volume: &Volume) -> PathBuf {
    match &volume.host_path {
        Some(host) => PathBuf::from(&host.path),
        None => pod_dir.join("volumes").join(&volume.name),
    }
}

/// Makes every volume of the Pod, or brings it up to date. Blocks.
pub fn make(pod: &Pod, pod_dir: &Path, sources: &Sources, tokens: &content::Tokens) -> Result<(), Error> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let root = pod_dir.join("volumes");
    create_dir(&root, 0o755)?;
    let group = spec.security_context.as_ref().and_then(|context| context.fs_group);
    let group = group.and_then(|group| u32::try_from(group).ok());
    for volume in spec.volumes.iter().flatten() {
        if let Some(host) = &volume.host_path {
            host_path(host)?;
            continue;
        }
        let dir = root.join(&volume.name);
        if let Some(files) = content::of(pod, volume, sources, tokens)? {
            create_dir(&dir, 0o755)?;
            let secret = volume.secret.is_some() || volume.projected.is_some();
            if secret && rustix::process::geteuid().is_root() && !mounts::is_mount_point(&dir) {
                mounts::tmpfs(&dir, None, 0o755).map_err(Error::io("mount tmpfs on", &dir))?;
            }
            atomic::write(&dir, &files, group).map_err(Error::io("write volume", &dir))?;
        } else if let Some(empty) = &volume.empty_dir {
            let fresh = !dir.exists();
            create_dir(&dir, 0o777)?;
            let medium = empty.medium.as_deref().unwrap_or_default();
            if medium == "Memory" && !mounts::is_mount_point(&dir) {
                let limit = empty.size_limit.as_ref().and_then(quantity::value).filter(|size| *size > 0);
                let limit = [limit, memory_of(pod)].into_iter().flatten().min();
                mounts::tmpfs(&dir, limit, 0o777).map_err(Error::io("mount tmpfs on", &dir))?;
            } else if !matches!(medium, "" | "Memory") {
                return Err(Error::Unsupported { volume: volume.name.clone(), kind: "this emptyDir medium" });
            }
            if let Some(group) = group.filter(|_| fresh) {
                chown(&dir, None, Some(group)).map_err(Error::io("set the group of", &dir))?;
                let mode = Permissions::from_mode(0o2777);
                fs::set_permissions(&dir, mode).map_err(Error::io("set the mode of", &dir))?;
            }
        } else {
            return Err(Error::Unsupported { volume: volume.name.clone(), kind: kind(volume) });
        }
    }
    Ok(())
}

/// The sum of the containers' memory limits, if each has one.
fn memory_of(pod: &Pod) -> Option<i64> {
    let containers = &pod.spec.as_ref()?.containers;
    containers.iter().map(|container| limits::of(container.resources.as_ref()).memory_limit_bytes).sum()
}

fn kind(volume: &Volume) -> &'static str {
    if volume.persistent_volume_claim.is_some() {
        "persistentVolumeClaim"
    } else if volume.nfs.is_some() {
        "nfs"
    } else if volume.csi.is_some() {
        "csi"
    } else if volume.ephemeral.is_some() {
        "ephemeral"
    } else if volume.image.is_some() {
        "image"
    } else {
        "this kind of volume"
    }
}

fn create_dir(path: &Path, mode: u32) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    let missing: Vec<&Path> = path.ancestors().skip(1).take_while(|above| !above.exists()).collect();
    let made = missing.into_iter().rev().map(|above| (above, 0o755)).chain([(path, mode)]);
    for (dir, mode) in made {
        DirBuilder::new().mode(0o700).create(dir).map_err(Error::io("create folder", dir))?;
        // The umask has its say in mkdir, and who uses the volume is not who makes it.
        fs::set_permissions(dir, Permissions::from_mode(mode)).map_err(Error::io("set the mode of", dir))?;
    }
    Ok(())
}

fn host_path(host: &HostPathVolumeSource) -> Result<(), Error> {
    let path = Path::new(&host.path);
    let wrong = |expected| Error::HostPath { path: path.to_owned(), expected };
    let kind = host.type_.as_deref().unwrap_or_default();
    let found = match fs::metadata(path) {
        Ok(meta) => Some(meta.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("look at", path)(error)),
    };
    let is = |check: fn(&fs::FileType) -> bool, expected| match &found {
        Some(found) if check(found) => Ok(()),
        _ => Err(wrong(expected)),
    };
    match (kind, &found) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", None) => create_dir(path, 0o755),
        ("DirectoryOrCreate" | "Directory", _) => is(fs::FileType::is_dir, "directory"),
        ("FileOrCreate", None) => {
            // Not through a link that came in between, and nothing is emptied.
            fs::File::create_new(path).map_err(Error::io("create", path))?;
            fs::set_permissions(path, Permissions::from_mode(0o644))
                .map_err(Error::io("set the mode of", path))
        }
        ("FileOrCreate" | "File", _) => is(fs::FileType::is_file, "file"),
        ("Socket", _) => is(|found| found.is_socket(), "socket"),
        ("CharDevice", _) => is(|found| found.is_char_device(), "character device"),
        ("BlockDevice", _) => is(|found| found.is_block_device(), "block device"),
        _ => Err(wrong("known hostPath type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes_are_made_and_updated() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("host/data");
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [],
            "volumes": [{"name": "scratch", "emptyDir": {}},
                {"name": "host", "hostPath": {"path": host, "type": "DirectoryOrCreate"}},
                {"name": "conf", "configMap": {"name": "m"}}]}}))
        .unwrap();
        let sources = |text: &str| Sources {
            config_maps: [("m".to_owned(), serde_json::from_value(json!({"data": {"k": text}})).unwrap())]
                .into(),
            ..Sources::default()
        };
        make(&pod, dir.path(), &sources("1"), &content::Tokens::new()).unwrap();
        let scratch = dir.path().join("volumes/scratch");
        assert_eq!(fs::metadata(&scratch).unwrap().permissions().mode() & 0o777, 0o777);
        for made in [&host, host.parent().unwrap()] {
            assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o755, "{}", made.display());
        }
        make(&pod, dir.path(), &sources("2"), &content::Tokens::new()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("volumes/conf/k")).unwrap(), "2");
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [],
            "volumes": [{"name": "db", "persistentVolumeClaim": {"claimName": "c"}}]}}))
        .unwrap();
        let error = make(&pod, dir.path(), &Sources::default(), &content::Tokens::new()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { kind: "persistentVolumeClaim", .. }));
    }
}
