"""Estimates by the TPU compiler of the memory and time that the programs of a run need on a mesh."""

import collections
import concurrent.futures
import dataclasses
import functools
import glob
import os
import tempfile
from typing import Any, Mapping, Sequence

import jax
from ml_collections import ConfigDict

from epo_jax.envs.base import load_domain
from epo_jax.plan import cost
from epo_jax.plan.programs import PROGRAMS, PlanError, PlanTarget, device_bytes

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Program:
    """The estimated cost of a program on one device; only `flops` is of all devices together.

    Attributes:
      memory_gib: memory in use while it runs, arrays that other programs need included, in GiB.
      flops: floating point operations of matrix products on all devices, recomputation included.
      bytes: bytes read and written in memory, as XLA counts them: the body of a loop once.
      compute_seconds: XLA's estimate for all fusions.
      link_seconds: time of collectives that do not overlap with other work, and the time by which the others exceed the
        fusions.
      collectives: number of executions and bytes that leave the device, by kind.
      top: operations with their estimated seconds, the largest first.
    """

    memory_gib: float
    flops: float
    bytes: float
    compute_seconds: float
    link_seconds: float
    collectives: Mapping[str, Mapping[str, float]]
    top: Sequence[tuple[str, float]]

    @property
    def seconds(self) -> float:
        """Return the estimated seconds of one execution."""
        return self.compute_seconds + self.link_seconds


def resident(target: PlanTarget, name: str) -> int:
    """Return the bytes on one device that other programs keep allocated while a program runs."""
    c, seats = target.config, load_domain(target.config.environment.name).seats
    frozen = device_bytes(target.base())  # actor, judge and reference; with an adapter also the base of the policy
    if name == 'train_step':
        return 0 if c.lora.rank else frozen
    state = device_bytes(target.state())
    if name == 'judge_pass':
        return state
    sessions = seats * sum(device_bytes(target.session(c.rollout.batch, role.capacity))
                           for role in (c.strategist, c.actor))
    sessions -= device_bytes(target.session(c.rollout.batch, c.strategist.capacity))  # an argument of the program
    return state + (0 if c.lora.rank else frozen) + sessions


class DoesNotFit(PlanError):
    """The compiler rejected a program that needs too much memory."""


def compile_program(target: PlanTarget, name: str) -> Program:
    """Compile one of PROGRAMS and return its cost.

    Raises:
      DoesNotFit: it exceeds the memory of a chip by so much that the compiler rejects it.
    """
    traced = PROGRAMS[name](target)
    with tempfile.TemporaryDirectory() as folder:  # the dump is complete; JAX may return less text
        try:
            compiled = traced.lower().compile(compiler_options={'xla_dump_to': folder, 'xla_dump_hlo_as_text': True})
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            raise DoesNotFit(f'{name} does not fit a chip: {str(error).splitlines()[0]}') from None
        with open(max(glob.glob(f'{folder}/*after_codegen.txt'), key=os.path.getsize)) as text:
            costs = cost.program_cost(text.read())
    usage = compiled.memory_analysis()
    memory = (usage.argument_size_in_bytes + usage.output_size_in_bytes - usage.alias_size_in_bytes
              + usage.temp_size_in_bytes + usage.generated_code_size_in_bytes)
    compute = sum(costs.cycles.values()) / target.chip.clock
    kinds = collections.defaultdict(lambda: {'count': 0, 'bytes': 0.0})
    for collective in costs.collectives:
        kinds[collective.kind]['count'] += collective.times
        kinds[collective.kind]['bytes'] += collective.bytes_sent
    hidden, exposed = (sum(c.bytes_sent for c in costs.collectives if c.hidden == flag) / target.chip.link
                       for flag in (True, False))
    return Program(
        (memory + resident(target, name)) / GIB, cost.flops(traced.jaxpr), compiled.cost_analysis()['bytes accessed'],
        compute, exposed + max(0.0, hidden - compute), dict(kinds),
        sorted(((operation, n / target.chip.clock) for operation, n in costs.cycles.items()), key=lambda x: -x[1]))


def spread(target: PlanTarget, programs: dict[str, Program]) -> dict[str, Program]:
    """Replace the costs of programs whose loops depend on the lengths of texts, assuming the longest messages."""
    c, seats = target.config, load_domain(target.config.environment.name).seats
    chunk, token = programs['read_chunk'], programs['decode_step']
    chunks = lambda tokens: -(-tokens // c.rollout.chunk)

    def times(program, parts):
        total = lambda field: sum(n * getattr(part, field) for part, n in parts)
        kinds = collections.defaultdict(lambda: {'count': 0, 'bytes': 0.0})
        for part, n in parts:
            for kind, amount in part.collectives.items():
                for key, value in amount.items():
                    kinds[kind][key] += n * value
        return dataclasses.replace(
            program, flops=total('flops'), compute_seconds=total('compute_seconds'),
            link_seconds=total('link_seconds'), bytes=total('bytes'), collectives=dict(kinds))

    turns, observation = -(-c.environment.max_turns // seats), seats * c.actor.max_tokens
    scale = seats * c.judge.capacity / c.strategist.capacity  # rows times attended positions: an upper bound
    read = chunks(min(c.rollout.view_tokens, c.judge.capacity)) + turns * (chunks(observation) + 1) + 2
    return programs | {
        'rollout_turn': times(programs['rollout_turn'], [
            (chunk, chunks(observation)), (token, c.strategist.max_tokens)]),
        'actor_turn': times(programs['rollout_turn'], [
            (chunk, chunks(observation + c.strategist.max_tokens)), (token, c.actor.max_tokens)]),
        'judge_pass': times(programs['judge_pass'], [(chunk, scale * read), (token, seats * (turns + 3))])}


def rounds(config: ConfigDict) -> int:
    """Return the number of batches of episodes in an iteration."""
    return -(-config.rollout.episodes // config.rollout.batch)


def gradient_steps(config: ConfigDict) -> int:
    """Return the number of gradient steps in an iteration."""
    rows = config.rollout.episodes * sum(kind == 'policy' for kind in config.seats)
    return config.learner.epochs * -(-rows // config.learner.batch)


def iteration(target: PlanTarget, programs: Mapping[str, Program]) -> dict[str, float]:
    """Return the estimated seconds of rollout, judge and learning in an iteration."""
    c = target.config
    return {
        'rollout': rounds(c) * c.environment.max_turns * sum(
            programs[name].seconds for name in ('rollout_turn', 'actor_turn')),
        'judge': rounds(c) * programs['judge_pass'].seconds,
        'learn': gradient_steps(c) * programs['train_step'].seconds}


def plan(target: PlanTarget, names: Sequence[str] = tuple(PROGRAMS)) -> dict[str, Program]:
    """Compile programs, two at a time, and return their costs by name."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        programs = dict(zip(names, pool.map(functools.partial(compile_program, target), names)))
    return spread(target, programs) if set(names) == set(PROGRAMS) else programs


def peak_fraction(target: PlanTarget, program: Program) -> float:
    """Return the fraction of the chips' peak FLOP/s that a program reaches, counting recomputation as work."""
    return program.flops / (target.mesh.size * target.chip.peak * program.seconds)


def fits(target: PlanTarget, programs: Mapping[str, Program]) -> bool:
    """Return whether every program fits a chip's memory."""
    return all(program.memory_gib <= target.chip.memory for program in programs.values())


def to_json(target: PlanTarget, programs: Mapping[str, Program]) -> dict[str, Any]:
    """Return the plan as a JSON object."""
    return {
        'fits': fits(target, programs), 'chips': target.mesh.size, 'mesh': dict(target.mesh.shape),
        'micro_batch': target.config.learner.micro_batch, 'chip_memory_gib': target.chip.memory,
        'programs': {name: {
            'memory_gib': program.memory_gib, 'flops': program.flops, 'bytes': program.bytes,
            'estimated_seconds': program.seconds, 'share_of_peak': peak_fraction(target, program),
            'collectives': program.collectives} for name, program in programs.items()},
        **({'iteration_seconds': iteration(target, programs)} if 'actor_turn' in programs else {})}


def report(target: PlanTarget, programs: Mapping[str, Program]) -> str:
    """Return the plan as readable text."""
    shape = 'x'.join(str(n) for n in target.mesh.shape.values())
    lines = [f'{target.shape.num_params / 1e9:.1f}B parameters on {target.mesh.size} chips, mesh {shape} (data, fsdp, '
             f'tensor), micro-batch {target.config.learner.micro_batch}; {target.chip.memory} GiB a chip', '']
    for name, p in programs.items():
        lines.append(f'{name}: {p.memory_gib:.1f} GiB, {p.flops:.2e} FLOP, {p.bytes:.2e} bytes, '
                     f'{p.seconds:.4g} s ({p.compute_seconds:.4g} compute, {p.link_seconds:.4g} links), '
                     f'{peak_fraction(target, p):.1%} of peak')
        for kind, amount in sorted(p.collectives.items()):
            lines.append(f'    {kind}: {amount["count"]:.0f} times, {amount["bytes"] / GIB:.3f} GiB sent by each chip')
        if name in ('train_step', 'decode_step'):
            lines.append('    slowest: ' + ', '.join(f'{name} {seconds:.3g} s' for name, seconds in p.top[:8]))
    if 'actor_turn' in programs:
        parts = iteration(target, programs)
        listed = ', '.join(f'{name} {seconds:.0f} s' for name, seconds in parts.items())
        lines += ['', f'an iteration with the longest messages: {sum(parts.values()):.0f} s ({listed}); '
                  f'{max(parts, key=parts.get)} dominates']
    largest = max(programs, key=lambda name: programs[name].memory_gib)
    verdict = 'fits' if fits(target, programs) else 'DOES NOT FIT'
    return '\n'.join(lines + [f'{verdict}: {largest} needs {programs[largest].memory_gib:.1f} of '
                              f'{target.chip.memory} GiB a chip'])
