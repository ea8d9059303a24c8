//! Who holds how many connections of a listener, and which one gives way when there is no room.
//!
//! **Invariant:** however many connections one peer opens, another peer's next one finds room: a peer has a share, a
//! group of peers (a route, say) has a share, and when a share or the whole table is full, the connection that has been
//! idle longest of the one who holds most is closed for the newcomer. A connection at work is never closed, but in a
//! table whose connections are all at work for as long as their peers like ([`Table::displacing_busy`]).
//!
//! The table knows no sockets: who accepts asks it for a [`Slot`], says on that when the connection works and when it
//! idles (one atomic store each), and closes the connection when [`Slot::displaced`] resolves.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::LabelValueEncoder;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::bound::Bound;
use crate::metrics::{Counter, EncodeLabelSet, EncodeLabelValue, Family, register};

/// A connection younger than this gives way only to a peer who holds clearly less: else who opens many at a time
/// would close his own before they could speak.
const GRACE: Duration = Duration::from_secs(1);
/// Connections that were told to close and have not: beyond so many, newcomers are refused instead.
const CLOSING_MAX: usize = 128;
/// How many of a peer's connections one look at all of them ranks.
const RANKED_MAX: usize = 256;

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of all peers together.
    pub total: usize,
    /// Of one group, say those to one route.
    pub group: usize,
    /// Of one peer within one group.
    pub peer: usize,
}

/// Why a connection was refused or closed by us: the label `reason` of `gantry_connections_closed_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The peer holds its share, and none of it is idle.
    PeerShare,
    /// The group holds its share, and no one in it holds more than the newcomer.
    GroupShare,
    /// The table is full, and no one holds more than the newcomer.
    Full,
    /// It gave way to a newcomer.
    Displaced,
    /// Nothing was said after the connection was made.
    FirstByte,
    /// The TLS handshake took too long.
    Handshake,
    /// The head of a request took too long.
    Head,
    /// The body of a request stood still.
    Body,
    /// Nobody read the answer.
    Unread,
    /// No request for too long.
    Idle,
}

impl Reason {
    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Reason::PeerShare => "peer_share",
            Reason::GroupShare => "group_share",
            Reason::Full => "full",
            Reason::Displaced => "displaced",
            Reason::FirstByte => "first_byte",
            Reason::Handshake => "handshake",
            Reason::Head => "head",
            Reason::Body => "body",
            Reason::Unread => "unread",
            Reason::Idle => "idle",
        }
    }
}

impl EncodeLabelValue for Reason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.name())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Closed {
    listener: &'static str,
    reason: Reason,
}

static CLOSED: LazyLock<Family<Closed, Counter>> = LazyLock::new(|| {
    let family = Family::<Closed, Counter>::default();
    register(
        "gantry_connections_closed",
        "Connections that were refused or closed by a bound or a time-out",
        family.clone(),
    );
    family
});

/// Counts a connection that was refused or closed.
pub fn count_closed(listener: &'static str, reason: Reason) {
    CLOSED.get_or_create(&Closed { listener, reason }).inc();
}

/// The connections of one listener, or of several that share their limits. A clone is the same table.
#[derive(Debug)]
pub struct Table<G, P> {
    shared: Arc<Shared<G, P>>,
}

impl<G, P> Clone for Table<G, P> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
struct Shared<G, P> {
    limits: Limits,
    displaces_busy: bool,
    bound: Arc<Bound>,
    epoch: Instant,
    held: Mutex<Held<G, P>>,
}

#[derive(Debug)]
struct Held<G, P> {
    groups: HashMap<G, Group<P>>,
    count: usize,
    /// Of those, told to close.
    closing: usize,
    next: u64,
}

#[derive(Debug)]
struct Group<P> {
    peers: HashMap<P, Connections>,
    count: usize,
}

/// The connections of one peer in one group.
#[derive(Debug, Default)]
struct Connections {
    connections: HashMap<u64, Arc<State>>,
    /// Those that had idled longest at the last look at all, by their words then: a flood at its share asks thousands
    /// of times a second, and each answer is not to cost a look at thousands of connections.
    ranked: VecDeque<(u64, Arc<State>)>,
    /// When that was.
    ranked_at: u64,
    /// Until then none but these will have idled for the time of grace.
    none_until: u64,
    #[cfg(test)]
    looks: usize,
}

/// What a slot and the table share: the word is [`CLOSING`], or since when the connection idles in milliseconds of the
/// table's epoch, with [`SERVED`] if it has had an answer, or when it last said that it works, with [`BUSY`]. So the
/// least word gives way first.
#[derive(Debug)]
struct State {
    word: AtomicU64,
    closing: Notify,
}

const CLOSING: u64 = u64::MAX;
const BUSY: u64 = 1 << 63;
const SERVED: u64 = 1 << 62;

/// Whether a connection works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It carries a request or a stream.
    Busy,
    /// It has done nothing for `since`; `served`: after an answer, not since it was made.
    Idle { since: Duration, served: bool },
    /// It gives way to another one.
    Displaced,
}

/// A connection's place in the table; dropping it gives it back. It begins idle.
#[derive(Debug)]
pub struct Slot<G: Eq + Hash, P: Eq + Hash> {
    table: Table<G, P>,
    group: G,
    peer: P,
    id: u64,
    state: Arc<State>,
}

impl<G: Eq + Hash + Clone, P: Eq + Hash + Clone> Table<G, P> {
    /// A table whose `bound` shows how full it is; the bound's name is the label `listener` of what is counted.
    pub fn new(name: &'static str, limits: Limits) -> Self {
        Self::with(name, limits, false)
    }

    /// A table in which even a connection at work gives way, the one that has said so least recently, to a newcomer
    /// who holds clearly less: for connections that their peers can keep at work for ever.
    pub fn displacing_busy(name: &'static str, limits: Limits) -> Self {
        Self::with(name, limits, true)
    }

    fn with(name: &'static str, limits: Limits, displaces_busy: bool) -> Self {
        let held = Held { groups: HashMap::new(), count: 0, closing: 0, next: 0 };
        Self {
            shared: Arc::new(Shared {
                limits,
                displaces_busy,
                bound: Bound::new(name, limits.total as u64),
                epoch: Instant::now(),
                held: Mutex::new(held),
            }),
        }
    }

    /// Room for a connection of `peer`, made by closing another one if need be.
    pub fn admit(&self, group: G, peer: P) -> Result<Slot<G, P>, Reason> {
        let now = self.now();
        let mut held = self.lock();
        if let Err(reason) = held.make_room(&self.shared, &group, &peer, now) {
            drop(held);
            self.shared.bound.refuse();
            count_closed(self.name(), reason);
            return Err(reason);
        }
        held.next += 1;
        held.count += 1;
        let id = held.next;
        let state = Arc::new(State { word: AtomicU64::new(now), closing: Notify::new() });
        let of_group =
            held.groups.entry(group.clone()).or_insert_with(|| Group { peers: HashMap::new(), count: 0 });
        of_group.count += 1;
        of_group.peers.entry(peer.clone()).or_default().connections.insert(id, Arc::clone(&state));
        self.shared.bound.set(held.count as u64);
        drop(held);
        Ok(Slot { table: self.clone(), group, peer, id, state })
    }

    /// How many connections there are.
    pub fn count(&self) -> usize {
        self.lock().count
    }
}

impl<G, P> Table<G, P> {
    /// The bound's name.
    pub fn name(&self) -> &'static str {
        self.shared.bound.name()
    }

    fn now(&self) -> u64 {
        self.shared.epoch.elapsed().as_millis() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Held<G, P>> {
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<G: Eq + Hash, P: Eq + Hash> Held<G, P> {
    fn make_room(&mut self, shared: &Shared<G, P>, group: &G, peer: &P, now: u64) -> Result<(), Reason> {
        let (limits, busy_too) = (&shared.limits, shared.displaces_busy);
        let own_group = self.groups.get(group);
        let group_count = own_group.map_or(0, |group| group.count);
        let count = own_group.and_then(|group| group.peers.get(peer)).map_or(0, Connections::count);
        let reason = if count >= limits.peer {
            Reason::PeerShare
        } else if group_count >= limits.group {
            Reason::GroupShare
        } else if self.count - self.closing.min(CLOSING_MAX) >= limits.total {
            Reason::Full
        } else {
            return Ok(());
        };
        // Half of it is for newcomers with a claim: who displaces his own cannot use up all.
        let closing_max = if reason == Reason::PeerShare { CLOSING_MAX / 2 } else { CLOSING_MAX };
        if self.closing >= closing_max {
            return Err(reason);
        }
        let own_group = self.groups.get_mut(group);
        let victim = match reason {
            Reason::PeerShare => own_group
                .and_then(|group| group.peers.get_mut(peer))
                .and_then(|own| own.idlest(now, true, false)),
            Reason::GroupShare => own_group.and_then(|group| group.victim(Some(count), now, busy_too)),
            _ => {
                let mut groups: Vec<&mut Group<P>> =
                    self.groups.values_mut().filter(|other| other.count >= group_count).collect();
                groups.sort_by_key(|group| std::cmp::Reverse(group.count));
                groups.into_iter().find_map(|other| {
                    // A group that holds clearly more owes one, whoever in it holds how many.
                    let claim = if other.count > group_count + 1 { None } else { Some(count) };
                    other.victim(claim, now, busy_too)
                })
            }
        };
        let Some(victim) = victim else { return Err(reason) };
        self.closing += 1;
        victim.closing.notify_one();
        count_closed(shared.bound.name(), Reason::Displaced);
        Ok(())
    }
}

impl<P: Eq + Hash> Group<P> {
    /// The idlest connection of whoever holds most, marked as closing; with `count`, only of one who holds more than
    /// that, and clearly more if the connection is young.
    fn victim(&mut self, count: Option<usize>, now: u64, busy_too: bool) -> Option<Arc<State>> {
        let more = |peer: &&mut Connections| count.is_none_or(|count| peer.count() > count);
        let mut peers: Vec<&mut Connections> = self.peers.values_mut().filter(more).collect();
        peers.sort_by_key(|peer| std::cmp::Reverse(peer.count()));
        let spares = |peer: &Connections| count.is_some_and(|count| peer.count() == count + 1);
        peers.into_iter().find_map(|peer| peer.idlest(now, spares(peer), busy_too))
    }
}

impl Connections {
    fn count(&self) -> usize {
        self.connections.len()
    }

    /// The idlest connection, marked as closing. With `spares`, only one that has idled for the time of grace; without,
    /// any that idles, or one at work if need be and `busy_too`.
    fn idlest(&mut self, now: u64, spares: bool, busy_too: bool) -> Option<Arc<State>> {
        loop {
            // What has done something since is not the idlest any more.
            while self.ranked.pop_front_if(|(seen, state)| state.word() != *seen).is_some() {}
            match self.ranked.front() {
                // Below those with an answer there may be others by now; below these there are none.
                Some((seen, _)) if *seen < SERVED || (spares && is_young(self.ranked_at, now)) => {
                    let chosen = self.ranked.pop_front_if(|(seen, state)| state.close(*seen));
                    if let Some((_, state)) = chosen {
                        return Some(state);
                    }
                }
                None if spares && now < self.none_until => return None,
                _ if spares => self.rank(now),
                _ => return self.least(busy_too),
            }
        }
    }

    /// Looks at all for those that have idled for the time of grace.
    fn rank(&mut self, now: u64) {
        let grace = GRACE.as_millis() as u64;
        let mut ranked = Vec::new();
        self.none_until = now + grace;
        for state in self.connections.values() {
            let word = state.word();
            let since = word & !SERVED;
            if word & BUSY != 0 {
                continue;
            }
            if is_young(since, now) {
                self.none_until = self.none_until.min(since + grace);
            } else {
                ranked.push((word, state));
            }
        }
        if ranked.len() > RANKED_MAX {
            ranked.select_nth_unstable_by_key(RANKED_MAX, |(word, _)| *word);
            ranked.truncate(RANKED_MAX);
            self.none_until = now;
        }
        ranked.sort_unstable_by_key(|(word, _)| *word);
        self.ranked = ranked.into_iter().map(|(word, state)| (word, Arc::clone(state))).collect();
        self.ranked_at = now;
        #[cfg(test)]
        {
            self.looks += 1;
        }
    }

    fn least(&self, busy_too: bool) -> Option<Arc<State>> {
        loop {
            let (seen, found) =
                self.connections.values().map(|state| (state.word(), state)).min_by_key(|(word, _)| *word)?;
            if seen == CLOSING || (seen & BUSY != 0 && !busy_too) {
                return None;
            }
            if found.close(seen) {
                return Some(Arc::clone(found));
            }
        }
    }
}

fn is_young(since: u64, now: u64) -> bool {
    u128::from(now.saturating_sub(since)) < GRACE.as_millis()
}

impl State {
    fn word(&self) -> u64 {
        self.word.load(Ordering::Relaxed)
    }

    /// Marks it as closing, unless it has begun to work meanwhile: then it stays.
    fn close(&self, seen: u64) -> bool {
        self.word.compare_exchange(seen, CLOSING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

impl<G: Eq + Hash, P: Eq + Hash> Slot<G, P> {
    /// The connection works from now on, or still. False if it was chosen to give way just before: it must be closed,
    /// and what it carried must not be begun.
    pub fn busy(&self) -> bool {
        let before = self.state.word.swap(self.table.now() | BUSY, Ordering::AcqRel);
        if before == CLOSING {
            self.state.word.store(CLOSING, Ordering::Release);
        }
        before != CLOSING
    }

    /// The connection has answered and idles from now on.
    pub fn idle(&self) {
        let _ = self.state.word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
            (word != CLOSING).then(|| self.table.now() | SERVED)
        });
    }

    /// What the connection does.
    pub fn activity(&self) -> Activity {
        match self.state.word.load(Ordering::Acquire) {
            CLOSING => Activity::Displaced,
            word if word & BUSY != 0 => Activity::Busy,
            word => {
                let since = Duration::from_millis(self.table.now().saturating_sub(word & !SERVED));
                Activity::Idle { since, served: word & SERVED != 0 }
            }
        }
    }

    /// Resolves when the connection has to close for another one. One may wait at a time.
    pub async fn displaced(&self) {
        self.state.closing.notified().await;
    }

    /// Who holds it.
    pub fn peer(&self) -> &P {
        &self.peer
    }

    /// Counts that the connection was closed for this reason.
    pub fn count_closed(&self, reason: Reason) {
        count_closed(self.table.name(), reason);
    }
}

impl<G: Eq + Hash, P: Eq + Hash> Drop for Slot<G, P> {
    fn drop(&mut self) {
        let mut held = self.table.lock();
        held.count -= 1;
        // The lock is held, so nobody chooses it between the look and the removal, and nobody does afterwards.
        if self.state.word.swap(CLOSING, Ordering::AcqRel) == CLOSING {
            held.closing = held.closing.saturating_sub(1);
        }
        if let Some(group) = held.groups.get_mut(&self.group) {
            group.count -= 1;
            if let Some(of_peer) = group.peers.get_mut(&self.peer) {
                of_peer.connections.remove(&self.id);
                if of_peer.connections.is_empty() {
                    group.peers.remove(&self.peer);
                }
            }
            if group.count == 0 {
                held.groups.remove(&self.group);
            }
        }
        self.table.shared.bound.set(held.count as u64);
    }
}

#[cfg(test)]
mod tests;
