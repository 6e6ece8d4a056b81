"""Schedules of many kinds: presets, numbers of steps, lower ends, one step repeated."""

import muon_optax as mo

SCHEDULES = {
    "keller": mo.KELLER,
    "you_jiacheng": mo.YOU_JIACHENG,
    "cubic": mo.CUBIC,
    "deepseek_v4": mo.DEEPSEEK_V4,
    **{f"polar_express-{steps}": mo.polar_express(steps) for steps in (4, 5, 6, 8, 10, 12)},
    "polar_express-4-large": mo.polar_express(4, 4e-3),
    "keller-4": mo.KELLER[:4],
    "newton-schulz-12": ((1.5, -0.5, 0.0),) * 12,
    "quintic-8": ((1.875, -1.25, 0.375),) * 8,
}
