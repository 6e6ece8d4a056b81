"""Train the GPT of train_gpt.py with Muon on a mesh of devices: the losses are those of one device.

    python examples/train_gpt_sharded.py                                   # 8 virtual CPU devices, four by two
    python examples/train_gpt_sharded.py --zero --mesh data=8              # parameters whole, momentum spread
    python examples/train_gpt_sharded.py --resume --mesh data=2            # continue an interrupted run, on any mesh
    python examples/train_gpt_sharded.py --coordinator 127.0.0.1:8765 --processes 2 --process 0  # and 1: two as one
    python examples/train_gpt_sharded.py --distributed --mesh data=16,model=4 --output SHARED    # each host of a pod

The --output folder receives metrics.csv and checkpoints/, never overwritten: --resume continues them. However a run
ends, the last checkpoint stays good. The exit status is 0 when all is done; 2 after one line that says what to put
right, such as to start again where a process died (where one falls silent, JAX aborts the others after --timeout
seconds); 143 after SIGTERM to any process, upon which all finish the same step and write a checkpoint.
"""

import argparse
import logging
import math
import os
import signal
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from _bookkeeping import RunError, open_checkpoints, read_text, restore, save, write_metrics
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from train_gpt import GPT, PRESETS, Preset, sample_batch

import muon_optax as mo


def read_mesh(text: str) -> dict[str, int]:
    """The devices along each axis: {"data": 4, "model": 2} of "data=4,model=2"."""
    try:
        sizes = {axis: int(size) for axis, size in (part.split("=") for part in text.split(","))}
    except ValueError:
        sizes = {}
    if len(sizes) != text.count("=") or not {*sizes} <= {"data", "model"} or min(sizes.values(), default=0) < 1:
        raise RunError(f"--mesh {text}: give the devices of one axis or of both, as in data=4,model=2")
    return {"data": 1, "model": 1} | sizes


def join(arguments: argparse.Namespace, devices: int) -> None:
    """Makes one JAX of all processes; of CPUs it has as many devices as needed, unless JAX_NUM_CPU_DEVICES is set."""
    coordinator, processes = arguments.coordinator, arguments.processes
    if (coordinator is None) != (processes == 1) or processes < 1 or devices % processes:
        raise RunError(f"--processes {processes}: give a --coordinator to two or more with equal parts of the mesh")
    if not arguments.distributed and jax.config.jax_num_cpu_devices < 0:
        jax.config.update("jax_num_cpu_devices", devices // processes)
    if arguments.distributed or coordinator is not None:
        address = () if coordinator is None else (coordinator, processes, arguments.process)  # a pod's is known to JAX
        names = "initialization_timeout", "heartbeat_timeout_seconds", "shutdown_timeout_seconds"
        timeouts = dict.fromkeys(names, arguments.timeout)
        try:
            jax.distributed.initialize(*address, coordinator_bind_address=coordinator, **timeouts)
        except (RuntimeError, ValueError) as error:
            raise RunError(f"the processes can't find each other: {str(error).splitlines()[0]}") from error


def place(mesh: Mesh, data: str | None, path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    """Tensor parallel over model: a product by its outputs, the one that follows by its inputs; FSDP over data."""
    name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
    follows = not {*name.split("/")}.isdisjoint({"embedding", "out", "down"})
    spec = jax.P("model", *[None] * (leaf.ndim - 2), data) if follows else jax.P(data, "model")
    sharding = NamedSharding(mesh, spec if leaf.ndim > 1 else jax.P())
    try:
        sharding.shard_shape(leaf.shape)
    except ValueError as error:
        raise RunError(f"--mesh {dict(mesh.shape)} does not divide {name} of {leaf.shape} by {spec}") from error
    return sharding


def run(arguments: argparse.Namespace, preset: Preset) -> None:
    """Trains on the mesh; of several processes the first one shows what all do."""
    sizes, seed, limit, output = read_mesh(arguments.mesh), arguments.seed, preset.steps, arguments.output
    join(arguments, needed := math.prod(sizes.values()))
    devices, first, title = jax.devices(), jax.process_index() == 0, f"process {jax.process_index()}"
    print(f"{title} of {jax.process_count()} has {jax.local_device_count()} of {len(devices)} devices", flush=True)
    if needed > len(devices) or (needed < len(devices) and jax.process_count() > 1):
        raise RunError(f"--mesh {arguments.mesh} needs {needed} devices, and there are {len(devices)}")
    if preset.batch % sizes["data"]:
        raise RunError(f"--mesh {arguments.mesh} does not divide the batch of {preset.batch} by {sizes['data']}")
    mesh = jax.make_mesh((*sizes.values(),), (*sizes,), axis_types=(AxisType.Auto,) * 2, devices=devices[:needed])
    graph, shapes = nnx.split(nnx.eval_shape(lambda: GPT(preset, nnx.Rngs(seed))))
    whole = jax.tree_util.tree_map_with_path(partial(place, mesh, None), shapes)
    places = whole if arguments.zero else jax.tree_util.tree_map_with_path(partial(place, mesh, "data"), shapes)
    plan = mo.plan(shapes, places, over="data" if arguments.zero else None)
    everywhere, over_data = NamedSharding(mesh, jax.P()), NamedSharding(mesh, jax.P("data"))
    peak, warmup = preset.rates["muon"], max(1, limit // 20)
    rate = optax.warmup_cosine_decay_schedule(peak / warmup, peak, warmup, max(2, limit), 0.1 * peak)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), mo.muon(rate, weight_decay=0.1, shardings=plan))
    state_places = places, mo.state_shardings(optimizer, shapes, plan)
    text, held_out, sha256 = read_text(arguments.text, preset.context)
    configuration = {"preset": arguments.preset, "optimizer": "muon", "seed": seed, "text": sha256[:16]}
    configuration |= preset._asdict()  # and no mesh: a run may go on on another
    checkpoints, histories = open_checkpoints(output, configuration, arguments.resume)
    rows = histories.get("muon", [])
    if first:
        print(mo.summarize(shapes), plan, sep="\n\n", flush=True)

    def loss(parameters: nnx.State, tokens: jax.Array) -> jax.Array:
        # FSDP: whole along data for the products alone. Left to itself, XLA divides some activations by their channels
        # instead of the batch, and sends more.
        parameters = jax.lax.with_sharding_constraint(parameters, whole)
        logits, targets = nnx.merge(graph, parameters)(tokens[:, :-1]), tokens[:, 1:].astype(np.int32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @partial(jax.jit, donate_argnums=0, out_shardings=(state_places, everywhere))
    def step(state: tuple, tokens: jax.Array) -> tuple:
        parameters, optimizer_state = state
        value, gradients = jax.value_and_grad(loss)(parameters, tokens)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        return (parameters, optimizer_state), (value, optax.tree.norm(parameters))

    def batch(text: np.ndarray, seed: int, number: int) -> jax.Array:  # every process draws it, a device gets its part
        tokens = sample_batch(text, preset, seed, number)
        return jax.make_array_from_callback(tokens.shape, over_data, tokens.__getitem__)

    def checkpoint(made: int, state: tuple) -> None:
        if first:
            print(f"step {made} of {limit}: loss {rows[made - 1][1]:.4f}", flush=True)
            write_metrics(output, "step training_loss validation_loss", rows)
        save(checkpoints, made, state, configuration, {"muon": rows})

    signals: list[int] = []
    if jax.process_count() == 1:  # to several JAX passes on what one of them was told
        signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    logging.disable()  # Orbax logs pages of what fails
    parameters = jax.jit(lambda: nnx.split(GPT(preset, nnx.Rngs(seed)))[1], out_shardings=places)()
    state = parameters, mo.init_sharded(optimizer, parameters, plan)
    if rows:
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        state = parameters = None  # their memory is for what is restored
        state = restore(checkpoints, checkpoints.latest_step(), shapes)
    windows, evaluate = [batch(held_out, 0, number) for number in range(8)], jax.jit(loss, out_shardings=everywhere)
    for made in range(len(rows) + 1, limit + 1):
        state, (value, norm) = step(state, batch(text, seed, made - 1))
        rows.append([made - 1, float(value), None])
        if not np.isfinite(float(value) + float(norm)):
            raise RunError(f"the loss at step {made - 1} is {value}, the norm then {norm}: lower --learning-rate")
        stopped = checkpoints.reached_preemption(made) or signals
        if made == limit:
            rows.append([limit, None, float(np.mean([float(evaluate(state[0], window)) for window in windows]))])
        if stopped or made == limit or made % max(1, limit // 10) == 0:
            checkpoint(made, state)
        if stopped:
            print(f"{title}: stopped by SIGTERM after {made} steps, all saved: --resume goes on", flush=True)
            sys.exit(128 + signal.SIGTERM)
    print(f"{title}: validation loss {rows[-1][2]:.6f}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 2, after one line of explanation, where its user can put something right."""
    parser = argparse.ArgumentParser(description="Train a small byte-level GPT with Muon on a mesh of devices.")
    parser.add_argument("--mesh", default="data=4,model=2", help="(default: %(default)s)")
    parser.add_argument("--zero", action="store_true", help="parameters whole along data, momentum spread over it")
    parser.add_argument("--distributed", action="store_true", help="one process of a pod, of Slurm or of Open MPI")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where the first of --processes listens")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0, help="which one this is, from 0")
    parser.add_argument("--timeout", type=int, default=100, help="seconds until a silent process counts as lost")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    parser.add_argument("--output", type=Path, default=Path("runs/train_gpt_sharded"), help="(default: %(default)s)")
    parser.add_argument("--preset", choices=[*PRESETS], default="small", help="the model and its training")
    parser.add_argument("--steps", type=int, help="in place of the preset's")
    parser.add_argument("--learning-rate", type=float, help="the peak, in place of the preset's")
    parser.add_argument("--text", help="a file or a folder, in place of the standard library's source")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    name, preset, steps = Path(__file__).name, PRESETS[arguments.preset], arguments.steps
    rate = arguments.learning_rate or preset.rates["muon"]
    try:
        if arguments.seed < 0 or (steps is not None and steps < 1) or not 0 < rate <= 1:
            raise RunError(f"--steps {steps} --seed {arguments.seed} --learning-rate {rate}: one is out of range")
        run(arguments, preset._replace(steps=steps or preset.steps, rates={"muon": rate}))
    except (RunError, OSError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(f"{name}: error: lost a process; start all with --resume: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # after sys.exit JAX would wait for the lost one
    return 0


if __name__ == "__main__":
    sys.exit(main())
