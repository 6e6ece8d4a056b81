"""A line of convergence.csv, made up."""

from benchmarks.training._grid import Run

RUN = Run("tiny", "muon", 0.01, 0.01, 0.1, 0.95, 20, 0)
MEASURED = {"seconds_a_step": "1", "cpu_seconds_a_step": "1", "final_loss": "2.0", "curve": "0:5.0 10:3.0 20:2.0"}
ENVIRONMENT = dict.fromkeys(("date", "muon_optax", "python", "jax", "optax", "device", "text"), "x")
