"""Compare meshes and micro-batches for a run."""

import dataclasses
import math

from ml_collections import ConfigDict

from epo_jax.plan.estimate import GIB, DoesNotFit, fits, gradient_steps, plan, rounds
from epo_jax.plan.programs import PlanError, PlanTarget, device_bytes, plan_target
from epo_jax.runtime.parallel import MeshError


def meshes(chips: int) -> list[tuple[int, int, int]]:
    """Return the meshes to compare, as (data, fsdp, tensor).

    `tensor` is at most 8. The remaining chips split rows along one axis: `fsdp`, which also splits the parameters, or
    `data`, which replicates them.
    """
    rest = [(chips // tensor, tensor) for tensor in (1, 2, 4, 8) if chips % tensor == 0]
    return list(dict.fromkeys(
        mesh for count, tensor in rest for mesh in ((1, count, tensor), (count, 1, tensor))))


def candidates(config: ConfigDict, topology: str, chips: int) -> list[list[PlanTarget]]:
    """Return a list of targets for each mesh, with the largest micro-batch first.

    Meshes that do not divide parameters or rows are omitted. So are micro-batches for which a chip has less memory than
    the minimum of a gradient step: parameters, optimizer state, a gradient, and the inputs of all layers for all rows.
    """
    def changed(mesh, micro_batch):
        trial = config.copy_and_resolve_references()
        trial.mesh, trial.learner.micro_batch = mesh, micro_batch
        return trial

    targets = []
    for mesh in meshes(chips):
        shards = mesh[0] * mesh[1]  # of the rows
        try:
            target = plan_target(changed(mesh, shards), topology)
        except MeshError:
            continue
        fixed = device_bytes((target.state(), target.base(), target.trained('float32')))
        row = target.shape.num_layers * config.strategist.capacity * target.shape.width * 2  # bytes in bfloat16
        rows = (2**n for n in reversed(range(config.learner.batch.bit_length())))
        targets.append([dataclasses.replace(target, config=changed(mesh, shards * n)) for n in rows
                        if config.learner.batch % (shards * n) == 0 and fixed + n * row <= target.chip.memory * GIB])
    return [of_mesh for of_mesh in targets if of_mesh]


def search(config: ConfigDict, topology: str) -> list[tuple[float, PlanTarget]]:
    """Compile the gradient step and the decode step for every mesh, and print the results.

    Returns:
      Pairs of the estimated seconds of an iteration's gradient steps and sampled tokens, and the target, fastest first.

    Raises:
      PlanError: no mesh fits.
    """
    chips, results = math.prod(int(n) for n in topology.partition(':')[2].split('x')), []
    for targets in candidates(config, topology, chips):
        for target in targets:
            label = f'mesh {target.config.mesh}, micro-batch {target.config.learner.micro_batch}'
            try:
                programs = plan(target, ('train_step',))
                if fits(target, programs):
                    programs |= plan(target, ('decode_step',))
            except DoesNotFit as error:
                print(f'{label}: {error}', flush=True)
                continue
            memory = max(program.memory_gib for program in programs.values())
            if not fits(target, programs):
                print(f'{label}: DOES NOT FIT, {memory:.1f} GiB', flush=True)
                continue
            c, (train, decode) = target.config, programs.values()
            tokens = rounds(c) * c.environment.max_turns * (c.strategist.max_tokens + c.actor.max_tokens)
            seconds = gradient_steps(c) * train.seconds + tokens * decode.seconds
            print(f'{label}: fits, {memory:.1f} GiB, train step {train.seconds:.3g} s, decode step '
                  f'{1e3 * decode.seconds:.3g} ms, {seconds:.0f} s per iteration', flush=True)
            results.append((seconds, target))
            break  # a smaller micro-batch would gather the parameters more often
    if not results:
        raise PlanError(f'no mesh of {chips} chips holds the parameters, the optimizer state and one row of a '
                        'micro-batch; use a larger slice, or set lora.rank, learner.offload or model.remat=full')
    return sorted(results, key=lambda result: result[0])
