//! Credentials for the user behind sudo: the commands run as whoever types them.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid, chown};

use super::kubeconfig;
use super::pki::Authority;

/// Writes kubeconfig and registry token to the calling user's `~/.config/gantry`, mode 0600, theirs; nothing if the
/// daemon was not started through sudo.
pub fn issue(server: &str, authority: &Authority, token: &str) -> Result<()> {
    let Some(user) = caller()? else {
        return Ok(());
    };
    // Written as root into a folder that the user controls: a link there must not lead root elsewhere.
    let config = user.dir.join(".config");
    let folder = config.join("gantry");
    for dir in [&config, &folder] {
        match std::fs::symlink_metadata(dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => anyhow::bail!("{} is no folder", dir.display()),
            Err(_) => {
                std::fs::create_dir(dir).with_context(|| format!("make {}", dir.display()))?;
                std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700))?;
                chown(dir, Some(user.uid), Some(user.gid))?;
            }
        }
    }
    let issued = authority.client(&user.name, Some("system:masters"))?;
    let path = folder.join("kubeconfig");
    kubeconfig::write(&path, server, authority, &user.name, &issued)?;
    chown(&path, Some(user.uid), Some(user.gid))?;
    let path = folder.join("registry-token");
    durable::write_with_mode(&path, token.as_bytes(), 0o600)?;
    chown(&path, Some(user.uid), Some(user.gid))?;
    Ok(())
}

struct Caller {
    name: String,
    uid: Uid,
    gid: Gid,
    dir: PathBuf,
}

fn caller() -> Result<Option<Caller>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let Some(uid) = number("SUDO_UID").filter(|uid| *uid != 0).map(Uid::from_raw) else {
        return Ok(None);
    };
    // The user data base needs NSS, which a static binary does not have: /etc/passwd is read instead.
    let text = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let line = text
        .lines()
        .find(|line| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(uid.as_raw()));
    let Some(fields) =
        line.map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 6)
    else {
        tracing::warn!(%uid, "the user behind sudo is not in /etc/passwd, and gets no credentials");
        return Ok(None);
    };
    let gid = fields[3].parse().map(Gid::from_raw).unwrap_or_else(|_| Gid::from_raw(uid.as_raw()));
    Ok(Some(Caller { name: fields[0].to_owned(), uid, gid, dir: PathBuf::from(fields[5]) }))
}
