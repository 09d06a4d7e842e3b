"""Kept packages on the next-item task of `lethe bench recommend`.

EASE, BPR and LightGCN are RecBole's, ALS is implicit's; RecBole's SASRec and GRU4Rec run when
they are named (`sequential.py` has better ones). The split is the bench's: per person by (time, tie order), last event test, second last validation, full catalogue,
seen items masked. `order` 0 breaks ties in time by the file; others by a hash of seed, person and
item, as the bench does.

    benches/recommend/run.sh                # makes the environment, runs what is missing

Rows that are in the output file are not run again. Hyper-parameters are the packages' defaults
with early stopping on validation NDCG@10 (RecBole) and 64 factors (ALS, its grid on validation).
"""

import argparse
import hashlib
import json
import pathlib
import sys
import time
import types


def stub_modules():
    """RecBole imports ray and hyperopt for a search that is not used here."""
    for name in ["ray", "ray.tune", "hyperopt", "hyperopt.pyll", "hyperopt.pyll.base"]:
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["ray"].tune = sys.modules["ray.tune"]
    for name in ["fmin", "tpe", "hp", "Trials"]:
        setattr(sys.modules["hyperopt"], name, None)


def events(folder, order):
    """Rows (user, item, rank within the person) in the bench's order."""
    lines = (folder / "ml-100k.inter").read_text().splitlines()[1:]
    rows = []
    for at, line in enumerate(lines):
        user, item, _, stamp = line.split("\t")
        key = at
        if order:
            digest = hashlib.sha256(f"order {order} {user} {item}".encode()).digest()
            key = int.from_bytes(digest[:8], "big")
        rows.append((user, float(stamp), key, item))
    people = {}
    for row in rows:
        people.setdefault(row[0], []).append(row)
    return {
        user: [item for _, _, _, item in sorted(own, key=lambda r: (r[1], r[2]))]
        for user, own in people.items()
    }


def metrics(ranks):
    import math

    hits = [r for r in ranks if r < 10]
    ndcg = sum(1 / math.log2(r + 2) for r in hits) / len(ranks)
    return len(hits) / len(ranks), ndcg


def recbole(name, order, people, work, epochs):
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    folder = work / f"ml{order}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"ml{order}.inter", "w") as f:
        f.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, items in people.items():
            for at, item in enumerate(items):
                f.write(f"{user}\t{item}\t{at}\n")
    settings = {
        "data_path": str(work),
        "seed": 2026 + order,
        "reproducibility": True,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
        "metrics": ["Hit", "NDCG"],
        "topk": 10,
        "valid_metric": "NDCG@10",
        "epochs": epochs,
        "stopping_step": 10,
        "show_progress": False,
        "state": "ERROR",
        "metric_decimal_place": 6,
        "checkpoint_dir": str(work / "saved"),
        "use_gpu": False,
    }
    if name in ("SASRec", "GRU4Rec"):
        settings["train_neg_sample_args"] = None
        settings["loss_type"] = "CE"
    if name == "EASE":
        settings["epochs"] = 1
        settings["reg_weight"] = 500.0
    config = Config(model=name, dataset=f"ml{order}", config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    data = create_dataset(config)
    train, valid, test = data_preparation(config, data)
    started = time.perf_counter()
    model = get_model(config["model"])(config, train.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    best, _ = trainer.fit(train, valid, saved=True, show_progress=False, verbose=False)
    seconds = time.perf_counter() - started
    result = trainer.evaluate(test, load_best_model=True, show_progress=False)
    if name == "EASE":
        size = model.item_similarity.size * 4
    else:
        size = sum(p.numel() * p.element_size() for p in model.parameters())
    if name in ("BPR", "LightGCN"):
        # A device holds the items' vectors and its own.
        size = size * (data.item_num + 1) // (data.item_num + data.user_num)
    times = []
    for at, batch in enumerate(test):
        interaction = batch[0]
        for row in range(min(len(interaction), 200)):
            one = interaction[row : row + 1]
            begin = time.perf_counter()
            with torch.no_grad():
                model.full_sort_predict(one)
            times.append(time.perf_counter() - begin)
        break
    times.sort()
    return {
        "hr10": float(result["hit@10"]),
        "ndcg10": float(result["ndcg@10"]),
        "seconds": seconds,
        "epochs": len(trainer.train_loss_dict),
        "device_bytes": int(size),
        "list_ms": 1000 * times[len(times) // 2],
    }


def als(order, people, _):
    import numpy
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    items = {}
    for own in people.values():
        for item in own:
            items.setdefault(item, len(items))

    def matrix(cut):
        at = [(u, items[i]) for u, own in enumerate(people.values()) for i in own[:cut]]
        rows, cols = zip(*at)
        return csr_matrix((numpy.ones(len(at), "f4"), (rows, cols)), (len(people), len(items)))

    def ranks(model, history, target):
        users = model.recalculate_user(range(len(people)), history)
        scores = users @ model.item_factors.T
        out = []
        for u, own in enumerate(people.values()):
            row = scores[u].copy()
            row[history[u].indices] = -numpy.inf
            wanted = items[own[target]]
            out.append(int((row > row[wanted]).sum()))
        return out

    train = matrix(-2)
    best = None
    for regularization in (0.01, 1.0, 10.0):
        for alpha in (1.0, 4.0):
            began = time.perf_counter()
            model = AlternatingLeastSquares(
                factors=64,
                regularization=regularization,
                alpha=alpha,
                iterations=20,
                random_state=2026 + order,
                num_threads=2,
            )
            model.fit(train, show_progress=False)
            took = time.perf_counter() - began
            score = metrics(ranks(model, train, -2))[1]
            if best is None or score > best[0]:
                best = (score, model, took)
    _, model, seconds = best
    history = matrix(-1)
    hr, ndcg = metrics(ranks(model, history, -1))
    times = []
    for u in range(200):
        began = time.perf_counter()
        row = model.recalculate_user(u, history[u])
        (row @ model.item_factors.T).argsort()
        times.append(time.perf_counter() - began)
    return {
        "hr10": hr,
        "ndcg10": ndcg,
        "seconds": seconds,
        "epochs": 20,
        "device_bytes": int(model.item_factors.nbytes),
        "list_ms": 1000 * sorted(times)[100],
    }


def options(description, peers):
    """What both programs take; `peers` run when none are named."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of MovieLens-100K")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="scratch folder")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="table, one JSON row a line")
    parser.add_argument("--orders", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peers", nargs="+", default=peers)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def done(out):
    """Peer, package and order of the rows that are there."""
    lines = out.read_text().splitlines() if out.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["peer"], row["package"], row["order"]) for row in rows}


def main():
    parser = options(__doc__, ["ALS", "EASE", "BPR", "LightGCN"])
    parser.add_argument(
        "--epochs", type=int, default=300, help="at most; a few, to time an epoch on a quiet machine"
    )
    args = parser.parse_args()
    stub_modules()
    import torch

    torch.set_num_threads(args.threads)
    known = done(args.out)
    for order in args.orders:
        people = events(args.data, order)
        for peer in args.peers:
            package = "implicit" if peer == "ALS" else "RecBole"
            if (peer, package, order) in known:
                continue
            if peer == "ALS":
                row = als(order, people, args.work)
            else:
                row = recbole(peer, order, people, args.work, args.epochs)
            head = {"peer": peer, "package": package, "order": order, "threads": args.threads}
            row = {**head, **row}
            with open(args.out, "a") as f:
                f.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
