//! A UDP proxy that treats packets as bad networks do. What it does to a packet is drawn from a
//! seed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lethe_learn::seed::{Seed, Stream};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// What happens to packets, each for itself, in both directions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Share that is lost.
    pub loss: f32,
    /// Share that arrives twice.
    pub duplicates: f32,
    /// Share that waits as long again, so that others overtake it.
    pub reordered: f32,
    /// One way.
    pub delay: Duration,
    /// More or less than `delay`, at most.
    pub jitter: Duration,
    /// Nothing passes.
    pub partition: bool,
}

/// Packets so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// That came to the proxy.
    pub packets: AtomicU64,
    /// That were lost, a partition's included.
    pub lost: AtomicU64,
    /// Client packets that begin a handshake.
    pub initial: AtomicU64,
}

/// The way from clients to one server.
pub struct Proxy {
    /// Where clients connect to.
    pub addr: SocketAddr,
    /// What happened.
    pub counts: Arc<Counts>,
    faults: Arc<Mutex<Faults>>,
    routes: Arc<Mutex<Routes>>,
    _tasks: JoinSet<()>,
}

/// One socket towards the server for each client, as a home router has.
type Routes = HashMap<SocketAddr, Arc<UdpSocket>>;

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One direction of one client.
struct Way {
    faults: Arc<Mutex<Faults>>,
    counts: Arc<Counts>,
    dice: Mutex<Stream>,
}

impl Way {
    /// After which waits copies of a packet arrive; none: it is lost.
    fn fate(&self) -> Vec<Duration> {
        let f = *lock(&self.faults);
        let mut dice = lock(&self.dice);
        let mut draw = || dice.unit();
        self.counts.packets.fetch_add(1, Ordering::Relaxed);
        if f.partition || draw() < f.loss {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            return vec![];
        }
        let copies = if draw() < f.duplicates { 2 } else { 1 };
        (0..copies)
            .map(|_| {
                let wait = (f.delay + f.jitter.mul_f32(2.0 * draw())).saturating_sub(f.jitter);
                if draw() < f.reordered { wait * 2 } else { wait }
            })
            .collect()
    }

    fn send(&self, packet: &[u8], to: impl Fn(Vec<u8>) + Clone + Send + 'static) {
        for wait in self.fate() {
            let (packet, to) = (packet.to_vec(), to.clone());
            if wait.is_zero() {
                to(packet);
            } else {
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    to(packet);
                });
            }
        }
    }
}

/// Whether a packet begins a handshake (RFC 9000, 17.2.2).
fn is_initial(packet: &[u8]) -> bool {
    packet.first().is_some_and(|b| b & 0xf0 == 0xc0)
}

impl Proxy {
    /// Starts one in front of `server`, without faults.
    pub async fn start(server: SocketAddr, seed: u64) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("binds"));
        let addr = front.local_addr().expect("bound");
        let (faults, routes, counts) = (
            Arc::<Mutex<Faults>>::default(),
            Arc::<Mutex<Routes>>::default(),
            Arc::default(),
        );
        let mut tasks = JoinSet::new();
        let (f, r, c) = (faults.clone(), routes.clone(), Arc::clone(&counts));
        tasks.spawn(async move { run(front, server, Seed::from_u64(seed), f, r, c).await });
        Self {
            addr,
            counts,
            faults,
            routes,
            _tasks: tasks,
        }
    }

    /// From now on.
    pub fn set(&self, faults: Faults) {
        *lock(&self.faults) = faults;
    }

    /// The server sees all clients come from other ports from now on, as when a router forgets what
    /// it mapped.
    pub fn remap(&self) {
        lock(&self.routes).clear();
    }
}

async fn run(
    front: Arc<UdpSocket>,
    server: SocketAddr,
    seed: Seed,
    faults: Arc<Mutex<Faults>>,
    routes: Arc<Mutex<Routes>>,
    counts: Arc<Counts>,
) {
    let mut returns = JoinSet::new();
    let mut ways = 0u64;
    let mut way = |what: &str| {
        ways += 1;
        let dice = Mutex::new(seed.derive(what, &[&ways.to_le_bytes()]).rng());
        Way {
            faults: faults.clone(),
            counts: counts.clone(),
            dice,
        }
    };
    let out = way("out");
    let mut buffer = vec![0; 1 << 16];
    loop {
        // Errors are those of a peer that is gone.
        let Ok((n, client)) = front.recv_from(&mut buffer).await else {
            continue;
        };
        if is_initial(&buffer[..n]) {
            counts.initial.fetch_add(1, Ordering::Relaxed);
        }
        let known = lock(&routes).get(&client).cloned();
        let route = match known {
            Some(r) => r,
            None => {
                let fresh = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("binds"));
                fresh.connect(server).await.expect("connects");
                lock(&routes).insert(client, fresh.clone());
                let (back, front, from) = (way("back"), front.clone(), fresh.clone());
                returns.spawn(async move {
                    let mut buffer = vec![0; 1 << 16];
                    loop {
                        let Ok(n) = from.recv(&mut buffer).await else {
                            continue;
                        };
                        let front = front.clone();
                        back.send(&buffer[..n], move |p| drop(front.try_send_to(&p, client)));
                    }
                });
                fresh
            }
        };
        out.send(&buffer[..n], move |p| drop(route.try_send(&p)));
    }
}
