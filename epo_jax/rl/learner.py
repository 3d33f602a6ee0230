"""The gradient step on the strategist.

Axis letters: N conversations of one step, M micro-batches, L token positions, T turns.
"""

import dataclasses
import functools
import math
from typing import Any, Mapping, Optional, Sequence

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from epo_jax.models import scoring
from epo_jax.models.lora import LoRA
from epo_jax.models.transformer import Transformer
from epo_jax.rl.losses import epo_loss, has_turns, mean_entropy
from epo_jax.runtime.parallel import constrain, param_shardings


@struct.dataclass
class TrainState:
    """What training carries from step to step: float32 parameters (stacked layout), optimiser, steps taken."""

    step: jax.Array
    params: Any
    optimizer: optax.OptState


@struct.dataclass
class Batch:
    """Rows for one gradient step.

    Attributes:
      ids, turn: i32[N, L]; logprob: f32[N, L] at sampling.
      advantage: f32[N, T]; valid: bool[N, T].
    """

    ids: Any
    turn: Any
    logprob: Any
    advantage: Any
    valid: Any


@dataclasses.dataclass(frozen=True)
class Learner:
    """How the strategist is trained; static.

    Attributes:
      model: the decoder, stacked layout.
      learning_rate: the peak; warmup_ratio: share of total_steps until it is reached, linearly; then a cosine to
        0 ('cosine') or no change ('constant').
      total_steps: gradient steps of the whole run.
      clip: largest global norm of a gradient; weight_decay, b1, b2: AdamW.
      micro_batch: conversations run through the model at once.
      lora: where given, what is trained is an adapter of a frozen base.
      entropy: weight of the strategies' entropy in the objective, scaled as the learning rate is by its schedule.
      chunk: tokens whose vocabulary is projected at once.
      offload: whether the optimiser's moments lie in the host's memory; they come to the device to be updated.
    """

    model: Transformer
    total_steps: int
    learning_rate: float = 1e-6
    schedule: str = 'cosine'
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

    def rate(self) -> optax.Schedule:
        """Learning rate by step."""
        warmup = math.ceil(self.warmup_ratio * self.total_steps)
        if self.schedule == 'constant':
            return optax.linear_schedule(self.learning_rate / max(warmup, 1), self.learning_rate, max(warmup - 1, 1))
        if self.schedule != 'cosine':
            raise ValueError(f"the schedule is 'cosine' or 'constant', not {self.schedule!r}")

        def cosine(step):
            rising = (step + 1) / max(warmup, 1)
            share = (step - warmup) / max(self.total_steps - warmup, 1)
            return self.learning_rate * jnp.where(step < warmup, rising, 0.5 * (1 + jnp.cos(jnp.pi * share)))
        return cosine

    def optimizer(self) -> optax.GradientTransformation:
        """Clipping, then AdamW."""
        return optax.chain(*self._parts())

    def _parts(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        return (optax.clip_by_global_norm(self.clip),
                optax.adamw(self.rate(), b1=self.b1, b2=self.b2, weight_decay=self.weight_decay))

    @functools.partial(jax.jit, static_argnums=0)
    def init(self, params) -> TrainState:
        """A fresh state around what is trained, stacked parameters or an adapter, which becomes float32; the
        optimiser's moments are split as they are."""
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        optimizer = self.optimizer().init(params)
        if self.model.mesh is not None:
            optimizer = optax.tree.map_params(
                self.optimizer(), jax.lax.with_sharding_constraint, optimizer,
                param_shardings(self.model, self.model.mesh, self.lora))
        if self.offload:
            optimizer = optax.tree.map_params(
                self.optimizer(), lambda moment: jax.device_put(moment, jax.memory.Space.Host), optimizer)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer)

    def abstract_state(self) -> TrainState:
        """Return the shapes and shardings of the training state, into which a checkpoint can be restored."""
        init = self.model.init_params if self.lora is None else functools.partial(self.lora.init, self.model)
        params = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=sharding),
                              jax.eval_shape(init, jax.random.key(0)),
                              param_shardings(self.model, self.model.mesh, self.lora))
        return jax.jit(self.init).lower(params).compile().out_info

    def _update(self, state: TrainState, gradient, change: jax.Array) -> TrainState:
        """The state after a step; the same one unless `change`."""
        def move(state):
            updates, optimizer = self.optimizer().update(gradient, state.optimizer, state.params)
            return TrainState(state.step + 1, optax.apply_updates(state.params, updates), optimizer)

        if not self.offload:  # a branch needs no second copy of the moments, as a selection does
            return jax.lax.cond(change, move, lambda state: state, state)

        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(change, a, b), new, old)
        # Moments come to the device and go back one parameter at a time, each waiting for the one before: left alone,
        # the compiler fetches all of them at once.
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
        """One gradient step; `state` is donated. `base`: the frozen parameters (stacked) under an adapter.

        The loss is the mean over the conversations with a valid turn, counted over the whole batch, so it does
        not depend on the micro-batches. A batch without any changes nothing.

        Returns:
          (state, metrics): loss, gradient norm, learning rate, and over the sampled tokens the largest and the
          mean difference between the log-probability now and at sampling. On the first step after a rollout the
          former is the sampler's numerical error.
        """
        rows = batch.ids.shape[0]
        if rows % self.micro_batch:
            raise ValueError(f'{rows} conversations do not divide into micro-batches of {self.micro_batch}')
        count = has_turns(batch.turn, batch.valid).sum()
        # Rows that are split over devices stay there: a micro-batch takes its share from every one.
        place = lambda x, *axes: constrain(self.model.mesh, x, *axes)
        batch = jax.tree.map(lambda x: place(x, 'rows'), batch)
        parts = jax.tree.map(lambda x: place(
            x.reshape(self.micro_batch, -1, *x.shape[1:]).swapaxes(0, 1), None, 'rows'), batch)

        weight = self.entropy * self.rate()(state.step) / self.learning_rate

        def loss(params, part):
            params = params if self.lora is None else self.lora.join(base, params)

            def objective(numbers):  # linear, so its gradient anywhere is the weights of the sum
                total = epo_loss(numbers[0], part.advantage, part.turn, part.valid)
                if self.entropy:
                    total -= weight * mean_entropy(numbers[1], part.turn, part.valid)
                return total.sum() / jnp.maximum(count, 1)

            weights = jax.grad(objective)(jnp.zeros((2 if self.entropy else 1, *part.ids.shape)))
            total, numbers = scoring.weigh(self.model, params, part.ids, part.turn >= 0, weights, self.chunk)
            gap = jnp.where(part.turn >= 0, numbers[0] - part.logprob, 0)
            return total, (jnp.abs(gap).max(), -gap.sum())

        def accumulate(carry, part):
            gradient, total, largest, drift = carry
            (value, (gap, change)), new = jax.value_and_grad(loss, has_aux=True)(state.params, part)
            gradient = jax.tree.map(jnp.add, gradient, new)
            return (gradient, total + value, jnp.maximum(largest, gap), drift + change), None

        if rows == self.micro_batch:  # no second gradient to add to
            (total, (gap, drift)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
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


def learner_defaults(exclude: Sequence[str] = ()) -> dict[str, Any]:
    """Return the defaults of the configuration group `learner`: the fields of `Learner` that a user may set.

    Args:
      exclude: Names of fields to leave out.
    """
    return {field.name: field.default for field in dataclasses.fields(Learner)
            if field.name not in ('model', 'total_steps', 'lora', *exclude)}


def from_config(c: Mapping[str, Any], model: Transformer, total_steps: int, lora: Optional[LoRA] = None) -> Learner:
    """The learner of a configuration's group `learner`: keys and attributes go by the same names."""
    named = {field.name: c[field.name] for field in dataclasses.fields(Learner) if field.name in c}
    return Learner(model=model, total_steps=total_steps, lora=lora, **named)


def batches(rows: Batch, size: int, rng: np.random.Generator, bucket: int) -> list[Batch]:
    """Cuts rows into shuffled batches of `size`, the last one filled up with rows that train nothing.

    Lengths are cut to the longest conversation, rounded up to a multiple of `bucket` so that few programs serve
    all batches.

    Args:
      rows: NumPy arrays of N conversations. A row may be empty; its turn is -1 everywhere.
    """
    longest = int(np.max(np.where((rows.turn >= 0).any(axis=1), rows.turn.shape[1] - np.argmax(
        rows.turn[:, ::-1] >= 0, axis=1), 1)))  # what follows the last strategy is not needed
    length = min(-(-longest // bucket) * bucket, rows.ids.shape[1])
    order = rng.permutation(len(rows.ids))
    missing = -len(order) % size

    def take(x, filling):
        x = x[order]
        return np.concatenate([x, np.full((missing, *x.shape[1:]), filling, x.dtype)])

    cut = Batch(
        take(rows.ids[:, :length], 0), take(rows.turn[:, :length], -1), take(rows.logprob[:, :length], 0),
        take(rows.advantage, 0), take(rows.valid, False))
    return [jax.tree.map(lambda x: x[i:i + size], cut) for i in range(0, len(cut.ids), size)]
