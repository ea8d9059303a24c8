//! To whom credentials were given, so that they are renewed in time, whoever starts the daemon later.
//!
//! `ca/users.json`: `{"version":1,"users":[{"uid":1000,"server":"https://127.0.0.1:6443","since":"…"}]}`. What is in a
//! user's folder is never read for that: it is the user's.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::pki::{LEAF_DAYS, RENEW_DAYS};
use crate::access::DAY_SECONDS;

const VERSION: u32 = 1;
/// Users who are remembered; the one who got theirs longest ago gives way.
const USERS_MAX: usize = 256;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    users: Vec<User>,
}

#[derive(Debug, Serialize, Deserialize)]
struct User {
    uid: u32,
    server: String,
    since: Timestamp,
}

/// The record of a state folder.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("ca/users.json")
}

/// The users whose certificates run out, or name another address than the server's.
pub fn due(path: &Path, server: &str, now: Timestamp) -> Result<Vec<u32>> {
    let age_max = (LEAF_DAYS - RENEW_DAYS) * DAY_SECONDS;
    let is_due = |user: &User| user.server != server || now.duration_since(user.since).as_secs() >= age_max;
    Ok(read(path)?.users.iter().filter(|user| is_due(user)).map(|user| user.uid).collect())
}

/// Remembers that a user has been given credentials now.
pub fn note(path: &Path, uid: u32, server: &str, now: Timestamp) -> Result<()> {
    let mut record = read(path)?;
    record.users.retain(|user| user.uid != uid);
    record.users.push(User { uid, server: server.to_owned(), since: now });
    let over = record.users.len().saturating_sub(USERS_MAX);
    record.users.drain(..over);
    durable::write_with_mode(path, &serde_json::to_vec(&record)?, 0o600)
        .with_context(|| format!("write {}", path.display()))
}

fn read(path: &Path) -> Result<Record> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Record { version: VERSION, users: Vec::new() });
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let record: Record = serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
    if record.version != VERSION {
        bail!("{} is of a version that this release does not know", path.display());
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_due_when_their_time_runs_out_or_the_server_has_moved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users.json");
        let at = |days: i64| Timestamp::from_second(1_800_000_000 + days * DAY_SECONDS).unwrap();
        assert!(due(&path, "a", at(0)).unwrap().is_empty());
        note(&path, 1000, "a", at(0)).unwrap();
        note(&path, 1001, "a", at(100)).unwrap();
        assert!(due(&path, "a", at(LEAF_DAYS - RENEW_DAYS - 1)).unwrap().is_empty());
        assert_eq!(due(&path, "a", at(LEAF_DAYS - RENEW_DAYS)).unwrap(), [1000]);
        assert_eq!(due(&path, "b", at(0)).unwrap(), [1000, 1001]);
        note(&path, 1000, "a", at(LEAF_DAYS)).unwrap();
        assert!(due(&path, "a", at(LEAF_DAYS)).unwrap().is_empty());
        for uid in 0..2 * USERS_MAX as u32 {
            note(&path, uid, "a", at(LEAF_DAYS)).unwrap();
        }
        assert_eq!(due(&path, "b", at(LEAF_DAYS)).unwrap().len(), USERS_MAX);
    }
}
