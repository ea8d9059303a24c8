//! A small disk of a test's own: a tmpfs in a mount namespace of the calling thread and what it starts.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags};

/// Unmounted when it is dropped.
pub(crate) struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Mounts a disk of so many bytes on a folder, seen by the calling thread and its children only.
    pub(crate) fn mount(at: &Path, bytes: u64) -> Result<Self> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .context("make a mount namespace (root only)")?;
        let none = None::<&str>;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .context("keep mounts private")?;
        let options = format!("size={bytes},mode=0755");
        nix::mount::mount(Some("gantry-test"), at, Some("tmpfs"), MsFlags::MS_NOSUID, Some(options.as_str()))
            .with_context(|| format!("mount a tmpfs on {}", at.display()))?;
        Ok(Self { at: at.to_owned() })
    }

    /// Takes all the room that is left.
    pub(crate) fn fill(&self) -> Result<()> {
        let mut options = std::fs::File::options();
        let mut file = options.append(true).create(true).open(self.filler()).context("make the filler")?;
        loop {
            match file.write_all(&[0; 4096]) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("write the filler"),
            }
        }
    }

    /// Takes all but so many bytes.
    pub(crate) fn fill_but(&self, bytes: u64) -> Result<()> {
        self.fill()?;
        let file = std::fs::File::options().write(true).open(self.filler()).context("open the filler")?;
        let length = file.metadata()?.len();
        file.set_len(length.saturating_sub(bytes)).context("shorten the filler")
    }

    /// Gives the room back.
    pub(crate) fn free(&self) -> Result<()> {
        std::fs::remove_file(self.filler()).context("remove the filler")
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = nix::mount::umount2(&self.at, MntFlags::MNT_DETACH) {
            crate::say(&format!("unmount {}: {error}", self.at.display()));
        }
    }
}
