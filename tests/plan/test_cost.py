"""Costs of jaxprs and of a text in the format of the TPU compiler equal numbers counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from epo_jax.plan import cost

TEXT = '''HloModule jit_step

%fused.1 (p0: f32[8,16]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %all-gather.9 = f32[32,16]{1,0} all-gather(%p0), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %add.1 = f32[8,16]{1,0} add(%p0, %p0), backend_config={"estimated_cycles":"999"}
}

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %all-reduce.1 = bf16[100]{0:T(256)(2,1)} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
  %fusion.1 = f32[8,16]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused.1, metadata={op_name="jit(f)/while/body/gate/dot"}, backend_config={"w":{"estimated_cycles":"50"}}
  ROOT %t = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%x, %fusion.1)
}

%condition (p.1: (s32[], f32[8,16])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(4)
  %p.1 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.7), direction=LT
}

%outer_body (q: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %q = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}, /*index=1*/f32[8,16]{1,0:T(8,128)}) while(%q), condition=%condition, body=%body
}

%outer_condition (q.1: (s32[], f32[8,16])) -> pred[] {
  %q.1 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%q.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%n, %LENGTH), direction=LT
  %LENGTH
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0:T(8,128)} parameter(0)
  %start = (f32[8,16]{1,0}, f32[64,16]{1,0}, u32[]) all-gather-start(%a), replica_groups=mesh['x'=4,'y'=2] {'x','y'}
  %fusion.2 = f32[8,16]{1,0} fusion(%a), kind=kLoop, calls=%other, metadata={op_name="jit(f)/add"}, backend_config={"w":{"estimated_cycles":"7"}}
  ROOT %while.2 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) while(%a), condition=%outer_condition, body=%outer_body
}

%other (p2: f32[8,16]) -> f32[8,16] {
  ROOT %p2 = f32[8,16]{1,0} parameter(0)
}
'''


def text(known=True):
    length = '%bound = s32[]{:T(128)} constant(3)' if known else '%bound = s32[] get-tuple-element(%q.1), index=0'
    return TEXT.replace('  %LENGTH\n', f'  {length}\n').replace('%LENGTH', '%bound')


def test_loops_multiply_the_cost_of_their_bodies():
    read = cost.program_cost(text())
    assert read.cycles == {'gate/dot': 3 * 4 * 50, 'add': 7} and read.open_loops == 0
    collectives = {(c.kind, c.devices, c.bytes, c.times, c.hidden) for c in read.collectives}
    assert collectives == {('all-gather', 4, 32 * 16 * 4, 12, True), ('all-reduce', 2, 200, 12, False),
                           ('all-gather', 8, 64 * 16 * 4, 1, True)}


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    read = cost.program_cost(text(known=False))
    assert read.cycles == {'gate/dot': 4 * 50, 'add': 7} and read.open_loops == 1


@pytest.mark.parametrize(('kind', 'moved'), (
    ('all-gather', 75), ('all-reduce', 150), ('reduce-scatter', 300), ('all-to-all', 75),
    ('collective-permute', 100)))
def test_bytes_that_leave_a_device(kind, moved):
    assert cost.Collective(kind, 4, 100, 3, False).bytes_sent == 3 * moved


def test_a_text_without_an_entry_computation_is_an_error():
    with pytest.raises(ValueError, match='no entry'):
        cost.program_cost('HloModule nothing\n')


def count(function, *shapes):
    return cost.flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)))


def test_operations_of_matrix_products():
    assert count(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert count(lambda a, b: jnp.einsum('bij,bjk->bik', a, b), (4, 3, 5), (4, 5, 7)) == 4 * 2 * 3 * 5 * 7
    loop = lambda a, b: jax.lax.scan(lambda c, _: (c @ b, None), a, length=6)[0]
    assert count(loop, (3, 5), (5, 5)) == 6 * 2 * 3 * 5 * 5
    branch = lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b, lambda: a @ b)
    assert count(branch, (3, 5), (5, 5)) == 2 * 2 * 3 * 5 * 5
    assert count(jax.jit(lambda a, b: jnp.sin(a @ b)), (3, 5), (5, 7)) == 2 * 3 * 5 * 7


def test_recomputation_is_counted():
    def loss(checkpoint):
        layer = lambda x, w: jnp.tanh(jnp.tanh(x @ w) @ w)
        layer = jax.checkpoint(layer) if checkpoint else layer
        return jax.grad(lambda w, x: layer(x, w).sum())
    one = 2 * 3 * 5 * 5
    assert count(loss(False), (5, 5), (3, 5)) == 5 * one  # two forward, two for the weights, one for the activation between
    assert count(loss(True), (5, 5), (3, 5)) > 5 * one
