//! Connections to a keeper: packets that wait for a slow one, and who wants to hear what.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::{Token, fd};
use crate::protocol::{self, Reply, kind};

/// An attached client that takes nothing for so long is cut: it holds the container's output up.
const SLOW: Duration = Duration::from_secs(5);
/// More connections than that are turned away.
const MAX_CLIENTS: usize = 64;
/// Who asks on and on, and takes no answer, is cut when so many wait.
const MAX_WAITING: usize = 256;

/// What a connection is to be told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Awaits {
    Created,
    Start,
    Exit,
    Delete,
}

pub struct Client {
    pub socket: OwnedFd,
    pub awaits: Vec<Awaits>,
    pub attached: bool,
    /// Packets that the socket had no room for.
    queue: VecDeque<(u8, Vec<u8>)>,
    behind_since: Option<Instant>,
    /// Not read from while its stdin bytes wait.
    muted: bool,
}

#[derive(Default)]
pub struct Clients(Vec<Option<Client>>);

impl Clients {
    pub fn add(&mut self, epoll: &OwnedFd, socket: OwnedFd) -> io::Result<()> {
        let index = match self.0.iter().position(Option::is_none) {
            Some(index) => index,
            None if self.0.len() < MAX_CLIENTS => {
                self.0.push(None);
                self.0.len() - 1
            }
            None => return Ok(()),
        };
        epoll::add(epoll, &socket, Token::Client(index).data(), epoll::EventFlags::IN)?;
        self.0[index] = Some(Client {
            socket,
            awaits: Vec::new(),
            attached: false,
            queue: VecDeque::new(),
            behind_since: None,
            muted: false,
        });
        Ok(())
    }

    pub fn get(&mut self, index: usize) -> Option<&mut Client> {
        self.0.get_mut(index)?.as_mut()
    }

    pub fn remove(&mut self, epoll: &OwnedFd, index: usize) {
        if let Some(client) = self.0.get_mut(index).and_then(Option::take) {
            let _ = epoll::delete(epoll, &client.socket);
        }
    }

    /// Sends, or queues behind what waits already.
    pub fn send(&mut self, epoll: &OwnedFd, index: usize, kind: u8, body: &[u8]) {
        let Some(client) = self.get(index) else { return };
        if client.queue.is_empty() {
            match protocol::send(client.socket.as_fd(), kind, body) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return self.remove(epoll, index),
            }
            client.behind_since = Some(Instant::now());
        }
        if client.queue.len() >= MAX_WAITING {
            return self.remove(epoll, index);
        }
        client.queue.push_back((kind, body.to_vec()));
        self.rearm(epoll, index);
    }

    /// Notes what a client is to be told: once, however often it asks.
    pub fn awaits(&mut self, index: usize, what: Awaits) {
        if let Some(client) = self.get(index)
            && !client.awaits.contains(&what)
        {
            client.awaits.push(what);
        }
    }

    pub fn reply(&mut self, epoll: &OwnedFd, index: usize, reply: &Reply) {
        if let Ok(mut body) = serde_json::to_vec(reply) {
            body.truncate(protocol::MAX_BODY_BYTES);
            self.send(epoll, index, kind::MESSAGE, &body);
        }
    }

    /// Tells everyone who waits for `what`, once.
    pub fn answer(&mut self, epoll: &OwnedFd, what: Awaits, reply: &Reply) {
        for index in 0..self.0.len() {
            let waits = self.get(index).is_some_and(|client| {
                let before = client.awaits.len();
                client.awaits.retain(|awaited| *awaited != what);
                client.awaits.len() < before
            });
            if waits {
                self.reply(epoll, index, reply);
            }
        }
    }

    pub fn broadcast(&mut self, epoll: &OwnedFd, kind: u8, body: &[u8]) {
        for index in 0..self.0.len() {
            if self.get(index).is_some_and(|client| client.attached) {
                self.send(epoll, index, kind, body);
            }
        }
    }

    /// Sends what waits, as far as it goes.
    pub fn flush(&mut self, epoll: &OwnedFd, index: usize) {
        let Some(client) = self.get(index) else { return };
        while let Some((kind, body)) = client.queue.front() {
            match protocol::send(client.socket.as_fd(), *kind, body) {
                Ok(()) => {
                    client.queue.pop_front();
                    client.behind_since = Some(Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.remove(epoll, index),
            }
        }
        client.behind_since = None;
        self.rearm(epoll, index);
    }

    /// Stops or resumes reading from a client.
    pub fn mute(&mut self, epoll: &OwnedFd, muted: bool) {
        for index in 0..self.0.len() {
            if self.get(index).is_some_and(|client| client.attached && client.muted != muted) {
                if let Some(client) = self.get(index) {
                    client.muted = muted;
                }
                self.rearm(epoll, index);
            }
        }
    }

    fn rearm(&mut self, epoll: &OwnedFd, index: usize) {
        let Some(client) = self.get(index) else { return };
        let mut flags = epoll::EventFlags::empty();
        if !client.muted {
            flags |= epoll::EventFlags::IN;
        }
        if !client.queue.is_empty() {
            flags |= epoll::EventFlags::OUT;
        }
        let _ = epoll::modify(epoll, fd(&client.socket), Token::Client(index).data(), flags);
    }

    /// Whether an attached client has not taken what it was sent.
    pub fn is_behind(&self) -> bool {
        self.0.iter().flatten().any(|client| client.attached && !client.queue.is_empty())
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.0.iter().flatten().filter_map(|client| client.behind_since).min().map(|since| since + SLOW)
    }

    /// Cuts who takes nothing; tells whether there was one.
    pub fn cut_slow(&mut self, epoll: &OwnedFd) -> bool {
        let now = Instant::now();
        let mut cut = false;
        for index in 0..self.0.len() {
            let slow = self
                .get(index)
                .and_then(|client| client.behind_since)
                .is_some_and(|since| now >= since + SLOW);
            if slow {
                self.remove(epoll, index);
                cut = true;
            }
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_on_and_takes_no_answer_is_cut_and_hears_each_thing_once() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let pair = || {
            use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
        };
        let (mut clients, (ours, theirs), (deaf, _taken)) = (Clients::default(), pair(), pair());
        clients.add(&epoll, ours).unwrap();
        clients.add(&epoll, deaf).unwrap();
        for _ in 0..1000 {
            clients.awaits(0, Awaits::Exit);
        }
        clients.answer(&epoll, Awaits::Exit, &Reply::Done);
        let mut buffer = [0; 64];
        assert!(protocol::receive(theirs.as_fd(), &mut buffer).unwrap().is_some());
        assert!(protocol::receive(theirs.as_fd(), &mut buffer).is_err(), "nothing else is there");
        let mut answers = 0;
        while clients.get(1).is_some() {
            clients.reply(&epoll, 1, &Reply::Done);
            answers += 1;
            assert!(answers < 1_000_000, "it is never cut");
        }
        assert!(clients.get(0).is_some());
    }
}
