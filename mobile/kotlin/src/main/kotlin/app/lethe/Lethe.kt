package app.lethe

import java.io.File
import java.time.Instant

/**
 * One person's history on this device, the lists that are made of it, and the line to the coordinator.
 *
 * It may be used from any thread. Functions that do not suspend work on the device alone and answer at once; recording
 * writes to the disk, so call it off the main thread. Functions that suspend talk to the coordinator; cancelling the
 * coroutine stops what it began. A folder belongs to one client at a time: [close] gives it back.
 */
class Lethe private constructor(private val ffi: FfiClient) : AutoCloseable {
    companion object {
        /** Opens the client's folder, or begins one. It needs no network. */
        @Throws(LetheException::class)
        fun open(folder: File, options: Options): Lethe = Lethe(openClient(folder.path, options))

        /** Erases a folder without opening it, also with its key lost. */
        @Throws(LetheException::class)
        fun eraseFolder(folder: File) = eraseFolder(folder = folder.path)
    }

    /** Records an event; it is on disk when this returns. Returns its name, for [undo]. */
    @Throws(LetheException::class)
    fun record(event: Event): ULong = ffi.record(event)

    /** Records several events with one write; all or, after an error, none. */
    @Throws(LetheException::class)
    fun recordAll(events: List<Event>): List<ULong> = ffi.recordAll(events)

    private fun count(n: Int) = n.coerceAtLeast(0).toUInt()

    private fun one(item: String, kind: EventKind, value: Float, at: Instant): ULong =
        record(Event(item = item, kind = kind, value = value, time = at.epochSecond))

    /** Records a thumb up. */
    @Throws(LetheException::class)
    fun like(item: String, at: Instant = Instant.now()): ULong = one(item, EventKind.LIKE, 0f, at)

    /** Records a thumb down. */
    @Throws(LetheException::class)
    fun dislike(item: String, at: Instant = Instant.now()): ULong = one(item, EventKind.DISLIKE, 0f, at)

    /** Records a rating on the catalogue's scale. */
    @Throws(LetheException::class)
    fun rate(item: String, rating: Float, at: Instant = Instant.now()): ULong = one(item, EventKind.RATING, rating, at)

    /** Records that the item was watched, read or listened to for so many seconds. */
    @Throws(LetheException::class)
    fun view(item: String, seconds: Float, at: Instant = Instant.now()): ULong = one(item, EventKind.VIEW, seconds, at)

    /** Records that the item was passed over. */
    @Throws(LetheException::class)
    fun skip(item: String, at: Instant = Instant.now()): ULong = one(item, EventKind.SKIP, 0f, at)

    /** Records that the item was bought. */
    @Throws(LetheException::class)
    fun purchase(item: String, at: Instant = Instant.now()): ULong = one(item, EventKind.PURCHASE, 0f, at)

    /** Records that the item is not to be shown again. */
    @Throws(LetheException::class)
    fun hide(item: String, at: Instant = Instant.now()): ULong = one(item, EventKind.HIDE, 0f, at)

    /** Takes an event back, and returns it; `null` if there is none of that name. */
    @Throws(LetheException::class)
    fun undo(event: ULong): Event? = ffi.undo(event)

    /** Takes the event back that was recorded last. */
    @Throws(LetheException::class)
    fun undoLast(): Event? = ffi.undoLast()

    /** The history, oldest first. */
    fun history(): List<Recorded> = ffi.history()

    /**
     * A list for the person, without what they have met or hidden.
     *
     * @param after [Page.next] of the page before
     * @param tags only items with one of these
     * @param candidates only these items
     * @param exclude items that are not to be shown
     * @param diversity what an item loses that is like one above it
     */
    @Throws(LetheException::class)
    fun top(
        n: Int = 20,
        after: Cursor? = null,
        tags: List<String> = emptyList(),
        candidates: List<String>? = null,
        exclude: List<String> = emptyList(),
        diversity: Double = 0.0,
        at: Instant? = null,
    ): Page = ffi.top(FfiQuery(count(n), after, tags, candidates, exclude, diversity, at?.epochSecond))

    /** Items that are met by those who meet [item], or that are like it. */
    @Throws(LetheException::class)
    fun similar(item: String, n: Int = 20): Page = ffi.similar(item, count(n))

    /** What people meet first, and lately. */
    @Throws(LetheException::class)
    fun popular(n: Int = 20): Page = ffi.popular(count(n))

    /** What is known about an item and this person, with the own events that speak for it. */
    @Throws(LetheException::class)
    fun explain(item: String): Explanation = ffi.explain(item)

    /** Keeps what the person did with an item of a list, on the device only. */
    @Throws(LetheException::class)
    fun feedback(page: Page, item: String, outcome: Outcome) = ffi.feedback(page.id, item, outcome)

    /** The history as JSON, for the person, a backup or another device. */
    @Throws(LetheException::class)
    fun export(): ByteArray = ffi.exportHistory()

    /** Adds the events of an export that are not here yet, and returns how many that were. */
    @Throws(LetheException::class)
    fun import(json: ByteArray): Int = ffi.importHistory(json).toInt()

    /** Erases everything on this device. What the fleet learned is for the operator's `forget` to remove. */
    @Throws(LetheException::class)
    fun erase() = ffi.erase()

    /** The person consents again: what happens from now on may be recorded. */
    @Throws(LetheException::class)
    fun consent() = ffi.consent()

    /** The order to erase (almost) everything that waits for the person's consent. */
    fun pendingErasure(): PendingErasure? = ffi.pendingErasure()

    /** Allows the coordinator to read what the person contributes from now on, if it has no tally of its own. */
    @Throws(LetheException::class)
    fun acceptEmbedded() = ffi.acceptEmbedded()

    /** How the client is. */
    fun status(): Status = ffi.status()

    /** Stops what is being trained now, from any thread. */
    fun cancel() = ffi.cancel()

    /** The device has changed its network: call it from a `ConnectivityManager.NetworkCallback`. */
    @Throws(LetheException::class)
    fun networkChanged() = ffi.networkChanged()

    /** Reaches the coordinator. Every other network function does so by itself; this one shows whether it works. */
    @Throws(LetheException::class)
    suspend fun connect() = ffi.connect()

    /** Takes part in the newest epoch of the training with what is recorded now. */
    @Throws(LetheException::class)
    suspend fun join() = ffi.join()

    /** Fetches tables, contributes, and asks for work once and does it. Call it when the device is idle. */
    @Throws(LetheException::class)
    suspend fun step(): Done = ffi.step()

    /** Fetches the tables of lists, and contributes if that is due. */
    @Throws(LetheException::class)
    suspend fun refresh(): Refreshed = ffi.refresh()

    /** Whether the person takes part in the sums behind lists. */
    @Throws(LetheException::class)
    suspend fun setContributing(wanted: Boolean) = ffi.setContributing(wanted)

    /** Ranks [candidates] with the language model over the split. */
    @Throws(LetheException::class)
    suspend fun recommend(candidates: List<String>, n: Int = 20): Recommendation = ffi.recommend(candidates, count(n))

    /** The person consents to the order that waits. Returns whether there was one. */
    @Throws(LetheException::class)
    suspend fun consentToErasure(): Boolean = ffi.consentToErasure()

    /** Closes the connection, when the coordinator has been told; the next network function connects again. */
    suspend fun disconnect() = ffi.disconnect()

    /** Gives the folder back now: what is under way stops, and other functions throw [LetheException.Closed]. */
    override fun close() = ffi.release()
}
