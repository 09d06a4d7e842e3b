"""A recommender on the device that learns together with others, and can forget.

    import lethe

    client = lethe.Client.open("app-data/lethe", catalogue="data")
    client.like("50")
    for place in client.top(5).items:
        print(place.title, [reason.title for reason in place.reasons])

What is not ``async`` works on the device alone and answers at once. What is ``async`` talks to the coordinator; cancelling
the task stops what it began. Errors are kinds of :class:`Error`, by what an app can do about them.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Iterable, Sequence

from .lethe_ffi import (
    FfiArithmetic as Arithmetic,
    FfiCallbackError as CallbackError,
    FfiClient as _FfiClient,
    FfiConditions as Conditions,
    FfiContributes as Contributes,
    FfiContribution as Contribution,
    FfiCursor as Cursor,
    FfiDevice as Device,
    FfiDone as Done,
    FfiErasureConsent as ErasureConsent,
    FfiError as Error,
    FfiEvent as Event,
    FfiEventKind as EventKind,
    FfiExplanation as Explanation,
    FfiKeyStore as KeyStore,
    FfiLeftOut as LeftOut,
    FfiListCounts as ListCounts,
    FfiListed as Listed,
    FfiListSource as ListSource,
    FfiModel as Model,
    FfiOptions as _FfiOptions,
    FfiOutcome as Outcome,
    FfiPage as Page,
    FfiPendingErasure as PendingErasure,
    FfiQuery as _FfiQuery,
    FfiRanked as Ranked,
    FfiReason as Reason,
    FfiRecommendation as Recommendation,
    FfiRecommendationSource as RecommendationSource,
    FfiRecorded as Recorded,
    FfiRefreshed as Refreshed,
    FfiStatus as Status,
    FfiTables as Tables,
    FfiTimeGranularity as TimeGranularity,
    erase_folder as _erase_folder,
    load_model as _load_model,
    open_client as _open_client,
)

__all__ = [
    "Arithmetic", "CallbackError", "Client", "Conditions", "Contributes", "Contribution", "Cursor", "Device", "Done", "ErasureConsent",
    "Error", "Event", "EventKind", "Explanation", "KeyStore", "LeftOut", "ListCounts", "ListSource",
    "Listed", "Model", "Outcome", "Page", "PendingErasure", "Ranked", "Reason", "Recommendation",
    "RecommendationSource", "Recorded", "Refreshed", "Status", "Tables", "TimeGranularity", "erase_folder", "load_model",
]  # fmt: skip

Path = str | os.PathLike[str]


# The sentence, and not a list of the error's fields.
Error.__str__ = lambda self: self.reason
CallbackError.__str__ = lambda self: self.reason

_open: weakref.WeakSet[_FfiClient] = weakref.WeakSet()


@atexit.register
def _release_all() -> None:
    # The client's threads must not ask an app that is ending.
    for client in list(_open):
        client.release()


def erase_folder(folder: Path) -> None:
    """Erases a client's folder without opening it, also with its key lost."""
    _erase_folder(os.fspath(folder))


def load_model(
    path: Path,
    *,
    layers_in: int | None = None,
    layers_out: int | None = None,
    arithmetic: Arithmetic | None = None,
) -> Model:
    """Loads the device's part of a language model: a GGUF file or a Hugging Face folder.

    :param layers_in: how many of the first layers the device holds; as the coordinator's recipe has it
    :param layers_out: how many of the last layers
    :raises Error: ``Model``, ``Storage``
    """
    return _load_model(os.fspath(path), layers_in, layers_out, arithmetic)


def _now(at: float | None) -> int:
    return int(time.time() if at is None else at)


class Client:
    """One person's history on this device, the lists that are made of it, and the line to the coordinator.

    It may be used from any thread. A folder belongs to one client at a time: it is given back by :meth:`release`, or
    at the end of a ``with`` block.
    """

    def __init__(self, ffi: _FfiClient) -> None:
        self._ffi = ffi
        _open.add(ffi)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        catalogue: Path,
        server: str | None = None,
        invitation: str | None = None,
        key_store: KeyStore | None = None,
        model: Model | None = None,
        required: Conditions | None = None,
        device: Device | None = None,
        memory_cap: int | None = None,
        contribute: bool | None = None,
        tally_key: str | None = None,
        contribution_times: TimeGranularity | None = None,
        masked_updates_only: bool = False,
        logged_only: bool = False,
        erasure_consent: ErasureConsent | None = None,
    ) -> Client:
        """Opens the client's folder, or begins one. It needs no network.

        :param catalogue: folder with ``dataset.toml`` and the items
        :param server: the coordinator's place, ``host:port``
        :param invitation: enrols with it at the next network function, unless it was used before
        :param key_store: where the key is that seals the folder; without, it is in a file of the folder
        :param model: trains this model, and lets it rank
        :param required: what must hold while the device trains, compared with what ``device`` says
        :param memory_cap: takes no round whose largest pass needs more than this beside the weights, in bytes
        :param contribute: whether the person takes part in the sums behind lists; kept
        :param tally_key: takes tables from, and contributes to, the tally of this key only
        :raises Error: ``InUse``, ``Damaged``, ``KeyLost``, ``KeyStore``, ``Catalogue``, ``BadOption``, ``Storage``
        """
        options = _FfiOptions(
            catalogue=os.fspath(catalogue),
            server=server,
            invitation=invitation,
            key_store=key_store,
            model=model,
            required=required,
            device=device,
            memory_cap=memory_cap,
            contribute=contribute,
            tally_key=tally_key,
            contribution_times=contribution_times,
            masked_updates_only=masked_updates_only,
            logged_only=logged_only,
            erasure_consent=erasure_consent,
        )
        return cls(_open_client(os.fspath(folder), options))

    def release(self) -> None:
        """Gives the folder back now: what is under way stops, and other functions raise ``Closed``."""
        self._ffi.release()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    # What happened.

    def record(self, event: Event) -> int:
        """Records an event; it is on disk when this returns. Returns its name, for :meth:`undo`."""
        return self._ffi.record(event)

    def record_all(self, events: Iterable[Event]) -> list[int]:
        """Records several events with one write; all or, after an error, none."""
        return self._ffi.record_all(list(events))

    def _one(self, item: str, kind: EventKind, value: float, at: float | None) -> int:
        return self.record(Event(item=item, kind=kind, value=value, time=_now(at)))

    def like(self, item: str, *, at: float | None = None) -> int:
        """Records a thumb up; ``at`` in seconds since 1970, now without."""
        return self._one(item, EventKind.LIKE, 0.0, at)

    def dislike(self, item: str, *, at: float | None = None) -> int:
        """Records a thumb down."""
        return self._one(item, EventKind.DISLIKE, 0.0, at)

    def rate(self, item: str, rating: float, *, at: float | None = None) -> int:
        """Records a rating on the catalogue's scale."""
        return self._one(item, EventKind.RATING, rating, at)

    def view(self, item: str, seconds: float, *, at: float | None = None) -> int:
        """Records that the item was watched, read or listened to for so long."""
        return self._one(item, EventKind.VIEW, seconds, at)

    def skip(self, item: str, *, at: float | None = None) -> int:
        """Records that the item was passed over."""
        return self._one(item, EventKind.SKIP, 0.0, at)

    def purchase(self, item: str, *, at: float | None = None) -> int:
        """Records that the item was bought."""
        return self._one(item, EventKind.PURCHASE, 0.0, at)

    def hide(self, item: str, *, at: float | None = None) -> int:
        """Records that the item is not to be shown again."""
        return self._one(item, EventKind.HIDE, 0.0, at)

    def undo(self, event: int | None = None) -> Event | None:
        """Takes an event back, the newest without a name, and returns it; ``None`` if there is none."""
        return self._ffi.undo_last() if event is None else self._ffi.undo(event)

    def history(self) -> list[Recorded]:
        """The history, oldest first."""
        return self._ffi.history()

    # Lists.

    def top(
        self,
        n: int = 20,
        *,
        after: Cursor | None = None,
        tags: Sequence[str] = (),
        candidates: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        diversity: float = 0.0,
        at: float | None = None,
    ) -> Page:
        """A list for the person, without what they have met or hidden.

        :param after: ``page.next`` of the page before
        :param tags: only items with one of these
        :param candidates: only these items
        :param exclude: items that are not to be shown
        :param diversity: what an item loses that is like one above it
        :raises Error: ``UnknownItem`` for a candidate, ``ListGone`` for a page of a list that is not kept any more
        """
        query = _FfiQuery(
            n=n,
            after=after,
            tags=list(tags),
            candidates=None if candidates is None else list(candidates),
            exclude=list(exclude),
            diversity=diversity,
            at=None if at is None else int(at),
        )
        return self._ffi.top(query)

    def similar(self, item: str, n: int = 20) -> Page:
        """Items that are met by those who meet ``item``, or that are like it."""
        return self._ffi.similar(item, n)

    def popular(self, n: int = 20) -> Page:
        """What people meet first, and lately."""
        return self._ffi.popular(n)

    def explain(self, item: str) -> Explanation:
        """What is known about an item and this person, with the own events that speak for it."""
        return self._ffi.explain(item)

    def feedback(self, page: Page, item: str, outcome: Outcome) -> None:
        """Keeps what the person did with an item of a list, on the device only."""
        self._ffi.feedback(page.id, item, outcome)

    # The person's rights.

    def export(self) -> bytes:
        """The history as JSON, for the person, a backup or another device."""
        return self._ffi.export_history()

    def import_(self, json: bytes) -> int:
        """Adds the events of an export that are not here yet, and returns how many that were."""
        return self._ffi.import_history(json)

    def erase(self) -> None:
        """Erases everything on this device, the key in the key store, too. What the fleet learned is for the operator's ``forget`` to remove."""
        self._ffi.erase()

    def consent(self) -> None:
        """The person consents again: what happens from now on may be recorded."""
        self._ffi.consent()

    def pending_erasure(self) -> PendingErasure | None:
        """The order to erase (almost) everything that waits for the person's consent."""
        return self._ffi.pending_erasure()

    def accept_embedded(self) -> None:
        """Allows the coordinator to read what the person contributes from now on, if it has no tally of its own."""
        self._ffi.accept_embedded()

    def status(self) -> Status:
        """How the client is."""
        return self._ffi.status()

    def cancel(self) -> None:
        """Stops what is being trained now, from any thread."""
        self._ffi.cancel()

    def network_changed(self) -> None:
        """The device has changed its network: the connection goes on from a new socket."""
        self._ffi.network_changed()

    # Over the network.

    async def connect(self) -> None:
        """Reaches the coordinator. Every other network function does so by itself; this one shows whether it works."""
        await self._ffi.connect()

    async def join(self) -> None:
        """Takes part in the newest epoch of the training with what is recorded now."""
        await self._ffi.join()

    async def step(self) -> Done:
        """Fetches tables, contributes, and asks for work once and does it. Call it when the device is idle."""
        return await self._ffi.step()

    async def refresh(self) -> Refreshed:
        """Fetches the tables of lists, and contributes if that is due."""
        return await self._ffi.refresh()

    async def set_contributing(self, wanted: bool) -> None:
        """Whether the person takes part in the sums behind lists."""
        await self._ffi.set_contributing(wanted)

    async def recommend(self, candidates: Iterable[str], n: int = 20) -> Recommendation:
        """Ranks ``candidates`` with the language model over the split."""
        return await self._ffi.recommend(list(candidates), n)

    async def consent_to_erasure(self) -> bool:
        """The person consents to the order that waits. Returns whether there was one."""
        return await self._ffi.consent_to_erasure()

    async def close(self) -> None:
        """Closes the connection, when the coordinator has been told, and gives the folder back."""
        try:
            await self._ffi.disconnect()
        finally:
            self.release()
