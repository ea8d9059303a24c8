//! All that the commands say. Data goes to stdout, everything else to stderr; nobody else in the binary prints.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write as _},
    sync::Mutex,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::Failure;

/// Longest line of progress; more would wrap and leave rests on the screen.
const PROGRESS_CHARS_MAX: usize = 100;

/// Where output goes. Progress is drawn on a terminal only; colour is never used.
#[derive(Debug)]
pub struct Printer {
    quiet: bool,
    progress: Mutex<Option<ProgressBar>>,
    draws: bool,
}

impl Printer {
    /// A quiet printer says data and errors only.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, progress: Mutex::new(None), draws: !quiet && io::stderr().is_terminal() }
    }

    /// A line of data.
    pub fn data(&self, line: impl Display) {
        self.bytes(format!("{line}\n").as_bytes());
    }

    /// Data as it is.
    pub fn bytes(&self, bytes: &[u8]) {
        self.paused(|| {
            let mut stdout = io::stdout().lock();
            let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
            if written.is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                // The reader has seen enough, as `head` does.
                std::process::exit(0);
            }
        });
    }

    /// A program's own bytes, for its standard error.
    pub fn error_bytes(&self, bytes: &[u8]) {
        self.paused(|| {
            let _ = io::stderr().lock().write_all(bytes);
        });
    }

    /// A finished step: what was done, and its facts in columns.
    pub fn step(&self, word: &str, facts: &str, elapsed: Option<Duration>) {
        if self.quiet {
            return;
        }
        let line = match elapsed {
            Some(elapsed) => format!("  {word:<8} {facts:<46} {:.2}s", elapsed.as_secs_f64()),
            None => format!("  {word:<8} {facts}"),
        };
        self.say(line.trim_end());
    }

    /// Something that the user may want to know.
    pub fn note(&self, text: impl Display) {
        if !self.quiet {
            self.say(&text.to_string());
        }
    }

    /// Something that the user should know.
    pub fn warning(&self, text: impl Display) {
        self.say(&format!("warning: {text}"));
    }

    /// What is being waited for; replaced by the next one, and by nothing at the end.
    pub fn progress(&self, text: impl Display) {
        if !self.draws {
            return;
        }
        let mut slot = self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bar = slot.get_or_insert_with(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        bar.set_message(text.to_string().chars().take(PROGRESS_CHARS_MAX).collect::<String>());
    }

    /// Ends what [`Self::progress`] shows.
    pub fn progress_done(&self) {
        let mut slot = self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bar) = slot.take() {
            bar.finish_and_clear();
        }
    }

    /// A failure: a tool's own lines, then `error:`, then `hint:`.
    pub fn failure(&self, failure: &Failure) {
        self.progress_done();
        self.say(failure.to_string().trim_end());
    }

    fn say(&self, text: &str) {
        self.paused(|| {
            let _ = writeln!(io::stderr().lock(), "{text}");
        });
    }

    fn paused(&self, write: impl FnOnce()) {
        let slot = self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match slot.as_ref() {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}
