//! Who holds how many connections of a listener, and which one gives way when there is no room.
//!
//! **Invariant:** however many connections one peer opens, another peer's next one finds room: a peer has a share, a
//! group of peers (a route, say) has a share, and when a share or the whole table is full, the connection that has been
//! idle longest of the one who holds most is closed for the newcomer. A connection at work is never closed, but in a
//! table whose connections are all at work for as long as their peers like ([`Table::displacing_busy`]).
//!
//! The table knows no sockets: who accepts asks it for a [`Slot`], says on that when the connection works and when it
//! idles (one atomic store each), and closes the connection when [`Slot::displaced`] resolves.

use std::collections::HashMap;
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
    peers: HashMap<P, HashMap<u64, Arc<State>>>,
    count: usize,
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
        of_group.peers.entry(peer.clone()).or_default().insert(id, Arc::clone(&state));
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
        let own = own_group.and_then(|group| group.peers.get(peer));
        let count = own.map_or(0, HashMap::len);
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
        let victim = match reason {
            Reason::PeerShare => own.and_then(|own| idlest(own, Some(now), false)),
            Reason::GroupShare => own_group.and_then(|group| group.victim(Some(count), now, busy_too)),
            _ => {
                let mut groups: Vec<&Group<P>> =
                    self.groups.values().filter(|other| other.count >= group_count).collect();
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
    fn victim(&self, count: Option<usize>, now: u64, busy_too: bool) -> Option<Arc<State>> {
        let mut peers: Vec<&HashMap<u64, Arc<State>>> =
            self.peers.values().filter(|peer| count.is_none_or(|count| peer.len() > count)).collect();
        peers.sort_by_key(|peer| std::cmp::Reverse(peer.len()));
        let spares = |peer: &HashMap<u64, _>| count.is_some_and(|count| peer.len() == count + 1);
        peers.into_iter().find_map(|peer| idlest(peer, spares(peer).then_some(now), busy_too))
    }
}

/// The idlest of these, marked as closing. With `now`, only one that has idled for the time of grace; without, one at
/// work if need be and `busy_too`.
fn idlest(connections: &HashMap<u64, Arc<State>>, now: Option<u64>, busy_too: bool) -> Option<Arc<State>> {
    loop {
        let word = |state: &Arc<State>| state.word.load(Ordering::Relaxed);
        let found = connections.values().min_by_key(|state| word(state))?;
        let seen = word(found);
        if seen == CLOSING || (seen & BUSY != 0 && (now.is_some() || !busy_too)) {
            return None;
        }
        let age = now.map(|now| now.saturating_sub(seen & !SERVED));
        if age.is_some_and(|age| u128::from(age) < GRACE.as_millis()) {
            return None;
        }
        // It may have begun to work meanwhile: then it stays.
        if found.word.compare_exchange(seen, CLOSING, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            return Some(Arc::clone(found));
        }
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
        // The lock is held, so nobody chooses it between the look and the removal.
        if self.state.word.load(Ordering::Acquire) == CLOSING {
            held.closing = held.closing.saturating_sub(1);
        }
        if let Some(group) = held.groups.get_mut(&self.group) {
            group.count -= 1;
            if let Some(connections) = group.peers.get_mut(&self.peer) {
                connections.remove(&self.id);
                if connections.is_empty() {
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
mod tests {
    use super::*;

    type Routes = Table<&'static str, &'static str>;

    fn table(name: &'static str, total: usize, group: usize, peer: usize) -> Routes {
        Table::new(name, Limits { total, group, peer })
    }

    fn many(
        table: &Routes,
        group: &'static str,
        peer: &'static str,
        count: usize,
    ) -> Vec<Slot<&'static str, &'static str>> {
        (0..count).map(|_| table.admit(group, peer).unwrap()).collect()
    }

    fn displaced(slots: &[Slot<&'static str, &'static str>]) -> Vec<usize> {
        let gone = |slot: &Slot<_, _>| slot.activity() == Activity::Displaced;
        slots.iter().enumerate().filter(|(_, slot)| gone(slot)).map(|(index, _)| index).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_who_holds_its_share_displaces_its_own_idlest_or_is_refused() {
        let table = table("test_share", 100, 100, 3);
        let mut slots = many(&table, "", "flood", 3);
        assert_eq!(table.admit("", "flood").unwrap_err(), Reason::PeerShare, "all are young");
        tokio::time::advance(GRACE).await;
        slots[0].idle();
        tokio::time::advance(GRACE).await;
        assert!(slots[1].busy());
        let _newcomer = table.admit("", "flood").unwrap();
        assert_eq!(displaced(&slots), [2], "0 was served, 1 works");
        slots[2].displaced().await;
        assert!(!slots[2].busy(), "what was chosen begins nothing");
        assert_eq!(table.count(), 4);
        slots.remove(2);
        assert!(slots[0].busy());
        assert_eq!(table.admit("", "flood").unwrap_err(), Reason::PeerShare, "none is idle for long");
        assert!(table.admit("", "other").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_finds_room_for_a_newcomer_at_the_expense_of_whoever_holds_most() {
        let table = table("test_full", 6, 100, 4);
        let heavy = many(&table, "", "heavy", 4);
        let light = many(&table, "", "light", 2);
        let newcomer = table.admit("", "new").unwrap();
        assert_eq!(displaced(&heavy).len(), 1, "at once, however young");
        assert_eq!(displaced(&light).len(), 0);
        heavy.iter().for_each(|slot| assert!(slot.busy() || slot.activity() == Activity::Displaced));
        let second = table.admit("", "new").map(|_| ()).unwrap_err();
        assert_eq!(second, Reason::Full, "light holds one more than new, but its are young; heavy works");
        tokio::time::advance(GRACE).await;
        assert!(table.admit("", "new").is_ok());
        assert_eq!(displaced(&light).len(), 1);
        drop(newcomer);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_never_ends_gives_way_where_a_table_says_so() {
        for strict in [false, true] {
            let limits = Limits { total: 4, group: 4, peer: 4 };
            let table: Routes = match strict {
                true => Table::displacing_busy("test_busy", limits),
                false => Table::new("test_busy", limits),
            };
            let heavy = many(&table, "heavy", "x", 4);
            for slot in [1, 0, 2, 3] {
                assert!(heavy[slot].busy());
                tokio::time::advance(GRACE).await;
            }
            assert!(heavy[1].busy(), "it is still at work");
            assert_eq!(table.admit("light", "x").is_ok(), strict);
            assert_eq!(displaced(&heavy), if strict { vec![0] } else { vec![] });
            assert!(table.admit("heavy", "x").is_err(), "but not to its own");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_route_at_its_share_closes_its_own_and_other_routes_do_not_notice() {
        let table = table("test_group", 10, 4, 3);
        let other = many(&table, "b", "x", 3);
        let flood = many(&table, "a", "x", 3);
        let _one = table.admit("a", "y").unwrap();
        let _another = table.admit("a", "z").unwrap();
        assert_eq!((displaced(&flood).len(), displaced(&other).len()), (1, 0));
        flood.iter().for_each(|slot| assert!(slot.busy() || slot.activity() == Activity::Displaced));
        assert_eq!(table.admit("a", "y").unwrap_err(), Reason::GroupShare);
        assert!(table.admit("c", "x").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_takes_from_the_largest_group() {
        let table = table("test_groups", 6, 100, 6);
        let large: Vec<_> =
            ["a", "b", "c", "d"].iter().map(|peer| table.admit("large", peer).unwrap()).collect();
        let small = many(&table, "small", "x", 2);
        let _newcomer = table.admit("small", "x").unwrap();
        assert_eq!((displaced(&large).len(), displaced(&small).len()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_leaves_nothing() {
        let table = table("test_given_back", 4, 4, 4);
        let slots = many(&table, "", "x", 4);
        let age = Duration::from_secs(7);
        tokio::time::advance(age).await;
        assert_eq!(slots[0].activity(), Activity::Idle { since: age, served: false });
        slots[0].idle();
        assert_eq!(slots[0].activity(), Activity::Idle { since: Duration::ZERO, served: true });
        let newcomer = table.admit("", "x").unwrap();
        drop((slots, newcomer));
        let held = table.lock();
        assert_eq!((held.count, held.closing, held.groups.len()), (0, 0, 0));
    }

    #[test]
    fn what_was_closed_is_counted_by_reason() {
        count_closed("test_counted", Reason::FirstByte);
        let text = crate::metrics::encode();
        let line = "gantry_connections_closed_total{listener=\"test_counted\",reason=\"first_byte\"} 1";
        assert!(text.contains(line), "{text}");
    }
}
