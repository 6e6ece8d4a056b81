"""One update on a mesh, from compiled programs: what each device computes, sends and holds; nothing is run.

    python benchmarks/mesh/mesh.py                    # 8 virtual devices of the CPU, minutes
    python benchmarks/mesh/mesh.py --quick            # one small case
    pip install "jax[tpu]"                            # in an environment of its own: brings libtpu
    python benchmarks/mesh/mesh.py --tpu v5e:4x4      # through the compiler for TPUs, minutes
    python benchmarks/mesh/mesh.py --tpu v5e:16x16    # GPT-2 medium and Llama-7B on 256 chips
    python benchmarks/mesh/mesh.py --tpu v5p:8x8x16   # a trillion parameters on 1024 chips
    python benchmarks/mesh/mesh.py --only "4 x 2, *"  # of "case, optimizer" what matches

No TPU is needed. One process at a time can hold libtpu.
"""

import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

from benchmarks.shared import tpu_compiler  # before JAX, which must not look for a TPU

# isort: split
import jax

from benchmarks.mesh._cases import LEFT_OUT, ON_8, ON_TPU, QUICK
from benchmarks.mesh._programs import ADAMW, OPTAX, OURS, OURS_FLOAT32, compile_step
from benchmarks.shared.measure import compile_afresh
from benchmarks.shared.report import Progress, Report, finish, parser

ALL = (OURS_FLOAT32, OURS, OPTAX, ADAMW)
ON_TPU_ALL = (OURS, OPTAX, ADAMW)

NOTES = [
    "Compiled and not run. One step is the optimizer's update and optax.apply_updates with state and parameters "
    "donated (update only: without apply_updates, gradients and state donated); gradients, state and parameters keep "
    "their shardings. Figures are of one device, the one that does most.",
    "Same work: optax.contrib.muon has Moonlight's scale and the same decay, and trains the same matrices. Mesh axes "
    "are Auto: on Explicit ones optax.contrib.muon refuses sharded parameters. In the cases with ZeRO-1 the state of "
    "every optimizer is spread over the axis, by muon_optax.state_shardings.",
    "GFLOP: of all matrix products in the compiled program, loops by their trip counts, of alternative branches the "
    "costliest. Over even share: divided by what each device had to do if every matrix were orthogonalized once by "
    "this optimizer's method, and all were shared out evenly; direct: the same for five steps of the direct method.",
    "MB sent: by one device, collectives along a ring. MB of results: what one device has after its collectives.",
    "temporary MB, peak MB: as the compiler says; peak is with arguments and results.",
    "plan s: muon_optax.plan, of which optax uses the shardings of the state only. compile CPU s: of all threads; it "
    "says more than compile s where other programs run.",
]
ON_CPU_NOTES = ["XLA for CPUs sends bfloat16 as float32: on a TPU or a GPU muon_optax.muon sends half of this."]
ON_TPU_NOTES = [
    "cycles: the sum of the compiler's own estimates over all that one step executes; it gives none for the time that "
    "a collective takes by itself.",
]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--tpu", choices=ON_TPU, help="compile for this topology of TPUs")
    options.add_argument("--only", default="*", help='a pattern of "case, optimizer", such as "*, muon_optax.muon"')
    given = options.parse_args(arguments)
    compile_afresh()
    cases = ON_TPU[given.tpu] if given.tpu else QUICK if given.quick else ON_8
    pairs = [(case, name) for case in cases for name in (ON_TPU_ALL if given.tpu else ALL)]
    pairs = [pair for pair in pairs if fnmatch.fnmatch(", ".join(pair), given.only)]
    if not pairs:
        raise SystemExit(f"--only {given.only!r} matches nothing")

    if given.tpu:
        devices = tpu_compiler.devices_of(given.tpu, "mesh --tpu")
        device = f"TPU {given.tpu.replace(':', ' ')} compiler"
        report = Report("mesh", device, [*NOTES, *ON_TPU_NOTES], versions=tpu_compiler.versions())
    else:
        jax.config.update("jax_num_cpu_devices", 8)
        devices = jax.devices()
        report = Report("mesh", "CPU", [*NOTES, *ON_CPU_NOTES])
    with Progress(len(pairs), report.name) as step:
        for case, name in pairs:
            if (case, name) in LEFT_OUT:
                report.left_out.append(f"{case}, {name}: {LEFT_OUT[case, name]}")
            else:
                jax.clear_caches()  # or the first would trace jax.numpy's own functions for all others
                figures = compile_step(name, cases[case], devices).figures
                report.rows.append({"case": case, "optimizer": name, **figures})
            step(f"{case}, {name}")
    finish(report, given.output)


if __name__ == "__main__":
    main()
