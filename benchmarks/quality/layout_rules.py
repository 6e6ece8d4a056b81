"""How long the default rules take on large trees: assigning layouts, and making and printing the summary.

python benchmarks/quality/layout_rules.py                             # half a minute
python benchmarks/quality/layout_rules.py --against ../older_clone    # side by side with another checkout
python benchmarks/quality/layout_rules.py --quick                     # small trees
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

from benchmarks.shared.report import ROOT, Progress, Report, Row, finish, parser

ROUNDS, QUICK_ROUNDS = 5, 1
LEAVES, QUICK_LEAVES = (16_000, 23_000), (160, 230)
TREE = ROOT / "tests" / "real_models" / "tunix_llama3p1_8b.json"
# Layer 0 of a real model again and again. Prints the seconds of the assignment and of the printed summary.
TIMED = """
import json, sys, time, warnings
import jax, jax.numpy as jnp
import muon_optax as mo
warnings.simplefilter("ignore")
file, *sizes = sys.argv[1:]
given = json.load(open(file))["leaves"]
layer = [(path, shape) for path, shape, *_ in given if "layers/0/" in path]
rest = [(path, shape) for path, shape, *_ in given if "layers/" not in path]
def tree(size):
    root, number, leaves = {}, 0, list(rest)
    while len(leaves) < size:
        leaves += [(path.replace("layers/0/", f"layers/{number}/"), shape) for path, shape in layer]
        number += 1
    for path, shape in leaves[:size]:
        node = root
        *scopes, name = path.split("/")
        for scope in scopes:
            node = node.setdefault(scope, {})
        node[name] = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    return root
few, many = (tree(int(size)) for size in sizes)
mo.assign_layouts(tree(40))
started = time.perf_counter()
mo.assign_layouts(few)
assigned = time.perf_counter()
str(mo.summarize(many))
print(assigned - started, time.perf_counter() - assigned)
"""
NOTES = ["Abstract arrays: nothing is computed on them. Each round starts an interpreter for each checkout, by turns."]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--against", type=Path, help="another checkout of the repository")
    given = options.parse_args(arguments)
    rounds, sizes = (QUICK_ROUNDS, QUICK_LEAVES) if given.quick else (ROUNDS, LEAVES)
    checkouts = {"here": ROOT} | ({"against": given.against.resolve()} if given.against else {})
    report = Report("layout_rules", "CPU", NOTES)
    with Progress(rounds, report.name) as step:
        report.rows = measure(checkouts, sizes, rounds, step)
    finish(report, given.output)


def measure(checkouts: dict[str, Path], sizes: tuple[int, int], rounds: int, step: Progress) -> list[Row]:
    """A row for each checkout: medians of seconds, and their ratios to the other's."""
    times: dict[str, list[list[float]]] = {name: [] for name in checkouts}
    for number in range(1, rounds + 1):
        for name in sorted(checkouts, reverse=number % 2 == 0):
            times[name].append(seconds(checkouts[name], sizes))
        step(f"round {number}")
    rows = []
    for name, found in times.items():
        assigned, summary = (median(column) for column in zip(*found, strict=True))
        rows.append(
            {
                "table": "medians",
                "checkout": name,
                f"assign {sizes[0]:,} leaves, s": assigned,
                f"print {sizes[1]:,} leaves, s": summary,
            }
        )
    return rows


def seconds(checkout: Path, sizes: tuple[int, int]) -> list[float]:
    """Of the assignment, and of the summary."""
    command = [sys.executable, "-c", TIMED, str(TREE), *map(str, sizes)]
    environment = {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}
    # In the checkout: what stands in the current folder is imported first.
    finished = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    return list(map(float, finished.stdout.split()))


if __name__ == "__main__":
    main()
