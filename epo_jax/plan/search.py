"""Compares meshes and micro-batches for a run."""

import dataclasses
import math

from ml_collections import ConfigDict

from epo_jax.plan.estimate import GIB, DoesNotFit, fits, gradient_steps, plan, rounds
from epo_jax.plan.programs import PlanError, Setting, setting, size
from epo_jax.runtime.parallel import MeshError


def meshes(chips: int) -> list[tuple[int, int, int]]:
    """The meshes that a search compares: up to eight chips share a layer, and the others split rows along one axis,
    with the parameters (`fsdp`) or with copies of them (`data`). What mixes those two lies between them."""
    rest = [(chips // tensor, tensor) for tensor in (1, 2, 4, 8) if chips % tensor == 0]
    return list(dict.fromkeys(
        mesh for count, tensor in rest for mesh in ((1, count, tensor), (count, 1, tensor))))


def candidates(config: ConfigDict, topology: str, chips: int) -> list[list[Setting]]:
    """By mesh, the settings to try, largest micro-batch first.

    Left out are meshes that do not divide what they have to, and micro-batches for which a chip lacks room for what a
    gradient step cannot do without: parameters, optimiser, a gradient, and what every layer hands to the next in all
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
            this = setting(changed(mesh, parts), topology)
        except MeshError:
            continue
        held = size((this.state(), this.base(), this.trained('float32')))
        row = this.shape.num_layers * config.strategist.capacity * this.shape.width * 2  # bytes, bfloat16
        rows = (2**n for n in reversed(range(config.learner.batch.bit_length())))
        found.append([dataclasses.replace(this, config=changed(mesh, parts * n)) for n in rows
                      if config.learner.batch % (parts * n) == 0 and held + n * row <= this.chip.memory * GIB])
    return [settings for settings in found if settings]


def search(config: ConfigDict, topology: str) -> list[tuple[float, Setting]]:
    """Compiles the gradient step and the decoding step for every mesh, and says what it finds as it goes on.

    Returns:
      (estimated seconds of an iteration's gradient steps and sampled tokens, setting), best first.

    Raises:
      PlanError: nothing fits.
    """
    chips, found = math.prod(int(n) for n in topology.partition(':')[2].split('x')), []
    for settings in candidates(config, topology, chips):
        for this in settings:
            said = f'mesh {this.config.mesh}, micro-batch {this.config.learner.micro_batch}'
            try:
                programs = plan(this, ('train_step',))
                if fits(this, programs):
                    programs |= plan(this, ('decode_step',))
            except DoesNotFit as error:
                print(f'{said}: {error}', flush=True)
                continue
            memory = max(program.memory_gib for program in programs.values())
            if not fits(this, programs):
                print(f'{said}: DOES NOT FIT, {memory:.1f} GiB', flush=True)
                continue
            c, (train, decode) = this.config, programs.values()
            tokens = rounds(c) * c.environment.max_turns * (c.strategist.max_tokens + c.actor.max_tokens)
            seconds = gradient_steps(c) * train.seconds + tokens * decode.seconds
            print(f'{said}: fits, {memory:.1f} GiB, train step {train.seconds:.3g} s, decode step '
                  f'{1e3 * decode.seconds:.3g} ms, {seconds:.0f} s an iteration', flush=True)
            found.append((seconds, this))
            break  # a smaller micro-batch gathers the parameters more often
    if not found:
        raise PlanError(f'no mesh of {chips} chips holds parameters, optimiser and one row of a micro-batch: '
                        'take a larger slice, or lora.rank, learner.offload, model.remat=full')
    return sorted(found, key=lambda one: one[0])
