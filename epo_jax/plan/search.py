"""Compare meshes and micro-batches for a run."""

import dataclasses
import math

from ml_collections import ConfigDict

from epo_jax.plan.estimate import GIB, DoesNotFit, fits, gradient_steps, plan, rounds
from epo_jax.plan.programs import PlanError, PlanTarget, plan_target, size
from epo_jax.runtime.parallel import MeshError


def meshes(chips: int) -> list[tuple[int, int, int]]:
    """Return the meshes to compare.

    Up to eight chips share a layer; the others split rows along one axis, either with the parameters (`fsdp`) or with
    copies of them (`data`).
    """
    rest = [(chips // tensor, tensor) for tensor in (1, 2, 4, 8) if chips % tensor == 0]
    return list(dict.fromkeys(
        mesh for count, tensor in rest for mesh in ((1, count, tensor), (count, 1, tensor))))


def candidates(config: ConfigDict, topology: str, chips: int) -> list[list[PlanTarget]]:
    """Return the targets to try by mesh, with the largest micro-batch first.

    Meshes that do not divide parameters or rows are left out, and so are micro-batches for which a chip cannot hold
    what a gradient step needs at least: parameters, optimizer state, a gradient, and the inputs of all layers for all
    rows.
    """
    def changed(mesh, micro_batch):
        trial = config.copy_and_resolve_references()
        trial.mesh, trial.learner.micro_batch = mesh, micro_batch
        return trial

    found = []
    for mesh in meshes(chips):
        parts = mesh[0] * mesh[1]
        try:
            target = plan_target(changed(mesh, parts), topology)
        except MeshError:
            continue
        held = size((target.state(), target.base(), target.trained('float32')))
        row = target.shape.num_layers * config.strategist.capacity * target.shape.width * 2  # bytes, bfloat16
        rows = (2**n for n in reversed(range(config.learner.batch.bit_length())))
        found.append([dataclasses.replace(target, config=changed(mesh, parts * n)) for n in rows
                      if config.learner.batch % (parts * n) == 0 and held + n * row <= target.chip.memory * GIB])
    return [settings for settings in found if settings]


def search(config: ConfigDict, topology: str) -> list[tuple[float, PlanTarget]]:
    """Compile the gradient step and the decode step for every mesh, and print the results.

    Returns:
      (estimated seconds of an iteration's gradient steps and sampled tokens, setting), best first.

    Raises:
      PlanError: nothing fits.
    """
    chips, found = math.prod(int(n) for n in topology.partition(':')[2].split('x')), []
    for settings in candidates(config, topology, chips):
        for target in settings:
            said = f'mesh {target.config.mesh}, micro-batch {target.config.learner.micro_batch}'
            try:
                programs = plan(target, ('train_step',))
                if fits(target, programs):
                    programs |= plan(target, ('decode_step',))
            except DoesNotFit as error:
                print(f'{said}: {error}', flush=True)
                continue
            memory = max(program.memory_gib for program in programs.values())
            if not fits(target, programs):
                print(f'{said}: DOES NOT FIT, {memory:.1f} GiB', flush=True)
                continue
            c, (train, decode) = target.config, programs.values()
            tokens = rounds(c) * c.environment.max_turns * (c.strategist.max_tokens + c.actor.max_tokens)
            seconds = gradient_steps(c) * train.seconds + tokens * decode.seconds
            print(f'{said}: fits, {memory:.1f} GiB, train step {train.seconds:.3g} s, decode step '
                  f'{1e3 * decode.seconds:.3g} ms, {seconds:.0f} s an iteration', flush=True)
            found.append((seconds, target))
            break  # a smaller micro-batch gathers the parameters more often
    if not found:
        raise PlanError(f'no mesh of {chips} chips holds parameters, optimizer state and one row of a micro-batch; '
                        'take a larger slice, or set lora.rank, learner.offload or model.remat=full')
    return sorted(found, key=lambda one: one[0])
