"""The peers' side: PyTorch with transformers and PEFT, and llama.cpp. Same job, same commands as `bench-compare worker`."""

import json
import os
import resource
import sys
import time
from pathlib import Path


THREADS = len(os.sched_getaffinity(0))


def serve(run):
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        answer = run(line.strip())
        answer.setdefault("seconds", time.perf_counter() - started)
        answer["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(answer), flush=True)


def torch_model(job, lora):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    path = Path(job["model"])
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    if lora:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, lora, is_trainable=True)
    return model


def answer_logits(model, answers, sequences):
    """Two logits at the last token of right-padded sequences; nothing else of the head is computed."""
    import torch

    longest = max(len(s) for s in sequences)
    ids = torch.tensor([s + [0] * (longest - len(s)) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    base = model.base_model.model if hasattr(model, "peft_config") else model
    hidden = base.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(sequences)), torch.tensor([len(s) - 1 for s in sequences])]
    return last @ base.lm_head.weight[answers].T


def loss_of(model, job, batch):
    import torch

    labels = torch.tensor([int(s["label"]) for s in batch])
    logits = answer_logits(model, job["answers"], [s["ids"] for s in batch])
    return torch.nn.functional.cross_entropy(logits, labels)


def lora_step(job, folder):
    import torch

    model = torch_model(job, folder / "adapter")
    model.train()

    def run(command):
        # "bf16": PyTorch's own mixed precision on CPUs.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=command == "bf16"):
            loss = loss_of(model, job, job["step"])
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.stack([g.double().square().sum() for g in grads]).sum().sqrt().item()
        model.zero_grad(set_to_none=True)
        return {"loss": loss.item(), "gradient_norm": norm}

    serve(run)


def tallrec_epoch(job, folder):
    import torch

    model = torch_model(job, folder / "adapter")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.01)
    total, warmup = len(job["batches"]), 8
    batches = iter(job["batches"])
    step = 0

    def run(command):
        nonlocal step
        if command == "score":
            model.eval()
            scores = []
            with torch.no_grad():
                for i in range(0, len(job["test"]), 16):
                    part = [s["ids"] for s in job["test"][i : i + 16]]
                    logits = answer_logits(model, job["answers"], part)
                    scores += (logits[:, 1] - logits[:, 0]).tolist()
            return {"scores": scores}
        model.train()
        rate = step / warmup if step < warmup else (total - step) / max(total - warmup, 1)
        for group in optimiser.param_groups:
            group["lr"] = 5e-4 * rate
        batch, total_loss = next(batches), 0.0
        # "step N": N samples at a time, gradients accumulated.
        size = int(command.split()[1]) if " " in command else len(batch)
        for i in range(0, len(batch), size):
            part = batch[i : i + size]
            loss = loss_of(model, job, part) * (len(part) / len(batch))
            loss.backward()
            total_loss += loss.item()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        return {"loss": total_loss}

    serve(run)


def rank100(job, _):
    import torch

    model = torch_model(job, None).eval()

    def run(_):
        scores = []
        with torch.no_grad():
            for i in range(0, len(job["rank"]), 16):
                logits = answer_logits(model, job["answers"], job["rank"][i : i + 16])
                scores += (logits[:, 1] - logits[:, 0]).tolist()
        return {"scores": scores}

    serve(run)


def plain_weights():
    """llama.cpp leaves the weights as they lie in the file: no repacking, so no AMX either."""
    import llama_cpp

    default = llama_cpp.llama_cpp.llama_model_default_params

    def params():
        made = default()
        if "use_extra_bufts" not in {name for name, _ in made._fields_}:
            raise SystemExit("this llama.cpp has no switch for repacking: its default form is its only one")
        made.use_extra_bufts = False
        return made

    # The module's own classes look it up there, our code in the package.
    llama_cpp.llama_cpp.llama_model_default_params = params
    llama_cpp.llama_model_default_params = params


def llama(job, **options):
    from llama_cpp import Llama

    return Llama(job["model"], n_threads=THREADS, n_threads_batch=THREADS, verbose=False, **options)


def rank100_quant(job, _):
    """The common prefix is evaluated once and its cache kept; then all candidates' own tokens, as sequences that share it."""
    import ctypes

    import llama_cpp
    import numpy as np

    sequences = job["rank"]
    prefix = 0
    while all(len(s) > prefix + 1 and s[prefix] == sequences[0][prefix] for s in sequences):
        prefix += 1
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(job["model"].encode(), params)
    options = llama_cpp.llama_context_default_params()
    room = prefix + sum(len(s) - prefix for s in sequences)
    options.n_ctx, options.n_batch, options.n_ubatch = room + 256, room, 512
    options.n_seq_max, options.kv_unified = 128, True
    options.n_threads = options.n_threads_batch = THREADS
    context = llama_cpp.llama_init_from_model(model, options)
    memory = llama_cpp.llama_get_memory(context)
    batch = llama_cpp.llama_batch_init(room, 0, 1)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def decode():
        if llama_cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama.cpp did not decode the batch")

    def add(token, position, sequence, wanted):
        i = batch.n_tokens
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
        batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        batch.n_tokens += 1

    def run(_):
        llama_cpp.llama_memory_clear(memory, True)
        batch.n_tokens = 0
        for i in range(prefix):
            add(sequences[0][i], i, 0, False)
        decode()
        for s in range(1, len(sequences) + 1):
            llama_cpp.llama_memory_seq_cp(memory, 0, s, -1, -1)
        batch.n_tokens = 0
        last = []
        for s, tokens in enumerate(sequences, 1):
            for i in range(prefix, len(tokens)):
                add(tokens[i], i, s, i == len(tokens) - 1)
            last.append(batch.n_tokens - 1)
        decode()
        scores = []
        for i in last:
            at = llama_cpp.llama_get_logits_ith(context, i)
            logits = np.ctypeslib.as_array(ctypes.cast(at, ctypes.POINTER(ctypes.c_float)), (vocabulary,))
            no, yes = job["answers"]
            scores.append(float(logits[yes] - logits[no]))
        return {"scores": scores}

    serve(run)


def generate64(job, _):
    model = llama(job, n_ctx=1024)

    def run(_):
        model.reset()
        tokens = []
        for token in model.generate(job["prompt"], temp=0.0, repeat_penalty=1.0, reset=True):
            tokens.append(token)
            if len(tokens) == 64:
                break
        return {"tokens": tokens}

    serve(run)


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    works = {f.__name__: f for f in (lora_step, tallrec_epoch, rank100, rank100_quant, generate64)}
    if sys.argv[3:] == ["plain"]:
        plain_weights()
    works[sys.argv[2]](json.loads((directory / "job.json").read_text()), directory)
