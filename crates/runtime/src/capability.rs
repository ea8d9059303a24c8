//! Capabilities by name, and containerd's default set (capabilities(7)).

use crate::spec::Capabilities;

/// Names in the kernel's order: the index is the number.
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A set, one bit a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Set(pub u64);

impl Set {
    pub const ALL: Set = Set((1 << NAMES.len()) - 1);

    pub fn has(self, name: &str) -> bool {
        number(name).is_some_and(|number| self.0 & (1 << number) != 0)
    }

    pub fn without(self, name: &str) -> Set {
        Set(number(name).map_or(self.0, |number| self.0 & !(1 << number)))
    }

    /// The default set with the asked changes: `ALL` first (dropping wins), then names added, then names dropped.
    pub fn resolve(asked: &Capabilities, privileged: bool) -> Result<Set, UnknownCapability> {
        if privileged {
            return Ok(Set::ALL);
        }
        let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
        let mut set = if asked.drop.iter().any(is_all) {
            Set(0)
        } else if asked.add.iter().any(is_all) {
            Set::ALL
        } else {
            Set(DEFAULT.iter().filter_map(|name| number(name)).fold(0, |set, number| set | 1 << number))
        };
        for name in asked.add.iter().filter(|name| !is_all(name)) {
            set.0 |= 1 << number(name).ok_or_else(|| UnknownCapability(name.clone()))?;
        }
        for name in asked.drop.iter().filter(|name| !is_all(name)) {
            set.0 &= !(1 << number(name).ok_or_else(|| UnknownCapability(name.clone()))?);
        }
        Ok(set)
    }
}

fn number(name: &str) -> Option<usize> {
    let bare = match name.get(..4) {
        Some(prefix) if prefix.eq_ignore_ascii_case("CAP_") => &name[4..],
        _ => name,
    };
    NAMES.iter().position(|known| known.eq_ignore_ascii_case(bare))
}

#[derive(Debug, thiserror::Error)]
#[error("unknown capability {0:?}")]
pub struct UnknownCapability(pub String);

impl UnknownCapability {
    pub(crate) fn hint(&self) -> String {
        format!("one of {}, or ALL", NAMES.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(add: &[&str], drop: &[&str]) -> Set {
        let own = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Set::resolve(&Capabilities { add: own(add), drop: own(drop) }, false).unwrap()
    }

    #[test]
    fn the_default_set_is_containerds() {
        assert_eq!(resolve(&[], &[]).0, 0x0000_0000_a804_25fb);
    }

    #[test]
    fn all_is_applied_before_names() {
        assert_eq!(resolve(&["NET_BIND_SERVICE"], &["ALL"]).0, 1 << 10);
        assert_eq!(resolve(&["ALL"], &["cap_sys_admin"]).0, Set::ALL.0 & !(1 << 21));
        assert!(Set::resolve(&Capabilities { add: vec!["FLY".into()], drop: vec![] }, false).is_err());
    }
}
