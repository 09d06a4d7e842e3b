package app.lethe

import java.io.File
import java.nio.file.Files

/** A real coordinator with people at work: the program `sdk-world`, which the variable SDK_WORLD names. */
class World : AutoCloseable {
    private val process = ProcessBuilder(System.getenv("SDK_WORLD") ?: error("set SDK_WORLD to the program sdk-world"))
        .redirectError(ProcessBuilder.Redirect.INHERIT).start()
    private val ready = answer()

    val server = text("server")
    val catalogue = text("catalogue")
    val model = text("model")

    val history: List<Event> = Regex("""\{"item":"(\w+)","kind":"(\w+)","time":(\d+)\}""").findAll(ready).map {
        val (item, kind, time) = it.destructured
        Event(item, if (kind == "like") EventKind.LIKE else EventKind.DISLIKE, 0f, time.toLong())
    }.toList()

    private fun answer(): String = process.inputReader().readLine() ?: error("sdk-world ended")

    private fun text(name: String, from: String = ready): String =
        Regex(""""$name":"([^"]+)"""").find(from)?.groupValues?.get(1) ?: error("no $name in $from")

    fun ask(line: String): String {
        process.outputStream.write("$line\n".toByteArray())
        process.outputStream.flush()
        return answer().also { check("\"error\"" !in it) { it } }
    }

    fun invite(name: String): String = text("invitation", ask("invite $name"))

    override fun close() {
        process.outputStream.close()
        process.waitFor()
    }
}

/** A folder that is removed at the end. */
fun <T> inFolder(run: (File) -> T): T {
    val folder = Files.createTempDirectory("lethe").toFile()
    return try {
        run(folder)
    } finally {
        folder.deleteRecursively()
    }
}

/** A catalogue of six films, for what needs no coordinator. */
fun catalogueIn(folder: File): String {
    val data = File(folder, "catalogue").apply { mkdirs() }
    File(data, "dataset.toml").writeText(
        "[interactions]\nfile = \"none\"\nuser = \"u\"\nitem = \"i\"\nrating = \"r\"\nlike_above = 3\n" +
            "[items]\nfile = \"items.csv\"\nitem = \"id\"\ntitle = \"title\"\ntags = \"tags\"\n",
    )
    val titles = listOf("Heat,Crime", "Fargo,Crime", "Babe,Kids", "Antz,Kids", "Alien,Space", "Gravity,Space")
    val rows = titles.mapIndexed { i, rest -> "${i + 1},$rest" }
    File(data, "items.csv").writeText((listOf("id,title,tags") + rows).joinToString("\n", postfix = "\n"))
    return data.path
}
