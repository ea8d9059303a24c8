//! Following what the daemon tells, through its deaths: one that comes back in time is waited for, one that stays away is
//! an error.
//!
//! While no daemon runs the proxy holds its sockets open, so that connecting succeeds and nobody answers. The client has
//! deadlines for that ([`crate::client`]); what is an error there only counts here once it has lasted.

use std::{fmt::Display, io, pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _, future::BoxFuture};
use kube::{
    Api,
    runtime::{WatchStreamExt as _, watcher, watcher::Event},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::{
    context::Context,
    failure::{Failure, Result},
    launch,
};

/// How long the daemon may be away while a command waits for it: longer than a restart, an upgrade or a slow disk takes.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Between two tries to reach a daemon that is away.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// Between two questions whether the daemon is there, while something without a deadline of its own goes on.
const ASK: Duration = Duration::from_secs(5);

/// The error of a daemon that stays away.
fn away(last: impl Display) -> Failure {
    let seconds = SILENCE_MAX.as_secs();
    Failure::new(format!("the daemon has not answered for {seconds} s: {last}"))
        .hint("see whether it runs: gantry daemon status; start it: sudo gantry daemon start".to_owned())
}

/// Since when nobody answers.
#[derive(Debug, Default)]
pub struct Silence {
    since: Option<Instant>,
}

impl Silence {
    /// The daemon answered.
    pub fn is_over(&mut self) {
        self.since = None;
    }

    /// The daemon did not answer: waits a moment before the next try, or says that this has lasted too long.
    pub async fn lasts(&mut self, error: impl Display) -> Result<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= SILENCE_MAX {
            return Err(away(error));
        }
        sleep(TRY_AGAIN).await;
        Ok(())
    }
}

/// Watches objects. A watch that breaks is resumed; what the server refuses, and a daemon that stays away, are errors.
pub fn watch<K>(api: Api<K>, config: watcher::Config) -> Pin<Box<dyn Stream<Item = Result<Event<K>>> + Send>>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    patient(watcher(api, config).default_backoff())
}

type Told<K> = std::result::Result<Event<K>, watcher::Error>;

/// Where a patient stream stands.
struct Patience<S> {
    events: S,
    /// Since when there was no answer; a stream that starts has had none.
    since: Option<Instant>,
    last: String,
}

fn patient<K: Send + 'static>(
    events: impl Stream<Item = Told<K>> + Send + 'static,
) -> Pin<Box<dyn Stream<Item = Result<Event<K>>> + Send>> {
    let start =
        Patience { events: Box::pin(events), since: Some(Instant::now()), last: "no answer yet".to_owned() };
    Box::pin(futures::stream::unfold(start, |mut patience| async move {
        let item = patience.next().await?;
        Some((item, patience))
    }))
}

impl<S: Stream<Item = Told<K>> + Unpin, K> Patience<S> {
    async fn next(&mut self) -> Option<Result<Event<K>>> {
        loop {
            let next = match self.since {
                None => self.events.next().await,
                Some(since) => match timeout_at(since + SILENCE_MAX, self.events.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        self.since = None;
                        return Some(Err(away(&self.last)));
                    }
                },
            };
            match next? {
                // Said before a list is asked for: nobody has answered yet.
                Ok(Event::Init) => return Some(Ok(Event::Init)),
                Ok(event) => {
                    self.since = None;
                    return Some(Ok(event));
                }
                Err(error) if is_refusal(&error) => return Some(Err(error.into())),
                Err(error) => {
                    tracing::debug!(%error, "watch");
                    self.since.get_or_insert_with(Instant::now);
                    self.last = Failure::from(error).message().to_owned();
                }
            }
        }
    }
}

/// What asking again does not change.
fn is_refusal(error: &watcher::Error) -> bool {
    let cause = match error {
        watcher::Error::InitialListFailed(cause)
        | watcher::Error::WatchStartFailed(cause)
        | watcher::Error::WatchFailed(cause) => cause,
        watcher::Error::WatchError(status) => return matches!(status.code, 401 | 403 | 404),
        watcher::Error::NoResourceVersion => return true,
    };
    matches!(cause, kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404))
}

/// Does what has no deadline of its own, such as an upload, as long as the daemon answers questions meanwhile.
pub async fn while_it_answers<T>(context: &Context, work: impl Future<Output = Result<T>>) -> Result<T> {
    let ask = || -> BoxFuture<'_, bool> {
        Box::pin(async { launch::answers(&context.settings.state_dir).await.unwrap_or(false) })
    };
    guarded(work, ask).await
}

async fn guarded<'a, T>(
    work: impl Future<Output = Result<T>>,
    ask: impl Fn() -> BoxFuture<'a, bool>,
) -> Result<T> {
    let gone = async {
        let mut answered = Instant::now();
        loop {
            sleep(ASK).await;
            // The question has a deadline, but nothing here relies on it.
            if timeout(SILENCE_MAX, ask()).await.unwrap_or(false) {
                answered = Instant::now();
            } else if answered.elapsed() >= SILENCE_MAX {
                return away(io::Error::from(io::ErrorKind::TimedOut));
            }
        }
    };
    tokio::select! {
        biased;
        done = work => done,
        failure = gone => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;

    fn broken() -> Told<u8> {
        Err(watcher::Error::WatchFailed(kube::Error::Service("connection reset".into())))
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_comes_back_in_time_is_waited_for() {
        let late = stream::once(async {
            sleep(SILENCE_MAX - Duration::from_secs(1)).await;
            Ok(Event::Apply(2))
        });
        // Each restart of a list begins with `Init`, which is no answer and no failure.
        let told = stream::iter([Ok(Event::Apply(1)), broken(), Ok(Event::Init), broken()]).chain(late);
        let mut events = patient(told);
        assert!(matches!(events.next().await, Some(Ok(Event::Apply(1)))));
        assert!(matches!(events.next().await, Some(Ok(Event::Init))));
        assert!(matches!(events.next().await, Some(Ok(Event::Apply(2)))));
        assert!(events.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_stays_away_is_an_error_whether_it_refuses_or_is_silent() {
        let refusing = stream::iter([Ok(Event::Apply(1)), broken()]).chain(stream::unfold((), |()| async {
            sleep(TRY_AGAIN).await;
            Some((broken(), ()))
        }));
        let silent = stream::iter([Ok(Event::Apply(1)), broken()]).chain(stream::pending());
        let never = stream::pending::<Told<u8>>();
        for (mut events, answers) in [(patient(refusing), 1), (patient(silent), 1), (patient(never), 0)] {
            let started = Instant::now();
            for _ in 0..answers {
                assert!(matches!(events.next().await, Some(Ok(Event::Apply(1)))));
            }
            let failure = events.next().await.unwrap().unwrap_err().to_string();
            assert!(failure.starts_with("error: the daemon has not answered for 30 s: "), "{failure}");
            assert!(failure.contains("hint: "), "{failure}");
            assert!(started.elapsed() <= SILENCE_MAX + TRY_AGAIN);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_server_refuses_is_told_at_once() {
        let status =
            serde_json::from_str(r#"{"status":"Failure","message":"no","reason":"","code":403}"#).unwrap();
        let refused: Told<u8> = Err(watcher::Error::WatchError(status));
        let mut events = patient(stream::iter([refused]));
        assert!(events.next().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_as_long_as_somebody_answers() {
        let long = async {
            sleep(SILENCE_MAX * 10).await;
            Ok(())
        };
        guarded(long, || Box::pin(async { true })).await.unwrap();
        let never = std::future::pending::<Result<()>>();
        assert!(guarded(never, || Box::pin(std::future::pending())).await.is_err());
        let mut silence = Silence::default();
        while silence.lasts("x").await.is_ok() {}
        silence.is_over();
        assert!(silence.lasts("x").await.is_ok());
    }
}
