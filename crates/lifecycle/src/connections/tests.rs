//! Who is admitted, and who gives way.

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
    let large: Vec<_> = ["a", "b", "c", "d"].iter().map(|peer| table.admit("large", peer).unwrap()).collect();
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

#[tokio::test(start_paused = true)]
async fn a_flood_at_its_share_is_answered_without_a_look_at_all_of_it_each_time() {
    const SHARE: usize = 1000;
    let table = table("test_looks", 2 * SHARE, 2 * SHARE, SHARE);
    let mut slots = many(&table, "", "flood", SHARE);
    let looks = || table.lock().groups[""].peers["flood"].looks;
    for _ in 0..SHARE {
        assert!(table.admit("", "flood").is_err(), "all are young");
    }
    assert_eq!(looks(), 1);
    tokio::time::advance(GRACE).await;
    for turn in 0..SHARE {
        slots.push(table.admit("", "flood").unwrap());
        let gone = displaced(&slots);
        assert_eq!(gone.len(), 1);
        slots.remove(gone[0]);
        assert!(slots.len() == SHARE && looks() <= 2 + turn * 4 / RANKED_MAX, "{} looks", looks());
    }
}

#[tokio::test(start_paused = true)]
async fn the_one_that_gives_way_is_the_idlest_whatever_came_before() {
    const SHARE: usize = 40;
    let limits = Limits { total: SHARE + 8, group: SHARE + 8, peer: SHARE };
    let table: Routes = Table::displacing_busy("test_idlest", limits);
    let mut slots = many(&table, "", "own", SHARE);
    let mut others = many(&table, "", "other", 8);
    // A linear congruential generator: the same turns each time.
    let mut seed = 7_u64;
    let mut next = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let mut chosen = 0;
    for _ in 0..20_000 {
        let word = |slot: &Slot<_, _>| slot.state.word.load(Ordering::Relaxed);
        let slot = next(slots.len());
        match next(5) {
            0 | 1 => drop(slots[slot].busy()),
            2 => slots[slot].idle(),
            3 => tokio::time::advance(Duration::from_millis(next(400) as u64)).await,
            _ => {
                // Its own newcomer, or one of somebody who holds clearly less: only that one is not spared.
                let own = next(2) == 0;
                let now = table.now();
                let old = |word: &u64| word & BUSY == 0 && !is_young(word & !SERVED, now);
                let words = slots.iter().map(word);
                let least = if own { words.filter(old).min() } else { words.min() };
                let wanted = least.is_some();
                let before: Vec<u64> = slots.iter().map(word).collect();
                let admitted = table.admit("", if own { "own" } else { "other" });
                assert_eq!(admitted.is_ok(), wanted, "{least:?}");
                for gone in displaced(&slots).into_iter().rev() {
                    let (gone_word, least) = (before[gone], least.unwrap());
                    let grown_old = is_young(least & !SERVED, now.saturating_sub(GRACE.as_millis() as u64));
                    assert!(
                        gone_word == least || (own && old(&gone_word) && grown_old),
                        "{gone_word:x}, {least:x}"
                    );
                    slots.remove(gone);
                    chosen += 1;
                }
                match admitted {
                    Ok(slot) if own => slots.push(slot),
                    Ok(slot) => {
                        others.push(slot);
                        others.remove(0);
                        slots.push(table.admit("", "own").unwrap());
                    }
                    Err(_) => {}
                }
                assert_eq!((slots.len(), others.len()), (SHARE, 8));
            }
        }
    }
    assert!(chosen > 500, "{chosen}");
}
