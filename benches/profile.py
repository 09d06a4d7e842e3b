"""Sums the lines of `perf report` by kernel: the first pattern that a symbol has decides."""

import re
import sys

GROUPS = [
    ("attention", r"kernels::(attention|tiled)"),
    ("decoding of stored weights", r"kernels::stored|lethe_model::dtype"),
    ("packing of rows", r"pack_block|tile::pack|avx512::pack|avx2::pack|amx::bf16::pack|quant::Packed"),
    ("weights for the other direction", r"kernels::transpose"),
    ("products with frozen weights", r"kernels::(tile|panels|linear|quant)"),
    ("LoRA products", r"gemm"),
    ("norms", r"kernels::norm"),
    ("rotary embedding", r"kernels::rope"),
    ("SwiGLU", r"kernels::math"),
    ("copies and clearing", r"mem(cpy|move|set)"),
    ("waiting for work (rayon)", r"rayon_core|crossbeam|sched_yield"),
    ("the system", r"\[k\]"),
]

sums: dict[str, float] = {}
rest: list[tuple[float, str]] = []
for line in sys.stdin:
    found = re.match(r"\s+([\d.]+)%\s+(.*\S)", line)
    if not found:
        continue
    share, symbol = float(found[1]), found[2]
    group = next((name for name, pattern in GROUPS if re.search(pattern, symbol)), None)
    if group is None:
        group = "other"
        rest.append((share, symbol))
    sums[group] = sums.get(group, 0.0) + share

for name, share in sorted(sums.items(), key=lambda item: -item[1]):
    print(f"{share:6.1f} %  {name}")
for share, symbol in sorted(rest, reverse=True)[:8]:
    print(f"{share:8.2f} %  of other: {symbol[:100]}")
