"""Which runs the convergence benchmark makes, in which order: each decides by the results before it."""

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from math import inf, log
from typing import NamedTuple

# Neighbours differ by about the square root of 2, every other one by 2 or 2.5.
LADDER = [round(first * 10.0**decade, 6) for decade in range(-4, 0) for first in (1, 1.5, 2, 3, 5, 7)]
DECAYS, B2S = (0.1, 0.3), (0.95, 0.999)
MUON_RATES = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
HIDDEN_RATES = (5e-3, 1e-2, 2e-2, 5e-2, 0.1)  # for scales and recipes whose rates are larger than AdamW's
ADAMW_RATES = (1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 7e-3)
FOLLOWERS = [
    *("muon, You Jiacheng", "muon, Polar Express", "muon, four steps", "optax.contrib.muon"),
    *("muon, Nesterov in AdamW", "muon, momentum without bias", "muon, float32 products"),
    *("muon, norms decayed", "muon, all of these"),
    *("muon, momentum 0.9, Nesterov in AdamW", "muon, momentum 0.85, Nesterov in AdamW"),
]
SCALED = [f"muon, {scale} scale" for scale in ("keller", "mup", "naive")]
BASELINES = ["adamw, Nesterov", "adamw, b1 0.8", "adamw, b1 0.8, Nesterov"]  # at AdamW's best settings
# Parts of the family: those whose updates are as large as Muon's, and recipes with a rate of their own.
PARTS = [
    *("muon, per head", "muon, cautious decay"),
    *("muon, momentum warm-up", "muon, momentum 0.9", "muon, averaged momentum"),
    *("muon, 8-bit momentum", "muon, 4-bit momentum"),
]
RECIPES = ["normuon", "adamuon", "muon_h", "muon_speedrun"]


class Run(NamedTuple):
    """One training: all that its result depends on, but for text, versions and device."""

    size: str
    contender: str
    rate: float
    adamw_rate: float  # equal to rate where there is one rate for all
    decay: float
    b2: float
    steps: int
    seed: int


class Plan(NamedTuple):
    """Lengths and seeds: those of the short runs that bracket a rate, and of the long ones."""

    steps: int
    short: int
    shorter: tuple[int, ...]  # whole schedules of Muon, compared with AdamW's of full length
    seeds: tuple[int, ...] = (0, 1, 2)
    tiers: int | None = None  # only the first ones
    family: tuple[str, ...] = ()  # only these parts and recipes, beside Muon
    plain: bool = False  # only AdamW and Muon, alike at every size

    @classmethod
    def of(cls, steps: int, parts: Sequence[float] = (0.5, 0.6, 0.7)) -> "Plan":
        """The plan for runs of so many steps at full length, and Muon's schedules of ``parts`` of them."""
        return cls(steps, steps // 4, tuple(round(part * steps) for part in parts))


Finals = Mapping[Run, float]
Stages = Generator[list[Run], None, Run]
Search = Callable[[Finals], Stages]


def moved(run: Run, rungs: int) -> Run | None:
    """The run at a rate further up the ladder, both rates if they are one; None beyond its ends."""
    index = LADDER.index(run.rate) + rungs
    if not 0 <= index < len(LADDER):
        return None
    rate = LADDER[index]
    return run._replace(rate=rate, adamw_rate=rate if run.adamw_rate == run.rate else run.adamw_rate)


def around(run: Run, rungs: int) -> list[Run]:
    """The run between its neighbours."""
    return [found for distance in (-rungs, 0, rungs) if (found := moved(run, distance))]


def climb(runs: Sequence[Run], finals: Finals, rungs: int) -> Stages:
    """Until the best has been compared with both of its neighbours: no optimum lies at the edge of a range."""
    tried = list(runs)
    while True:
        yield tried
        best = min(tried, key=lambda run: finals[run])
        further = [run for run in around(best, rungs) if run not in tried]
        if not further:
            return best
        tried += further


def tune(plan: Plan, finals: Finals, short: Sequence[Run], rungs: int, variants: bool = False) -> Stages:
    """Short runs bracket the rate, long ones refine it, and the best gets all seeds."""
    best = yield from climb(short, finals, rungs)
    if variants:
        near = nearby(best)
        yield near
        best = min(near, key=lambda run: finals[run])
    best = yield from climb([run._replace(steps=plan.steps) for run in around(best, 1)], finals, 1)
    yield seeded(plan, best)
    return best


def nearby(run: Run) -> list[Run]:
    """The run with each decay and b2."""
    return [run._replace(decay=decay, b2=b2) for decay in DECAYS for b2 in B2S]


def seeded(plan: Plan, run: Run, steps: int | None = None) -> list[Run]:
    """The run with each seed."""
    return [run._replace(seed=seed, steps=steps or run.steps) for seed in plan.seeds]


def at_rates(plan: Plan, size: str, contender: str, rates: Sequence[float], adamw_rate: float = 0.0) -> list[Run]:
    """Short runs; without ``adamw_rate`` there is one rate for all."""
    return [Run(size, contender, rate, adamw_rate or rate, 0.1, 0.95, plan.short, plan.seeds[0]) for rate in rates]


def adamw(plan: Plan, size: str, finals: Finals) -> Stages:
    """The baseline: its rate, then its decay and its second momentum at the best rate."""
    best = yield from tune(plan, finals, at_rates(plan, size, "adamw", ADAMW_RATES), 1, variants=True)
    if not plan.plain:
        return best
    # Runs of seconds can afford it, and on few held-out images one seed of a short run says little of the four.
    near = [seeded(plan, run) for run in nearby(best)]
    yield [run for runs in near for run in runs]
    return min(near, key=lambda runs: sum(finals[run] for run in runs))[0]


def one_rate(plan: Plan, size: str, finals: Finals, contender: str = "muon") -> Stages:
    """One rate for the matrices and for what AdamW trains."""
    return (yield from tune(plan, finals, at_rates(plan, size, contender, MUON_RATES), 2))


def apart(plan: Plan, size: str, finals: Finals) -> Stages:
    """Muon's rate and that of AdamW's leaves apart: the latter AdamW's own best, a step below and one above."""
    baseline = yield from adamw(plan, size, finals)
    short = [run for near in around(baseline, 2) for run in at_rates(plan, size, "muon", MUON_RATES[1:], near.rate)]
    return (yield from tune(plan, finals, short, 2))


def reused(plan: Plan, size: str, finals: Finals, contender: str = "muon") -> Stages:
    """AdamW's best settings as they are, for Muon or for AdamW with one change: does that help it as well?"""
    baseline = yield from adamw(plan, size, finals)
    run = baseline._replace(contender=contender)
    yield seeded(plan, run)
    return run


def hidden(plan: Plan, size: str, finals: Finals, contender: str) -> Stages:
    """A contender whose rate means something else than AdamW's, which keeps its own best one for the other leaves."""
    baseline = yield from adamw(plan, size, finals)
    return (yield from tune(plan, finals, at_rates(plan, size, contender, HIDDEN_RATES, baseline.rate), 2))


def best_muon(plan: Plan, size: str, finals: Finals) -> Stages:
    """The better of one rate for all and two rates."""
    found = [(yield from one_rate(plan, size, finals)), (yield from apart(plan, size, finals))]
    return min(found, key=lambda run: sum(finals[one] for one in seeded(plan, run)))


def shorter(plan: Plan, size: str, finals: Finals, search: Callable[..., Stages]) -> Stages:
    """The best settings of a search on schedules of fewer steps, for the question how many reach AdamW's loss."""
    best = yield from search(plan, size, finals)
    yield [run for steps in plan.shorter for run in seeded(plan, best, steps)]
    return best


def longer(plan: Plan, size: str, finals: Finals) -> Stages:
    """AdamW and Muon on schedules twice as long, one seed, at their best rates and those beside them.

    Muon with a lower momentum too: does its gain last?
    """
    baseline = yield from adamw(plan, size, finals)
    muon = yield from one_rate(plan, size, finals)
    runs = [baseline, muon, muon._replace(contender="muon, momentum 0.9"), *around(muon, 1), *around(baseline, 1)]
    yield [run._replace(steps=2 * plan.steps) for run in runs]
    return muon


def following(plan: Plan, size: str, finals: Finals, contender: str) -> Stages:
    """A variant whose updates are as large as Muon's, at Muon's best settings."""
    best = yield from best_muon(plan, size, finals)
    yield seeded(plan, best._replace(contender=contender))
    return best._replace(contender=contender)


def member(plan: Plan, size: str, finals: Finals, name: str) -> Stages:
    """A part or a recipe of the family. NorMuon and AdaMuon share their rate with AdamW, as Muon does."""
    if name in PARTS:
        return (yield from following(plan, size, finals, name))
    return (yield from (one_rate if name in ("normuon", "adamuon") else hidden)(plan, size, finals, name))


def by_rate(plan: Plan, size: str, finals: Finals, contender: str) -> Stages:
    """Where the optimum of the matrices' rate lies: short runs only, AdamW's leaves at one rate for all sizes."""
    return (yield from climb(at_rates(plan, size, contender, HIDDEN_RATES, 3e-3), finals, 2))


def tiers(plan: Plan, sizes: Sequence[str], finals: Finals) -> list[list[Stages]]:
    """All searches, the most telling first. Of text the sizes are the main one, the smaller and the larger."""
    main, *rest = sizes
    if plan.plain:
        searches = (adamw, one_rate, apart, reused, partial(shorter, search=one_rate))
        return [[search(plan, size, finals) for search in searches] for size in sizes]
    if plan.family:
        chosen = [member(plan, main, finals, name) for name in plan.family]
        return [[adamw(plan, main, finals)], [best_muon(plan, main, finals)], chosen]
    scales = [hidden(plan, main, finals, contender) for contender in SCALED]
    parts, recipes = ([member(plan, main, finals, name) for name in names] for names in (PARTS, RECIPES))
    widths = [by_rate(plan, size, finals, contender) for contender in ("muon", *SCALED) for size in sizes]
    decays = [by_rate(plan, main, finals, "muon, decay 0.3"), hidden(plan, main, finals, "muon, decay 1")]
    decays.append(reused(plan, main, finals, "adamw, decay 1"))
    others = [[search(plan, size, finals) for search in (adamw, one_rate, reused)] for size in rest]
    rates = [[apart(plan, size, finals)] for size in rest[:1]]  # two rates made no difference at either size
    return [
        [adamw(plan, main, finals), one_rate(plan, main, finals)],
        [shorter(plan, main, finals, one_rate), reused(plan, main, finals)],
        [apart(plan, main, finals)],
        [shorter(plan, main, finals, apart)],
        *others[:1],
        *rates,
        [reused(plan, main, finals, name) for name in BASELINES],
        [following(plan, main, finals, name) for name in FOLLOWERS],
        parts,
        recipes,
        *others[1:],
        widths,
        decays,
        scales,
        [longer(plan, main, finals)],
    ]


def missing(plan: Plan, sizes: Sequence[str], finals: Finals) -> list[Run]:
    """The runs that can be made now, the most telling first; none when the grid is complete."""
    found: dict[Run, None] = {}
    for searches in tiers(plan, sizes, finals)[: plan.tiers]:
        runs = [run for search in searches for run in first_absent(search, finals)]
        found |= dict.fromkeys(sorted(runs, key=lambda run: run.steps))
    return list(found)


def first_absent(stages: Stages, finals: Finals) -> list[Run]:
    """What the first incomplete stage lacks: later ones depend on it."""
    return next((absent for stage in stages if (absent := [run for run in stage if run not in finals])), [])


def forecast(plan: Plan, sizes: Sequence[str], finals: Finals) -> list[Run]:
    """The runs that are left, if every optimum lies where the ranges were laid around it."""
    known, left = dict(finals), []
    while absent := missing(plan, sizes, known):
        left += absent
        known |= {run: guess(run, finals) for run in absent}
    return left


def guess(run: Run, finals: Finals) -> float:
    """A loss that is lowest in the middle of the rates."""
    measured = [value for value in finals.values() if value < inf]
    middle = 2e-3 if run.contender == "adamw" else 1e-2
    return max(measured, default=1.0) + abs(log(run.rate / middle))
