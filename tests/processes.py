"""The main example in a process of its own, where a test may kill it or take its disk away."""

import os
import subprocess
import sys
from pathlib import Path

from places import ROOT

EXAMPLE = ROOT / "examples" / "train_gpt.py"
PATIENCE = 300  # seconds, after which a process that hangs is killed


def start(*arguments: str | Path, cache: Path | None = None, under: tuple = (), **options) -> subprocess.Popen:
    """The example on one CPU device; `cache` holds what was compiled before, the command `under` starts it."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        environment["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([*under, sys.executable, EXAMPLE, *arguments], env=environment, text=True, **streams)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """The exit status and what was printed on the two streams, progress bars left out."""
    try:
        printed, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    lines = [line for line in (errors or "").replace("\r", "\n").splitlines() if line and "%|" not in line]
    return process.returncode, printed, "\n".join(lines)


# Commands to start the example `under`: each restrains itself and becomes what follows it. They are programs, not a
# `preexec_fn`: that one runs between fork and exec, and JAX warns of a fork in a process with its threads.
def no_larger_files_than(size: int) -> tuple:
    """No file may grow beyond `size` bytes."""
    return _first(f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))")


def obeying_permissions() -> tuple:
    """Takes root's right to write to what is read-only (Linux; elsewhere run as another user)."""
    drop_from_bounding_set, override_permissions = 24, 1  # prctl's PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
    if os.geteuid() != 0:
        return ()
    return _first(f"import ctypes; ctypes.CDLL(None).prctl({drop_from_bounding_set}, {override_permissions})")


def _first(restrain: str) -> tuple:
    return (sys.executable, "-c", f"{restrain}; import os, sys; os.execv(sys.argv[1], sys.argv[1:])")
