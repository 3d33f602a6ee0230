"""The programs of a run, traced from shapes and shardings alone.

This allocates no arrays. A `PlanTarget` is a configuration on a mesh of devices that need not be present. A function in
PROGRAMS traces a function that the run calls, with the shapes and shardings that the run would pass.
"""

import dataclasses
import functools
import math
import os
from typing import Any, Optional, Sequence

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from epo_jax import testing
from epo_jax.agents.local import LocalAgent
from epo_jax.envs.base import load_domain
from epo_jax.models import hub, sampling
from epo_jax.models.config import SHAPES, ModelConfig
from epo_jax.models.decoder import Decoder
from epo_jax.models.families import decoder
from epo_jax.models.weights import read_config
from epo_jax.rewards.judge import Judge, read_stages
from epo_jax.rl import objective
from epo_jax.rl.learner import Batch, Learner, TrainState, from_config
from epo_jax.roles import adapter, with_adapter_shape
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.parallel import check_rows, make_mesh, named_sharding, param_shardings
from epo_jax.text.chat import ChatSegments, chat_segments
from epo_jax.text.tokens import Tokens

PROMPT_CUE = 16  # upper bound on the tokens that start a reply


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU chip, with figures from its documentation (cloud.google.com/tpu/docs).

    Attributes:
      peak: FLOP/s in bfloat16.
      memory: GiB.
      clock: Hz, the peak divided by the operations per cycle of the matrix units.
      link: bytes/s that a chip sends to all its neighbors together.
      options: options of the topology description with which one device is one chip.
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


class PlanError(InputError):
    """A run cannot be planned; the message says why."""


@dataclasses.dataclass(frozen=True)
class PlanTarget:
    """A configuration on a mesh.

    Attributes:
      config: configuration of the run.
      shape: sizes of the strategist's model.
      mesh: mesh of the devices.
      chip: kind of every device.
    """

    config: ConfigDict
    shape: ModelConfig
    mesh: Mesh
    chip: Chip

    @property
    def model(self) -> Decoder:
        """Return the decoder with stacked layers, which compiles in a fraction of the time."""
        return decoder(self.shape, jnp.bfloat16, stacked=True, remat=self.config.model.remat, mesh=self.mesh)

    @property
    def chat(self) -> ChatSegments:
        """Return the segments of a small chat template; its few tokens hardly change the costs."""
        return chat_segments(testing.byte_tokenizer())

    def array(self, shape: Sequence[int], dtype, *axes: Optional[str]) -> jax.ShapeDtypeStruct:
        """Return the shape and sharding of an array with the logical axes of parallel.RULES."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named_sharding(self.mesh, shape, *axes))

    def rows(self, tree: Any) -> Any:
        """Return a tree with shardings that split the first axis of every array as rows."""
        return jax.tree.map(lambda x: self.array(x.shape, x.dtype, 'rows'), tree)

    def tokens(self, batch: int, width: int) -> Tokens:
        """Return a ragged batch of tokens, i32[batch, width]."""
        return self.rows(Tokens(jax.ShapeDtypeStruct((batch, width), jnp.int32),
                                jax.ShapeDtypeStruct((batch,), jnp.int32)))

    def base(self) -> Any:
        """Return the frozen parameters in bfloat16."""
        shapes = jax.eval_shape(self.model.init_params, jax.random.key(0))
        return _placed(shapes, param_shardings(self.model, self.mesh), jnp.bfloat16)

    def trained(self, dtype) -> Any:
        """Return the trained parameters: all parameters, or the adapter."""
        lora = adapter(self.config)
        init = self.model.init_params if lora is None else functools.partial(lora.init, self.model)
        return _placed(jax.eval_shape(init, jax.random.key(0)), param_shardings(self.model, self.mesh, lora), dtype)

    def policy(self) -> Any:
        """Return the parameters that the policy samples with, in bfloat16."""
        base = self.base()
        if adapter(self.config) is None:
            return base
        pairs = self.trained(jnp.bfloat16)['layers']
        return base | {'layers': {name: leaf | pairs.get(name, {}) for name, leaf in base['layers'].items()}}

    def learner(self) -> Learner:
        """Return the learner of the run, except for the length of its schedule."""
        return from_config(self.config.learner, self.model, 1000, adapter(self.config),
                           objective.from_config(self.config.loss))

    def state(self) -> TrainState:
        """Return the training state."""
        params, learner = self.trained(jnp.float32), self.learner()
        state = jax.eval_shape(learner.init, params)
        replicated = NamedSharding(self.mesh, PartitionSpec())
        kind = 'pinned_host' if learner.offload else 'device'
        optimizer = learner.map_moments(
            lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding.with_memory_kind(kind)),
            state.optimizer, params, others=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated))
        step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
        return TrainState(step, params, optimizer)

    def session(self, batch: int, capacity: int) -> sampling.Session:
        """Return the sessions of `batch` conversations."""
        shapes = jax.eval_shape(lambda: sampling.open_session(self.model, batch, capacity))
        cache = tuple(self.array(x.shape, x.dtype, None, 'rows', 'kv_heads') for x in shapes.cache)
        return self.rows(shapes.replace(cache=None)).replace(cache=cache)

    def keys(self, batch: int) -> jax.ShapeDtypeStruct:
        """Return random keys, one for each row."""
        return self.rows(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch)))


def _placed(shapes, shardings, dtype):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes, shardings)


# The programs. Each function traces one of them.

def train_step(target: PlanTarget):
    """Trace a gradient step on `learner.batch` conversations of the strategist's capacity."""
    c, count = target.config, target.config.learner.batch
    turns = -(-c.environment.max_turns // load_domain(c.environment.name).seats)
    row = lambda width, dtype: target.array((count, width), dtype, 'rows')
    length = c.strategist.capacity
    learner = target.learner()
    batch = Batch(row(length, jnp.int32), row(length, jnp.int32), row(length, jnp.float32), row(turns, jnp.float32),
                  row(turns, jnp.bool_), row(length, jnp.float32) if learner.objective.needs('reference') else None)
    return learner.step.trace(learner, target.state(), batch, target.base() if learner.lora else None)


def decode_step(target: PlanTarget):
    """Trace a decode step: every row of a rollout samples one token."""
    batch = target.config.rollout.batch
    role = target.config.strategist

    def decode(params, session, keys, live):
        session, logits = sampling.next_logits(target.model, params, session, live)
        return session, sampling.sample(logits, keys, _sampling(target, role))

    session, live = target.session(batch, role.capacity), target.array((batch,), bool, 'rows')
    return jax.jit(decode, donate_argnums=1).trace(target.policy(), session, target.keys(batch), live)


def read_chunk(target: PlanTarget):
    """Trace a prefill: every row of a rollout reads `rollout.chunk` tokens."""
    c = target.config.rollout
    extend = jax.jit(sampling.extend, static_argnums=(0, 4), donate_argnums=2)
    session = target.session(c.batch, target.config.strategist.capacity)
    return extend.trace(target.model, target.policy(), session, target.tokens(c.batch, c.chunk), c.chunk)


def rollout_turn(target: PlanTarget):
    """Trace a turn of the strategist, which reads an observation and writes a strategy in every row."""
    c, role = target.config.rollout, target.config.strategist
    agent = LocalAgent(target.model, target.chat, _sampling(target, role), role.capacity, chunk=c.chunk)
    return agent.respond.trace(
        agent, target.policy(), target.session(c.batch, role.capacity), [target.tokens(c.batch, c.view_tokens)],
        target.tokens(c.batch, PROMPT_CUE), None, target.keys(c.batch), 0, target.array((c.batch,), bool, 'rows'))


def judge_pass(target: PlanTarget):
    """Trace the judge on a batch of episodes: it assesses every seat after every turn, and rates it at the end."""
    c, seats = target.config, load_domain(target.config.environment.name).seats
    count, stages = seats * c.rollout.batch, -(-c.environment.max_turns // seats) + 1
    judge = Judge(target.model, target.base(), testing.byte_tokenizer(), target.chat, c.judge.capacity, count,
                  c.rollout.chunk)
    texts = Tokens(target.array((stages, count, c.rollout.view_tokens), jnp.int32, None, 'rows'),
                   target.array((stages, count), jnp.int32, None, 'rows'))
    return read_stages.trace(judge, texts, jax.ShapeDtypeStruct((), bool), True)


PROGRAMS = {'train_step': train_step, 'decode_step': decode_step, 'read_chunk': read_chunk,
            'rollout_turn': rollout_turn, 'judge_pass': judge_pass}


def _sampling(target: PlanTarget, role: ConfigDict) -> sampling.SamplingConfig:
    return sampling.SamplingConfig(
        role.max_tokens, target.chat.stop, (), role.temperature, role.top_k, role.top_p, role.min_tokens,
        role.no_repeat)


def use_compiler_only() -> None:
    """Set up the TPU compiler without a TPU, so that several plans can run at the same time."""
    jax.config.update('jax_platforms', 'cpu')
    os.environ.update({
        'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_STDERR_LOG_LEVEL': '3',
        'TPU_MIN_LOG_LEVEL': '3', 'TPU_WORKER_HOSTNAMES': 'localhost', **os.environ})


def plan_target(config: ConfigDict, topology: str) -> PlanTarget:
    """Return a configuration on the mesh of a topology '<kind>:<shape>', such as v5p:2x2x2.

    Raises:
      PlanError: the chip, the topology or the model is unknown.
      MeshError: the mesh does not fit the devices, or rows or parameters do not fit the mesh.
    """
    kind = topology.partition(':')[0]
    if kind not in CHIPS:
        raise PlanError(f'unknown chip {kind!r}; choose one of {", ".join(CHIPS)}, as in --topology=v5p:2x2x2')
    chip = CHIPS[kind]
    try:
        devices = topologies.get_topology_desc(
            platform='tpu', topology_name=topology, **dict(chip.options)).devices
    except jax.errors.JaxRuntimeError as error:
        raise PlanError(f'unknown topology {topology!r} ({str(error).splitlines()[0]})') from error
    mesh, config = make_mesh(config.mesh, devices), with_adapter_shape(config)
    target = PlanTarget(config, model_config(config.model.path), mesh, chip)
    param_shardings(target.model, mesh, adapter(config))
    check_rows(mesh, {'learner.micro_batch': config.learner.micro_batch, 'rollout.batch': config.rollout.batch})
    return target


def model_config(path: str) -> ModelConfig:
    """Return the sizes of a model from the config.json in its folder, by its name, or from the Hugging Face Hub.

    Raises:
      PlanError: there is no config.json and the name is unknown.
      WeightsError: config.json is damaged, or the model is not supported.
    """
    if os.path.exists(os.path.join(path, 'config.json')):
        return read_config(path)
    for name, shape in (SHAPES | {'dummy': testing.dummy_config()}).items():
        if name in path:
            return shape
    problem = ''
    if name := hub.parse(path):
        try:
            return read_config(hub.fetch(name, ('config.json',)))
        except hub.HubError as error:
            problem = f' ({error})'
    raise PlanError(f'the sizes of model {path!r} are unknown{problem}; set model.path to a folder with its '
                    f'config.json, to the name of a repository of the Hugging Face Hub, or to one of '
                    f'{", ".join(SHAPES)}')


def device_bytes(tree: Any) -> int:
    """Return the bytes of the memory of one device that arrays use; arrays in host memory use none."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
               if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key) and x.sharding.memory_kind != 'pinned_host')
