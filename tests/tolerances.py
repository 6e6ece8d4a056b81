"""How far a result may be from the float64 oracle, by the dtype that it was computed in.

Relative to the largest entry. Each is a small multiple of the dtype's unit roundoff over the five steps of
Newton-Schulz. A test that needs a looser one says why.
"""

RTOL = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 2e-2, "float16": 2e-3}
