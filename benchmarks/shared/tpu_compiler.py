"""The compiler for TPUs on a machine without one. Imported before JAX: it must not look for a TPU."""

import importlib.metadata
import importlib.util
import os
from typing import Any

# libtpu must not ask a cloud which TPU this machine has.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
)

import jax
import jax.experimental.topologies


def devices_of(topology: str, program: str) -> list[Any]:
    """The chips of a topology, to compile for; ends the ``program`` with the reason if there is no compiler."""
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit(f'{program} needs libtpu, the TPU compiler: pip install "jax[tpu]". It needs no TPU.')
    try:
        found = jax.experimental.topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" not in str(error):
            raise
        raise SystemExit(
            "Another process holds libtpu, and one at a time can: wait until it ends. If there is none, it left "
            "/tmp/libtpu_lockfile behind: remove that."
        ) from error
    return list(found.devices)


def versions() -> dict[str, str]:
    """The compiler's, for a report."""
    return {"libtpu": importlib.metadata.version("libtpu")}
