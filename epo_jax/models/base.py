"""What the decoders of all families have in common, in Flax Linen, as pure functions of their parameters.

    hidden, cache = model.apply({'params': params}, ids, positions, cache)
    logits        = model.apply({'params': params}, hidden, method='logits')

Axis letters: B conversations, K new tokens, L positions of the cache, H key/value heads, D head size, W residual width,
V vocabulary.

Parameters come in two layouts. With `stacked=True`, every layer parameter has a leading layer axis and the layers run
under `nn.scan` with rematerialization; this layout is trained, checkpointed and sharded. With `stacked=False`, every
layer is a subtree of its own and the loop is unrolled, which samples faster. `unstack` and `stack` in models/layout.py
convert between them. The stacked layout can also sample, so that the frozen base of an adapter (models/lora.py) is in
memory only once; the cache then has a leading layer axis, too.
"""

from typing import Any, Optional

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from epo_jax.models.attention import Keys, Values
from epo_jax.models.config import ModelConfig
from epo_jax.models.layers import Layer, Linear, RMSNorm
from epo_jax.models.rope import rope_frequencies, rotation
from epo_jax.runtime.parallel import constrain
from epo_jax.text.tokens import Array

# The keys of a layer are transposed, so that a query for one token reads them in the order in which they are stored.
LayerCache = tuple[Keys, Values]
StackedCache = tuple[Float[Array, 'layers B H D L'], Float[Array, 'layers B H L D']]
KVCache = tuple[LayerCache, ...] | StackedCache

REMAT = {
    'none': None,
    'dots': jax.checkpoint_policies.save_from_both_policies(  # keep the outputs of attention, recompute its scores
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names('attention')),
    'full': jax.checkpoint_policies.nothing_saveable,
}

UNLIMITED = 2**30  # a window larger than any context


class LayeredDecoder(nn.Module):
    """A decoder whose layers have parameters of the same shapes; a family names the class of its layers.

    Attributes:
      config: the shape.
      dtype: dtype of activations and matrix products; parameters keep their own dtype.
      stacked: whether the parameters are in the stacked layout; see the docstring of this module.
      remat: key of REMAT, what the forward pass of the stacked layout saves for the backward pass.
      mesh: the mesh over which rows and heads are split; None leaves the sharding to the compiler.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    stacked: bool = False
    remat: str = 'full'
    mesh: Optional[Mesh] = None

    layer_class = Layer

    def setup(self):
        """Create the submodules."""
        c = self.config
        table = nn.with_logical_partitioning(nn.initializers.normal(0.02), ('vocab', 'embed'))
        self.embed = self.param('embed', table, (c.vocab_size, c.width))
        if self.stacked:
            layer = self.layer_class
            if self.remat != 'none':
                layer = nn.remat(layer, policy=REMAT[self.remat], prevent_cse=False)
            self.layers = nn.scan(
                layer, variable_axes={'params': 0}, split_rngs={'params': True},
                in_axes=(0, nn.broadcast, nn.broadcast), length=c.num_layers,
                unroll=c.num_layers if self.remat == 'none' else 1,  # a loop would copy all residuals
                metadata_params={nn.PARTITION_NAME: 'layers'})(c, self.mesh)
        else:
            self.layer = [self.layer_class(c, self.mesh) for _ in range(c.num_layers)]
        self.final_norm = RMSNorm(c.norm_eps, offset=c.norm_offset)
        if not c.tied:
            self.head = Linear((c.vocab_size,), ('embed', 'vocab'), mesh=self.mesh)

    def __call__(self, ids: Int[Array, 'B K'], positions: Int[Array, 'B K'], cache: Optional[KVCache] = None):
        """Run the layers.

        Args:
          ids: token ids.
          positions: the positions of the tokens, at which keys and values are written to the cache. A position outside
            the cache marks padding and writes nothing.
          cache: keys and values of all earlier tokens. If None, `ids` attend only to each other and must be at
            positions 0, 1, 2, ...

        Returns:
          Hidden states [B, K, W] after the last norm, and the new cache (None without a cache).
        """
        x = self.embedded(ids)
        of_layers = self.config.attention_kinds
        kinds = tuple(dict.fromkeys(of_layers))
        numbers = [kinds.index(kind) for kind in of_layers]
        kinds = [(rotation(rope_frequencies(self.config.head_dim, kind.rope_theta, kind.rope_scaling), positions),
                  kind.window) for kind in kinds]
        if self.stacked:
            layer = None if cache is None else jnp.arange(len(numbers))
            kinds, kind = (kinds[0], None) if len(kinds) == 1 else (_stack(kinds), jnp.array(numbers))
            (x, cache), _ = self.layers((x, cache), (layer, kind), positions, kinds)
            return self.final_norm(x), cache
        caches = []
        for i, layer in enumerate(self.layer):
            (x, new), _ = layer((x, None if cache is None else cache[i]), (None, None), positions, kinds[numbers[i]])
            caches.append(new)
        return self.final_norm(x), None if cache is None else tuple(caches)

    def embedded(self, ids):
        """Return the input of the first layer [B, K, W] for token ids [B, K]."""
        return jnp.take(self.embed, ids, axis=0, mode='clip').astype(self.dtype)

    def logits(self, hidden):
        """Project hidden states [..., W] to logits f32[..., V]."""
        if self.config.tied:
            return jnp.einsum('...w,vw->...v', hidden, self.embed.astype(hidden.dtype)).astype(jnp.float32)
        return self.head(hidden).astype(jnp.float32)

    def init_boxed(self, key):
        """Return random float32 parameters whose leaves carry the names of their logical axes."""
        def forward(module, ids):
            return module.logits(module(ids, ids)[0])
        return self.init(key, jnp.zeros((1, 1), jnp.int32), method=forward)['params']

    def init_params(self, key):
        """Return random float32 parameters as a plain nested dict without sharding metadata."""
        return nn.meta.unbox(self.init_boxed(key))

    def init_cache(self, batch: int, capacity: int) -> KVCache:
        """Return a cache of zeros for `batch` conversations of at most `capacity` tokens."""
        c = self.config
        shapes = ((batch, c.num_kv_heads, c.head_dim, capacity), (batch, c.num_kv_heads, capacity, c.head_dim))
        place = lambda x, *axes: constrain(self.mesh, x, *axes, 'rows', 'kv_heads', None, None)
        if self.stacked:
            return tuple(place(jnp.zeros((c.num_layers, *shape), self.dtype), None) for shape in shapes)
        return tuple(tuple(place(jnp.zeros(shape, self.dtype)) for shape in shapes) for _ in range(c.num_layers))


def _stack(kinds):
    """Stack the (rotation, window) of all kinds of layers along a leading axis, so that a scan over layers selects."""
    rotations, windows = zip(*kinds)
    sizes = None if set(windows) == {None} else jnp.array([UNLIMITED if size is None else size for size in windows])
    return jax.tree.map(lambda *xs: jnp.stack(xs), *rotations), sizes
