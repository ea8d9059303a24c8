//! Listeners held twice: the daemon and the proxy keep duplicates of each other's, so that neither's death closes a
//! port. New connections wait in the backlog until the next process has taken its listeners back.
//!
//! A link is a `SOCK_SEQPACKET` pair. Each packet is one JSON [`Message`], with one descriptor (SCM_RIGHTS) where the
//! message speaks of one. Both sides begin alike: `Hello`, their own listeners, what they hold of the other's,
//! `Synced`. After that they say what changes. Unknown messages are passed over; another major version ends the link.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lifecycle::Scope;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use crate::spawn::Process;

/// Of the protocol; a change that an older side cannot pass over raises it.
const VERSION: u32 = 1;
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Listeners of one side.
const LISTENERS_MAX: usize = 16 * 1024;
const ESTABLISH_WITHIN: Duration = Duration::from_secs(10);
/// How long a proxy that runs already may take to answer a daemon that has just started. A start has a deadline of its own.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why a link did not come about, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: use the hand-over socket")]
    Socket { path: PathBuf, source: io::Error },
    #[error("pass listeners")]
    Pass(#[source] io::Error),
    #[error("the other process speaks version {0} of the hand-over protocol, not {VERSION}")]
    Version(u32),
    #[error("the other process ended the link")]
    Ended,
    #[error("the other process did not introduce itself in time")]
    Late,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "camelCase")]
enum Message {
    /// `name` is the sender's: a proxy's is that of its Lease. `program` is its release: the first one did not say.
    Hello {
        version: u32,
        name: String,
        #[serde(default)]
        program: String,
    },
    /// With a descriptor: a listener of the sender; keep it.
    Own { listener: String },
    /// With a descriptor: a listener of the receiver, from the receiver or from the one before it.
    Yours { listener: String },
    /// The sender closed this listener; let go of it.
    Gone { listener: String },
    /// The sender has said everything that was.
    Synced,
    /// The sender takes connections.
    Ready,
    /// End: stop accepting, finish what is in flight within that time.
    Drain { milliseconds: u64 },
    #[serde(other)]
    Unknown,
}

/// The listeners of this process and the ones that it keeps for the other. Clones are the same.
#[derive(Clone, Debug)]
pub struct Holder {
    name: String,
    program: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    own: BTreeMap<String, Arc<OwnedFd>>,
    kept: BTreeMap<String, Arc<OwnedFd>>,
    returned: BTreeMap<String, Arc<OwnedFd>>,
    links: Vec<Outbox>,
    /// Told of each listener that is kept from now on, and of each that is let go: `None`.
    watcher: Option<Watcher>,
}

type Outbox = mpsc::UnboundedSender<(Message, Option<Arc<OwnedFd>>)>;

type Watch = dyn Fn(&str, Option<&OwnedFd>) + Send;

/// Is told the name of a listener, and its descriptor or that it is gone.
struct Watcher(Box<Watch>);

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

impl Holder {
    /// `name` is said to the other side: a proxy's is that of its Lease, the daemon's `daemon`. `program` is this
    /// binary's release.
    pub fn new(name: impl Into<String>, program: impl Into<String>) -> Self {
        Self { name: name.into(), program: program.into(), state: Arc::default() }
    }

    /// Has `watcher` told of every listener that this process has or keeps: those that there are, and from now on what
    /// changes. It is called under a lock, and must not call back.
    pub fn watch(&self, watcher: impl Fn(&str, Option<&OwnedFd>) + Send + 'static) {
        let mut state = self.lock();
        for (listener, descriptor) in state.own.iter().chain(&state.kept) {
            watcher(listener, Some(descriptor));
        }
        state.watcher = Some(Watcher(Box::new(watcher)));
    }

    /// Has a listener of this process given back that came by another way than a link.
    pub fn give_back(&self, listener: &str, descriptor: OwnedFd) {
        self.lock().returned.insert(listener.to_owned(), Arc::new(descriptor));
    }

    /// Keeps a listener of the other side that came by another way than a link: whoever links next gets it.
    pub fn keep(&self, listener: &str, descriptor: OwnedFd) {
        self.lock().kept.insert(listener.to_owned(), Arc::new(descriptor));
    }

    /// This process listens on it: the other side gets a duplicate, now and after each restart.
    pub fn own(&self, listener: &str, descriptor: impl AsFd) -> io::Result<()> {
        let duplicate = Arc::new(descriptor.as_fd().try_clone_to_owned()?);
        let mut state = self.lock();
        state.own.insert(listener.to_owned(), Arc::clone(&duplicate));
        state.tell(listener, Some(&duplicate));
        state.say(|| (Message::Own { listener: listener.to_owned() }, Some(Arc::clone(&duplicate))));
        Ok(())
    }

    /// A duplicate of a listener of this process.
    pub(crate) fn owned(&self, listener: &str) -> Option<OwnedFd> {
        self.lock().own.get(listener)?.try_clone().ok()
    }

    /// This process listens on it no more, and nobody shall.
    pub fn disown(&self, listener: &str) {
        let mut state = self.lock();
        if state.own.remove(listener).is_some() {
            state.tell(listener, None);
            state.say(|| (Message::Gone { listener: listener.to_owned() }, None));
        }
    }

    /// Takes back a listener that the other side kept.
    pub fn take_back(&self, listener: &str) -> Option<OwnedFd> {
        let kept = self.lock().returned.remove(listener)?;
        kept.try_clone().ok()
    }

    /// The listeners that the other side gave back and nobody took yet.
    pub fn returned(&self) -> Vec<String> {
        self.lock().returned.keys().cloned().collect()
    }

    /// Closes what was given back and not taken, here and on the other side.
    pub fn drop_returned(&self) {
        let mut state = self.lock();
        for listener in std::mem::take(&mut state.returned).into_keys() {
            if !state.own.contains_key(&listener) {
                state.say(|| (Message::Gone { listener: listener.clone() }, None));
            }
        }
    }

    /// How many listeners of the other side are kept.
    pub fn kept(&self) -> usize {
        self.lock().kept.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn say(&mut self, message: impl Fn() -> (Message, Option<Arc<OwnedFd>>)) {
        // What waits is bounded by the number of listeners; a link that ended is forgotten.
        self.links.retain(|link| link.send(message()).is_ok());
    }

    fn tell(&self, listener: &str, descriptor: Option<&OwnedFd>) {
        if let Some(watcher) = &self.watcher {
            (watcher.0)(listener, descriptor);
        }
    }
}

/// What the other side has said about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    ready: bool,
    drain: Option<Duration>,
    ended: bool,
}

/// A link with the other process.
#[derive(Clone, Debug)]
pub struct Link {
    name: String,
    program: String,
    pid: u32,
    said: watch::Receiver<Said>,
    say: Outbox,
}

impl Link {
    /// The other side's name: a proxy's Lease.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The other side's release; empty if it is so old that it does not say.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The other side's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Exchanges listeners over a connected socket; afterwards [`Holder::take_back`] has what was kept.
    pub async fn establish(socket: OwnedFd, holder: &Holder, scope: &Scope) -> Result<Self, Error> {
        let credentials =
            rustix::net::sockopt::socket_peercred(&socket).map_err(|error| Error::Pass(error.into()))?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(|error| Error::Pass(error.into()))?;
        let socket = Arc::new(crate::io::watched(socket).map_err(Error::Pass)?);
        let (say, outbox) = mpsc::unbounded_channel();
        {
            let mut state = holder.lock();
            let greet = |message, descriptor| {
                // The receiver is this function's own.
                let _ = say.send((message, descriptor));
            };
            greet(hello(holder), None);
            for (listener, descriptor) in &state.own {
                greet(Message::Own { listener: listener.clone() }, Some(Arc::clone(descriptor)));
            }
            for (listener, descriptor) in &state.kept {
                greet(Message::Yours { listener: listener.clone() }, Some(Arc::clone(descriptor)));
            }
            greet(Message::Synced, None);
            // From here on changes follow what was said above.
            state.links.push(say.clone());
        }
        let (said, watching) = watch::channel(Said::default());
        scope.spawn("handover-send", send_all(Arc::clone(&socket), outbox));
        let (name, program) = (String::new(), String::new());
        let mut receiver = Receiver { socket, holder: holder.clone(), own: say.clone(), said, name, program };
        match tokio::time::timeout(ESTABLISH_WITHIN, receiver.until_synced()).await {
            Ok(result) => result?,
            Err(_) => return Err(Error::Late),
        }
        let (name, program) = (receiver.name.clone(), receiver.program.clone());
        scope.spawn("handover-receive", receiver.run());
        let pid = credentials.pid.as_raw_nonzero().get().unsigned_abs();
        Ok(Self { name, program, pid, said: watching, say })
    }

    /// Says that this process takes connections.
    pub fn say_ready(&self) {
        let _ = self.say.send((Message::Ready, None));
    }

    /// Tells the other process to finish and end within that time.
    pub fn drain(&self, within: Duration) {
        let _ = self.say.send((Message::Drain { milliseconds: within.as_millis() as u64 }, None));
    }

    /// Waits until the other process takes connections; `false` if the link ended first.
    pub async fn ready(&self) -> bool {
        let mut said = self.said.clone();
        said.wait_for(|said| said.ready || said.ended).await.is_ok_and(|said| said.ready)
    }

    /// Whether the other process has said that it takes connections.
    pub fn is_ready(&self) -> bool {
        self.said.borrow().ready
    }

    /// Waits until the other process tells this one to finish; `None` if the link ended first.
    pub async fn told_to_drain(&self) -> Option<Duration> {
        let mut said = self.said.clone();
        said.wait_for(|said| said.drain.is_some() || said.ended).await.ok()?.drain
    }

    /// Waits until the link ends, as it does when the other process does.
    pub async fn ended(&self) {
        let mut said = self.said.clone();
        // An error means that the sender is gone, which is the end too.
        let _ = said.wait_for(|said| said.ended).await;
    }
}

struct Receiver {
    socket: Arc<AsyncFd<OwnedFd>>,
    holder: Holder,
    /// This link's, among the holder's.
    own: Outbox,
    said: watch::Sender<Said>,
    name: String,
    program: String,
}

impl Receiver {
    async fn until_synced(&mut self) -> Result<(), Error> {
        loop {
            let (message, descriptor) =
                receive(&self.socket).await.map_err(Error::Pass)?.ok_or(Error::Ended)?;
            match message {
                Message::Hello { version, .. } if version != VERSION => return Err(Error::Version(version)),
                Message::Hello { name, program, .. } => (self.name, self.program) = (name, program),
                Message::Synced => return Ok(()),
                other => self.apply(other, descriptor),
            }
        }
    }

    async fn run(mut self) {
        loop {
            match receive(&self.socket).await {
                Ok(Some((message, descriptor))) => self.apply(message, descriptor),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, peer = self.name, "the link to the other process broke");
                    break;
                }
            }
        }
        self.said.send_modify(|said| said.ended = true);
    }

    fn apply(&mut self, message: Message, descriptor: Option<OwnedFd>) {
        let mut state = self.holder.lock();
        match (message, descriptor) {
            (Message::Own { listener }, Some(descriptor)) if state.kept.len() < LISTENERS_MAX => {
                let descriptor = Arc::new(descriptor);
                state.tell(&listener, Some(&descriptor));
                // While one process takes over from another, both open what is new: whoever comes second is given it.
                state.links.retain(|link| {
                    let message = Message::Yours { listener: listener.clone() };
                    link.same_channel(&self.own)
                        || link.send((message, Some(Arc::clone(&descriptor)))).is_ok()
                });
                state.kept.insert(listener, descriptor);
            }
            (Message::Yours { listener }, Some(descriptor))
                if state.returned.len() < LISTENERS_MAX && !state.own.contains_key(&listener) =>
            {
                state.returned.insert(listener, Arc::new(descriptor));
            }
            (Message::Gone { listener }, _) => {
                if state.kept.remove(&listener).is_some() {
                    state.tell(&listener, None);
                }
                // It is not to come back by the other link either.
                state.returned.remove(&listener);
            }
            (Message::Ready, _) => self.said.send_modify(|said| said.ready = true),
            (Message::Drain { milliseconds }, _) => {
                self.said.send_modify(|said| said.drain = Some(Duration::from_millis(milliseconds)));
            }
            _ => {}
        }
    }
}

fn hello(holder: &Holder) -> Message {
    Message::Hello { version: VERSION, name: holder.name.clone(), program: holder.program.clone() }
}

async fn send_all(
    socket: Arc<AsyncFd<OwnedFd>>,
    mut outbox: mpsc::UnboundedReceiver<(Message, Option<Arc<OwnedFd>>)>,
) {
    while let Some((message, descriptor)) = outbox.recv().await {
        if let Err(error) = send(&socket, &message, descriptor.as_deref()).await {
            tracing::debug!(%error, "the link to the other process ended");
            return;
        }
    }
}

async fn send(socket: &AsyncFd<OwnedFd>, message: &Message, descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    loop {
        let mut ready = socket.writable().await?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.map(AsFd::as_fd);
        if let Some(descriptor) = &descriptors {
            control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)));
        }
        match rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(drop).map_err(Into::into),
        }
    }
}

/// `None` at the link's end.
async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let mut ready = socket.readable().await?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
        };
        let count = match received {
            Err(rustix::io::Errno::AGAIN) => {
                ready.clear_ready();
                continue;
            }
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => other?.bytes,
        };
        if count == 0 {
            return Ok(None);
        }
        let mut descriptor = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                descriptor = descriptors.last();
            }
        }
        let message = serde_json::from_slice(&bytes[..count]).unwrap_or(Message::Unknown);
        return Ok(Some((message, descriptor)));
    }
}

/// A connected pair of sockets: one end stays, the other goes to the process that is started.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("run/proxy.sock")
}

/// The same file under a name that fits into a socket's address, which holds 108 bytes (unix(7)); it is good as long
/// as the descriptor of its folder is open.
pub fn short(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, rustix::fs::Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok((folder, short))
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Who is behind the socket of a state folder's proxy.
#[derive(Debug)]
pub enum Found {
    /// Nobody.
    Nobody,
    /// A proxy, and the link with it.
    Linked(Link),
    /// A process with which no link came about: it is stopped or stuck, ends, or speaks otherwise. What it listens on
    /// nobody else can have.
    Unlinked { process: Process, error: Error },
}

/// Links to the proxy that runs for this state folder. For a daemon that has just started.
pub async fn connect(state_dir: &Path, holder: &Holder, scope: &Scope) -> Result<Found, Error> {
    let path = path(state_dir);
    let dial = || -> io::Result<OwnedFd> {
        let socket = socket()?;
        let (_open, short) = short(&path)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&short)?)?;
        Ok(socket)
    };
    let socket = match dial() {
        Ok(socket) => socket,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(Found::Nobody);
        }
        Err(source) => return Err(Error::Socket { path, source }),
    };
    let process = listening(&socket);
    let linked = tokio::time::timeout(ANSWER_WITHIN, Link::establish(socket, holder, scope)).await;
    match (linked.unwrap_or(Err(Error::Late)), process) {
        (Ok(link), _) => Ok(Found::Linked(link)),
        (Err(error), Some(process)) => Ok(Found::Unlinked { process, error }),
        (Err(error), None) => Err(error),
    }
}

/// The process that listens behind a connected socket, whether it accepts or not.
fn listening(socket: &OwnedFd) -> Option<Process> {
    let credentials = rustix::net::sockopt::socket_peercred(socket).ok()?;
    let process = Process::attach(credentials.pid.as_raw_nonzero().get().unsigned_abs()).ok()?;
    // Held by now, the number cannot become another's. It was not before either if the socket is still open: its one
    // owner was there all the time.
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut [0], flags) {
        Ok((_, count)) if count > 0 => Some(process),
        Err(rustix::io::Errno::AGAIN) => Some(process),
        _ => None,
    }
}

/// Takes the place of the proxy's socket: whoever connects from now on reaches this process.
pub(crate) fn listen(state_dir: &Path) -> Result<AsyncFd<OwnedFd>, Error> {
    let path = path(state_dir);
    let staged = path.with_extension(format!("{}.new", std::process::id()));
    let bind = || -> io::Result<AsyncFd<OwnedFd>> {
        let socket = socket()?;
        match std::fs::remove_file(&staged) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (_open, short) = short(&staged)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&short)?)?;
        std::fs::set_permissions(&staged, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        rustix::net::listen(&socket, 8)?;
        std::fs::rename(&staged, &path)?;
        crate::io::watched(socket)
    };
    bind().map_err(|source| Error::Socket { path: path.clone(), source })
}

/// The next process that wants to link.
pub(crate) async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<OwnedFd> {
    loop {
        let mut ready = listener.readable().await?;
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    const WITHIN: Duration = Duration::from_secs(10);

    async fn linked(daemon: &Holder, proxy: &Holder, scope: &Scope) -> (Link, Link) {
        let (a, b) = pair().unwrap();
        let (a, b) = tokio::join!(Link::establish(a, daemon, scope), Link::establish(b, proxy, scope));
        (a.unwrap(), b.unwrap())
    }

    async fn until(mut holds: impl FnMut() -> bool) {
        let wait = async {
            while !holds() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(WITHIN, wait).await.expect("it happens in time");
    }

    #[tokio::test(start_paused = true)]
    async fn who_listens_but_never_answers_is_found() {
        let (dir, scope) = (tempfile::tempdir().unwrap(), Scope::new("test"));
        std::fs::create_dir(dir.path().join("run")).unwrap();
        let daemon = Holder::new("daemon", "1");
        let found = connect(dir.path(), &daemon, &scope).await.unwrap();
        assert!(matches!(found, Found::Nobody));
        // As a proxy that is stopped: the kernel takes the connection, and nothing reads from it.
        let listener = listen(dir.path()).unwrap();
        let found = connect(dir.path(), &daemon, &scope).await.unwrap();
        let Found::Unlinked { process, error: Error::Late } = found else { panic!("{found:?}") };
        assert_eq!(process.pid(), std::process::id());
        drop(listener);
        assert!(matches!(connect(dir.path(), &daemon, &scope).await.unwrap(), Found::Nobody));
    }

    #[tokio::test]
    async fn each_side_s_listeners_outlive_it() {
        let daemon = Holder::new("daemon", "1");
        let port = {
            let scope = Scope::new("first");
            let proxy = Holder::new("proxy-1", "1");
            let (link, _other) = linked(&daemon, &proxy, &scope).await;
            assert_eq!((link.name(), link.pid()), ("proxy-1", std::process::id()));
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            proxy.own("host/web", &listener).unwrap();
            until(|| daemon.kept() == 1).await;
            let port = listener.local_addr().unwrap().port();
            drop(listener);
            scope.shutdown(WITHIN).await;
            port
        };
        // Nobody accepts now, and still nobody is refused.
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let scope = Scope::new("second");
        let proxy = Holder::new("proxy-2", "1");
        let (link, other) = linked(&daemon, &proxy, &scope).await;
        assert_eq!(proxy.returned(), ["host/web"]);
        let listener = TcpListener::from(proxy.take_back("host/web").unwrap());
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        proxy.own("host/web", &listener).unwrap();
        other.say_ready();
        assert!(link.ready().await);
        link.drain(Duration::from_secs(7));
        assert_eq!(other.told_to_drain().await, Some(Duration::from_secs(7)));
        proxy.disown("host/web");
        until(|| daemon.kept() == 0).await;
        drop(proxy);
        scope.shutdown(WITHIN).await;
    }

    #[tokio::test]
    async fn a_new_daemon_finds_the_proxy_and_gets_its_listeners_back() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        let scope = Scope::new("test");
        let first = Holder::new("daemon", "1");
        assert!(matches!(connect(folder.path(), &first, &scope).await.unwrap(), Found::Nobody));
        let proxy = Holder::new("proxy-1", "1");
        let listener = listen(folder.path()).unwrap();
        let api = TcpListener::bind("127.0.0.1:0").unwrap();
        first.own("api", &api).unwrap();
        let daemons = scope.child("first");
        let (one, _accepted) = tokio::join!(connect(folder.path(), &first, &daemons), async {
            Link::establish(accept(&listener).await.unwrap(), &proxy, &scope).await.unwrap()
        });
        let Ok(Found::Linked(one)) = one else { panic!("{one:?}") };
        until(|| proxy.kept() == 1).await;
        // The daemon dies.
        drop((first, one));
        daemons.shutdown(WITHIN).await;
        let second = Holder::new("daemon", "1");
        let (two, _accepted) = tokio::join!(connect(folder.path(), &second, &scope), async {
            Link::establish(accept(&listener).await.unwrap(), &proxy, &scope).await.unwrap()
        });
        assert!(matches!(two, Ok(Found::Linked(_))));
        let back = TcpListener::from(second.take_back("api").unwrap());
        assert_eq!(back.local_addr().unwrap(), api.local_addr().unwrap());
        assert!(second.take_back("api").is_none());
    }
}
