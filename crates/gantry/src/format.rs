//! Which format the state folder has, agreed in one place between the releases that open it.
//!
//! The format is one number for all files below the state folder together; each file's own document and version byte
//! say what it means for that file. A release writes the format that it finds, and changes to its newest only when
//! somebody says so (`gantry daemon upgrade --finish`) or after a day: until then the release before opens everything
//! that was written. What a step changes is copied to `backup/format-N/` first.
//!
//! `format` in the state folder: `{"version":1,"format":N,…}`; without the file the format is 1, as the first release
//! wrote no such record. The step to a new format is a row of [`STEPS`]; there is none yet.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The first format.
const FIRST: u32 = 1;
/// Of the record itself.
const RECORD_VERSION: u32 = 1;
/// How long a release writes the former format by itself.
const TRIAL_SECONDS: i64 = 24 * 3600;

/// A change from one format to the next.
pub struct Step {
    /// What changes, for people.
    pub about: &'static str,
    /// Files and folders that it changes, below the state folder. They are copied before.
    pub changes: &'static [&'static str],
    /// Changes them. What it left half done is replaced by the copies before it is tried again.
    pub apply: fn(&Path) -> Result<()>,
}

/// Row N leads from format N + 1 to N + 2.
pub static STEPS: &[Step] = &[];

/// The newest format that this release reads and, once that is agreed, writes.
pub fn newest(steps: &[Step]) -> u32 {
    FIRST + steps.len() as u32
}

/// The oldest that it reads.
pub fn oldest() -> u32 {
    FIRST
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    format: u32,
    /// Since when this release opens the folder without changing it to its newest format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trial: Option<Trial>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Trial {
    release: String,
    since: Timestamp,
    /// Somebody said that it is to end at the next start.
    #[serde(default)]
    finish: bool,
}

/// What was agreed for this start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Written from now on.
    pub in_use: u32,
    /// What this release could write.
    pub newest: u32,
}

impl Agreed {
    /// Has the next start change to the newest format; `false`: it is in use.
    pub fn finish(&self, state_dir: &Path) -> Result<bool> {
        if self.in_use >= self.newest {
            return Ok(false);
        }
        let mut record = read(state_dir)?;
        let trial = record.trial.as_mut().context("the record of the format knows of no trial")?;
        trial.finish = true;
        write(state_dir, &record)?;
        Ok(true)
    }
}

/// The format that the state folder has.
pub fn in_use(state_dir: &Path) -> Result<u32> {
    Ok(read(state_dir)?.format)
}

/// Agrees on the format with what is there; changes it when the time has come. Only for the owner of the state folder.
pub fn agree(state_dir: &Path, steps: &[Step], release: &str, now: Timestamp) -> Result<Agreed> {
    let newest = newest(steps);
    let mut record = read(state_dir)?;
    if record.format > newest {
        bail!(
            "the state folder has format {}, and this release ({release}) reads up to {newest}: it was changed by a \
             newer one (what was changed is kept in {})",
            record.format,
            state_dir.join("backup").display(),
        );
    }
    if record.format == newest {
        return Ok(Agreed { in_use: newest, newest });
    }
    match &record.trial {
        Some(trial) if trial.release == release => {
            let since = now.duration_since(trial.since).as_secs();
            if trial.finish || since >= TRIAL_SECONDS {
                change(state_dir, steps, &mut record)?;
            }
        }
        _ => {
            record.trial = Some(Trial { release: release.to_owned(), since: now, finish: false });
            write(state_dir, &record)?;
        }
    }
    Ok(Agreed { in_use: record.format, newest })
}

/// Takes the steps to the newest format. One that fails is taken back, and the format before stays in use.
fn change(state_dir: &Path, steps: &[Step], record: &mut Record) -> Result<()> {
    for step in &steps[(record.format - FIRST) as usize..] {
        let kept = state_dir.join(format!("backup/format-{}", record.format));
        if kept.exists() {
            // An earlier try did not get to its end.
            restore(state_dir, &kept, step)?;
        } else {
            back_up(state_dir, &kept, step).with_context(|| format!("back up for {}", step.about))?;
        }
        if let Err(error) = (step.apply)(state_dir) {
            tracing::error!(
                error = format!("{error:#}"),
                step = step.about,
                "the former format stays in use"
            );
            restore(state_dir, &kept, step)?;
            record.trial = None;
            return write(state_dir, record);
        }
        record.format += 1;
        record.trial = None;
        write(state_dir, record)?;
        tracing::info!(format = record.format, step = step.about, "the state folder has a new format");
    }
    Ok(())
}

fn back_up(state_dir: &Path, kept: &Path, step: &Step) -> Result<()> {
    let staged = kept.with_extension("part");
    remove(&staged)?;
    durable::create_dir_all_with_mode(&staged, 0o700)?;
    for name in step.changes {
        copy(&state_dir.join(name), &staged.join(name))?;
    }
    durable::rename(&staged, kept)?;
    Ok(())
}

fn restore(state_dir: &Path, kept: &Path, step: &Step) -> Result<()> {
    for name in step.changes {
        let path = state_dir.join(name);
        remove(&path)?;
        copy(&kept.join(name), &path).with_context(|| format!("restore {}", path.display()))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { durable::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Copies a file or a folder with all that is in it, durably; nothing if there is none.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let Ok(found) = std::fs::symlink_metadata(from) else { return Ok(()) };
    if let Some(folder) = to.parent() {
        durable::create_dir_all_with_mode(folder, 0o700)?;
    }
    if found.is_dir() {
        durable::create_dir_all_with_mode(to, 0o700)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if found.is_file() {
        std::fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
        std::fs::File::open(to)?.sync_all()?;
    }
    if let Some(folder) = to.parent() {
        durable::sync_dir(folder)?;
    }
    Ok(())
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("format")
}

fn read(state_dir: &Path) -> Result<Record> {
    let path = path(state_dir);
    let record: Record = match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Record { version: RECORD_VERSION, format: FIRST, trial: None }
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    if record.version != RECORD_VERSION || record.format < FIRST {
        bail!("{} is of a version that this release does not know", path.display());
    }
    Ok(record)
}

fn write(state_dir: &Path, record: &Record) -> Result<()> {
    let path = path(state_dir);
    durable::write_with_mode(&path, &serde_json::to_vec(record)?, 0o600)
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(dir: &Path) -> Result<()> {
        let path = dir.join("store/data");
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(&path, format!("new {text}"))?;
        if dir.join("fails").exists() {
            bail!("it does not fit");
        }
        Ok(())
    }

    static ONE: &[Step] = &[Step { about: "a test", changes: &["store"], apply }];

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        std::fs::write(dir.path().join("store/data"), "x").unwrap();
        dir
    }

    fn data(dir: &Path) -> String {
        std::fs::read_to_string(dir.join("store/data")).unwrap()
    }

    #[test]
    fn a_release_writes_the_former_format_for_a_day_and_then_its_own_after_a_backup() {
        let dir = folder();
        let dir = dir.path();
        let former = Agreed { in_use: 1, newest: 2 };
        assert_eq!(agree(dir, ONE, "0.2.0", at(0)).unwrap(), former);
        assert_eq!(agree(dir, ONE, "0.2.0", at(TRIAL_SECONDS - 1)).unwrap(), former);
        // The release before opens it meanwhile, and another newer one begins a day of its own.
        assert_eq!(agree(dir, &[], "0.1.0", at(1)).unwrap(), Agreed { in_use: 1, newest: 1 });
        assert_eq!(agree(dir, ONE, "0.3.0", at(TRIAL_SECONDS)).unwrap(), former);
        assert_eq!(data(dir), "x");
        assert_eq!(agree(dir, ONE, "0.3.0", at(2 * TRIAL_SECONDS)).unwrap(), Agreed { in_use: 2, newest: 2 });
        assert_eq!(data(dir), "new x");
        assert_eq!(std::fs::read_to_string(dir.join("backup/format-1/store/data")).unwrap(), "x");
        let error = agree(dir, &[], "0.1.0", at(0)).unwrap_err().to_string();
        assert!(error.contains("format 2") && error.contains("reads up to 1"), "{error}");
    }

    #[test]
    fn finishing_is_for_the_next_start_and_only_when_there_is_something_to_finish() {
        let dir = folder();
        let dir = dir.path();
        assert!(!agree(dir, &[], "0.1.0", at(0)).unwrap().finish(dir).unwrap());
        assert!(!dir.join("format").exists(), "nothing is written where nothing changes");
        let agreed = agree(dir, ONE, "0.2.0", at(0)).unwrap();
        assert!(agreed.finish(dir).unwrap());
        assert_eq!(data(dir), "x");
        assert_eq!(agree(dir, ONE, "0.2.0", at(1)).unwrap().in_use, 2);
        assert_eq!(data(dir), "new x");
    }

    #[test]
    fn a_step_that_fails_or_is_cut_off_is_taken_back() {
        let dir = folder();
        let dir = dir.path();
        agree(dir, ONE, "0.2.0", at(0)).unwrap().finish(dir).unwrap();
        std::fs::write(dir.join("fails"), "").unwrap();
        assert_eq!(agree(dir, ONE, "0.2.0", at(1)).unwrap().in_use, 1);
        assert_eq!(data(dir), "x");
        std::fs::remove_file(dir.join("fails")).unwrap();
        agree(dir, ONE, "0.2.0", at(2)).unwrap().finish(dir).unwrap();
        // Cut off in the middle: the copy is there, and the data half changed.
        std::fs::write(dir.join("store/data"), "torn").unwrap();
        assert_eq!(agree(dir, ONE, "0.2.0", at(3)).unwrap().in_use, 2);
        assert_eq!(data(dir), "new x");
    }
}
