"""Settings for every test, made before JAX starts: eight CPU devices, a compilation cache, fixed seeds."""

import os

# Set before NumPy and JAX are imported. Two workers on two cores: a BLAS pool in each would only contend.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import gc
import importlib.metadata
from collections.abc import Iterator

import hypothesis
import jax
import pytest

CPU_DEVICES = 8  # enough for a 2 x 2 x 2 mesh
IN_ONE_MODULE = "--xla_cpu_parallel_codegen_split_count=1"  # small programs are not divided
# The default run spends its time compiling programs that run for a millisecond, four times as fast without
# optimizations, XLA's fusion emitters and that division. Budgets count products,
# collectives and memory, which these flags leave as they are. They change the last bits of donated buffers and slow
# long runs down: such tests are marked long.
COMPILE_FAST = f"--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true {IN_ONE_MODULE}"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones end at a flag that they don't know
    COMPILE_FAST += " --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    fast = config.option.markexpr.startswith(("slow", "not (slow"))
    os.environ.setdefault("XLA_FLAGS", COMPILE_FAST if fast else IN_ONE_MODULE)
    # Not in pyproject.toml: pytest would import the package, and JAX, before the settings above.
    config.addinivalue_line("filterwarnings", "error::muon_optax.MuonWarning")
    jax.config.update("jax_num_cpu_devices", CPU_DEVICES)
    # Tracing and lowering are the other half of the time. No test reads a program's source lines, and the garbage
    # collector would look through millions of live objects again and again.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    # Compilation dominates the suite. Every program is kept, however small, and found again by the other
    # worker and by the next run.
    if config.pluginmanager.hasplugin("cacheprovider") and jax.config.jax_compilation_cache_dir is None:
        cache = config.cache.mkdir("jax-compilations")
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # The same examples every time; no deadline, since the first example of a shape pays for its compilation.
    hypothesis.settings.register_profile("muon_optax", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("muon_optax")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs() -> Iterator[None]:
    """Dropped after each file, which no other one uses: kept, they made a worker grow to four gigabytes."""
    yield
    jax.clear_caches()
