"""What a new user gets wrong (order, type, a factory that was not called), and what the message says."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import muon_optax as mo
from muon_optax import diagnostics, recipes
from muon_optax.flax import layouts_of
from muon_optax.plots import heat_map

PARAMS = {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}
OPTIMIZER = mo.muon(0.1)
STATE = OPTIMIZER.init(PARAMS)
SHAPES = jax.eval_shape(lambda: PARAMS)
MODEL = nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 4, rngs=nnx.Rngs(1)))
RECORDER = diagnostics.record(OPTIMIZER)
UNCALLED = "is not a gradient transformation: call the factory"
EXCHANGED = "Parameters come first, layouts second."


def injected(**arguments: Any) -> Any:
    return optax.inject_hyperparams(mo.muon)(learning_rate=0.1, **arguments).init(PARAMS)


CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # optax.inject_hyperparams
    "orthogonalizer injected": (
        lambda: injected(orthogonalizer=mo.newton_schulz()),
        TypeError,
        "got a scalar of dtype int32. optax.inject_hyperparams calls every function as a schedule",
    ),
    "polar factor injected": (
        lambda: injected(orthogonalizer=mo.polar_factor()),
        TypeError,
        "inject_hyperparams(muon, static_args=('orthogonalizer',))",
    ),
    # the factories
    "muon of parameters": (lambda: mo.muon(PARAMS), TypeError, "... is not a number; use a finite number >= 0, or a"),
    "recipe of parameters": (lambda: recipes.normuon(PARAMS), TypeError, "... is not a number; use a finite number"),
    "decay by position": (lambda: mo.muon(0.1, 0.1), TypeError, "takes one positional argument"),
    "muon of a model": (
        lambda: mo.muon(MODEL),
        TypeError,
        "learning_rate=Sequential holds matrices, so it is no schedule",
    ),
    "decay of a model": (
        lambda: mo.muon(0.1, weight_decay=MODEL),
        TypeError,
        "Parameters go to optimizer.init(params)",
    ),
    "momentum of a model": (lambda: mo.scheduled_trace(MODEL), TypeError, "decay=Sequential holds matrices"),
    "rate as a text": (lambda: mo.muon("0.1"), TypeError, "learning_rate='0.1' is not a number; use a finite number"),
    "decay as a text": (lambda: mo.muon(0.1, weight_decay="0.1"), TypeError, "weight_decay='0.1' is not a number"),
    "momentum as a text": (lambda: mo.muon(0.1, momentum="0.95"), TypeError, "momentum='0.95' is not a number"),
    "AdamW's rate as a text": (lambda: mo.muon(0.1, adamw_learning_rate="1e-3"), TypeError, "='1e-3' is not a number"),
    "factor as a text": (lambda: mo.Settings(learning_rate="2"), TypeError, "learning_rate='2' is not a number"),
    "parameters that are None": (
        lambda: OPTIMIZER.init(None),
        TypeError,
        "params is None, so there is nothing to train: call optimizer.init(params)",
    ),
    "a partition of None": (
        lambda: mo.partition_by_layout(optax.sgd(0.1), optax.sgd(0.1)).init(None),
        TypeError,
        "params is None, so there is nothing to train",
    ),
    "schedule not called": (
        lambda: mo.muon(optax.cosine_decay_schedule),
        TypeError,
        "learning_rate=cosine_decay_schedule can't be called with (step): missing a required argument: 'decay_steps'.",
    ),
    "recipe's schedule not called": (
        lambda: recipes.muon_h(optax.linear_schedule, adamw_learning_rate=0.1),
        TypeError,
        "learning_rate=linear_schedule can't be called with (step)",
    ),
    "decay schedule not called": (
        lambda: mo.add_cautious_decayed_weights(optax.linear_schedule),
        TypeError,
        "weight_decay=linear_schedule can't be called with (step)",
    ),
    "momentum schedule not called": (
        lambda: mo.muon(0.1, momentum=optax.linear_schedule),
        TypeError,
        "decay=linear_schedule can't be called with (step)",
    ),
    "factor's schedule not called": (
        lambda: mo.Settings(weight_decay=optax.linear_schedule),
        TypeError,
        "weight_decay=linear_schedule can't be called with (step)",
    ),
    "scale of one argument": (
        lambda: mo.muon(0.1, scale=lambda fan_in: fan_in**0.5),
        TypeError,
        "scale=<lambda> can't be called with (fan_in, fan_out): too many positional arguments.",
    ),
    "scale of a group, of one argument": (
        lambda: mo.Settings(scale=lambda fan_in: 1.0),
        TypeError,
        "scale=<lambda> can't be called with (fan_in, fan_out)",
    ),
    "orthogonalizer without an argument": (
        lambda: mo.muon(0.1, orthogonalizer=lambda: mo.newton_schulz()),
        TypeError,
        "orthogonalizer=<lambda> can't be called with (matrices)",
    ),
    "layouts without an argument": (
        lambda: mo.assign_layouts(PARAMS, lambda: {"kernel": "io"}),
        TypeError,
        "layouts=<lambda> can't be called with (params)",
    ),
    "layouts by path and leaf": (
        lambda: mo.muon(0.1, layouts=lambda path, leaf: "io").init(PARAMS),
        TypeError,
        "layouts=<lambda> can't be called with (params): missing a required argument: 'leaf'. Give path globs",
    ),
    "mask by path and leaf": (
        lambda: mo.muon(0.1, weight_decay_mask=lambda path, leaf: True),
        TypeError,
        "weight_decay_mask=<lambda> can't be called with (params): missing a required argument: 'leaf'.",
    ),
    "bound as a text": (
        lambda: mo.polar_express(5, "1e-3"),
        TypeError,
        "lower_bound='1e-3' is not a number",
    ),
    "first step as a text": (
        lambda: diagnostics.finite_or_raise(jax.jit(lambda x: x), first_step="4"),
        TypeError,
        "first_step='4' is not a whole number: give the step of the first call.",
    ),
    "grouped by a name": (
        lambda: diagnostics.recorded(RECORDER.init(PARAMS)).last("growth", "layers"),
        TypeError,
        "grouped='layers' is not allowed: use True or False.",
    ),
    "scale of a summary": (
        lambda: mo.summarize(PARAMS, scale=lambda fan_in: 1.0),
        TypeError,
        "scale=<lambda> can't be called with (fan_in, fan_out)",
    ),
    "shapes in place of a matrix": (
        lambda: mo.newton_schulz()(jax.ShapeDtypeStruct((4, 6), jnp.float32)),
        TypeError,
        "An orthogonalizer takes one array of matrices (*batch, rows, cols); got ShapeDtypeStruct.",
    ),
    "rows of unequal length": (
        lambda: mo.polar_factor()([[1.0, 2.0], [3.0]]),
        TypeError,
        "An orthogonalizer takes one array of matrices (*batch, rows, cols); got list.",
    ),
    "mask as a number": (
        lambda: mo.muon(0.1, weight_decay_mask=5),
        TypeError,
        "weight_decay_mask=5 is not a tree of booleans like the parameters",
    ),
    "decay in the mask": (
        lambda: mo.muon(0.1, weight_decay_mask={"kernel": 5, "bias": 0}),
        TypeError,
        "weight_decay_mask has 5 at 'kernel': give a tree of booleans",
    ),
    "Nesterov as a text": (
        lambda: mo.muon(0.1, nesterov="false"),
        TypeError,
        "nesterov='false' is not allowed: use True",
    ),
    "Nesterov of codes": (lambda: mo.quantized_trace(0.9, nesterov="no"), TypeError, "nesterov='no' is not allowed"),
    "debias as a text": (lambda: mo.nesterov_ema(0.9, debias="no"), TypeError, "debias='no' is not allowed: use True"),
    "momentum dtype in a mapping": (
        lambda: mo.muon(0.1, momentum_dtype={"kernel": "float32"}),
        ValueError,
        "momentum_dtype={'kernel': 'float32'} is not allowed: use a floating type",
    ),
    "momentum dtype of a schedule": (
        lambda: mo.scheduled_trace(0.9, momentum_dtype="float33"),
        ValueError,
        "momentum_dtype='float33' is not allowed",
    ),
    "momentum dtype of an average": (
        lambda: mo.nesterov_ema(0.9, momentum_dtype=16),
        ValueError,
        "momentum_dtype=16 is not allowed",
    ),
    "host memory of a number": (lambda: mo.offload_to_host(0.95), TypeError, f"transform=0.95 {UNCALLED}"),
    "orthogonalizer without a result": (
        lambda: mo.muon(0.1, orthogonalizer=lambda matrices: None).update(PARAMS, STATE, PARAMS),
        TypeError,
        "The orthogonalizer returned None; it must return matrices of the shape (4, 6) that it gets",
    ),
    "layouts of a model": (
        lambda: mo.assign_layouts(PARAMS, MODEL),
        TypeError,
        "layouts=Sequential holds arrays: give path globs or a function",
    ),
    "heads by number": (lambda: recipes.muon_h(0.1, adamw_learning_rate=0.1, heads=5), TypeError, "heads=5 is not"),
    "unknown momentum dtype": (
        lambda: mo.muon(0.1, momentum_dtype="float33"),
        ValueError,
        "momentum_dtype='float33' is not allowed: use a floating type such as jnp.bfloat16, or None",
    ),
    "layouts in a list": (
        lambda: mo.muon(0.1, layouts=["io"]).init(PARAMS),
        TypeError,
        "layouts=['io'] is not allowed",
    ),
    "layouts by number": (
        lambda: mo.muon(0.1, layouts={0: "io"}).init(PARAMS),
        TypeError,
        "layouts has 0: 'io', and needs path globs",
    ),
    "letters in a tuple": (
        lambda: mo.muon(0.1, layouts={"kernel": ("i", "o")}).init(PARAMS),
        TypeError,
        "layouts has 'kernel': ('i', 'o'), and needs path globs with a string such as 'io'",
    ),
    "an orthogonalizer's factory": (
        lambda: mo.muon(0.1, orthogonalizer=mo.newton_schulz).update(PARAMS, STATE, PARAMS),
        TypeError,
        "Call the function that it returns: newton_schulz()(matrix)",
    ),
    "scale as a number": (lambda: mo.muon(0.1, scale=2.0), ValueError, "The scale 2.0 is not known: use one of"),
    "update without params": (lambda: OPTIMIZER.update(PARAMS, STATE), ValueError, "params"),
    "state in place of params": (
        lambda: OPTIMIZER.update(PARAMS, STATE, STATE),
        TypeError,
        "The params are the state of an optimizer (PartitionState): call optimizer.update(gradients, state, params)",
    ),
    "params first": (
        lambda: OPTIMIZER.update(PARAMS, PARAMS, STATE),
        TypeError,
        "The params are the state of an optimizer",
    ),
    "state first": (
        lambda: OPTIMIZER.update(optax.chain(OPTIMIZER).init(PARAMS), PARAMS, PARAMS),
        TypeError,
        "The gradients are the state of an optimizer (tuple)",
    ),
    "optimizer in place of its state": (
        lambda: OPTIMIZER.update(PARAMS, OPTIMIZER, PARAMS),
        TypeError,
        "The state is an optimizer: call optimizer.update(gradients, state, params). The first state is optimizer.init",
    ),
    "update of shapes": (
        lambda: OPTIMIZER.update(SHAPES, STATE, PARAMS),
        TypeError,
        "The gradients are shapes without",
    ),
    "update beside shapes": (
        lambda: OPTIMIZER.update(PARAMS, STATE, SHAPES),
        TypeError,
        "The params are shapes without",
    ),
    "init of the factory": (lambda: OPTIMIZER.init(mo.muon), TypeError, "is muon of type function, not an array"),
    # parts
    "partition of factories": (
        lambda: mo.partition_by_layout(OPTIMIZER, optax.sgd),
        TypeError,
        f"others=sgd {UNCALLED}",
    ),
    "layouts first": (
        lambda: mo.partition_by_layout({"kernel": "io"}, OPTIMIZER, OPTIMIZER),
        TypeError,
        f"matrices={{'kernel': 'io'}} {UNCALLED}",
    ),
    "scale by layouts": (
        lambda: mo.scale_by_shape({"kernel": "io"}),
        ValueError,
        "The scale {'kernel': 'io'} is not known: use one of 'naive'",
    ),
    "coefficients as an orthogonalizer": (
        lambda: mo.orthogonalize(mo.KELLER),
        TypeError,
        "is not a function: pass one from matrices to matrices",
    ),
    "name of coefficients": (lambda: mo.newton_schulz("keller"), ValueError, "coefficients='keller' is not allowed"),
    "unknown product dtype": (
        lambda: mo.orthogonalize_via_newton_schulz(dtype="bfloat17"),
        ValueError,
        "dtype='bfloat17' is not allowed: multiply in a floating type",
    ),
    "matrix as product dtype": (
        lambda: mo.newton_schulz(dtype=jnp.ones((2, 2))),
        ValueError,
        "is not allowed: multiply",
    ),
    "state orthogonalized": (lambda: mo.newton_schulz()(STATE), TypeError, "got PartitionState. For a tree of"),
    "no product dtype": (lambda: mo.newton_schulz(dtype=None), ValueError, "dtype=None is not allowed: multiply in"),
    "tree orthogonalized": (
        lambda: mo.newton_schulz()(PARAMS),
        TypeError,
        "takes one array of matrices (*batch, rows, cols); got dict. For a tree of parameters use",
    ),
    "tree to the polar factor": (lambda: mo.polar_factor()(PARAMS), TypeError, "got dict. For a tree of parameters"),
    "range of a text": (lambda: mo.coefficient_range(mo.KELLER, "0"), TypeError, "lower='0', upper=1.0 is not allowed"),
    "hold idle, a factory": (lambda: mo.hold_idle(mo.muon), TypeError, f"inner=muon {UNCALLED}"),
    "hold idle, rows by number": (
        lambda: mo.hold_idle(OPTIMIZER, per_row=5),
        TypeError,
        "per_row=5 is not allowed: use a sequence of path globs",
    ),
    "hold idle, globs by number": (
        lambda: mo.hold_idle(OPTIMIZER, per_row=[1]),
        TypeError,
        "per_row=[1] is not allowed",
    ),
    "hold idle matrices, a factory": (lambda: mo.hold_idle_matrices(mo.muon), TypeError, f"inner=muon {UNCALLED}"),
    # layouts
    "assign, exchanged": (lambda: mo.assign_layouts({"kernel": "io"}, PARAMS), TypeError, EXCHANGED),
    "label, exchanged": (lambda: mo.label_params({"kernel": "io"}, PARAMS), TypeError, EXCHANGED),
    "summarize, exchanged": (lambda: mo.summarize({"kernel": "io"}, PARAMS), TypeError, EXCHANGED),
    "summarize, scale second": (
        lambda: mo.summarize(PARAMS, "moonlight"),
        TypeError,
        "layouts='moonlight' is not allowed: give a mapping",
    ),
    "summarize, a factory": (
        lambda: mo.summarize(PARAMS, optimizer=optax.adamw),
        TypeError,
        f"optimizer=adamw {UNCALLED}",
    ),
    "strict as a text": (lambda: mo.summarize(PARAMS, strict="no"), TypeError, "strict='no' is not allowed: use True"),
    "split by number": (
        lambda: mo.Layout("io", split=3),
        TypeError,
        "split=3 is not allowed: give the sizes of all blocks, for example (768, 256, 256); for equal ones",
    ),
    "JSON of a text": (
        lambda: mo.layouts_to_json("io"),
        TypeError,
        "layouts='io' is not a mapping from path to layout: give what muon_optax.assign_layouts(params)",
    ),
    "JSON of a mapping": (lambda: mo.layouts_from_json({"a": "io"}), TypeError, "text={'a': 'io'} is not JSON: give"),
    "JSON of a path": (lambda: mo.layouts_from_json("run.json"), ValueError, "text='run.json' is not JSON (Expecting"),
    "fused sizes by number": (lambda: mo.split_fused(3), TypeError, "sizes=3 is not allowed: give a mapping from path"),
    "fused sizes, layouts first": (lambda: mo.split_fused("io"), TypeError, "sizes='io' is not allowed"),
    "fused sizes of parameters": (lambda: mo.split_fused(PARAMS), ValueError, "... is not allowed: give the sizes of"),
    # states and meshes
    "shardings, exchanged": (lambda: mo.state_shardings(PARAMS, OPTIMIZER), TypeError, UNCALLED),
    "shardings, a factory": (lambda: mo.state_shardings(mo.muon, PARAMS), TypeError, f"optimizer=muon {UNCALLED}"),
    "init sharded, exchanged": (lambda: mo.init_sharded(PARAMS, OPTIMIZER), TypeError, UNCALLED),
    "carry over, exchanged": (
        lambda: mo.carry_over(OPTIMIZER, STATE),
        TypeError,
        "The earlier state is an optimizer: give what optimizer.init(params) returns",
    ),
    "carry over to an optimizer": (
        lambda: mo.carry_over(STATE, OPTIMIZER),
        TypeError,
        "The fresh state is an optimizer",
    ),
    "carry over to parameters": (lambda: mo.carry_over(STATE, PARAMS), ValueError, "The fresh state is a dict, which"),
    "carry over, names by number": (
        lambda: mo.carry_over(STATE, STATE, renamed=5),
        TypeError,
        "renamed=5 is not allowed: give a mapping from earlier paths to those of now",
    ),
    "carry over, a tree of names": (
        lambda: mo.carry_over(STATE, STATE, renamed={"a": {"b": "c"}}),
        TypeError,
        "renamed={'a': {'b': 'c'}} is not allowed",
    ),
    "carry over, step as a text": (
        lambda: mo.carry_over(STATE, STATE, step="5"),
        TypeError,
        "step='5' is not a number",
    ),
    "carry over, strict as a text": (
        lambda: mo.carry_over(STATE, STATE, strict="no"),
        TypeError,
        "strict='no' is not allowed",
    ),
    "from PyTorch, whole": (
        lambda: mo.from_torch_muon({"state": {0: {}}, "param_groups": []}, STATE),
        TypeError,
        "This is PyTorch's state_dict(): give a mapping from each parameter's path to its entry",
    ),
    "from PyTorch, by number": (
        lambda: mo.from_torch_muon({0: {"momentum_buffer": jnp.ones((4, 6))}}, STATE),
        TypeError,
        "The state has the key 0, and PyTorch's numbers say nothing of names",
    ),
    "from PyTorch, arrays alone": (
        lambda: mo.from_torch_muon({"kernel": jnp.ones((4, 6))}, STATE),
        TypeError,
        "for 'kernel': give a mapping from each parameter's path to its entry, such as {'up/weight':",
    ),
    "from PyTorch, a state": (
        lambda: mo.from_torch_muon(STATE, STATE),
        TypeError,
        "state=PartitionState is not allowed",
    ),
    # diagnostics
    "sizes of shapes": (lambda: diagnostics.update_rms(SHAPES), TypeError, "'bias' is a jax.ShapeDtypeStruct, a shape"),
    "errors of shapes": (
        lambda: diagnostics.orthogonality_error(SHAPES),
        TypeError,
        "'kernel' is a jax.ShapeDtypeStruct",
    ),
    "not finite, of shapes": (lambda: diagnostics.raise_if_nonfinite(SHAPES), TypeError, "'bias' is a jax.ShapeDtype"),
    "prediction, a rate as a text": (
        lambda: diagnostics.predicted_update_rms(PARAMS, learning_rate="0.1"),
        TypeError,
        "learning_rate='0.1' is not a number",
    ),
    "moved, an optimizer as state": (
        lambda: diagnostics.moved_without_gradient(OPTIMIZER, OPTIMIZER, PARAMS),
        TypeError,
        "holds no state of an optimizer",
    ),
    "moved, layouts as params": (
        lambda: diagnostics.moved_without_gradient(OPTIMIZER, STATE, {"kernel": "io"}),
        TypeError,
        "params={'kernel': 'io'} holds no arrays: call moved_without_gradient(optimizer, state, params)",
    ),
    "a recorder's update, state as params": (
        lambda: RECORDER.update(PARAMS, RECORDER.init(PARAMS), STATE),
        TypeError,
        "The params are the state of an optimizer (PartitionState): call optimizer.update(gradients, state, params)",
    ),
    "a recorder's update, other params": (
        lambda: RECORDER.update(PARAMS, RECORDER.init(PARAMS), {"kernel": jnp.ones((4, 6))}),
        ValueError,
        "The updates are not the tree of params: 'bias' has shape (6,) in the updates and none (missing) in params",
    ),
    "a recorder's update without params": (
        lambda: RECORDER.update(PARAMS, RECORDER.init(PARAMS)),
        ValueError,
        "call optimizer.update(gradients, state, params)",
    ),
    "picture of a state": (
        lambda: heat_map(STATE, "growth"),
        TypeError,
        "recording=PartitionState is not a Recording: give what muon_optax.diagnostics.recorded(state) returns",
    ),
    "prediction, scale second": (
        lambda: diagnostics.predicted_update_rms(PARAMS, "keller"),
        TypeError,
        "layouts='keller' is not allowed",
    ),
    "prediction, three by position": (
        lambda: diagnostics.predicted_update_rms(PARAMS, None, "keller"),
        TypeError,
        "takes from 1 to 2 positional arguments",
    ),
    "error, exchanged": (lambda: diagnostics.orthogonality_error({"kernel": "io"}, PARAMS), TypeError, EXCHANGED),
    "not finite, exchanged": (
        lambda: diagnostics.raise_if_nonfinite("gradients", PARAMS),
        TypeError,
        'call raise_if_nonfinite(tree, name, step), as in raise_if_nonfinite(gradients, "gradients", step)',
    ),
    "finite step of parameters": (
        lambda: diagnostics.finite_or_raise(PARAMS),
        TypeError,
        "... is not a function: give the training step",
    ),
    "moved, state first": (
        lambda: diagnostics.moved_without_gradient(STATE, OPTIMIZER, PARAMS),
        TypeError,
        UNCALLED,
    ),
    "moved, params second": (
        lambda: diagnostics.moved_without_gradient(OPTIMIZER, PARAMS, STATE),
        TypeError,
        "holds no state of an optimizer: call moved_without_gradient(optimizer, state, params)",
    ),
    "record, exchanged": (lambda: diagnostics.record(10, OPTIMIZER), TypeError, f"optimizer=10 {UNCALLED}"),
    "recorded of an optimizer": (lambda: diagnostics.recorded(OPTIMIZER), ValueError, "holds 0 recorders, and one is"),
}


@pytest.mark.parametrize("case", CALLS)
def test_the_message_says_what_to_do(case: str) -> None:
    call, error, message = CALLS[case]
    with pytest.raises(error, match=re.escape(message)) as raised:
        call()
    # What was given may be a whole model: the message must still be read.
    assert len(str(raised.value)) < 700


class Adapted(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.base = nnx.Linear(4, 6, rngs=rngs)
        self.adapter = nnx.LoRA(4, 2, 6, rngs=rngs)


def test_layouts_of_a_whole_model_where_a_filter_leaves_leaves_out() -> None:
    model = Adapted(nnx.Rngs(0))
    whole = layouts_of(model)
    with pytest.raises(
        ValueError, match=r"'base/kernel', which matches no parameter.*layouts_of\(model, wrt="
    ) as raised:
        nnx.Optimizer(model, mo.muon(0.1, layouts=whole), wrt=nnx.LoRAParam)
    assert "those whose path is in assign_layouts(params)" in str(raised.value)
    # Both remedies work.
    state = nnx.state(model, nnx.LoRAParam)
    known = mo.assign_layouts(state)
    part = {path: layout for path, layout in whole.items() if path in known}
    for layouts in (layouts_of(model, wrt=nnx.LoRAParam), part):
        nnx.Optimizer(model, mo.muon(0.1, layouts=layouts), wrt=nnx.LoRAParam)


def test_a_momentum_dtype_that_an_old_state_does_not_have() -> None:
    before, now = mo.muon(0.1), mo.muon(0.1, momentum_dtype=jnp.bfloat16)
    state = before.init(PARAMS)
    with pytest.warns(mo.MuonWarning, match=r"momentum_dtype=bfloat16 has no effect.*is float32.*carry_over") as caught:
        now.update(PARAMS, state, PARAMS)
    assert caught[0].filename == __file__
    carried, _ = mo.carry_over(state, now.init(PARAMS))
    _, after = now.update(PARAMS, carried, PARAMS)
    kept = after.inner_states["muon"].inner_state[0].trace["kernel"]
    assert kept.dtype == jnp.bfloat16


@pytest.mark.parametrize("module", [diagnostics, recipes])
def test_completion_shows_public_names_alone(module: Any) -> None:
    assert dir(module) == sorted(module.__all__)
    assert all(getattr(module, name).__doc__ for name in dir(module))


def test_jax_is_not_needed_to_read_a_message() -> None:
    """A traced rate is not printed but taken."""
    jax.jit(lambda rate: mo.muon(rate).init(PARAMS))(jnp.float32(0.1))
