//! `gantry logs`: what programs said.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use clap::{ArgMatches, Args as _};
use futures::{
    AsyncBufReadExt as _, AsyncReadExt as _, TryStreamExt as _, io::BufReader, stream::FuturesUnordered,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, LogParams},
    runtime::{watcher, watcher::Event},
};

use super::{Command, down::running, duration, parse};
use crate::{
    context::Context,
    deploy::no_such,
    failure::{Failure, Result},
    follow::{self, Silence},
    printer::Printer,
    workload::APP_LABEL,
};

/// A longer line is cut into several.
const LINE_BYTES_MAX: u64 = 1 << 20;

pub static COMMAND: Command = Command {
    name: "logs",
    about: "Show what a program wrote",
    examples: &[
        ("gantry logs hello", "all that is kept"),
        ("gantry logs hello -f --tail 10", "the last lines, and those to come"),
        ("gantry logs hello --previous", "of the run before"),
        ("gantry logs hello-5d8c9-x2x7p", "of one Pod"),
    ],
    arguments: |command| Args::augment_args(command),
    run: |context, matches| context.block_on(logs(context, matches)),
};

#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// A program or a Pod
    #[arg(value_name = "NAME")]
    name: String,
    /// Go on with lines to come, also of Pods to come
    #[arg(long, short = 'f')]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "N")]
    tail: Option<i64>,
    /// Only lines of this last time
    #[arg(long, value_name = "TIME", value_parser = duration)]
    since: Option<Duration>,
    /// Of the run before the last restart
    #[arg(long, short = 'p')]
    previous: bool,
    /// Put the time before each line
    #[arg(long)]
    timestamps: bool,
}

impl Args {
    fn parameters(&self) -> LogParams {
        LogParams {
            follow: self.follow,
            tail_lines: self.tail,
            since_seconds: self.since.map(|since| i64::try_from(since.as_secs().max(1)).unwrap_or(i64::MAX)),
            previous: self.previous,
            timestamps: self.timestamps,
            ..LogParams::default()
        }
    }
}

async fn logs(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    let connection = running(context).await?;
    let pods: Api<Pod> = connection.api(context.namespace());
    let labelled = format!("{APP_LABEL}={}", args.name);
    let mut found = pods.list(&ListParams::default().labels(&labelled)).await?.items;
    let is_program = !found.is_empty();
    if !is_program {
        found.extend(pods.get_opt(&args.name).await?);
    }
    if found.is_empty() {
        return Err(no_such(&args.name));
    }
    found.sort_by_key(|pod| (pod.creation_timestamp().map(|time| time.0), pod.name_any()));
    let shown = async {
        if args.follow && is_program {
            return follow_all(context, &pods, &labelled, &args).await;
        }
        let several = found.len() > 1;
        for pod in &found {
            let name = pod.name_any();
            let prefix = if several { format!("[{name}] ") } else { String::new() };
            show(&pods, &name, &prefix, &args.parameters(), &context.printer).await?;
        }
        Ok(())
    };
    tokio::select! {
        result = shown => result?,
        // Nobody waits for more, and nothing was changed.
        () = context.cancel.cancelled() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows the logs of all Pods of a program, with those that a rollout brings.
async fn follow_all(context: &Context, pods: &Api<Pod>, labelled: &str, args: &Args) -> Result<()> {
    let mut seen = BTreeSet::new();
    let mut shown = FuturesUnordered::new();
    let mut events = follow::watch(pods.clone(), watcher::Config::default().labels(labelled));
    loop {
        tokio::select! {
            event = events.try_next() => {
                let (Some(Event::Apply(pod) | Event::InitApply(pod)), true) = (event?, true) else { continue };
                let has_started = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()).is_some_and(|all| {
                    all.iter().any(|status| status.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some()))
                });
                let runs = all_starts(&pod);
                if has_started && seen.insert((pod.name_any(), runs)) {
                    let (name, pods, mut parameters) = (pod.name_any(), pods.clone(), args.parameters());
                    // Of a Pod that comes later, or runs again, every line is new.
                    if seen.len() > 1 && runs > 0 {
                        parameters.tail_lines = None;
                    }
                    let printer = &context.printer;
                    shown.push(async move {
                        let prefix = format!("[{name}] ");
                        match show(&pods, &name, &prefix, &parameters, printer).await {
                            // Its Pod may be gone, or runs again: the watch tells.
                            Ok(()) | Err(Broken::Refused(_)) => Ok(()),
                            Err(Broken::Away(failure)) => Err(failure),
                        }
                    });
                }
            }
            // A log that ends, ends because its container did.
            Some(ended) = futures::StreamExt::next(&mut shown) => ended?,
        }
    }
}

fn all_starts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).sum()
}

/// Why a log is not shown to its end.
pub enum Broken {
    /// The server's own answer.
    Refused(kube::Error),
    /// Nobody answers, and that has lasted.
    Away(Failure),
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Refused(error) => error.into(),
            Broken::Away(failure) => failure,
        }
    }
}

/// Shows one Pod's log line by line. One that is followed goes on where it broke when the daemon died in between.
pub async fn show(
    pods: &Api<Pod>,
    name: &str,
    prefix: &str,
    parameters: &LogParams,
    printer: &Printer,
) -> std::result::Result<(), Broken> {
    let mut lines = Lines::new(parameters.timestamps);
    let mut silence = Silence::default();
    loop {
        let print = |line: &[u8]| printer.bytes(&[prefix.as_bytes(), line].concat());
        match read(pods, name, &lines.parameters(parameters), &mut lines, &mut silence, print).await {
            Ok(()) => return Ok(()),
            Err(error @ kube::Error::Api(_)) => return Err(Broken::Refused(error)),
            Err(error) if !parameters.follow => return Err(Broken::Refused(error)),
            Err(error) => silence.lasts(error).await.map_err(Broken::Away)?,
        }
    }
}

async fn read(
    pods: &Api<Pod>,
    name: &str,
    parameters: &LogParams,
    lines: &mut Lines,
    silence: &mut Silence,
    print: impl Fn(&[u8]),
) -> std::result::Result<(), kube::Error> {
    let mut stream = BufReader::new(pods.log_stream(name, parameters).await?);
    lines.begin();
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = (&mut stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        if count.map_err(|error| kube::Error::Service(error.into()))? == 0 {
            return Ok(());
        }
        silence.is_over();
        if let Some(new) = lines.take(&line) {
            print(new);
        }
    }
}

/// Which lines of a log are new: each comes with its time, by which a log that broke off is taken up again.
struct Lines {
    /// The user wants to see the times.
    shows_time: bool,
    /// The next piece begins a line, and so with its time.
    begins: bool,
    /// Time of the last whole line that was shown, and how many lines of that time were: several have the same.
    last: Option<(Timestamp, usize)>,
    /// The log was taken up again, and nothing new has come yet; how many lines of the last time came again.
    again: Option<usize>,
    /// That of the line that is being shown.
    current: Option<Timestamp>,
    /// The line was shown before.
    known: bool,
}

impl Lines {
    fn new(shows_time: bool) -> Self {
        Self { shows_time, begins: true, last: None, again: None, current: None, known: false }
    }

    /// What to ask for: at first what the user wants, then what comes from the last line's time on.
    fn parameters(&self, wanted: &LogParams) -> LogParams {
        let mut parameters = LogParams { timestamps: true, ..wanted.clone() };
        if let Some((time, _)) = self.last {
            parameters =
                LogParams { tail_lines: None, since_seconds: None, since_time: Some(time), ..parameters };
        }
        parameters
    }

    /// The log begins to come, for the first time or again.
    fn begin(&mut self) {
        self.begins = true;
        self.again = self.last.map(|_| 0);
    }

    /// The part of a piece that is to be shown.
    fn take<'a>(&mut self, piece: &'a [u8]) -> Option<&'a [u8]> {
        let mut text = piece;
        if self.begins {
            let (time, rest) = split_time(piece);
            self.known = self.is_known(time);
            self.current = time;
            if !self.shows_time {
                text = rest;
            }
        }
        self.begins = piece.ends_with(b"\n");
        if self.known {
            return None;
        }
        if let (true, Some(time)) = (self.begins, self.current) {
            let before = self.last.filter(|(last, _)| *last == time).map_or(0, |(_, count)| count);
            self.last = Some((time, before + 1));
        }
        Some(text)
    }

    /// Whether a line of this time came before the log broke off. Clocks may step back: only until the first new line.
    fn is_known(&mut self, time: Option<Timestamp>) -> bool {
        let (Some(again), Some((last, count)), Some(time)) = (self.again, self.last, time) else {
            return false;
        };
        if time < last {
            return true;
        }
        if time == last && again < count {
            self.again = Some(again + 1);
            return true;
        }
        self.again = None;
        false
    }
}

/// A line's time and what comes after it.
fn split_time(line: &[u8]) -> (Option<Timestamp>, &[u8]) {
    let end = line.iter().position(|byte| *byte == b' ');
    let time = end.and_then(|end| std::str::from_utf8(&line[..end]).ok()?.parse().ok());
    match (time, end) {
        (Some(time), Some(end)) => (Some(time), &line[end + 1..]),
        _ => (None, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(lines: &mut Lines, pieces: &[&str]) -> String {
        lines.begin();
        pieces.iter().filter_map(|piece| lines.take(piece.as_bytes())).map(String::from_utf8_lossy).collect()
    }

    #[test]
    fn a_log_that_broke_off_goes_on_without_a_line_twice() {
        let [one, two, three] =
            ["2026-01-01T00:00:01.1Z a\n", "2026-01-01T00:00:01.2Z b\n", "2026-01-01T00:00:02Z c\n"];
        let mut lines = Lines::new(false);
        assert_eq!(shown(&mut lines, &[one, two]), "a\nb\n");
        let wanted = LogParams { tail_lines: Some(9), follow: true, ..LogParams::default() };
        let again = lines.parameters(&wanted);
        assert_eq!((again.tail_lines, again.follow, again.timestamps), (None, true, true));
        assert_eq!(again.since_time.unwrap().to_string(), "2026-01-01T00:00:01.2Z");
        // The server's times are whole seconds: it sends lines again.
        assert_eq!(shown(&mut lines, &[one, two, three]), "c\n");
        // Several lines have one time, and a clock may step back.
        let same = |text: &str| format!("2026-01-01T00:00:02Z {text}\n");
        assert_eq!(shown(&mut lines, &[three, &same("d"), &same("e"), one]), "d\ne\na\n");
        let mut lines = Lines::new(true);
        assert_eq!(lines.parameters(&wanted).tail_lines, Some(9));
        assert_eq!(shown(&mut lines, &[one]), one);
    }

    #[test]
    fn a_line_in_pieces_has_one_time() {
        let mut lines = Lines::new(false);
        assert_eq!(
            shown(&mut lines, &["2026-01-01T00:00:01Z long", " line\n", "no time\n"]),
            "long line\nno time\n"
        );
        assert_eq!(
            shown(&mut lines, &["2026-01-01T00:00:01Z long", " line\n", "2026-01-01T00:00:02Z x\n"]),
            "x\n"
        );
    }
}
