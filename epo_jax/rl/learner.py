"""The gradient step on the strategist.

Axis letters: N conversations of one step, L token positions, T turns.
"""

import dataclasses
import functools
import inspect
import math
import re
from typing import Any, Callable, Mapping, Optional, Sequence

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import optax
import optax.contrib

from epo_jax.config import POSITIVE, Key, Range
from epo_jax.models import scoring
from epo_jax.models.decoder import Decoder
from epo_jax.models.lora import LoRA
from epo_jax.rl.aggregation import at_tokens, has_turns, turn_means
from epo_jax.rl.objective import Objective
from epo_jax.runtime.parallel import constrain, param_shardings
from epo_jax.text.tokens import Array

SCHEDULES = ('cosine', 'constant', 'official')
OPTIMIZERS = ('adamw', 'muon')

# What the configuration keys that are attributes of Learner may be.
ALLOWED = {
    'learning_rate': Range(0), 'schedule': SCHEDULES, 'optimizer': OPTIMIZERS, 'warmup_ratio': Range(0, 1),
    'clip': Range(0, above=True), 'weight_decay': Range(0), 'b1': Range(0, 1, below=True),
    'b2': Range(0, 1, below=True), 'micro_batch': POSITIVE, 'entropy': Range(0), 'chunk': POSITIVE}


@struct.dataclass
class TrainState:
    """What training carries from step to step.

    Attributes:
      step: number of steps taken.
      params: what is trained, float32: all parameters (stacked layout) or an adapter.
      optimizer: state of the optimizer.
    """

    step: jax.Array
    params: Any
    optimizer: optax.OptState


@struct.dataclass
class Batch:
    """The conversations of one gradient step.

    Attributes:
      ids: the tokens.
      turn: the turn in which a token was sampled; -1 for context, which is not trained.
      logprob: log-probability of a token when it was sampled.
      advantage: weight of every turn in the loss.
      valid: turns that are trained.
      reference: log-probability of a token under the model before training; None where the loss does not need it.
    """

    ids: Int[Array, 'N L']
    turn: Int[Array, 'N L']
    logprob: Float[Array, 'N L']
    advantage: Float[Array, 'N T']
    valid: Bool[Array, 'N T']
    reference: Optional[Float[Array, 'N L']] = None


@dataclasses.dataclass(frozen=True)
class Learner:
    """How the strategist is trained; static.

    Attributes:
      model: the decoder, stacked layout.
      total_steps: number of gradient steps of the whole run.
      learning_rate: peak learning rate.
      schedule: learning rate after the warmup: cosine (to 0), constant, or official (cosine, and the warmup begins at 0
        as in the released trainer).
      optimizer: adamw, or muon, which orthogonalizes the updates of the matrices of the layers and leaves the rest to
        AdamW with Nesterov momentum.
      warmup_ratio: share of all steps in which the learning rate rises linearly to its peak.
      clip: largest global norm of a gradient.
      weight_decay: weight decay.
      b1: decay of the first moment of AdamW.
      b2: decay of the second moment of AdamW.
      micro_batch: number of conversations that are run through the model at once.
      lora: the adapter that is trained on a frozen base; None trains the whole model.
      entropy: weight of the entropy of the strategies in the objective; it is scaled by the schedule of the learning
        rate.
      chunk: number of tokens whose logits are computed at once.
      offload: whether the optimizer's moments are kept in host memory, which is slower but frees device memory.
      objective: what is minimized.
    """

    model: Decoder
    total_steps: int
    learning_rate: float = 1e-6
    schedule: str = 'cosine'
    optimizer: str = 'adamw'
    warmup_ratio: float = 0.03
    clip: float = 1.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    micro_batch: int = 1
    lora: Optional[LoRA] = None
    entropy: float = 0.0
    chunk: int = 256
    offload: bool = False
    objective: Objective = Objective()

    def rate(self) -> optax.Schedule:
        """Return the learning rate as a function of the step."""
        warmup = math.ceil(self.warmup_ratio * self.total_steps)
        if self.schedule == 'constant':
            return optax.linear_schedule(self.learning_rate / max(warmup, 1), self.learning_rate, max(warmup - 1, 1))
        if self.schedule not in SCHEDULES:
            raise ValueError(f'the schedule must be one of {", ".join(SCHEDULES)}, not {self.schedule!r}')

        def cosine(step):
            rising = (step + (self.schedule == 'cosine')) / max(warmup, 1)
            share = (step - warmup) / max(self.total_steps - warmup, 1)
            return self.learning_rate * jnp.where(step < warmup, rising, 0.5 * (1 + jnp.cos(jnp.pi * share)))
        return cosine

    def transformation(self) -> optax.GradientTransformation:
        """Return the optimizer: clipping, then AdamW or Muon."""
        return optax.chain(*self._parts())

    def _parts(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        common = dict(weight_decay=self.weight_decay)
        if self.optimizer == 'muon':
            # Updates are as large as those of AdamW, so that one learning rate fits both (Liu et al. 2025, Moonlight).
            rule = optax.contrib.muon(
                self.rate(), adam_b1=self.b1, adam_b2=self.b2, adam_weight_decay=self.weight_decay, consistent_rms=0.2,
                muon_weight_dimension_numbers=hidden_matrices, **common)
        elif self.optimizer == 'adamw':
            rule = optax.adamw(self.rate(), b1=self.b1, b2=self.b2, **common)
        else:
            raise ValueError(f'the optimizer must be one of {", ".join(OPTIMIZERS)}, not {self.optimizer!r}')
        return optax.clip_by_global_norm(self.clip), rule

    def map_moments(self, function: Callable[..., Any], optimizer: optax.OptState, *rest: Any,
                    others: Optional[Callable[[Any], Any]] = None) -> optax.OptState:
        """Return the state of the optimizer with `function` applied to every array that belongs to a parameter.

        Args:
          function: called with the array and the leaves of `rest` of the same parameter.
          optimizer: the state.
          rest: trees like the parameters.
          others: applied to all other arrays; None leaves them as they are.
        """
        is_masked = lambda x: isinstance(x, optax.MaskedNode)  # the parameter belongs to another part of the optimizer
        return optax.tree.map_params(
            self.transformation(), lambda x, *more: x if is_masked(x) else function(x, *more), optimizer, *rest,
            transform_non_params=others, is_leaf=is_masked)

    @functools.partial(jax.jit, static_argnums=0)
    def init(self, params) -> TrainState:
        """Return the state before the first step.

        Args:
          params: what is trained, stacked parameters or an adapter; it becomes float32. The optimizer's moments are
            sharded in the same way.
        """
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        optimizer = self.transformation().init(params)
        if self.model.mesh is not None:
            optimizer = self.map_moments(
                jax.lax.with_sharding_constraint, optimizer, param_shardings(self.model, self.model.mesh, self.lora))
        if self.offload:
            optimizer = self.map_moments(lambda moment: jax.device_put(moment, jax.memory.Space.Host), optimizer)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer)

    def abstract_state(self) -> TrainState:
        """Return the shapes and shardings of the training state, into which a checkpoint can be restored."""
        init = self.model.init_params if self.lora is None else functools.partial(self.lora.init, self.model)
        params = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=sharding),
                              jax.eval_shape(init, jax.random.key(0)),
                              param_shardings(self.model, self.model.mesh, self.lora))
        return jax.jit(self.init).lower(params).compile().out_info

    def _update(self, state: TrainState, gradient, change: jax.Array) -> TrainState:
        """Return the state after a step, or the same state unless `change` is true."""
        def move(state):
            updates, optimizer = self.transformation().update(gradient, state.optimizer, state.params)
            return TrainState(state.step + 1, optax.apply_updates(state.params, updates), optimizer)

        if not self.offload:  # unlike a selection, a branch needs no second copy of the moments
            return jax.lax.cond(change, move, lambda state: state, state)

        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(change, a, b), new, old)
        # Moments are moved to the device and back one parameter at a time. Without the barriers, the compiler would
        # fetch all of them at once.
        clip, adam = self._parts()
        gradient, _ = clip.update(gradient, state.optimizer[0])
        leaves, structure = jax.tree.flatten(state.params)
        numbers, before, parts = structure.unflatten(range(len(leaves))), None, []
        for i in range(len(leaves)):
            only = lambda x, n: x if n == i else None  # a tree with one leaf
            to = lambda space, moments: optax.tree.map_params(adam, lambda x: jax.device_put(x, space), moments)
            params, own = (jax.tree.map(only, tree, numbers) for tree in (state.params, gradient))
            away = optax.tree.map_params(adam, only, state.optimizer[1], numbers)
            away, _ = jax.lax.optimization_barrier((away, before))
            moments = to(jax.memory.Space.Device, away)
            updates, new = adam.update(own, moments, params)
            params, moments = keep((optax.apply_updates(params, updates), new), (params, moments))
            before = to(jax.memory.Space.Host, moments)
            parts.append((params, before))
        there = lambda *xs: next(x for x in xs if x is not None)
        params, moments = jax.tree.map(there, *parts, is_leaf=lambda x: x is None)
        return TrainState(jnp.where(change, state.step + 1, state.step), params, (state.optimizer[0], moments))

    @functools.partial(jax.jit, static_argnums=0, donate_argnames='state')
    def step(self, state: TrainState, batch: Batch, base: Any = None) -> tuple[TrainState, dict[str, jax.Array]]:
        """Take one gradient step.

        The loss is the mean over the conversations with a valid turn, counted over the whole batch, so it does not
        depend on the micro-batches. A batch without a valid turn changes nothing.

        Args:
          state: the state before; donated.
          batch: N conversations.
          base: the frozen parameters (stacked) under an adapter.

        Returns:
          The new state, and metrics: loss, gradient norm, learning rate, the number of conversations, and over the
          sampled tokens the largest (logprob_gap) and the mean (drift) difference between the log-probability now and
          at sampling. On the first step after a rollout, the gap is the numerical error of the sampler.

        Raises:
          ValueError: the batch cannot be split into micro-batches.
        """
        rows = batch.ids.shape[0]
        if rows % self.micro_batch:
            raise ValueError(f'{rows} conversations cannot be split into micro-batches of {self.micro_batch}')
        count = has_turns(batch.turn, batch.valid).sum()
        # Every micro-batch takes its share of the rows from every device, so that no row moves.
        place = lambda x, *axes: constrain(self.model.mesh, x, *axes)
        batch = jax.tree.map(lambda x: place(x, 'rows'), batch)
        data = self.objective.data(batch.turn, batch.valid, batch.advantage, batch.logprob, batch.reference)
        if self.entropy:
            data['bonus'] = self.entropy * self.rate()(state.step) / self.learning_rate * data['weight']
        whole = (batch, data)
        parts = jax.tree.map(lambda x: place(
            x.reshape(self.micro_batch, -1, *x.shape[1:]).swapaxes(0, 1), None, 'rows'), whole)

        def loss(params, part):
            params = params if self.lora is None else self.lora.join(base, params)
            part, data = part
            sampled = part.turn >= 0
            if self.objective.needs('turn_ratio'):
                data = data | {'turn_ratio': self._turn_ratio(jax.lax.stop_gradient(params), part)}
            total, found = scoring.summed_loss(
                self.model, params, part.ids, sampled, self.objective.token_loss, data, self.chunk,
                entropy=bool(self.entropy) or self.objective.needs('entropy'))
            gap = jnp.where(sampled, found.logprob - part.logprob, 0)
            return total, (jnp.abs(gap).max(), -gap.sum())

        def accumulate(carry, part):
            gradient, total, largest, drift = carry
            (value, (gap, change)), new = jax.value_and_grad(loss, has_aux=True)(state.params, part)
            gradient = jax.tree.map(jnp.add, gradient, new)
            return (gradient, total + value, jnp.maximum(largest, gap), drift + change), None

        if rows == self.micro_batch:  # saves the memory of a second gradient
            (total, (gap, drift)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, whole)
        else:
            zero = jnp.zeros(())
            carry = jax.tree.map(jnp.zeros_like, state.params), zero, zero, zero
            (gradient, total, gap, drift), _ = jax.lax.scan(accumulate, carry, parts)

        moved = self._update(state, gradient, count > 0)
        tokens = jnp.maximum((batch.turn >= 0).sum(), 1)
        return moved, {
            'loss': total,
            'gradient_norm': optax.tree.norm(gradient),
            'learning_rate': jnp.asarray(self.rate()(state.step), jnp.float32),
            'logprob_gap': gap,
            'drift': drift / tokens,
            'conversations': count,
        }

    def _turn_ratio(self, params, batch: Batch) -> Float[Array, 'N L']:
        """Return for every token the mean over its turn of the log-ratio between now and sampling."""
        now = scoring.statistics(self.model, params, batch.ids, batch.turn >= 0, self.chunk).logprob
        means, _ = turn_means(now - batch.logprob, batch.turn, batch.valid.shape[1])
        return at_tokens(means, batch.turn)


def hidden_matrices(params: Any) -> Any:
    """Return which axes of every parameter (stacked layout) form a matrix for Muon; None leaves it to AdamW.

    Source: Jordan et al. 2024 (Muon), which is for the matrices of the layers, not for embeddings and heads.
    """
    def axes(path, x):
        is_matrix = path[0].key == 'layers' and path[-1].key == 'kernel'
        return optax.contrib.MuonDimensionNumbers(1, tuple(range(2, x.ndim))) if is_matrix else None
    return jax.tree_util.tree_map_with_path(axes, params)


def learner_keys(exclude: Sequence[str] = ()) -> dict[str, Key]:
    """Return the keys of the configuration group `learner` that are attributes of `Learner`.

    Args:
      exclude: attributes to leave out.
    """
    meanings = dict(re.findall(r'^ {2}(\w+): ((?:.|\n {4})*)', inspect.cleandoc(Learner.__doc__), re.MULTILINE))
    return {field.name: Key(field.default, ' '.join(meanings[field.name].split()).rstrip('.'), ALLOWED.get(field.name))
            for field in dataclasses.fields(Learner)
            if field.name not in ('model', 'total_steps', 'lora', 'objective', *exclude)}


def from_config(c: Mapping[str, Any], model: Decoder, total_steps: int, lora: Optional[LoRA] = None,
                objective: Objective = Objective()) -> Learner:
    """Return the learner of a configuration group `learner`, whose keys are named like the attributes.

    Args:
      c: the configuration group.
      model: the decoder, stacked layout.
      total_steps: number of gradient steps of the whole run.
      lora: the adapter that is trained; None for the whole model.
      objective: what is minimized.
    """
    named = {field.name: c[field.name] for field in dataclasses.fields(Learner) if field.name in c}
    return Learner(model=model, total_steps=total_steps, lora=lora, objective=objective, **named)
