"""SASRec and GRU4Rec on the next-item task of `lethe bench recommend`, trained on whole histories.

RecBole trains one position a row, which takes an hour and ends early. RecTools' transformer
trains every position of a history at once with cross-entropy over the catalogue. GRU4Rec is the same
pipeline with torch's GRU in place of the attention blocks (Hidasi and Karatzoglou, CIKM 2018, with
full softmax). Split, orders of ties and metrics are those of `peers.py`.

    benches/recommend/run.sh --sequential            # runs what is missing
    benches/recommend/run.sh --sequential --grid     # prints the grid on validation, order 0

Training stops when validation NDCG@10 has not risen for 30 epochs; the best epoch is tested once.
The time to train counts epochs up to the best one: nobody has to train the others to serve.
"""

import copy
import json
import logging
import time
import warnings

import numpy
import pandas
import torch
from pytorch_lightning import Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.net_blocks import TransformerLayersBase

from peers import done, events, metrics, options

STEP = 5
PATIENCE = 6


class GruLayers(TransformerLayersBase):
    """Gated recurrent layers in place of attention blocks."""

    def __init__(self, n_blocks, n_factors, n_heads, dropout_rate, **kwargs):
        super().__init__()
        self.drop = torch.nn.Dropout(dropout_rate)
        self.gru = torch.nn.GRU(n_factors, n_factors * n_heads, n_blocks, batch_first=True)
        self.dense = torch.nn.Linear(n_factors * n_heads, n_factors)

    def forward(self, seqs, timeline_mask, attn_mask, key_padding_mask, **kwargs):
        hidden, _ = self.gru(self.drop(seqs * timeline_mask))
        return self.dense(self.drop(hidden)) * timeline_mask


# Chosen on validation events of order 0, see `--grid`.
CHOSEN = {
    "SASRec": {"session_max_len": 200},
    "GRU4Rec": {"session_max_len": 100},
}
GRID = [{"session_max_len": 100}, {"session_max_len": 200}]


def trainer():
    return Trainer(
        min_epochs=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        devices=1,
    )


def make(name, settings):
    common = {
        "n_blocks": 2,
        "n_heads": 2,
        "n_factors": 64,
        "dropout_rate": 0.3,
        "lr": 1e-3,
        "batch_size": 64,
        "loss": "softmax",
        **settings,
    }
    if name == "GRU4Rec":
        common["transformer_layers_type"] = GruLayers
        common["use_pos_emb"] = False
        common["n_blocks"] = 1
    return SASRecModel(get_trainer_func=trainer, **common)


def dataset(people, cut):
    start = pandas.Timestamp("2000-01-01")
    rows = [
        (user, item, 1.0, start + pandas.Timedelta(seconds=at))
        for user, own in people.items()
        for at, item in enumerate(own[:cut])
    ]
    names = [Columns.User, Columns.Item, Columns.Weight, Columns.Datetime]
    return Dataset.construct(pandas.DataFrame(rows, columns=names))


def quality(model, data, people, target):
    """HR@10 and NDCG@10 over everybody: seen items masked, the whole catalogue of the training."""
    users = numpy.array(list(people))
    lists = model.recommend(users=users, dataset=data, k=10, filter_viewed=True)
    wanted = {user: own[target] for user, own in people.items()}
    hits = lists[lists[Columns.Item] == lists[Columns.User].map(wanted)]
    ranks = dict(zip(hits[Columns.User], hits[Columns.Rank] - 1))
    return metrics([ranks.get(user, 10) for user in people])


def list_ms(model, data, people):
    """Median time of one person's list, with the package's own call."""
    times = []
    for user in list(people)[:50]:
        began = time.perf_counter()
        model.recommend(users=numpy.array([user]), dataset=data, k=10, filter_viewed=True)
        times.append(time.perf_counter() - began)
    return 1000 * sorted(times)[25]


def train(name, order, people, settings, most):
    known = dataset(people, -2)
    seed_everything(2026 + order, verbose=False)
    model = make(name, settings)
    spent = 0.0
    best = None
    stale = 0
    for epoch in range(STEP, most + 1, STEP):
        began = time.perf_counter()
        model.fit_partial(known, min_epochs=STEP, max_epochs=STEP)
        spent += time.perf_counter() - began
        valid = quality(model, known, people, -2)
        print(f"{name} order {order} epoch {epoch} {spent:.0f} s {valid}", flush=True)
        if best is None or valid[1] > best["valid"][1]:
            weights = copy.deepcopy(model.torch_model.state_dict())
            best = {"valid": valid, "epochs": epoch, "seconds": spent, "weights": weights}
            stale = 0
        else:
            stale += 1
        if stale >= PATIENCE:
            break
    model.torch_model.load_state_dict(best["weights"])
    return model, best


def row(name, order, people, settings, most):
    model, best = train(name, order, people, settings, most)
    history = dataset(people, -1)
    hr, ndcg = quality(model, history, people, -1)
    sizes = [p.numel() * p.element_size() for p in model.torch_model.parameters()]
    return {
        "hr10": hr,
        "ndcg10": ndcg,
        "seconds": best["seconds"],
        "epochs": best["epochs"],
        "device_bytes": int(sum(sizes)),
        "list_ms": list_ms(model, history, people),
    }


def main():
    parser = options(__doc__, ["GRU4Rec", "SASRec"])
    parser.add_argument("--epochs", type=int, default=300, help="at most")
    parser.add_argument("--grid", action="store_true", help="the grid on validation, order 0")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    if args.grid:
        people = events(args.data, 0)
        for name in args.peers:
            for settings in GRID:
                _, best = train(name, 0, people, settings, args.epochs)
                print("GRID", name, settings, best["valid"], best["epochs"], flush=True)
        return
    known = done(args.out)
    for order in args.orders:
        people = events(args.data, order)
        for name in args.peers:
            if (name, "RecTools", order) in known:
                continue
            result = row(name, order, people, CHOSEN[name], args.epochs)
            head = {
                "peer": name,
                "package": "RecTools",
                "order": order,
                "threads": args.threads,
            }
            result = {**head, **result}
            with open(args.out, "a") as f:
                f.write(json.dumps(result) + "\n")
            print(result, flush=True)


if __name__ == "__main__":
    main()
