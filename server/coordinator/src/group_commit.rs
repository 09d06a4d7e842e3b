//! Things that arrive one by one and are done together: a write costs the same for one as for many,
//! so those that arrive while one is being synced go together into the next.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::CoordinatorError;
use crate::fatal::guarded;
use crate::rounds::internal;

/// How long the first waits for others.
const WAIT: Duration = Duration::from_millis(5);

/// The way to a thread that takes what has arrived.
#[derive(Debug)]
pub(crate) struct GroupCommit<T>(mpsc::UnboundedSender<T>);

impl<T: Send + 'static> GroupCommit<T> {
    /// Starts the thread; it ends with the last sender. `size` of all that is taken together is
    /// `most`, or one more.
    pub(crate) fn start(
        name: &'static str,
        size: fn(&T) -> usize,
        most: usize,
        take: impl FnMut(Vec<T>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (send, receive) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || guarded(name, || run(receive, size, most, take)))?;
        Ok(Self(send))
    }

    /// A way that leads nowhere.
    pub(crate) fn closed() -> Self {
        Self(mpsc::unbounded_channel().0)
    }

    /// Leaves something to be taken. Whoever calls this bounds how much waits.
    pub(crate) fn put(&self, one: T) -> Result<(), CoordinatorError> {
        let ended = |_| internal(&"the coordinator is shutting down");
        self.0.send(one).map_err(ended)
    }
}

fn run<T>(
    mut receive: mpsc::UnboundedReceiver<T>,
    size: fn(&T) -> usize,
    most: usize,
    mut take: impl FnMut(Vec<T>),
) {
    while let Some(first) = receive.blocking_recv() {
        std::thread::sleep(WAIT);
        let mut sum = size(&first);
        let mut together = vec![first];
        while sum < most
            && let Ok(next) = receive.try_recv()
        {
            sum += size(&next);
            together.push(next);
        }
        take(together);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_meanwhile_goes_together_up_to_the_most() {
        let (send, taken) = std::sync::mpsc::channel();
        let take = move |all: Vec<u32>| send.send(all).unwrap();
        let gather = GroupCommit::start("test", |_| 1, 4, take).unwrap();
        (0..10).for_each(|n| gather.put(n).unwrap());
        drop(gather);
        let all: Vec<Vec<u32>> = taken.iter().collect();
        assert_eq!(all.concat(), (0..10).collect::<Vec<_>>());
        assert!(all.iter().all(|t| t.len() <= 4), "{all:?}");
        assert!(all.len() < 10, "{all:?}");
        assert!(GroupCommit::<u32>::closed().put(1).is_err());
    }
}
