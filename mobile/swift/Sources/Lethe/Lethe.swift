import Foundation
@_exported import LetheFFI

public typealias Event = FfiEvent
public typealias EventKind = FfiEventKind
public typealias Page = FfiPage
public typealias Cursor = FfiCursor
public typealias Options = FfiOptions
public typealias Status = FfiStatus
public typealias Explanation = FfiExplanation
public typealias Outcome = FfiOutcome
public typealias Recommendation = FfiRecommendation
public typealias PendingErasure = FfiPendingErasure
public typealias Done = FfiDone
public typealias Refreshed = FfiRefreshed
public typealias Conditions = FfiConditions
public typealias LetheModel = FfiModel
public typealias LetheError = FfiError
public typealias KeyStore = FfiKeyStore

/// One person's history on this device, the lists that are made of it, and the line to the coordinator.
///
/// It may be used from any thread. What is not `async` works on the device alone; recording writes to the disk, so call
/// it off the main actor. What is `async` talks to the coordinator; cancelling the task stops what it began. A folder
/// belongs to one client at a time: it is given back by `release`, or when the client is freed.
public final class Lethe: @unchecked Sendable {
    private let ffi: FfiClient

    /// Opens the client's folder, or begins one. It needs no network.
    public init(folder: URL, options: Options) throws {
        ffi = try openClient(folder: folder.path, options: options)
    }

    /// Erases a folder without opening it, also with its key lost.
    public static func eraseFolder(_ folder: URL) throws {
        try LetheFFI.eraseFolder(folder: folder.path)
    }

    /// Records an event; it is on disk when this returns. Returns its name, for `undo`.
    @discardableResult
    public func record(_ event: Event) throws -> UInt64 {
        try ffi.record(event: event)
    }

    /// Records several events with one write; all or, after an error, none.
    @discardableResult
    public func record(all events: [Event]) throws -> [UInt64] {
        try ffi.recordAll(events: events)
    }

    /// Records an event of a kind; the value is the rating, or the seconds of a view.
    @discardableResult
    public func record(_ kind: EventKind, item: String, value: Float = 0, at time: Date = Date()) throws -> UInt64 {
        try record(Event(item: item, kind: kind, value: value, time: Int64(time.timeIntervalSince1970)))
    }

    /// Takes an event back, the newest without a name, and returns it.
    @discardableResult
    public func undo(_ event: UInt64? = nil) throws -> Event? {
        guard let event else { return try ffi.undoLast() }
        return try ffi.undo(id: event)
    }

    /// The history, oldest first.
    public var history: [FfiRecorded] { ffi.history() }

    /// A list for the person, without what they have met or hidden.
    public func top(
        _ n: Int = 20, after: Cursor? = nil, tags: [String] = [], candidates: [String]? = nil,
        exclude: [String] = [], diversity: Double = 0, at time: Date? = nil
    ) throws -> Page {
        let query = FfiQuery(
            n: UInt32(clamping: n), after: after, tags: tags, candidates: candidates, exclude: exclude, diversity: diversity,
            at: time.map { Int64($0.timeIntervalSince1970) })
        return try ffi.top(query: query)
    }

    /// Items that are met by those who meet `item`, or that are like it.
    public func similar(to item: String, _ n: Int = 20) throws -> Page {
        try ffi.similar(item: item, n: UInt32(clamping: n))
    }

    /// What people meet first, and lately.
    public func popular(_ n: Int = 20) throws -> Page {
        try ffi.popular(n: UInt32(clamping: n))
    }

    /// What is known about an item and this person, with the own events that speak for it.
    public func explain(_ item: String) throws -> Explanation {
        try ffi.explain(item: item)
    }

    /// Keeps what the person did with an item of a list, on the device only.
    public func feedback(_ page: Page, item: String, outcome: Outcome) throws {
        try ffi.feedback(list: page.id, item: item, outcome: outcome)
    }

    /// The history as JSON, for the person, a backup or another device.
    public func exportHistory() throws -> Data { try ffi.exportHistory() }

    /// Adds the events of an export that are not here yet, and returns how many that were.
    @discardableResult
    public func importHistory(_ json: Data) throws -> Int {
        Int(try ffi.importHistory(json: json))
    }

    /// Erases everything on this device. What the fleet learned is for the operator's `forget` to remove.
    public func erase() throws { try ffi.erase() }

    /// The person consents again: what happens from now on may be recorded.
    public func consent() throws { try ffi.consent() }

    /// The order to erase (almost) everything that waits for the person's consent.
    public var pendingErasure: PendingErasure? { ffi.pendingErasure() }

    /// Allows the coordinator to read what the person contributes from now on, if it has no tally of its own.
    public func acceptEmbedded() throws { try ffi.acceptEmbedded() }

    /// How the client is.
    public var status: Status { ffi.status() }

    /// Stops what is being trained now, from any thread.
    public func cancel() { ffi.cancel() }

    /// The device has changed its network: call it from an `NWPathMonitor`.
    public func networkChanged() throws { try ffi.networkChanged() }

    /// Reaches the coordinator. Every other network function does so by itself; this one shows whether it works.
    public func connect() async throws { try await ffi.connect() }

    /// Takes part in the newest epoch of the training with what is recorded now.
    public func join() async throws { try await ffi.join() }

    /// Fetches tables, contributes, and asks for work once and does it. Call it when the device is idle.
    @discardableResult
    public func step() async throws -> Done { try await ffi.step() }

    /// Fetches the tables of lists, and contributes if that is due.
    @discardableResult
    public func refresh() async throws -> Refreshed { try await ffi.refresh() }

    /// Whether the person takes part in the sums behind lists.
    public func setContributing(_ wanted: Bool) async throws { try await ffi.setContributing(wanted: wanted) }

    /// Ranks `candidates` with the language model over the split.
    public func recommend(_ candidates: [String], _ n: Int = 20) async throws -> Recommendation {
        try await ffi.recommend(candidates: candidates, n: UInt32(clamping: n))
    }

    /// The person consents to the order that waits. Returns whether there was one.
    @discardableResult
    public func consentToErasure() async throws -> Bool { try await ffi.consentToErasure() }

    /// Closes the connection, when the coordinator has been told; the next network function connects again.
    public func disconnect() async { await ffi.disconnect() }

    /// Gives the folder back now: what is under way stops, and other functions throw `LetheError.Closed`.
    public func release() { ffi.release() }
}
