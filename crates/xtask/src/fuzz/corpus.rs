//! The inputs that are kept: those that reach code which none before them reaches.
//!
//! libFuzzer's own merge keeps an input for every count of every branch, thousands for a parser. Its control file also
//! says which branches each input is the first to reach; an input with none of those is not worth a file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Adds to `corpus` what reaches new code of `fresh`, an input's first `bytes_max` bytes. `merge` runs the fuzzer with
/// these arguments, `work` is an empty place.
pub(super) fn keep(
    corpus: &Path,
    fresh: &Path,
    work: &Path,
    bytes_max: usize,
    merge: impl Fn(&[String]) -> Result<bool>,
) -> Result<()> {
    let bytes = format!("-max_len={bytes_max}");
    let text = |path: &Path| path.display().to_string();
    let (all, known) = (copy(corpus, &work.join("all"))?, copy(corpus, &work.join("known"))?);
    ensure!(
        merge(&["-merge=1".to_owned(), bytes.clone(), text(&all), text(fresh)])?,
        "the corpora do not merge"
    );
    let control = work.join("control");
    let file = format!("-merge_control_file={}", control.display());
    ensure!(
        merge(&["-merge=1".to_owned(), bytes, file, text(&known), text(&all)])?,
        "the corpora do not merge"
    );
    let control = fs::read_to_string(&control).context("read the fuzzer's control file")?;
    for input in first_to_reach(&control)? {
        let name = input.file_name().context("an input without a name")?;
        if !corpus.join(name).exists() {
            fs::copy(&input, corpus.join(name)).with_context(|| format!("keep {}", input.display()))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<PathBuf> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(to.to_owned())
}

/// The inputs of a merge's control file that reach a branch first: how many there are, how many of them were there
/// before, their names a line each; then `COV NUMBER BRANCH…` for each.
fn first_to_reach(control: &str) -> Result<Vec<PathBuf>> {
    let mut lines = control.lines();
    let mut number = || lines.next()?.trim().parse::<usize>().ok();
    let (count, _) = number().zip(number()).context("the control file does not begin with two numbers")?;
    let names: Vec<&str> = lines.by_ref().take(count).collect();
    let mut found = Vec::new();
    for line in lines {
        let Some(rest) = line.strip_prefix("COV ") else { continue };
        let mut words = rest.split_whitespace();
        let index: usize = words.next().context("COV without an input")?.parse().context("COV")?;
        if words.next().is_some() {
            found.push(PathBuf::from(names.get(index).context("COV of an input that is not listed")?));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_to_reach_a_branch_is_kept() {
        let control = "3\n1\na/one\nb/two\nb/three\nSTARTED 0 4\nFT 0 8 16\nCOV 0 1 2\nSTARTED 1 5\nFT 1 24\n\
                       COV 1\nSTARTED 2 9\nFT 2 32\nCOV 2 3\n";
        let kept = first_to_reach(control).unwrap();
        assert_eq!(kept, [PathBuf::from("a/one"), PathBuf::from("b/three")]);
        assert!(first_to_reach("no numbers").is_err());
        assert!(first_to_reach("1\n0\na\nCOV 7 1\n").is_err(), "not listed");
    }
}
