//! The user behind sudo: whose commands these will be, and whose files are touched with no more than that user's rights.

use std::path::PathBuf;

use durable::Owner;

/// Who typed `sudo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub name: String,
    pub owner: Owner,
    /// As the system has it; `HOME` may be root's or anything.
    pub home: PathBuf,
}

impl Caller {
    /// The user behind this process, if it was started through sudo by another than root.
    pub fn find() -> Option<Self> {
        Self::of(std::env::var("SUDO_UID").ok()?.parse::<u32>().ok().filter(|uid| *uid != 0)?)
    }

    /// The user of that number, if the system knows one.
    pub fn of(uid: u32) -> Option<Self> {
        // The user data base needs NSS, which a static binary does not have: /etc/passwd is read instead.
        let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let found = Self::parse(&text, uid);
        if found.is_none() {
            tracing::warn!(uid, "the user behind sudo is not in /etc/passwd, and gets no credentials");
        }
        found
    }

    /// The line of passwd(5) with this user id.
    fn parse(text: &str, uid: u32) -> Option<Self> {
        text.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, id, gid, _, home, ..] = fields[..] else { return None };
            if id.parse() != Ok(uid) {
                return None;
            }
            let gid = gid.parse().unwrap_or(uid);
            Some(Self { name: name.to_owned(), owner: Owner { uid, gid }, home: home.into() })
        })
    }

    /// The user's folder for gantry's files.
    pub fn folder(&self) -> PathBuf {
        self.home.join(".config/gantry")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbroken:x:1000\nann:x:1000:100:Ann,,,:/home/ann:/bin/sh\n";
        let ann = Caller::parse(text, 1000).unwrap();
        assert_eq!((ann.name.as_str(), ann.owner), ("ann", Owner { uid: 1000, gid: 100 }));
        assert_eq!(ann.folder(), PathBuf::from("/home/ann/.config/gantry"));
        assert_eq!(Caller::parse(text, 7), None);
    }
}
