//! Who a container runs as: the image's user, the Pod's and the container's security contexts, as kubelet merges them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use k8s_openapi::api::core::v1::{PodSecurityContext, SecurityContext};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// Files of the image that are read for names are no longer than this.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why a container gets no user; it waits as `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The image runs as root and must not.
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    Root {
        /// The Pod's name and uid.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image's user is a name, so nobody can say whether it is root.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root \
         (pod: \"{pod}\", container: {container})"
    )]
    Name {
        /// The image's user.
        user: String,
        /// The Pod's name and uid.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image names a user or group that its own files do not have.
    #[error("unable to find {kind} {name}: no matching entries in the image's {file}")]
    Unknown {
        /// user or group.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The file that was searched.
        file: &'static str,
    },
    /// An id that the kernel does not have.
    #[error("{0} is no user or group id")]
    Id(i64),
}

/// A line of `/etc/passwd`.
struct Entry {
    name: String,
    uid: u32,
    gid: u32,
}

/// What the image's own files say.
#[derive(Debug, Default)]
pub struct Names {
    passwd: String,
    group: String,
}

impl Names {
    /// Reads them from an unpacked image; links are followed inside it only.
    pub fn read(tree: &Path) -> Self {
        Self {
            passwd: read(tree, "etc/passwd").unwrap_or_default(),
            group: read(tree, "etc/group").unwrap_or_default(),
        }
    }

    fn users(&self) -> impl Iterator<Item = Entry> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let uid = fields.nth(1)?.parse().ok()?;
            Some(Entry { name, uid, gid: fields.next()?.parse().ok()? })
        })
    }

    fn gid(&self, name: &str) -> Option<u32> {
        self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
        })
    }

    fn groups_of(&self, user: &str) -> impl Iterator<Item = u32> {
        self.group.lines().filter_map(move |line| {
            let fields: Vec<&str> = line.split(':').collect();
            let member = fields.get(3)?.split(',').any(|name| name == user);
            if member { fields.get(2)?.parse().ok() } else { None }
        })
    }
}

fn read(tree: &Path, path: &str) -> io::Result<String> {
    let root = openat(CWD, tree, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file =
        openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?;
    let mut text = String::new();
    File::from(file).take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn id(number: i64) -> Result<u32, Error> {
    u32::try_from(number).ok().filter(|id| *id != u32::MAX).ok_or(Error::Id(number))
}

/// The user, group and further groups of a container.
pub fn resolve(
    image_user: &str,
    names: &Names,
    of_pod: Option<&PodSecurityContext>,
    own: Option<&SecurityContext>,
    pod: &str,
    container: &str,
) -> Result<runtime::User, Error> {
    let as_user = own.and_then(|own| own.run_as_user).or(of_pod.and_then(|pod| pod.run_as_user));
    let as_group = own.and_then(|own| own.run_as_group).or(of_pod.and_then(|pod| pod.run_as_group));
    let non_root = own.and_then(|own| own.run_as_non_root).or(of_pod.and_then(|pod| pod.run_as_non_root));
    let (image_name, image_group) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (image_user, None),
    };
    let names_user = |uid: u32| names.users().find(|entry| entry.uid == uid);
    let (uid, entry) = match as_user {
        Some(number) => {
            let uid = id(number)?;
            (uid, names_user(uid))
        }
        None if image_name.is_empty() => (0, names_user(0)),
        None => match image_name.parse::<u32>() {
            Ok(uid) => (id(i64::from(uid))?, names_user(uid)),
            Err(_) if non_root == Some(true) => {
                let (pod, container) = (pod.to_owned(), container.to_owned());
                return Err(Error::Name { user: image_name.to_owned(), pod, container });
            }
            Err(_) => {
                let entry = names.users().find(|entry| entry.name == image_name).ok_or_else(|| {
                    Error::Unknown { kind: "user", name: image_name.to_owned(), file: "/etc/passwd" }
                })?;
                (entry.uid, Some(entry))
            }
        },
    };
    if non_root == Some(true) && uid == 0 {
        return Err(Error::Root { pod: pod.to_owned(), container: container.to_owned() });
    }
    let gid = match (as_group, as_user, image_group) {
        (Some(group), _, _) => id(group)?,
        // The image's group belongs to the image's user.
        (None, None, Some(group)) => match group.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => names.gid(group).ok_or_else(|| Error::Unknown {
                kind: "group",
                name: group.to_owned(),
                file: "/etc/group",
            })?,
        },
        _ => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = BTreeSet::new();
    let strict = of_pod.and_then(|pod| pod.supplemental_groups_policy.as_deref()) == Some("Strict");
    if let Some(entry) = entry.filter(|_| !strict) {
        groups.extend(names.groups_of(&entry.name));
    }
    let asked = of_pod.iter().flat_map(|pod| pod.supplemental_groups.iter().flatten().chain(&pod.fs_group));
    for group in asked {
        groups.insert(id(*group)?);
    }
    groups.insert(gid);
    Ok(runtime::User { uid, gid, groups: groups.into_iter().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn names() -> Names {
        Names {
            passwd: "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/:/bin/false\n".to_owned(),
            group: "root:x:0:\nweb:x:102:\nlogs:x:7:web,other\n".to_owned(),
        }
    }

    fn of(image: &str, pod: Value, own: Value) -> Result<(u32, u32, Vec<u32>), String> {
        let pod: PodSecurityContext = serde_json::from_value(pod).unwrap();
        let own: SecurityContext = serde_json::from_value(own).unwrap();
        resolve(image, &names(), Some(&pod), Some(&own), "p_ns(u)", "c")
            .map(|user| (user.uid, user.gid, user.groups))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn users_are_merged() {
        for (image, pod, own, expected) in [
            ("", json!({}), json!({}), (0, 0, vec![0])),
            ("web", json!({}), json!({}), (101, 102, vec![7, 102])),
            ("101:7", json!({}), json!({}), (101, 7, vec![7])),
            ("65532:65532", json!({"runAsNonRoot": true}), json!({}), (65532, 65532, vec![65532])),
            ("web", json!({"runAsUser": 5}), json!({}), (5, 0, vec![0])),
            (
                "web",
                json!({"runAsUser": 5, "runAsGroup": 6}),
                json!({"runAsUser": 101}),
                (101, 6, vec![6, 7]),
            ),
            ("1", json!({"fsGroup": 9, "supplementalGroups": [8]}), json!({}), (1, 0, vec![0, 8, 9])),
            ("web", json!({"supplementalGroupsPolicy": "Strict"}), json!({}), (101, 102, vec![102])),
        ] {
            let expected = Ok((expected.0, expected.1, expected.2));
            assert_eq!(of(image, pod.clone(), own.clone()), expected, "{image} {pod} {own}");
        }
    }

    #[test]
    fn root_is_refused_where_it_must_not_be() {
        let non_root = json!({"runAsNonRoot": true});
        assert_eq!(
            of("", non_root.clone(), json!({})).unwrap_err(),
            "container has runAsNonRoot and image will run as root (pod: \"p_ns(u)\", container: c)"
        );
        assert!(of("web", non_root.clone(), json!({})).unwrap_err().contains("non-numeric user (web)"));
        assert!(of("web", non_root, json!({"runAsUser": 101})).is_ok());
        assert!(of("nobody", json!({}), json!({})).unwrap_err().contains("unable to find user nobody"));
    }
}
