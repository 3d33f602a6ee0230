"""Plans a run on a pod from a laptop: compiles its programs for a TPU topology that is not there.

    python -m epo_jax.plan --config=configs/sotopia.py:llama3_8b --topology=v5p:2x2x2
    python -m epo_jax.plan --config=... --topology=v5e:4x4 --search --json=plan.json

The TPU compiler comes with `pip install libtpu`; no TPU is needed, and no weights are loaded or made: programs are
compiled on the shapes and shardings that the configuration gives them. Times are XLA's estimates (see cost.py) and
bounds for what a message costs: all of them are taken at their longest.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import glob
import importlib.util
import json
import math
import os
import sys
import tempfile
from typing import Any, Mapping, Optional, Sequence

from absl import app, flags
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict, config_flags
import optax

from epo_jax import cost, sampling, testing
from epo_jax.agents.local import LocalAgent
from epo_jax.config import ConfigError
from epo_jax.defaults import validate
from epo_jax.envs.domains import load_domain
from epo_jax.files import write_atomically
from epo_jax.learner import Batch, Learner, TrainState
from epo_jax.models.config import ModelConfig, SHAPES
from epo_jax.models.transformer import Transformer
from epo_jax.parallel import MeshError, make_mesh, named_sharding, param_shardings
from epo_jax.rewards.judge import Judge, follow
from epo_jax.roles import adapter
from epo_jax.text.chat import ChatSegments, chat_segments
from epo_jax.text.tokens import Tokens

GIB = 2**30
PROMPT_CUE = 16  # tokens that begin a reply, at most


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip, figures of its maker (cloud.google.com/tpu/docs).

    Attributes:
      peak: bfloat16 FLOP/s; memory: GiB; clock: Hz, peak over the operations of its matrix units in a cycle.
      link: bytes/s out of a chip into all its neighbours together.
      options: of the topology description, so that a device is a chip.
    """

    peak: float
    memory: float
    clock: float
    link: float
    options: tuple[tuple[str, str], ...] = ()


CHIPS = {
    'v4': Chip(275e12, 32, 1.05e9, 150e9, (('chip_config_name', 'megacore'),)),
    'v5e': Chip(197e12, 16, 1.5e9, 100e9),
    'v5p': Chip(459e12, 95, 1.75e9, 300e9, (('chip_config_name', 'megacore'),)),
    'v6e': Chip(918e12, 32, 1.75e9, 224e9),
}

class PlanError(ValueError):
    """What was asked for cannot be planned; the message says why."""


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
      top: operations with the largest estimates, in seconds.
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


@dataclasses.dataclass(frozen=True)
class Setting:
    """A configuration on a mesh."""

    config: ConfigDict
    shape: ModelConfig
    mesh: Mesh
    chip: Chip

    @property
    def model(self) -> Transformer:
        """The decoder that is trained, and in the same layout sampled from: it compiles in a fraction of the time
        of the unstacked one."""
        return Transformer(self.shape, jnp.bfloat16, stacked=True, remat=self.config.model.remat, mesh=self.mesh)

    @property
    def chat(self) -> ChatSegments:
        """Segments of some chat template; their few tokens do not matter here."""
        return chat_segments(testing.byte_tokenizer())

    def array(self, shape: Sequence[int], dtype, *axes: Optional[str]) -> jax.ShapeDtypeStruct:
        """An array that is not there, its axes named as in parallel.RULES."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named_sharding(self.mesh, shape, *axes))

    def rows(self, tree: Any) -> Any:
        """Arrays whose first axis are rows."""
        return jax.tree.map(lambda x: self.array(x.shape, x.dtype, 'rows'), tree)

    def tokens(self, batch: int, width: int) -> Tokens:
        """A ragged batch."""
        return self.rows(Tokens(jax.ShapeDtypeStruct((batch, width), jnp.int32),
                                jax.ShapeDtypeStruct((batch,), jnp.int32)))

    def base(self) -> Any:
        """The frozen parameters, bfloat16."""
        shapes = jax.eval_shape(self.model.init_params, jax.random.key(0))
        return _placed(shapes, param_shardings(self.model, self.mesh), jnp.bfloat16)

    def trained(self, dtype) -> Any:
        """What is trained: all parameters or an adapter."""
        lora = adapter(self.config)
        init = self.model.init_params if lora is None else functools.partial(lora.init, self.model)
        return _placed(jax.eval_shape(init, jax.random.key(0)), param_shardings(self.model, self.mesh, lora), dtype)

    def policy(self) -> Any:
        """Parameters that sample."""
        base = self.base()
        if adapter(self.config) is None:
            return base
        pairs = self.trained(jnp.bfloat16)['layers']
        return base | {'layers': {name: leaf | pairs.get(name, {}) for name, leaf in base['layers'].items()}}

    def learner(self) -> Learner:
        """As an experiment makes it, but for the length of the schedule."""
        c = self.config.learner
        return Learner(self.model, c.learning_rate, 1000, c.schedule, c.warmup_ratio, c.clip, c.weight_decay, c.b1,
                       c.b2, c.micro_batch, adapter(self.config), c.chunk)

    def state(self) -> TrainState:
        """What is trained, with its optimiser."""
        params, learner = self.trained(jnp.float32), self.learner()
        state = jax.eval_shape(learner.init, params)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        optimizer = optax.tree.map_params(
            learner.optimizer(), lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding),
            state.optimizer, params,
            transform_non_params=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere))
        step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
        return TrainState(step, params, optimizer)

    def session(self, batch: int, capacity: int) -> sampling.Session:
        """Sessions of so many conversations."""
        shapes = jax.eval_shape(lambda: sampling.open_session(self.model, batch, capacity))
        cache = tuple(self.array(x.shape, x.dtype, None, 'rows', 'kv_heads') for x in shapes.cache)
        return self.rows(shapes.replace(cache=None)).replace(cache=cache)

    def keys(self, batch: int) -> jax.ShapeDtypeStruct:
        """Random keys of rows."""
        return self.rows(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch)))


def _placed(shapes, shardings, dtype):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes, shardings)


# The programs, each as (its compiled form, its FLOPs).

def train_step(this: Setting):
    """One gradient step of `learner.batch` conversations of the strategist's capacity."""
    c, count = this.config, this.config.learner.batch
    turns = -(-c.environment.max_turns // load_domain(c.environment.name).seats)
    row = lambda width, dtype: this.array((count, width), dtype, 'rows')
    length = c.strategist.capacity
    batch = Batch(row(length, jnp.int32), row(length, jnp.int32), row(length, jnp.float32), row(turns, jnp.float32),
                  row(turns, jnp.bool_))
    learner = this.learner()
    return learner.step.trace(learner, this.state(), batch, this.base() if learner.lora else None)


def decode_step(this: Setting):
    """One token of every row of a rollout."""
    batch = this.config.rollout.batch
    role = this.config.strategist

    def decode(params, session, keys, live):
        session, logits = sampling.next_logits(this.model, params, session, live)
        return session, sampling.sample(logits, keys, _sampling(this, role))

    args = this.policy(), this.session(batch, role.capacity), this.keys(batch), this.array((batch,), bool, 'rows')
    return jax.jit(decode, donate_argnums=1).trace(*args)


def read_chunk(this: Setting):
    """`rollout.chunk` tokens of every row of a rollout, read into the cache."""
    c = this.config.rollout
    extend = jax.jit(sampling.extend, static_argnums=(0, 4), donate_argnums=2)
    session = this.session(c.batch, this.config.strategist.capacity)
    return extend.trace(this.model, this.policy(), session, this.tokens(c.batch, c.chunk), c.chunk)


def rollout_turn(this: Setting):
    """One strategist reads what is new and writes its advice, in every row."""
    c, role = this.config.rollout, this.config.strategist
    agent = LocalAgent(this.model, this.chat, _sampling(this, role), role.capacity, chunk=c.chunk)
    return agent.respond.trace(
        agent, this.policy(), this.session(c.batch, role.capacity), [this.tokens(c.batch, c.view_tokens)],
        this.tokens(c.batch, PROMPT_CUE), None, this.keys(c.batch), 0, this.array((c.batch,), bool, 'rows'))


def judge_pass(this: Setting):
    """All readings of a batch of episodes: every seat's, after every turn, with a rating at the end."""
    c, seats = this.config, load_domain(this.config.environment.name).seats
    count, stages = seats * c.rollout.batch, -(-c.environment.max_turns // seats) + 1
    judge = Judge(this.model, this.base(), testing.byte_tokenizer(), this.chat, c.judge.capacity, count,
                  c.rollout.chunk)
    texts = Tokens(this.array((stages, count, c.rollout.view_tokens), jnp.int32, None, 'rows'),
                   this.array((stages, count), jnp.int32, None, 'rows'))
    return follow.trace(judge, texts, jax.ShapeDtypeStruct((), bool), True)


PROGRAMS = {'train_step': train_step, 'decode_step': decode_step, 'read_chunk': read_chunk,
            'rollout_turn': rollout_turn, 'judge_pass': judge_pass}


def _sampling(this: Setting, role: ConfigDict) -> sampling.SamplingConfig:
    return sampling.SamplingConfig(
        role.max_tokens, this.chat.stop, (), role.temperature, role.top_k, role.top_p, role.min_tokens,
        role.no_repeat)


def setting(config: ConfigDict, topology: str, mesh: Optional[Sequence[int]] = None) -> Setting:
    """A configuration on the mesh of a topology, '<kind>:<shape>'.

    Raises:
      PlanError, MeshError: the chip, the topology or the model is not known, or they do not fit each other.
    """
    kind = topology.partition(':')[0]
    if kind not in CHIPS:
        raise PlanError(f'chip {kind!r} is not known; there are {", ".join(CHIPS)}, as in v5p:2x2x2')
    chip = CHIPS[kind]
    try:
        devices = topologies.get_topology_desc(
            platform='tpu', topology_name=topology, **dict(chip.options)).devices
    except jax.errors.JaxRuntimeError as error:
        raise PlanError(f'topology {topology!r}: {str(error).splitlines()[0]}') from error
    mesh = make_mesh(mesh or config.mesh, devices)
    this = Setting(config, shape_of(config.model.path), mesh, chip)
    param_shardings(this.model, mesh, adapter(config))
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    for name, rows in (('learner.micro_batch', config.learner.micro_batch), ('rollout.batch', config.rollout.batch)):
        if rows % parts:
            raise PlanError(f'{name}={rows} rows do not split over data x fsdp = {parts}; make it a multiple of it')
    return this


def shape_of(path: str) -> ModelConfig:
    """The shape of a model by its name, or by the config.json of its folder.

    Raises:
      PlanError: neither is known.
    """
    file = os.path.join(path, 'config.json')
    if os.path.exists(file):
        with open(file) as content:
            return ModelConfig.from_hf(json.load(content))
    for name, shape in (SHAPES | {'dummy': testing.dummy_config()}).items():
        if name in path:
            return shape
    raise PlanError(f'the shape of model {path!r} is not known: give a folder with its config.json, or one of '
                    f'{", ".join(SHAPES)}')


def size(tree: Any) -> int:
    """Bytes of arrays on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
               if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def resident(this: Setting, name: str) -> int:
    """Bytes on one device that a program leaves alone while it runs: what later programs go on with."""
    c, seats = this.config, load_domain(this.config.environment.name).seats
    frozen = size(this.base())  # actor, judge and reference; with an adapter also the policy's
    if name == 'train_step':
        return 0 if c.lora.rank else frozen
    state = size(this.state())
    if name == 'judge_pass':
        return state
    sessions = seats * sum(size(this.session(c.rollout.batch, role.capacity)) for role in (c.strategist, c.actor))
    sessions -= size(this.session(c.rollout.batch, c.strategist.capacity))  # the one that the program works on
    return state + (0 if c.lora.rank else frozen) + sessions


def compile_program(this: Setting, name: str) -> Program:
    """Compiles one of PROGRAMS and reads what it costs."""
    traced = PROGRAMS[name](this)
    with tempfile.TemporaryDirectory() as folder:  # the text that the compiler writes; what JAX returns may lack some
        compiled = traced.lower().compile(compiler_options={'xla_dump_to': folder, 'xla_dump_hlo_as_text': True})
        with open(max(glob.glob(f'{folder}/*after_codegen.txt'), key=os.path.getsize)) as text:
            read = cost.read(text.read())
    used = compiled.memory_analysis()
    memory = (used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
              + used.temp_size_in_bytes + used.generated_code_size_in_bytes)
    compute = sum(read.cycles.values()) / this.chip.clock
    kinds = collections.defaultdict(lambda: {'count': 0, 'bytes': 0.0})
    for one in read.collectives:
        kinds[one.kind]['count'] += one.times
        kinds[one.kind]['bytes'] += one.moved
    hidden, open_ = (sum(one.moved for one in read.collectives if one.hidden == h) / this.chip.link
                     for h in (True, False))
    return Program(
        (memory + resident(this, name)) / GIB, cost.flops(traced.jaxpr), compiled.cost_analysis()['bytes accessed'],
        compute, open_ + max(0.0, hidden - compute), dict(kinds),
        sorted(((what, n / this.chip.clock) for what, n in read.cycles.items()), key=lambda x: -x[1])[:8],
        read.open_loops)


def spread(this: Setting, programs: dict[str, Program]) -> dict[str, Program]:
    """Puts into the programs whose loops depend on the texts how often those run, each message at its longest."""
    c, seats = this.config, load_domain(this.config.environment.name).seats
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

    turns, news = -(-c.environment.max_turns // seats), seats * c.actor.max_tokens
    scale = seats * c.judge.capacity / c.strategist.capacity  # rows, and places attended to: an upper bound
    read = chunks(min(c.rollout.view_tokens, c.judge.capacity)) + turns * (chunks(news) + 1) + 2
    return programs | {
        'rollout_turn': times(programs['rollout_turn'], [(chunk, chunks(news)), (token, c.strategist.max_tokens)]),
        'actor_turn': times(programs['rollout_turn'], [
            (chunk, chunks(news + c.strategist.max_tokens)), (token, c.actor.max_tokens)]),
        'judge_pass': times(programs['judge_pass'], [(chunk, scale * read), (token, seats * (turns + 3))])}


def rounds(config: ConfigDict) -> int:
    """Batches of episodes in an iteration."""
    return -(-config.rollout.episodes // config.rollout.batch)


def gradient_steps(config: ConfigDict) -> int:
    """Gradient steps of an iteration."""
    rows = config.rollout.episodes * sum(kind == 'policy' for kind in config.seats)
    return config.learner.epochs * -(-rows // config.learner.batch)


def iteration(this: Setting, programs: Mapping[str, Program]) -> dict[str, float]:
    """Estimated seconds of the parts of an iteration."""
    c = this.config
    return {
        'rollout': rounds(c) * c.environment.max_turns * sum(
            programs[name].seconds for name in ('rollout_turn', 'actor_turn')),
        'judge': rounds(c) * programs['judge_pass'].seconds,
        'learn': gradient_steps(c) * programs['train_step'].seconds}


def plan(this: Setting, names: Sequence[str] = tuple(PROGRAMS)) -> dict[str, Program]:
    """Compiles programs, two at a time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        programs = dict(zip(names, pool.map(functools.partial(compile_program, this), names)))
    return spread(this, programs) if set(names) == set(PROGRAMS) else programs


def share(this: Setting, program: Program) -> float:
    """Share of the chips' peak at which a program runs, its recomputation counted as work."""
    return program.flops / (this.mesh.size * this.chip.peak * program.seconds)


def fits(this: Setting, programs: Mapping[str, Program]) -> bool:
    """Whether every program fits a chip's memory."""
    return all(program.memory_gib <= this.chip.memory for program in programs.values())


def to_json(this: Setting, programs: Mapping[str, Program]) -> dict[str, Any]:
    """The plan as it is written to a file."""
    return {
        'fits': fits(this, programs), 'chips': this.mesh.size, 'mesh': dict(this.mesh.shape),
        'micro_batch': this.config.learner.micro_batch, 'chip_memory_gib': this.chip.memory,
        'programs': {name: {
            'memory_gib': program.memory_gib, 'flops': program.flops, 'bytes': program.bytes,
            'estimated_seconds': program.seconds, 'share_of_peak': share(this, program),
            'collectives': program.collectives} for name, program in programs.items()},
        **({'iteration_seconds': iteration(this, programs)} if 'actor_turn' in programs else {})}


def report(this: Setting, programs: Mapping[str, Program]) -> str:
    """The plan for reading."""
    shape = 'x'.join(str(n) for n in this.mesh.shape.values())
    lines = [f'{this.shape.num_params / 1e9:.1f}B parameters on {this.mesh.size} chips, mesh {shape} (data, fsdp, '
             f'tensor), micro-batch {this.config.learner.micro_batch}; {this.chip.memory} GiB a chip', '']
    for name, p in programs.items():
        lines.append(f'{name}: {p.memory_gib:.1f} GiB, {p.flops:.2e} FLOP, {p.bytes:.2e} bytes, '
                     f'{p.seconds:.4g} s ({p.compute_seconds:.4g} computing, {p.link_seconds:.4g} for links), '
                     f'{share(this, p):.1%} of peak')
        for kind, amount in sorted(p.collectives.items()):
            lines.append(f'    {kind}: {amount["count"]:.0f} times, {amount["bytes"] / GIB:.3f} GiB out of each chip')
        if name in ('train_step', 'decode_step'):
            lines.append('    most time: ' + ', '.join(f'{what} {seconds:.3g} s' for what, seconds in p.top))
    if 'actor_turn' in programs:
        parts = iteration(this, programs)
        lines += ['', f'an iteration: {sum(parts.values()):.0f} s at the longest: ' + ', '.join(
            f'{name} {seconds:.0f} s' for name, seconds in parts.items()) + f'; {max(parts, key=parts.get)} dominates']
    largest = max(programs, key=lambda name: programs[name].memory_gib)
    verdict = 'fits' if fits(this, programs) else 'DOES NOT FIT'
    return '\n'.join(lines + [f'{verdict}: {largest} needs {programs[largest].memory_gib:.1f} of '
                              f'{this.chip.memory} GiB a chip'])


def candidates(config: ConfigDict, topology: str, chips: int) -> list[tuple[tuple[int, int, int], int]]:
    """Meshes and micro-batches that divide what they have to, without those in which parameters and optimiser alone
    would not fit; one to four rows a device at once."""
    found = []
    for tensor in (n for n in (1, 2, 4, 8) if chips % n == 0):
        for fsdp in (n for n in range(1, chips // tensor + 1) if chips // tensor % n == 0):
            mesh = (chips // tensor // fsdp, fsdp, tensor)
            for rows in (1, 2, 4):
                trial = ConfigDict(config)
                trial.learner.micro_batch = rows * mesh[0] * mesh[1]
                try:
                    this = setting(trial, topology, mesh)
                except (MeshError, PlanError):
                    continue
                held = size(this.state()) + size(this.base())
                if config.learner.batch % trial.learner.micro_batch == 0 and held < this.chip.memory * GIB:
                    found.append((mesh, trial.learner.micro_batch))
    return found


def search(config: ConfigDict, topology: str, chips: int) -> list[tuple[float, Setting, dict[str, Program]]]:
    """Tries meshes and micro-batches on the gradient and the decoding step, best first; those that do not fit last."""
    found = []
    for mesh, micro_batch in candidates(config, topology, chips):
        trial = ConfigDict(config)
        trial.mesh, trial.learner.micro_batch = mesh, micro_batch
        this = setting(trial, topology)
        programs = plan(this, ('train_step', 'decode_step'))
        train, decode = programs['train_step'], programs['decode_step']
        tokens = rounds(trial) * trial.environment.max_turns * (trial.strategist.max_tokens + trial.actor.max_tokens)
        seconds, ok = gradient_steps(trial) * train.seconds + tokens * decode.seconds, fits(this, programs)
        print(f'mesh {mesh}, micro-batch {micro_batch}: {"fits" if ok else "DOES NOT FIT"}, '
              f'{max(train.memory_gib, decode.memory_gib):.1f} GiB, train step {train.seconds:.3g} s, '
              f'decode step {1e3 * decode.seconds:.3g} ms, all of an iteration {seconds:.0f} s', flush=True)
        found.append((seconds if ok else math.inf, this, programs))
    if not found:
        raise PlanError(f'no mesh of {chips} chips holds the parameters and their optimiser')
    return sorted(found, key=lambda one: one[0])


_CONFIG = config_flags.DEFINE_config_file('config', help_string='Configuration file, with a preset after a colon.')
_TOPOLOGY = flags.DEFINE_string('topology', None, 'Kind and shape of the slice, such as v5p:2x2x2.')
_SEARCH = flags.DEFINE_bool('search', False, 'Try all meshes and micro-batches, and plan with the best.')
_JSON = flags.DEFINE_string('json', None, 'Where to write the plan.')


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    if importlib.util.find_spec('libtpu') is None:
        sys.exit('error: planning needs the TPU compiler: pip install libtpu')
    jax.config.update('jax_platforms', 'cpu')
    # It compiles only: no TPU is looked for, and several plans may run at once.
    os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_STDERR_LOG_LEVEL': '3',
                   'TPU_MIN_LOG_LEVEL': '3'} | os.environ
    try:
        config = _CONFIG.value
        validate(config)
        if _SEARCH.value:
            chips = math.prod(int(n) for n in _TOPOLOGY.value.partition(':')[2].split('x'))
            best = search(config, _TOPOLOGY.value, chips)[0][1]
            config = best.config
        this = setting(config, _TOPOLOGY.value)
        programs = plan(this)
    except (ConfigError, MeshError, PlanError) as error:
        sys.exit(f'error: {error}')
    print(report(this, programs))
    if _JSON.value:
        write_atomically(_JSON.value, json.dumps(to_json(this, programs), indent=2))


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'topology'])
    app.run(main)
