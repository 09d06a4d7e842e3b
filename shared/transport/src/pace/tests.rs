use super::*;
use crate::config;
use crate::identity::Authority;
use quinn::{Connection, RecvStream, SendStream};
use std::future::{pending, ready};
use std::sync::Arc;

const MESSAGE: usize = 64 << 10;

/// Until there is so much room, in units.
async fn until(room: &Room, swift: usize, slow: usize) {
    let free = || {
        (
            room.swift.0.available_permits(),
            room.slow.0.available_permits(),
        )
    };
    let same = async {
        while free() != (swift / UNIT, slow / UNIT) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(
        timeout(Duration::from_secs(20), same).await.is_ok(),
        "{:?} units are free",
        free()
    );
}

async fn through<T>(
    room: &Room,
    bytes: usize,
    message: impl Future<Output = T>,
) -> Result<T, Crowded> {
    let place = room.enter(bytes).await?;
    room.carry(place, message).await.map(|(done, _)| done)
}

async fn given(room: &Room, bytes: usize) -> Result<i32, Crowded> {
    through(room, bytes, ready(7)).await
}

fn waits(crowded: u64) -> Waits {
    let ms = Duration::from_millis;
    Waits {
        enter: ms(200),
        linger: ms(5),
        crowded: ms(crowded),
    }
}

#[tokio::test]
async fn those_who_are_slow_make_way() {
    let room = Arc::new(Room::new(2 * MESSAGE, 3 * MESSAGE, waits(10_000)));
    let slow = |room: Arc<Room>| async move { through(&room, MESSAGE, pending::<()>()).await };
    // Two come in and the third waits; after a moment all three are among the slow.
    let held: Vec<_> = (0..3).map(|_| tokio::spawn(slow(room.clone()))).collect();
    until(&room, 2 * MESSAGE, 0).await;
    assert_eq!(given(&room, MESSAGE).await, Ok(7));
    // With no room among the slow they stay where they are for a while.
    let more: Vec<_> = (0..2).map(|_| tokio::spawn(slow(room.clone()))).collect();
    until(&room, 0, 0).await;
    // Small ones pass, large ones wait, and not for ever.
    assert_eq!(given(&room, limits::SMALL).await, Ok(7));
    assert_eq!(given(&room, MESSAGE).await, Err(Crowded));
    // Whoever ends gives its room back, and another moves into it.
    held[0].abort();
    until(&room, MESSAGE, 0).await;
    more.iter().chain(&held).for_each(|h| h.abort());
    until(&room, 2 * MESSAGE, 3 * MESSAGE).await;
}

#[tokio::test]
async fn one_larger_than_all_room_takes_all_of_it() {
    let room = Room::coming();
    let place = room.enter(limits::COMING * 3).await.expect("room");
    let carried = room
        .carry(place, async { room.swift.0.available_permits() })
        .await;
    assert!(
        matches!(carried, Ok((0, Place { room: Some(_), .. }))),
        "{carried:?}"
    );
    // Until it is dropped.
    until(&room, 0, limits::SLOW).await;
    drop(carried);
    until(&room, limits::COMING, limits::SLOW).await;
}

#[tokio::test]
async fn among_too_many_slow_ones_one_is_cut_off_and_others_pass() {
    let room = Arc::new(Room::new(MESSAGE, MESSAGE, waits(20)));
    let other = room.clone();
    let held = tokio::spawn(async move { through(&other, MESSAGE, pending::<()>()).await });
    until(&room, MESSAGE, 0).await;
    assert_eq!(through(&room, MESSAGE, pending::<()>()).await, Err(Crowded));
    assert_eq!(given(&room, MESSAGE).await, Ok(7));
    held.abort();
    until(&room, MESSAGE, MESSAGE).await;
}

#[tokio::test]
async fn a_peer_has_one_turn_over_all_its_connections() {
    let turns = Turns::default();
    let (me, other) = (Digest([1; 32]), Digest([2; 32]));
    let (first, second) = (turns.of(Some(&me)), turns.of(Some(&me)));
    let held = turn(&first.coming, MESSAGE).await.expect("its turn");
    let soon = |of: Arc<Turn>| async move {
        timeout(Duration::from_millis(20), turn(&of.coming, MESSAGE))
            .await
            .is_ok_and(|t| t.is_ok())
    };
    assert!(!soon(second.clone()).await);
    assert!(
        turn(&second.coming, limits::SMALL).await.is_ok(),
        "small ones need none"
    );
    assert!(soon(turns.of(Some(&other))).await && soon(turns.of(None)).await);
    drop(held);
    assert!(soon(second.clone()).await);
    // Those of peers that are gone are not kept.
    drop((first, second));
    for i in 0..100u8 {
        turns.of(Some(&Digest([i; 32])));
    }
    assert!(turns.0.lock().expect("not poisoned").len() < 30);
}

#[test]
fn an_even_pace_ends_in_time() {
    let pace = Pace::new(1000);
    let after = |moved| pace.due(moved) - pace.started;
    assert_eq!(
        (after(0), after(1000)),
        (limits::BEHIND, limits::RPC_TIMEOUT)
    );
    assert!(after(500) > limits::BEHIND && after(500) < limits::RPC_TIMEOUT);
}

#[test]
fn credit_is_granted_once() {
    let mut account = Account::default();
    assert_eq!(account.ask(100), 100);
    account.came(60);
    assert_eq!(account.ask(50), 50);
    account.came(90);
    assert_eq!(account, Account::default());
    // A message that was cut off leaves credit, which the next one uses.
    assert_eq!(account.ask(100), 100);
    account.came(10);
    account.gave_up(90);
    assert_eq!(account.ask(100), 10);
}

/// A connection over loopback from both ends; the coordinator's end has the coordinator's settings.
async fn connection() -> (quinn::Endpoint, quinn::Endpoint, Connection, Connection) {
    let authority = Authority::create().expect("an authority");
    let identity = authority
        .server_identity(crate::identity::SERVER_LIFE)
        .expect("an identity");
    let any = "127.0.0.1:0".parse().expect("an address");
    let server = config::server(&authority, &identity).expect("settings");
    let server = quinn::Endpoint::server(server, any).expect("a socket");
    let client = quinn::Endpoint::client(any).expect("a socket");
    let settings = config::client(authority.certificate(), None).expect("settings");
    let to = server.local_addr().expect("an address");
    let connecting = client
        .connect_with(settings, to, crate::identity::SERVER_NAME)
        .expect("connects");
    let (ours, theirs) = tokio::join!(
        async { server.accept().await.expect("comes").await },
        connecting
    );
    (
        server,
        client,
        ours.expect("handshake"),
        theirs.expect("handshake"),
    )
}

/// Writes until the peer has taken `expected` bytes, and sees that it takes no more.
async fn push(send: &mut SendStream, expected: u64) {
    let (mut taken, block) = (0, vec![0; 64 << 10]);
    while taken < expected {
        let written = timeout(Duration::from_secs(20), send.write(&block)).await;
        taken += written
            .unwrap_or_else(|_| panic!("{taken} of {expected} bytes were taken"))
            .expect("written") as u64;
    }
    assert_eq!(taken, expected);
    assert!(
        timeout(Duration::from_millis(100), send.write(&block))
            .await
            .is_err(),
        "more than {expected} bytes"
    );
}

async fn take(recv: &mut RecvStream, mut bytes: usize, awaited: &mut Awaited<'_>) {
    while bytes > 0 {
        let chunk = recv
            .read_chunk(bytes, true)
            .await
            .expect("reads")
            .expect("more comes");
        bytes -= chunk.bytes.len();
        awaited.came(chunk.bytes.len());
    }
}

#[tokio::test]
async fn a_peer_sends_what_it_has_credit_for_and_no_more() {
    let (_server, _client, ours, theirs) = connection().await;
    let (mut send, _back) = theirs.open_bi().await.expect("opens");
    push(&mut send, limits::UNASKED).await;
    let (_reply, mut recv) = ours.accept_bi().await.expect("comes");
    let credit = Credit::default();
    for _ in 0..4 {
        // However often it is granted and read: unread are never more than before.
        let mut awaited = credit.grant(&ours, 300_000);
        push(&mut send, 300_000).await;
        take(&mut recv, 300_000, &mut awaited).await;
        drop(awaited);
        push(&mut send, 0).await;
    }
    // A message that is given up leaves its credit to the next.
    for _ in 0..3 {
        drop(credit.grant(&ours, 300_000));
    }
    let mut awaited = credit.grant(&ours, 400_000);
    push(&mut send, 400_000).await;
    take(&mut recv, 400_000, &mut awaited).await;
    push(&mut send, 0).await;
    drop(awaited);
    // A long one comes by and by: what was not read is never more than a part of it.
    let mut awaited = credit.grant(&ours, 3_000_000);
    push(&mut send, limits::AHEAD).await;
    let rest = vec![0; 3_000_000 - limits::AHEAD as usize];
    let (read, written) = tokio::join!(
        take(&mut recv, 3_000_000, &mut awaited),
        send.write_all(&rest)
    );
    assert_eq!((read, written.is_ok()), ((), true));
    push(&mut send, 0).await;
}

#[tokio::test]
async fn what_has_come_makes_way_while_there_is_room_to_keep_it() {
    let room = Arc::new(Room::new(MESSAGE, MESSAGE, waits(20)));
    let all = room.kept.1;
    let first = room.enter(MESSAGE).await.expect("room");
    let kept = room.keep(first).await.expect("room to keep it");
    assert_eq!(room.kept.0.available_permits(), all - MESSAGE / UNIT);
    assert_eq!(given(&room, MESSAGE).await, Ok(7), "the next may come");
    // With no room to keep the next, it stays where it is, and nothing more comes.
    let full = room
        .kept
        .0
        .acquire_many((all - MESSAGE / UNIT) as u32)
        .await;
    let second = room.enter(MESSAGE).await.expect("room");
    let waiting = tokio::spawn({
        let room = room.clone();
        async move { room.enter(MESSAGE).await.map(drop) }
    });
    assert_eq!(room.keep(second).await.map(drop), Err(Crowded));
    assert_eq!(
        waiting.await.expect("no panic"),
        Ok(()),
        "then it is cut off"
    );
    drop(full);
    drop(kept);
    assert_eq!(room.kept.0.available_permits(), all);
}

#[tokio::test]
async fn what_is_answered_has_other_room_and_is_refused_without() {
    let room = Room::coming();
    let mut held = vec![];
    for _ in 0..limits::ASIDE / limits::COMING {
        let place = room.enter(limits::COMING).await.expect("the way is free");
        held.push(room.set_aside(place).expect("room until it is answered"));
    }
    let place = room.enter(limits::COMING).await.expect("the way is free");
    assert_eq!(room.set_aside(place).map(drop), Err(Crowded));
    let small = room.enter(limits::SMALL).await.expect("no room is needed");
    assert!(room.set_aside(small).is_ok());
    held.pop();
    let place = room.enter(limits::COMING).await.expect("the way is free");
    assert!(room.set_aside(place).is_ok());
}
