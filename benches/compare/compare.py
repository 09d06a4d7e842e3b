"""Runs our worker and the peer's in turn, and writes rows of {work, peer, ours, unit, ratio, target, runs}.

Every figure is the median of paired alternating runs on this machine; `ratio` is the median of the pairs' ratios, larger
is better for us, `ratio_min` and `ratio_max` are its extremes. A work that fails is named, and costs no other its row.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Failed(Exception):
    """One work has no figure; the others go on."""


class Worker:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
            name = " ".join(Path(a).name for a in self.process.args[:2] if not a.startswith("-"))
            raise Failed(f"{name} ended with {how}: see its message above")
        return json.loads(line)

    def ask(self, command="run"):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Nobody keeps half of a machine's memory after a work that failed."""
        self.process.kill()
        self.process.wait()


def ours(job, work, compute="f32"):
    return Worker([str(OPTIONS.binary), "worker", str(job), work, "--compute", compute])


def peer(job, work, form="default"):
    return Worker([sys.executable, str(HERE / "peer.py"), str(job), work, form])


# How llama.cpp holds its weights. `default` repacks them for the processor (on Intel's with AMX into tiles, which has
# ended the process for Q4_1); `plain` leaves them as they lie in the file.
FORMS = ("default", "plain")


def fastest(job, work):
    """The peer in the fastest form that works, its name, and why the others did not."""
    seconds, failed = {}, {}
    for form in FORMS:
        try:
            with peer(job, work, form) as worker:
                worker.ask()
                seconds[form] = worker.ask()["seconds"]
        except Failed as why:
            failed[form] = str(why)
            print(f"  {work}: the peer's form {form} failed: {why}", file=sys.stderr)
    if not seconds:
        raise Failed(f"no form of the peer works: {failed}")
    form = min(seconds, key=seconds.get)
    notes = {"peer_form": form, "peer_forms_s": seconds}
    return peer(job, work, form), notes | ({"peer_forms_failed": failed} if failed else {})


def row(work, pairs, unit, target, **more):
    """`pairs` of (peer, ours), both smaller is better."""
    ratios = [p / o for p, o in pairs]
    return {
        "work": work,
        "peer": statistics.median(p for p, _ in pairs),
        "ours": statistics.median(o for _, o in pairs),
        "unit": unit,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "target": target,
        "runs": len(pairs),
        **more,
    }


def alternate(theirs, mine, runs, warm=1, command="run"):
    pairs = []
    for i in range(runs + warm):
        # Who goes first changes from pair to pair.
        if i % 2:
            own, other = mine.ask()["seconds"], theirs.ask(command)["seconds"]
        else:
            other, own = theirs.ask(command)["seconds"], mine.ask()["seconds"]
        pair = other, own
        if i >= warm:
            pairs.append(pair)
    return pairs


def plain(work, target, compute="f32"):
    def run(job):
        theirs, notes = fastest(job, work) if compute == "int8" else (peer(job, work), {})
        with theirs, ours(job, work, compute) as mine:
            pairs = alternate(theirs, mine, OPTIONS.runs)
            same = agreement(theirs.ask(), mine.ask())
        yield row(work, pairs, "s", target, arithmetic=compute, **same, **notes)

    return run


def agreement(theirs, mine):
    """How far apart the two sides' results are."""
    if "scores" in theirs:
        gap = max(abs(a - b) for a, b in zip(theirs["scores"], mine["scores"], strict=True))
        if gap > 1:
            raise Failed(f"the scores differ by up to {gap}: the two sides do not compute the same")
        return {"largest_score_difference": gap}
    if "tokens" in theirs:
        same = next((i for i, (a, b) in enumerate(zip(theirs["tokens"], mine["tokens"])) if a != b), 64)
        return {"equal_tokens_from_the_start": same}
    ratio = mine["gradient_norm"] / theirs["gradient_norm"]
    if abs(ratio - 1) > 1e-3:
        raise Failed(f"the gradients differ: their norms are {ratio:.5f} to 1")
    return {"loss_peer": theirs["loss"], "loss_ours": mine["loss"], "gradient_norm_ratio": ratio}


def auc(scores, labels):
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    ranks, i = [0.0] * len(scores), 0
    while i < len(order):
        j = i
        while j + 1 < len(order) and scores[order[j + 1]] == scores[order[i]]:
            j += 1
        for k in range(i, j + 1):
            ranks[order[k]] = (i + j) / 2 + 1
        i = j + 1
    yes = sum(labels)
    total = sum(r for r, label in zip(ranks, labels) if label)
    return (total - yes * (yes + 1) / 2) / (yes * (len(labels) - yes))


def epoch(job):
    """Optimiser steps in turn, so that both sides see the same machine; then both score the test samples."""
    tests = json.loads((job / "job.json").read_text())
    labels, steps = [s["label"] for s in tests["test"]], len(tests["batches"])
    pairs, f32 = [], []
    with (
        peer(job, "tallrec_epoch") as theirs,
        ours(job, "tallrec_epoch", "bf16") as mine,
        ours(job, "tallrec_epoch", "f32") as exact,
    ):
        for i in range(steps):
            p, o, e = theirs.ask("step")["seconds"], mine.ask("step")["seconds"], exact.ask("step")["seconds"]
            pairs.append((p, o))
            f32.append((p, e))
            print(f"  step {i + 1} of {steps}: {p:.2f} s, {o:.2f} s (bf16), {e:.2f} s (f32)", file=sys.stderr)
        aucs = {
            name: auc(worker.ask("score")["scores"], labels)
            for name, worker in [("auc_peer", theirs), ("auc_ours_bf16", mine), ("auc_ours_f32", exact)]
        }
    out = row("tallrec_epoch", pairs, "s a step of 16 samples", 2.5, arithmetic="bf16", test_samples=len(labels), **aucs)
    out["epoch_peer_s"], out["epoch_ours_s"] = (sum(x) for x in zip(*pairs, strict=True))
    same = {"test_samples": len(labels), "auc_peer": aucs["auc_peer"], "auc_ours_f32": aucs["auc_ours_f32"]}
    yield row("tallrec_epoch", f32, "s a step of 16 samples", 2.5, arithmetic="f32", **same)
    yield out


def train_memory(job):
    """Two steps of the epoch in processes of their own; the peer whole batches, and 4 samples at a time."""

    def peak(worker, command):
        with worker:
            worker.ask(command)
            return worker.ask(command)["peak_mib"]

    whole, accumulated, bf16 = [], [], []
    for _ in range(3):
        whole.append((peak(peer(job, "tallrec_epoch"), "step"), peak(ours(job, "tallrec_epoch", "f32"), "step")))
        accumulated.append((peak(peer(job, "tallrec_epoch"), "step 4"), whole[-1][1]))
        bf16.append((whole[-1][0], peak(ours(job, "tallrec_epoch", "bf16"), "step")))
    yield row("train_memory", whole, "MiB, peak", 2.5, arithmetic="f32")
    yield row("train_memory", bf16, "MiB, peak", 2.5, arithmetic="bf16")
    unit = "MiB, peak; the peer accumulates over 4 samples"
    yield row("train_memory", accumulated, unit, None, arithmetic="f32")


def lora_step(job):
    """f32 on both sides, then bf16 on both sides."""
    yield from plain("lora_step", 1.3)(job)
    if not any("bf16" in unit for unit in machine()["units"]):
        raise Failed("no bf16 row: this processor has no such unit, and the peer's autocast then takes minutes a step")
    with peer(job, "lora_step") as theirs, ours(job, "lora_step", "bf16") as mine:
        pairs = alternate(theirs, mine, OPTIONS.runs, command="bf16")
        losses = {"loss_peer": theirs.ask("bf16")["loss"], "loss_ours": mine.ask()["loss"]}
    yield row("lora_step", pairs, "s, the peer with bf16 autocast", None, arithmetic="bf16", **losses)


def device_side(job):
    for compute in ("f32", "bf16"):
        runs = []
        for _ in range(OPTIONS.runs):
            with ours(job, "device_side", compute) as worker:
                runs.append(worker.ask())
        detail = {k: statistics.median(r[k] for r in runs) for k in runs[0] if k != "seconds"}
        memory, seconds = detail["scored_mib"], detail["load_s"]
        fits = memory <= 80 and seconds <= 0.3
        yield {
            "work": "device_side", "arithmetic": compute, "peer": None, "ours": memory, "unit": "MiB after scoring",
            "ratio": 80 / memory, "target": "<= 80 MiB, <= 0.3 s", "met": fits, "load_s": seconds, "runs": OPTIONS.runs, "detail": detail,
        }


def split_overhead(job):
    pairs = []
    with ours(job, "split_overhead") as worker:
        for i in range(OPTIONS.runs + 1):
            pair = worker.ask("unsplit")["seconds"], worker.ask("split")["seconds"]
            if i:
                pairs.append(pair)
    out = row("split_overhead", pairs, "s a step of 16 samples", "<= 1.15 times the unsplit step", arithmetic="f32")
    out["times_unsplit"] = statistics.median(o / p for p, o in pairs)
    yield out


WORKS = {
    "lora_step": lora_step,
    "tallrec_epoch": epoch,
    "rank100": plain("rank100", 10),
    "rank100_quant": plain("rank100_quant", 1.5, "int8"),
    "generate64": plain("generate64", 0.8, "int8"),
    "train_memory": train_memory,
    "device_side": device_side,
    "split_overhead": split_overhead,
}


def main():
    rows, failed = [], []

    def keep():
        if OPTIONS.json:
            OPTIONS.json.write_text(json.dumps({"machine": machine(), "rows": rows, "failed": failed}, indent=1) + "\n")

    for work in OPTIONS.only or WORKS:
        print(f"{work} ...", file=sys.stderr)
        try:
            # Each row is kept as soon as it is made: a later one that fails takes none with it.
            for made in WORKS[work](OPTIONS.job):
                rows.append(made)
                print(json.dumps(made), file=sys.stderr)
                keep()
        except (Failed, OSError, ValueError, KeyError) as why:
            failed.append({"work": work, "why": f"{type(why).__name__}: {why}"})
            print(f"{work} has no figure, or not all: {why}", file=sys.stderr)
            keep()
    print(f"Processor: {machine()['cpu']}; {', '.join(machine()['units']) or 'no vector units that are named'}.\n")
    print("| work | our arithmetic | peer | ours | unit | ratio (min to max) | target | runs |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        spread = f" ({number(r['ratio_min'])} to {number(r['ratio_max'])})" if "ratio_min" in r else ""
        cells = [r["work"], r.get("arithmetic", "-"), number(r["peer"]), number(r["ours"]), r["unit"], number(r["ratio"]) + spread, r["target"] or "-", r["runs"]]
        print("| " + " | ".join(map(str, cells)) + " |")
    for f in failed:
        print(f"\n{f['work']} FAILED: {f['why']}")
    return 1 if failed else 0


def number(v):
    return f"{v:.3g}" if isinstance(v, (int, float)) else str(v or "-")


def machine():
    text = Path("/proc/cpuinfo").read_text()
    name = next((l.split(":")[1].strip() for l in text.splitlines() if l.startswith("model name")), "?")
    flags = set(next((l.split(":")[1].split() for l in text.splitlines() if l.startswith(("flags", "Features"))), []))
    wanted = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16"]
    return {"cpu": name, "cores": text.count("processor\t"), "units": [u for u in wanted if u in flags]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", choices=sorted(WORKS))
    parser.add_argument("--runs", type=int, default=5)
    OPTIONS = parser.parse_args()
    sys.exit(main())
