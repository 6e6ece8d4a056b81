"""How far a result may be from the float64 oracle, by the dtype that it was computed in.

Relative Frobenius error of Newton-Schulz with Keller's coefficients, where every side has at least 16 entries and
the singular values span one decade: about 1.5 to 2 times the worst measured on the CPU. Smaller or worse conditioned
matrices need more (bfloat16: 4e-2 on 4 x 8, 0.2 over three decades); a test that needs more says why. In bfloat16
the limit lies below the error of coefficients rounded to bfloat16, 3.4e-2.
"""

RTOL = {"float64": 1e-14, "float32": 5e-6, "bfloat16": 3e-2, "float16": 5e-3}
