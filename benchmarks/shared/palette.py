"""One color for one optimizer in all pictures; a sequence of sizes goes from dark to light."""

COLORS = {"adamw": "tab:blue", "muon": "tab:red", "optax.contrib.muon": "tab:purple"}
SEQUENCE = ("#440154", "#21918c", "#d2b10f")  # three steps of viridis, the last darker than its yellow
