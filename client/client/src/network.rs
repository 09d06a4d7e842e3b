//! What a client does with the coordinator.

use crate::client::{Assigned, Client, Done, Refreshed};
use crate::conditions::Stopped;
use crate::scoring::{Recommendation, Scored};
use crate::worker::Worker;
use crate::{ClientError, actor::Work};

impl Client {
    async fn ask<T: Send + 'static>(
        &self,
        job: impl for<'a> FnOnce(&'a mut Worker) -> Work<'a, T> + Send + 'static,
    ) -> Result<T, ClientError> {
        self.0.actor.ask(&self.0.shared, job).await
    }

    async fn ask_for_work<T: Send + 'static>(
        &self,
        job: impl for<'a> FnOnce(&'a mut Worker) -> Work<'a, T> + Send + 'static,
    ) -> Result<T, ClientError> {
        self.0.actor.ask_for_work(&self.0.shared, job).await
    }

    /// Reaches the coordinator: uses the invitation if there is one, renews the certificate if that
    /// is due, and agrees on the recipe. Every other network function does so by itself; this one
    /// shows whether it works.
    ///
    /// # Errors
    /// [`ClientError::NoServer`], [`ClientError::NotEnrolled`], [`ClientError::NotInvited`],
    /// [`ClientError::CertificateExpired`], [`ClientError::Deleted`],
    /// [`ClientError::OtherOptions`]; [`ClientError::Transport`] when
    /// [`ClientError::is_offline`].
    pub async fn connect(&self) -> Result<(), ClientError> {
        self.ask(|w| Box::pin(w.ready())).await
    }

    /// Takes part in the epoch with what is recorded now: tells the anchor, a count and a salted
    /// commitment, no event. Once the epoch has started, what was joined with before goes on
    /// counting, and only that is trained on. Without a model the count is 0.
    ///
    /// # Errors
    /// As [`Self::connect`]; [`ClientError::OtherData`].
    pub async fn join(&self) -> Result<(), ClientError> {
        self.ask(|w| Box::pin(w.join())).await
    }

    /// Asks for work once and does it, after what is due about lists. Waits up to the poll bound
    /// (10 s) when there is none. Call it when the device is idle; an error leaves the client as it
    /// was, and the next call reconnects. Dropping the future stops the training.
    ///
    /// # Errors
    /// As [`Self::connect`], and those of the work.
    pub async fn step(&self) -> Result<Done, ClientError> {
        if let Err(Stopped::Conditions(now)) = self.0.shared.guard.allows() {
            return Ok(Done::NotNow(now));
        }
        self.ask_for_work(|w| Box::pin(w.step())).await
    }

    /// Asks for work; the future may be dropped at any time (the work is offered again).
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn next_task(&self) -> Result<Option<Assigned>, ClientError> {
        self.ask_for_work(|w| Box::pin(w.next_task())).await
    }

    /// Does what was asked for.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub async fn perform(&self, task: Assigned) -> Result<Done, ClientError> {
        self.ask(|w| Box::pin(w.perform(task))).await
    }

    /// Asks for the tables of lists, and contributes if that is due.
    ///
    /// # Errors
    /// As [`Self::connect`]; [`ClientError::NoLists`]; [`ClientError::OtherListKey`],
    /// [`ClientError::OldSnapshot`], [`ClientError::BadSnapshot`], [`ClientError::Served`],
    /// [`ClientError::Unlogged`]: the tables are not used;
    /// [`ClientError::WouldContributeInClear`], [`ClientError::OtherHandle`],
    /// [`ClientError::SealingDamaged`], [`ClientError::BadSealing`], [`ClientError::BadAnswer`],
    /// [`ClientError::ContributionRefused`]: the tables are, and nothing is contributed.
    pub async fn refresh(&self) -> Result<Refreshed, ClientError> {
        self.ask(|w| Box::pin(w.refresh())).await
    }

    /// Whether the person takes part in the sums behind lists. The answer is kept before anybody is
    /// told; a coordinator that cannot be reached is told when it can.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn set_contributing(&self, wanted: bool) -> Result<(), ClientError> {
        self.ask(move |w| Box::pin(w.set_contributing(wanted)))
            .await
    }

    /// Ranks `candidates` with the language model over the split, and returns the best `n`. Items
    /// of the history are left out. Without the coordinator the last list is returned, marked as
    /// such, until it expires; then the candidates in the order of [`Self::top`], marked, too.
    ///
    /// # Errors
    /// [`ClientError::NoModel`], [`ClientError::NoRelease`], [`ClientError::ShortHistory`],
    /// [`ClientError::UnknownItem`]; [`ClientError::Served`], [`ClientError::Unlogged`]: the
    /// release is not used; as [`Self::connect`].
    pub async fn recommend(
        &self,
        candidates: impl IntoIterator<Item: AsRef<str>>,
        n: usize,
    ) -> Result<Recommendation, ClientError> {
        let names = candidates.into_iter().map(|c| c.as_ref().to_owned());
        let names: Vec<String> = names.collect();
        self.ask(move |w| Box::pin(async move { w.recommend(&names, n).await }))
            .await
    }

    /// Scores this client's test samples (at most `limit`, the earliest), with the served adapters
    /// or, with `untrained`, without any. Labels stay here; the caller decides what to do with the
    /// figures.
    ///
    /// # Errors
    /// [`ClientError::NoModel`], [`ClientError::NoRelease`]; as [`Self::connect`].
    pub async fn evaluate(
        &self,
        untrained: bool,
        limit: usize,
    ) -> Result<Vec<Scored>, ClientError> {
        self.ask(move |w| Box::pin(w.evaluate(untrained, limit)))
            .await
    }

    /// The person consents to the order that waits: it is fetched again, checked, and carried out.
    /// Returns whether there was one. The order must still be the one that was shown.
    ///
    /// # Errors
    /// [`ClientError::Order`]; as [`Self::connect`].
    pub async fn consent_to_erasure(&self) -> Result<bool, ClientError> {
        self.ask(|w| Box::pin(w.consent_to_erasure())).await
    }

    /// Closes the connection and waits until the coordinator has been told; the state stays, and
    /// other handles may connect again.
    pub async fn close(self) {
        // A client that was erased has no connection any more.
        let _ = self.ask(|w| Box::pin(w.close())).await;
    }
}
