"""Changes that no test can notice, because they change nothing that is promised: by file and changed line, why."""

LAST_BIT = "The last bit is reached long before: one more pass changes nothing."
LIFTED = "Larger matrices than need it may be lifted: up to 2^27 that is exact."
ZERO_STAYS = "Zero divided by 2 is zero, too."
COMMUTING = "Both are polynomials of one symmetric matrix, which commute: only rounding differs."

TOLERANCE = "A tolerance: from 8e-4, 5e-5 and 1e-5, which rounding needs, to 3e-2 and 1e-3, which mistakes do."

UNNOTICEABLE: dict[str, dict[str, str]] = {
    "__main__": {
        "_ROUNDING = {'bfloat16': 0.0101, 'float16': 0.002, 'float32': 2e-05}": TOLERANCE,
        "_ROUNDING = {'bfloat16': 0.01, 'float16': 0.00202, 'float32': 2e-05}": TOLERANCE,
        "_ROUNDING = {'bfloat16': 0.01, 'float16': 0.002, 'float32': 2.0200000000000003e-05}": TOLERANCE,
        "random = np.random.default_rng(1)": "Any random matrix will do.",
        "transform = optax.contrib.scale_by_muon(beta=1.0, nesterov=False)": "Only its time is taken.",
        "transform = optax.contrib.scale_by_muon(beta=0.0, nesterov=True)": "Only its time is taken.",
    },
    "_layouts/assigning/resolve": {
        "if len({leaf.path for leaf in leaves}) <= len(leaves):": "Where no path is shared, none is refused.",
    },
    "_layouts/assigning/told_by_layers": {
        "while len(fits) >= 1 and scope:": "Where one fits, it stays: only slower.",
    },
    "_layouts/assigning/rules": {
        "return max(decisions, key=lambda decision: decision.why)": "Any of several reasons for one layout will do.",
    },
    "_layouts/evidence/attention": {
        "if width is None and width not in core:": "A width that is no size of the kernel is asked for in vain below.",
    },
    "_layouts/evidence/convolutions": {
        "square = len(core) > 3 and len(set(window)) == 1 and (window[1] <= LARGEST_WINDOW)": "They are equal.",
    },
    "_layouts/evidence/edges": {
        "fan_in, fan_out = (1, shape[-1]) if layout is None else "
        "(layout.fan_in(leaf.shape), layout.fan_out(leaf.shape))": "Stands for no inputs: no other side is as short.",
    },
    "_layouts/strength/neighbors": {
        "first = read.channels <= outputs and read.channels not in self._given": "A layer gives its own outputs.",
    },
    "_layouts/paths": {
        "if child is not node or _starts_scope(type(child)):": "A leaf by itself has the same path: only slower.",
    },
    "_layouts/tree/layer_stacks": {"UNSTACKED = LayerStack(1, ())": "No axis may begin anywhere."},
    "_layouts/tree/repeated_blocks": {
        "KEPT = 7": "One more than is needed.",
        "for leaf, other in zip(blocks[block], blocks[group[KEPT - 2]], strict=True):": (
            "Blocks in the middle are decided alike."
        ),
    },
    "_layouts/tree/scope": {
        "longest = {start: max((s for s in found if s.start != start), key=lambda s: len(s.sizes), default=None) "
        "for start in (0, 1)}": "Both are kept: only their order is another.",
    },
    "_layouts/tree/tree": {
        "votes[sides[0] == (role == 'reads')] += 2": "All votes count as much.",
        "return first == own and any((len(shape) == len(leaf.shape) and shape[inputs] == leaf.shape[outputs] >= 1 < "
        "math.prod(shape[window]) for _, shape in later))": "A kernel with one output is no matrix anyway.",
    },
    "_layouts/tree/windows": {
        "return len(window) > 1 and len(set(window)) == 1 and (1 < window[1] <= LARGEST_WINDOW) and "
        "(window[0] < min(shape[:2]))": "All sizes of the window are equal.",
        "return len(window) > 1 and len(set(window)) == 1 and (1 < window[0] <= LARGEST_WINDOW) and "
        "(window[1] < min(shape[:2]))": "All sizes of the window are equal.",
    },
    "_mesh/exchange": {
        "return jax.lax.all_to_all(packed, way.divided, 0, 0, tiled=False) if way.divided else packed": (
            "As many parts as devices: the axis that a collective takes out is the one that it puts in."
        ),
        "for mixed in {stack.mixed for stack in stacks}:": "A set of False and True is in this order.",
        "made = jax.lax.all_to_all(made, way.divided, 0, 0, tiled=False)": (
            "As many parts as devices: the axis that a collective takes out is the one that it puts in."
        ),
    },
    "_mesh/owners": {
        "idlest = idlest or np.argsort(own.round(7), kind='stable').tolist()": "FLOPs differ by more.",
    },
    "_mesh/stacks": {
        "ZEROS = 0.0202": "The promise is about two percent.",
        "if filled.max() < (1 + ZEROS) * loads.max():": "Where both are equal, either will do.",
    },
    "_orthogonalizers/coefficients": {
        "for _ in range(101):": LAST_BIT,
        "below, above = (below, middle) if _value(step, middle) > start else (middle, above)": (
            "Both meet where the step passes the value, to the last bit."
        ),
        "rows = np.empty((0, 4))": "An array without rows is refused for that.",
        "a, b, c = (k / (max(map(abs, step)) or 1.01) for k in step)": "Only where all three are zero, and stay so.",
        "if discriminant <= 0:": "A double zero of the derivative is no extremum.",
        "zeros = [sign * math.sqrt(y) for y in squares if y >= 0 for sign in (-1, 1)]": (
            "At zero an odd polynomial has no extremum."
        ),
        "for _ in range(26):": LAST_BIT,
    },
    "_orthogonalizers/gram_newton_schulz": {
        "half = blend(d, A, multiply(A, B))": COMMUTING,
        "R = d * half + multiply(B, half.astype(X.dtype))": "The transpose, of a matrix that is symmetric.",
    },
    "_orthogonalizers/restarts": {
        "while len(restarts) < steps - 1 and (not largest_value(coefficients, restarts, dtype) < limit):": (
            "Where the bound is the limit to the last bit, either will do."
        ),
        "drift = np.max(z * z) * drift - roundoff * rounded": "The bound looks to both sides: the sign does not count.",
    },
    "_orthogonalizers/batching": {
        "alone = map_matrices(function, [stacks[position][1] for position in single])": (
            "JAX reads beyond the end what is at the end."
        ),
    },
    "_orthogonalizers/newton_schulz": {
        "saves = gram_products(coefficients, aspect, dtype) <= 0.86 * direct_products(coefficients, aspect)": (
            "Where both sides are equal to the last bit, either method will do."
        ),
    },
    "_orthogonalizers/precision": {
        "exact = jnp.finfo(left.dtype).bits > 17": "No floating type has 17 bits.",
        "return (matrices / jnp.where(largest == 0, 2, largest)).astype(dtype)": ZERO_STAYS,
        "tiny = largest <= 32 << 23": LIFTED,
        "tiny = largest < 33 << 23": LIFTED,
        "tiny = largest < 32 << 24": LIFTED,
        "return (tiny, _number(254 - jnp.clip(exponent, 2, 253) << 23))": (
            "Only a zero matrix has an exponent below 2, and stays zero: tiny ones are lifted first."
        ),
    },
    "_transforms/family/cautious_decay": {
        "agree = jnp.sign(update) / jnp.sign(weight).astype(update.dtype) >= 0": (
            "Only at a weight of zero, of which any decay is zero."
        ),
    },
    "_transforms/checks/keywords": {
        "near = difflib.get_close_matches(word, known, 2, cutoff=0.75)": "Only the nearest is told.",
    },
    "_transforms/family/block_periodic": {
        "return _Block(own, tuple((1.0 if same else scale * math.sqrt(p / max(w, 2)) for p, w in zip(parts, wholes, "
        "strict=True))))": "A matrix of one entry is not divided.",
    },
    "_transforms/family/clip_qk": {
        "passed = (logits >= threshold) & jnp.isfinite(logits)": "At the threshold the factor is 1 either way.",
        "return jnp.where(passed, threshold / jnp.where(passed, logits, 2), 1)": "A quotient that is not taken.",
    },
    "_transforms/family/hyperball": {
        "shapes = [reduced(block.shape, axes_of(layout, 'io')) for block in blocks[1]]": (
            "An update has the shape of its weight."
        ),
    },
    "_transforms/momenta/offload_to_host": {
        "total = sum(sizes) or 2": "Of no bytes any share is none.",
    },
    "_transforms/momenta/quantized_trace": {
        "size = min(block_size, max(3, last))": "Zeros behind the last entry, which are cut off again.",
        "if last <= count * size:": "Nothing is added.",
        "scales = relocate_like(scales, blocks[..., 1])": "All entries of a block lie in one place.",
        "ratios = jnp.round(blocks / jnp.where(scales == 0, 2, scales))": ZERO_STAYS,
    },
    "_transforms/tools/blocks": {
        "scaled = array / jnp.where(largest == 0, 2, largest)": ZERO_STAYS,
        "return jnp.where(norm == 0, 2, norm)": ZERO_STAYS,
    },
    "_transforms/scale_by_shape": {
        "outputs = [-2 if letter == 'o' else 1 for letter in layout.axes]": "NumPy takes any negative size so.",
    },
    "_orthogonalizers/step": {
        "identity = jnp.broadcast_to(jnp.eye(A.shape[-2], dtype=wide), A.shape)": "Gram matrices are square.",
        "vertex = -b / (2 * c) if c else 1.0": "Without c the values are linear: the ends are the extremes.",
    },
}
