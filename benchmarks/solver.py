"""Measure time, memory and optimality gap of the solver, against the dense solvers on PyPI.

python benchmarks/solver.py [--large | --beside-scipy] [--peers FOLDER] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measuring import GIB, in_turn, product, reset_peak, resident, timed

from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.parts import Parts
from saematch.matching.planted import planted
from saematch.matching.solver.solve import SolverResources, solve_assignment

SIZE = 4609
"""Numbers in a Gemma 2 2B feature: decoder and encoder vectors of 2,304 each, and a bias."""
OURS = "saematch"
PEERS = ("scipy", "lap", "lapx", "lapjv", "pot", "ortools")
WIDTHS = (1024, 2048, 4096, 8192, 16384)
SMALL_WIDTHS = (64, 128, 256, 512, 1024)
"""Widths at which the solver and SciPy take turns (``Case.beside``)."""
ZOO_SIZE = 257
"""Numbers in a feature of the embedded SAEs."""
MOST_OF_SCIPY = 1.2
"""Bound on the time of the solver, as a multiple of SciPy's, both with the product."""
LEAST = 1e-4
"""Least value in the figure, whose axes are logarithmic; small problems add no memory."""
SLOWEST = {"lap": 8192, "lapx": 8192, "pot": 4096, "ortools": 2048}
"""Largest width measured for a peer. Larger widths take many minutes or exceed the memory."""


@dataclass(frozen=True)
class Case:
    """One measurement of one solver."""

    solver: str
    instance: str
    """``planted``, ``random``, or ``zoo S-T`` for two layers of the embedded SAEs."""
    n: int
    """Number of features in each SAE."""
    size: int
    """Length of a feature's vector."""
    repeats: int
    peers: str = ""
    """Folder with the packages of the peers."""
    memory_gib: float | None = None
    beside: str = ""
    """Solver that takes turns with this one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="65,536 and 131,072 features instead")
    parser.add_argument(
        "--beside-scipy", action="store_true", help="64 to 1,024 features only, beside SciPy"
    )
    parser.add_argument("--peers", type=Path, default=Path("benchmarks/peers"))
    parser.add_argument("--out", type=Path, default=Path("outputs/bench-solver"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print("RESULT " + json.dumps(measure(Case(**json.loads(options.child)))))
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, numpy {np.__version__}\n")
    options.out.mkdir(parents=True, exist_ok=True)
    peers = str(options.peers.resolve())
    name = "large" if options.large else "beside_scipy" if options.beside_scipy else "small"
    cases = {
        "large": large, "beside_scipy": beside_scipy, "small": lambda: small(options.repeats, peers)
    }[name]()  # fmt: skip
    rows = [run(case) for case in cases]
    (options.out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    if name == "small":
        figure(rows, options.out)
    verdicts(rows, options.large)


def small(repeats: int, peers: str) -> list[Case]:
    """Return cases of this solver on every instance, and of every peer on the planted instance."""
    cases = [
        Case(OURS, instance, n, SIZE, repeats) for instance in ("planted", "random") for n in WIDTHS
    ]
    cases += [
        Case(peer, "planted", n, SIZE, 1, peers)
        for n in WIDTHS
        for peer in PEERS
        if n <= SLOWEST.get(peer, WIDTHS[-1])
    ]
    cases += [Case("scipy", "random", n, SIZE, 1) for n in WIDTHS]
    cases += [Case(OURS, "planted", 8192, 1024, repeats)]
    return cases + beside_scipy()


def beside_scipy() -> list[Case]:
    """Return small cases, in which the solver and SciPy take turns many times."""
    return [
        Case(OURS, instance, n, size, max(9, 12800 // n), beside="scipy")
        for n in SMALL_WIDTHS
        for instance, size in (
            *((name, size) for name in ("planted", "random") for size in (ZOO_SIZE, SIZE)),
            *((f"zoo {layers}", ZOO_SIZE) for layers in ("2-3", "6-7")),
        )
    ]


def large() -> list[Case]:
    """Return cases whose similarities do not fit into memory."""
    return [
        Case(OURS, "planted", 65536, SIZE, 1, memory_gib=2.0),
        Case(OURS, "planted", 131072, 2304, 1, memory_gib=3.0),
    ]


def run(case: Case) -> dict:
    """Measure in a fresh process, so that the peak memory belongs to this case alone."""
    command = [sys.executable, __file__, "--child", json.dumps(asdict(case))]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    label = f"{case.solver:<9} {case.instance:<8} {case.n:>7}"
    if case.beside:
        label += f" x {case.size:<5}"
    if process.returncode:
        print(f"{label}  failed ({process.returncode})", flush=True)
        return {**asdict(case), "failed": process.returncode}
    row = json.loads(process.stdout.split("RESULT ", 1)[1])
    if case.beside:
        print(
            f"{label} {1e3 * row['seconds']:8.3f} ms, {case.beside} {1e3 * row['peer']:8.3f} ms: "
            f"ratio {row['ratio']:.2f}",
            flush=True,
        )
        return row
    gap = "" if row["gap"] is None else f"gap {row['gap']:.0e} {row['regime']}"
    print(
        f"{label} x {case.size:<5} product {row['product']:7.2f} s, all "
        f"{row['seconds']:7.2f} s = {row['ratio']:6.2f} products, {row['above_input_gib']:.2f} GiB "
        f"above the input, {row['peak_gib']:.2f} in all; contested {row['contested']} {gap}",
        flush=True,
    )
    return row


def measure(case: Case) -> dict:
    """Time product and solution together, alternating with the bare product."""
    factors = make(case)
    solve = SOLVERS[case.solver](Path(case.peers))
    solve(planted(200, 8).factors, None)  # compile, import
    if case.beside:
        peer = SOLVERS[case.beside](Path(case.peers))
        peer(factors, None)
        seconds = in_turn(lambda: solve(factors, None), lambda: peer(factors, None), case.repeats)
        return {
            **asdict(case), "seconds": seconds.ours, "peer": seconds.peer, "ratio": seconds.ratio,
        }  # fmt: skip
    reset_peak()
    before = resident("VmRSS")
    seconds, products, peak = [], [], 0
    for _ in range(case.repeats):
        started = time.perf_counter()
        value, gap, regime, scanned_again = solve(factors, case.memory_gib)
        seconds.append(time.perf_counter() - started)
        peak = max(peak, resident("VmHWM"))
        products.append(timed(lambda: bare_product(factors)))
        reset_peak()
    return {
        "solver": case.solver, "instance": case.instance, "n": case.n, "size": case.size,
        "beside": "", "seconds": median(seconds), "product": median(products),
        "ratio": median(s / p for s, p in zip(seconds, products, strict=True)),
        "above_input_gib": (peak - before) / GIB, "peak_gib": peak / GIB,
        "value": value, "gap": gap, "regime": regime, "scanned_again": scanned_again,
        "contested": contested(factors),
    }  # fmt: skip


def make(case: Case) -> Factors:
    """Return the vectors of an instance."""
    if case.instance.startswith("zoo"):
        from saematch.sae.folding import fold
        from saematch.sae.sources.source import ZooSaes

        layers = (int(layer) for layer in case.instance.split()[1].split("-"))
        saes = ZooSaes("independent", SMALL_WIDTHS[-1], 20)
        whole = Parts().factors(*(fold(saes.load(layer), "threshold") for layer in layers))
        return Factors(whole.X_A[: case.n].contiguous(), whole.X_B[: case.n].contiguous())
    persist = 0.7 if case.instance == "planted" else 0.0
    return planted(case.n, case.size, persist=persist).factors


def bare_product(factors: Factors) -> None:
    """Compute the float32 product alone; in blocks if the whole product needs 4 GiB or more."""
    x, y = factors.X_A, factors.X_B
    if 4 * len(x) * len(y) < 4 * GIB:
        torch.mm(x, y.T)
    else:
        product(x, y)


def contested(factors: Factors) -> float | None:
    """Return the hardness: the share of rows that have the same best column as another row."""
    x, y = factors.X_A, factors.X_B
    if len(x) > 20000:
        return None  # another product would take minutes
    best = torch.cat([(x[k : k + 512] @ y.T).argmax(1) for k in range(0, len(x), 512)])
    return (torch.bincount(best, minlength=len(y))[best] > 1).double().mean().item()


def ours(_peers: Path):
    def solve(factors, memory_gib):
        resources = SolverResources(memory_gib)
        s = solve_assignment(factors.X_A, factors.X_B, resources=resources)
        return s.value, s.gap_over_chance, s.regime, s.n_scanned_again / len(factors.X_A)

    return solve


def scipy(_peers: Path):
    from scipy.optimize import linear_sum_assignment

    return dense(lambda s: linear_sum_assignment(s, maximize=True)[1])


def lap(peers: Path):
    sys.path.insert(0, str(peers / "lap"))
    from lap import lapjv

    return dense(lambda s: lapjv(-s)[1])


def lapx(peers: Path):
    sys.path.insert(0, str(peers / "lapx"))
    from lap import lapjv

    return dense(lambda s: lapjv(-s)[1])


def lapjv(peers: Path):
    sys.path.insert(0, str(peers / "lapjv"))
    from lapjv import lapjv as solve

    return dense(lambda s: solve(-s)[0])


def pot(peers: Path):
    sys.path.insert(0, str(peers / "pot"))
    import ot

    def solve(s):
        return ot.emd([], [], -s, numItermax=10**9).argmax(1)

    return dense(solve)


def ortools(peers: Path):
    sys.path.insert(0, str(peers / "ortools"))
    from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment

    def solve(s):
        """Solve with similarities rounded to a millionth of the largest: it takes integers only."""
        n = len(s)
        costs = np.rint(-s * (1e6 / np.abs(s).max())).astype(np.int64)
        rows, columns = (index.ravel().astype(np.int32) for index in np.indices((n, n)))
        solver = SimpleLinearSumAssignment()
        solver.add_arcs_with_cost(rows, columns, costs.ravel())
        assert solver.solve() == solver.OPTIMAL
        return np.array([solver.right_mate(i) for i in range(n)])

    return dense(solve)


SOLVERS = {
    OURS: ours, "scipy": scipy, "lap": lap, "lapx": lapx, "lapjv": lapjv, "pot": pot,
    "ortools": ortools,
}  # fmt: skip


def dense(columns_of):
    """Wrap a dense solver, which needs the whole product in float64; return a solver of factors."""

    def solve(factors, _memory_gib):
        similarity = (factors.X_A @ factors.X_B.T).double().numpy()
        columns = columns_of(similarity)
        value = math.fsum(similarity[np.arange(len(columns)), columns])
        return value, None, "dense", 0.0

    return solve


def verdicts(rows: list[dict], is_large: bool) -> None:
    """Print the results and their bounds."""
    done = [r for r in rows if "failed" not in r]
    by_case = {(r["solver"], r["instance"], r["n"]): r for r in done if not r["beside"]}
    checks = []
    for n in SMALL_WIDTHS:
        ratios = [r["ratio"] for r in done if r["beside"] and r["n"] == n]
        checks += [(f"{n:,}: largest ratio to SciPy", max(ratios), MOST_OF_SCIPY)] if ratios else []
    if is_large:
        wide, widest = (by_case.get((OURS, "planted", n)) for n in (65536, 131072))
        if wide:
            checks += [("65,536: all / bare blocked product", wide["ratio"], 2.5)]
            checks += [("65,536: peak, GiB in all", wide["peak_gib"], 6.0)]
            checks += [("65,536: gap over chance / 1e-6", wide["gap"] / 1e-6, 1.0)]
        if widest:
            checks += [("131,072: gap over chance / 1e-6", widest["gap"] / 1e-6, 1.0)]
    else:
        for instance in ("planted", "random"):
            ours_, scipy_ = (by_case.get((s, instance, 16384)) for s in (OURS, "scipy"))
            if ours_ is None or scipy_ is None:
                continue
            name = f"16,384 {instance}"
            checks += [(f"{name}: all / bare product", ours_["ratio"], 1.25)]
            checks += [(f"{name}: GiB above the input", ours_["above_input_gib"], 2.5)]
            faster = 20 * ours_["seconds"] / scipy_["seconds"]
            checks += [(f"{name}: 20 x all / product and SciPy", faster, 1.0)]
            short = (1 - ours_["value"] / scipy_["value"]) / 1e-6
            checks += [(f"{name}: value short of SciPy's / 1e-6", short, 1.0)]
    print(f"\n{'measured':<44} {'value':>8} {'bound':>8}")
    for name, value, bound in checks:
        print(f"{name:<44} {value:8.2f} {bound:8.2f} {'' if value <= bound else '  MISSED'}")


def figure(rows: list[dict], folder: Path) -> None:
    """Draw time and peak memory by width, with one line for each solver."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "saematch"
    shown = [
        r for r in rows
        if "failed" not in r and not r["beside"] and (r["instance"], r["size"]) == ("planted", SIZE)
    ]  # fmt: skip
    drawing, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for k, solver in enumerate((OURS, *PEERS)):
        line = [r for r in shown if r["solver"] == solver]
        style = {"linewidth": 2.5, "zorder": 3} if solver == OURS else {"linewidth": 1.2}
        style["color"] = f"C{k}"
        for ax, field in zip(axes, ("seconds", "above_input_gib"), strict=True):
            values = [max(r[field], LEAST) for r in line]
            ax.plot([r["n"] for r in line], values, "o-", label=solver, **style)
    line = [r for r in shown if r["solver"] == OURS]
    axes[0].plot([r["n"] for r in line], [r["product"] for r in line], "k--", label="bare product")
    axes[1].plot([r["n"] for r in line], [4 * r["n"] ** 2 / GIB for r in line], "k--",
                 label="similarities, float32")  # fmt: skip
    for ax, title in zip(
        axes, ("product and solve, seconds", "peak above the input, GiB"), strict=True
    ):
        ax.set(xscale="log", yscale="log", xlabel="features", title=title)
        ax.set_xticks(WIDTHS, [f"{n:,}" for n in WIDTHS])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize=8)
    drawing.savefig(folder / "solver.png", dpi=150)
    drawing.savefig(folder / "solver.svg", metadata={"Date": None})


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
