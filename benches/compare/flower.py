"""Rounds of Flower with N clients on this machine, to stand beside `lethe fleet --clients N`.

The server is Flower's own `start_server` (gRPC streams: nobody polls) with its FedAvg, without TLS; the clients are Flower's own
`start_client`, many threads to a process, and answer with a constant vector. All clients take part in every round. As in `lethe fleet`, one
round more than `--rounds` is run, and the first one, which warms up, is not counted.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

PER_PROCESS = 250


def server(args):
    import flwr
    import numpy as np
    from flwr.server import ServerConfig
    from flwr.server.strategy import FedAvg

    try:
        from flwr.server import start_server
    except ImportError:
        from flwr.compat.server.app import start_server

    class Timed(FedAvg):
        marks, counts, cpu = [], [], []

        def note(self):
            self.marks.append(time.monotonic())
            usage = resource.getrusage(resource.RUSAGE_SELF)
            self.cpu.append(usage.ru_utime + usage.ru_stime)

        def configure_fit(self, *a, **k):
            if not self.marks:
                # Until all have come.
                k.get("client_manager", a[2] if len(a) > 2 else None).wait_for(args.clients, 600)
                self.note()
            return super().configure_fit(*a, **k)

        def aggregate_fit(self, rnd, results, failures):
            out = super().aggregate_fit(rnd, results, failures)
            self.counts.append(len(results))
            self.note()
            return out

    start = flwr.common.ndarrays_to_parameters([np.zeros(args.values, dtype=np.float32)])
    strategy = Timed(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=args.clients,
        min_available_clients=args.clients,
        initial_parameters=start,
    )
    start_server(server_address=args.address, config=ServerConfig(num_rounds=args.rounds + 1), strategy=strategy)
    for figures in (strategy.marks, strategy.counts, strategy.cpu):
        figures.pop(0)
    lengths = sorted(1000 * (b - a) for a, b in zip(strategy.marks, strategy.marks[1:]))
    at = lambda q: lengths[min(len(lengths) - 1, int(q * len(lengths)))]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    row = {
        "clients": args.clients,
        "values": args.values,
        "rounds": len(lengths),
        "updates": sum(strategy.counts),
        "rounds_per_second": len(lengths) / (strategy.marks[-1] - strategy.marks[0]),
        "round_p50_ms": at(0.5),
        "round_p99_ms": at(0.99),
        "coordinator_rss_mib": usage.ru_maxrss / 1024,
        "coordinator_cpu_s": strategy.cpu[-1] - strategy.cpu[0],
        "peer": f"flwr {flwr.__version__}, start_server, FedAvg, f32, without TLS",
    }
    text = json.dumps(row, indent=1)
    print(text)
    if args.json:
        with open(args.json, "w") as f:
            f.write(text)


def clients(args):
    import numpy as np
    from flwr.client import NumPyClient

    try:
        from flwr.client import start_client
    except ImportError:
        from flwr.compat.client.app import start_client

    class Constant(NumPyClient):
        vector = np.full(args.values, 1e-3, dtype=np.float32)

        def get_parameters(self, config):
            return [self.vector]

        def fit(self, parameters, config):
            return [self.vector], 4, {}

    def one():
        start_client(server_address=args.address, client=Constant().to_client(), insecure=True)

    threads = [threading.Thread(target=one) for _ in range(args.clients)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--clients", type=int, required=True)
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--values", type=int, default=30720)
    p.add_argument("--address", default="127.0.0.1:18080")
    p.add_argument("--json")
    p.add_argument("--role", choices=["server", "clients"])
    args = p.parse_args()
    if args.role == "server":
        return server(args)
    if args.role == "clients":
        import logging

        logging.disable(logging.INFO)
        return clients(args)
    # Both sides as processes of their own.
    own = [sys.executable, os.path.abspath(__file__), "--rounds", str(args.rounds), "--values", str(args.values)]
    own += ["--address", args.address]
    serving = own + ["--role", "server", "--clients", str(args.clients)]
    host = subprocess.Popen(serving + (["--json", args.json] if args.json else []))
    time.sleep(3)
    fleet, left = [], args.clients
    while left > 0:
        n = min(left, PER_PROCESS)
        left -= n
        command = own + ["--role", "clients", "--clients", str(n)]
        fleet.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    try:
        sys.exit(host.wait())
    finally:
        for f in fleet:
            f.kill()


if __name__ == "__main__":
    main()
