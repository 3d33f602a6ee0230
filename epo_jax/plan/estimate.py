"""Memory and time of a run's programs on a mesh, as the TPU compiler estimates them."""

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
from epo_jax.plan.programs import PROGRAMS, PlanError, PlanTarget, size

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Program:
    """One program on one device, except where said.

    Attributes:
      memory_gib: all that lies in memory while it runs, what waits for other programs included.
      flops: of matrix products, recomputation included, of all chips together.
      bytes: read and written in memory, as XLA counts them: a loop's body once.
      compute_seconds: XLA's estimate of all fusions; link_seconds: of collectives that nothing hides, and all
        others where they take longer than the fusions.
      collectives: by kind, how many there are and the bytes that leave the device.
      top: operations and their estimates in seconds, largest first.
      open_loops: loops of unknown length, counted once.
    """

    memory_gib: float
    flops: float
    bytes: float
    compute_seconds: float
    link_seconds: float
    collectives: Mapping[str, Mapping[str, float]]
    top: Sequence[tuple[str, float]]
    open_loops: int

    @property
    def seconds(self) -> float:
        """Estimated time of one run."""
        return self.compute_seconds + self.link_seconds


def resident(target: PlanTarget, name: str) -> int:
    """Return the bytes on one device that stay allocated for later programs while a program runs."""
    c, seats = target.config, load_domain(target.config.environment.name).seats
    frozen = size(target.base())  # actor, judge and reference; with an adapter also the policy's
    if name == 'train_step':
        return 0 if c.lora.rank else frozen
    state = size(target.state())
    if name == 'judge_pass':
        return state
    sessions = seats * sum(size(target.session(c.rollout.batch, role.capacity)) for role in (c.strategist, c.actor))
    sessions -= size(target.session(c.rollout.batch, c.strategist.capacity))  # the one that the program works on
    return state + (0 if c.lora.rank else frozen) + sessions


class DoesNotFit(PlanError):
    """The compiler gave up a program for lack of memory."""


def compile_program(target: PlanTarget, name: str) -> Program:
    """Compile one of PROGRAMS and read its cost.

    Raises:
      DoesNotFit: it needs so much more than a chip's memory that the compiler does not go through with it.
    """
    traced = PROGRAMS[name](target)
    with tempfile.TemporaryDirectory() as folder:  # the text that the compiler writes; what JAX returns may lack some
        try:
            compiled = traced.lower().compile(compiler_options={'xla_dump_to': folder, 'xla_dump_hlo_as_text': True})
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            raise DoesNotFit(f'{name} does not fit a chip: {str(error).splitlines()[0]}') from None
        with open(max(glob.glob(f'{folder}/*after_codegen.txt'), key=os.path.getsize)) as text:
            read = cost.read(text.read())
    used = compiled.memory_analysis()
    memory = (used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
              + used.temp_size_in_bytes + used.generated_code_size_in_bytes)
    compute = sum(read.cycles.values()) / target.chip.clock
    kinds = collections.defaultdict(lambda: {'count': 0, 'bytes': 0.0})
    for one in read.collectives:
        kinds[one.kind]['count'] += one.times
        kinds[one.kind]['bytes'] += one.moved
    hidden, open_ = (sum(one.moved for one in read.collectives if one.hidden == h) / target.chip.link
                     for h in (True, False))
    return Program(
        (memory + resident(target, name)) / GIB, cost.flops(traced.jaxpr), compiled.cost_analysis()['bytes accessed'],
        compute, open_ + max(0.0, hidden - compute), dict(kinds),
        sorted(((what, n / target.chip.clock) for what, n in read.cycles.items()), key=lambda x: -x[1]),
        read.open_loops)


def spread(target: PlanTarget, programs: dict[str, Program]) -> dict[str, Program]:
    """Complete the programs whose loops depend on texts, with every message at its longest."""
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
    scale = seats * c.judge.capacity / c.strategist.capacity  # rows, and places attended to: an upper bound
    read = chunks(min(c.rollout.view_tokens, c.judge.capacity)) + turns * (chunks(observation) + 1) + 2
    return programs | {
        'rollout_turn': times(programs['rollout_turn'], [
            (chunk, chunks(observation)), (token, c.strategist.max_tokens)]),
        'actor_turn': times(programs['rollout_turn'], [
            (chunk, chunks(observation + c.strategist.max_tokens)), (token, c.actor.max_tokens)]),
        'judge_pass': times(programs['judge_pass'], [(chunk, scale * read), (token, seats * (turns + 3))])}


def rounds(config: ConfigDict) -> int:
    """Batches of episodes in an iteration."""
    return -(-config.rollout.episodes // config.rollout.batch)


def gradient_steps(config: ConfigDict) -> int:
    """Gradient steps of an iteration."""
    rows = config.rollout.episodes * sum(kind == 'policy' for kind in config.seats)
    return config.learner.epochs * -(-rows // config.learner.batch)


def iteration(target: PlanTarget, programs: Mapping[str, Program]) -> dict[str, float]:
    """Estimated seconds of the parts of an iteration."""
    c = target.config
    return {
        'rollout': rounds(c) * c.environment.max_turns * sum(
            programs[name].seconds for name in ('rollout_turn', 'actor_turn')),
        'judge': rounds(c) * programs['judge_pass'].seconds,
        'learn': gradient_steps(c) * programs['train_step'].seconds}


def plan(target: PlanTarget, names: Sequence[str] = tuple(PROGRAMS)) -> dict[str, Program]:
    """Compile programs, two at a time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        programs = dict(zip(names, pool.map(functools.partial(compile_program, target), names)))
    return spread(target, programs) if set(names) == set(PROGRAMS) else programs


def share(target: PlanTarget, program: Program) -> float:
    """Share of the chips' peak at which a program runs, its recomputation counted as work."""
    return program.flops / (target.mesh.size * target.chip.peak * program.seconds)


def fits(target: PlanTarget, programs: Mapping[str, Program]) -> bool:
    """Return whether every program fits a chip's memory."""
    return all(program.memory_gib <= target.chip.memory for program in programs.values())


def to_json(target: PlanTarget, programs: Mapping[str, Program]) -> dict[str, Any]:
    """Return the plan as JSON."""
    return {
        'fits': fits(target, programs), 'chips': target.mesh.size, 'mesh': dict(target.mesh.shape),
        'micro_batch': target.config.learner.micro_batch, 'chip_memory_gib': target.chip.memory,
        'programs': {name: {
            'memory_gib': program.memory_gib, 'flops': program.flops, 'bytes': program.bytes,
            'estimated_seconds': program.seconds, 'share_of_peak': share(target, program),
            'collectives': program.collectives} for name, program in programs.items()},
        **({'iteration_seconds': iteration(target, programs)} if 'actor_turn' in programs else {})}


def report(target: PlanTarget, programs: Mapping[str, Program]) -> str:
    """Return the plan as text for people."""
    shape = 'x'.join(str(n) for n in target.mesh.shape.values())
    lines = [f'{target.shape.num_params / 1e9:.1f}B parameters on {target.mesh.size} chips, mesh {shape} (data, fsdp, '
             f'tensor), micro-batch {target.config.learner.micro_batch}; {target.chip.memory} GiB a chip', '']
    for name, p in programs.items():
        lines.append(f'{name}: {p.memory_gib:.1f} GiB, {p.flops:.2e} FLOP, {p.bytes:.2e} bytes, '
                     f'{p.seconds:.4g} s ({p.compute_seconds:.4g} computing, {p.link_seconds:.4g} for links), '
                     f'{share(target, p):.1%} of peak')
        for kind, amount in sorted(p.collectives.items()):
            lines.append(f'    {kind}: {amount["count"]:.0f} times, {amount["bytes"] / GIB:.3f} GiB out of each chip')
        if name in ('train_step', 'decode_step'):
            lines.append('    most time: ' + ', '.join(f'{what} {seconds:.3g} s' for what, seconds in p.top[:8]))
    if 'actor_turn' in programs:
        parts = iteration(target, programs)
        listed = ', '.join(f'{name} {seconds:.0f} s' for name, seconds in parts.items())
        lines += ['', f'an iteration: {sum(parts.values()):.0f} s at the longest: {listed}; '
                  f'{max(parts, key=parts.get)} dominates']
    largest = max(programs, key=lambda name: programs[name].memory_gib)
    verdict = 'fits' if fits(target, programs) else 'DOES NOT FIT'
    return '\n'.join(lines + [f'{verdict}: {largest} needs {programs[largest].memory_gib:.1f} of '
                              f'{target.chip.memory} GiB a chip'])
