package app.lethe

import java.io.File
import java.time.Instant
import kotlin.concurrent.thread
import kotlin.system.exitProcess
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout

// The registries that this project is built from have no JUnit: each test is a function, and `main` counts.

private const val PATIENCE_MS = 120_000L

private fun <T> same(got: T, expected: T) = check(got == expected) { "expected $expected, got $got" }

private inline fun <reified E : Throwable> fails(what: () -> Unit): E {
    try {
        what()
    } catch (e: Throwable) {
        check(e is E) { "expected ${E::class.simpleName}, got $e" }
        return e
    }
    error("expected ${E::class.simpleName}, and nothing failed")
}

private fun listsNeedNoNetwork(): Unit = inFolder { dir ->
    Lethe.open(File(dir, "app"), Options(catalogueIn(dir))).use { client ->
        same(client.top().items.size, 6)
        client.like("1", Instant.ofEpochSecond(1_700_000_000))
        val page = client.top(2)
        same(page.items[0].title, "Fargo")
        same(page.source, ListSource.CATALOGUE_WITHOUT_TABLES)
        check(page.items[0].reasons.isEmpty()) { "reasons come with tables" }
        check(client.explain("1").met)
        client.feedback(page, "2", Outcome.CLICKED)
        same(client.status().feedback[0].clicked, 1u)
        val first = client.top(3)
        same(client.top(3, after = first.next).items.size, 2)
        same(client.top(tags = listOf("kids")).items.map { it.title }, listOf("Babe", "Antz"))
    }
}

private fun eventsAreUndoneExportedAndImported(): Unit = inFolder { dir ->
    val catalogue = catalogueIn(dir)
    val export = Lethe.open(File(dir, "app"), Options(catalogue)).use { client ->
        val liked = client.like("1")
        client.rate("2", 4.5f, Instant.ofEpochSecond(20))
        same(client.undo(liked)?.item, "1")
        same(client.undo(liked), null)
        client.export()
    }
    Lethe.open(File(dir, "other"), Options(catalogue)).use { client ->
        same(client.import(export), 1)
        same(client.import(export), 0)
        same(client.history().single().event, Event("2", EventKind.RATING, 4.5f, 20))
        client.erase()
        fails<LetheException.Closed> { client.top() }
        Unit
    }
}

private fun errorsAreToldApartByType(): Unit = inFolder { dir ->
    val catalogue = catalogueIn(dir)
    val folder = File(dir, "app")
    Lethe.open(folder, Options(catalogue)).use { client ->
        same(fails<LetheException.UnknownItem> { client.like("77") }.item, "77")
        fails<LetheException.BadInput> { client.rate("1", Float.NaN) }
        fails<LetheException.BadInput> { client.import("no export".toByteArray()) }
        fails<LetheException.InUse> { Lethe.open(folder, Options(catalogue)) }
        same(client.history().size, 0)
    }
    fails<LetheException.Catalogue> { Lethe.open(folder, Options("/nowhere")) }
    fails<LetheException.BadOption> { Lethe.open(folder, Options(catalogue, server = "no port")) }
    val said = fails<LetheException.BadOption> { Lethe.open(folder, Options(catalogue, invitation = "none")) }
    check("invitation" in said.reason) { said.reason }
}

private class Keys : KeyStore {
    var key: ByteArray? = null

    override fun load(): ByteArray? = key

    override fun store(key: ByteArray) {
        this.key = key
    }

    override fun remove() {
        key = null
    }
}

private fun theKeyIsInThePlatformsStore(): Unit = inFolder { dir ->
    val catalogue = catalogueIn(dir)
    val folder = File(dir, "app")
    val keys = Keys()
    Lethe.open(folder, Options(catalogue, keyStore = keys)).use { it.like("1") }
    same(keys.key?.size, 32)
    fails<LetheException.KeyLost> { Lethe.open(folder, Options(catalogue, keyStore = Keys())) }
    val locked = object : KeyStore {
        override fun load() = throw CallbackException.Failed("the phone is locked")
        override fun store(key: ByteArray) = Unit
        override fun remove() = Unit
    }
    val said = fails<LetheException.KeyStore> { Lethe.open(folder, Options(catalogue, keyStore = locked)) }
    check("the phone is locked" in said.reason) { said.reason }
    Lethe.open(folder, Options(catalogue, keyStore = keys)).use {
        same(it.history().size, 1)
        it.erase()
    }
    same(keys.key, null)
    Lethe.open(folder, Options(catalogue, keyStore = keys)).use { it.like("1") }
    check(File(folder, "history").exists())
    Lethe.eraseFolder(folder)
    check(!File(folder, "history").exists())
}

private fun twoThreads(): Unit = inFolder { dir ->
    Lethe.open(File(dir, "app"), Options(catalogueIn(dir))).use { client ->
        val threads = (0..1).map { n ->
            thread { repeat(50) { client.view("1", 1f, Instant.ofEpochSecond(n * 100L + it)).also { client.top(3) } } }
        }
        threads.forEach { it.join() }
        same(client.history().size, 100)
    }
}

private fun aThousandOpens(): Unit = inFolder { dir ->
    val options = Options(catalogueIn(dir))
    val open = { Lethe.open(File(dir, "app"), options).use { it.top(3) } }
    fun files() = File("/proc/self/fd").list()?.size ?: 0
    repeat(100) { open() }
    val before = files()
    repeat(1000) { open() }
    check(files() <= before + 2) { "$before files were open, now ${files()}" }
}

private fun fromEnrolmentToDeletion(): Unit = World().use { world -> inFolder { dir -> runBlocking {
    val model = loadModel(world.model, layersIn = 1u, layersOut = 1u)
    val options = Options(world.catalogue, world.server, world.invite("ana"), model = model)
    val client = Lethe.open(File(dir, "app"), options)
    client.recordAll(world.history)
    client.join()
    same(client.status().subject, "ana")
    val done = mutableSetOf<Done>()
    withTimeout(PATIENCE_MS) { while (Done.Trained !in done || client.status().tables == null) done += client.step() }
    val page = client.top(5)
    same(page.source, ListSource.OWN_HISTORY)
    check(page.items.any { it.reasons.isNotEmpty() })

    world.ask("stop")
    fails<LetheException.Offline> { client.refresh() }
    client.like(page.items[0].item)
    check(client.top(5).items.isNotEmpty())
    world.ask("start")
    withTimeout(PATIENCE_MS) {
        while (true) {
            try {
                client.refresh()
                break
            } catch (e: LetheException.Offline) {
                delay(200)
            }
        }
    }

    // A step that waits for work is cancelled, and then one is cut short by giving the folder back.
    val waiting = launch { client.step() }
    delay(100)
    waiting.cancelAndJoin()
    client.refresh()
    val cut = launch { fails<LetheException.Closed> { while (true) client.step() } }
    delay(100)
    client.close()
    cut.join()
    val again = Lethe.open(File(dir, "app"), Options(world.catalogue, world.server, model = model))
    same(again.status().subject, "ana")

    world.ask("forget ana")
    fails<LetheException.Deleted> { withTimeout(PATIENCE_MS) { while (true) again.refresh() } }
    again.erase()
    again.close()
} } }

private class Phone(var charging: Boolean = false, var broken: Boolean = false) : Device {
    override fun conditions(): Conditions {
        check(!broken) { "a fault of the app's" }
        return Conditions(charging = charging)
    }
}

private fun aDeviceTrainsOnlyUnderItsConditions(): Unit = World().use { world -> inFolder { dir -> runBlocking {
    val phone = Phone()
    val options = Options(world.catalogue, world.server, world.invite("eva"), device = phone)
    Lethe.open(File(dir, "app"), options).use { client ->
        check(client.step() is Done.NotNow)
        phone.broken = true
        val done = client.step()
        check(done is Done.NotNow && !done.holds.idle) { "what the app cannot answer does not hold: $done" }
        phone.broken = false
        phone.charging = true
        check(client.step() !is Done.NotNow)
    }
} } }

fun main() {
    val tests = listOf<Pair<String, () -> Unit>>(
        "lists need no network" to ::listsNeedNoNetwork,
        "events are undone, exported and imported" to ::eventsAreUndoneExportedAndImported,
        "errors are told apart by type" to ::errorsAreToldApartByType,
        "the key is in the platform's store" to ::theKeyIsInThePlatformsStore,
        "two threads" to ::twoThreads,
        "a thousand opens" to ::aThousandOpens,
        "from enrolment to deletion" to ::fromEnrolmentToDeletion,
        "a device trains only under its conditions" to ::aDeviceTrainsOnlyUnderItsConditions,
    )
    var failed = 0
    for ((name, test) in tests) {
        try {
            test()
            println("ok      $name")
        } catch (e: Throwable) {
            failed += 1
            println("FAILED  $name: ${e.stackTraceToString()}")
        }
    }
    println("${tests.size - failed} passed, $failed failed")
    if (failed > 0) exitProcess(1)
}
