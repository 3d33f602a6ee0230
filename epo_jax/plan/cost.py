"""The cost of a program: floating point operations from its trace, time and traffic from its compiled text.

XLA's own analysis counts the body of a loop once, and a decoder is two nested loops, over layers and micro-batches.
Here both are multiplied by the lengths of the loops, which the trace states, and which loop conditions in the compiled
text compare with as constants. Times are the cycles that the TPU compiler estimates for every fusion.
"""

import dataclasses
import math
import re
from typing import Any, Iterator, Mapping, Sequence

from jax.extend.core import jaxprs_in_params
import numpy as np

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8,
         'u64': 8, 'f64': 8}
KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of one device.

    Attributes:
      kind: one of KINDS; devices: that take part together.
      bytes: its result; times: how often it runs.
      hidden: whether it runs beside other work, as part of an asynchronous pair or a fusion.
    """

    kind: str
    devices: int
    bytes: int
    times: int
    hidden: bool

    @property
    def moved(self) -> float:
        """Return the bytes that leave a device in all runs, by the ring algorithm of its kind."""
        n = self.devices
        share = {'all-gather': (n - 1) / n, 'reduce-scatter': n - 1, 'all-reduce': 2 * (n - 1) / n,
                 'all-to-all': (n - 1) / n, 'collective-permute': 1}[self.kind]
        return self.times * self.bytes * share


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the text of a compiled program says of one device.

    Attributes:
      cycles: by operation of the program (as JAX names it), the estimated cycles of its fusions.
      collectives: all of them.
      open_loops: loops whose length the text does not tell; they are counted once.
    """

    cycles: Mapping[str, float]
    collectives: tuple[Collective, ...]
    open_loops: int


def flops(jaxpr: Any) -> int:
    """Return the floating point operations of the matrix products of a closed jaxpr, with recomputation.

    A loop of unknown length counts once, and a conditional counts as its most expensive branch.
    """
    total = 0
    for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
        if eqn.primitive.name == 'dot_general':
            (contracted, _), _ = eqn.params['dimension_numbers']
            size = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * size * math.prod(eqn.outvars[0].aval.shape)
        inner = [flops(sub) for sub in jaxprs_in_params(eqn.params)]
        if inner:
            total += max(inner) if eqn.primitive.name == 'cond' else eqn.params.get('length', 1) * sum(inner)
    return total


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    rest: str


def read(text: str) -> Compiled:
    """Read the text of an optimized HLO module for TPU.

    Raises:
      ValueError: it has no entry computation.
    """
    computations, entry = _parse(text)
    cycles, collectives, unknown = {}, [], []

    def visit(name: str, times: int, hidden: bool, fused: bool):
        for one in computations[name]:
            kind = next((k for k in KINDS if one.opcode in (k, f'{k}-start')), None)
            if kind:
                collectives.append(Collective(
                    kind, _group(one.rest), _result_bytes(one.type, one.opcode), times,
                    hidden or fused or one.opcode.endswith('-start')))
            estimate = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
            if estimate and not fused:
                what = _operation(one.rest)
                cycles[what] = cycles.get(what, 0) + times * int(estimate[1])
            if one.opcode == 'while':
                length = _length(computations[_called(one.rest, 'condition')])
                unknown.extend([name] if length is None else [])
                visit(_called(one.rest, 'body'), times * (length or 1), hidden, fused)
            elif one.opcode == 'fusion':
                visit(_called(one.rest, 'calls'), times, hidden, True)
            elif one.opcode in ('call', 'async-start'):
                attribute = 'calls' if 'calls=' in one.rest else 'to_apply'
                visit(_called(one.rest, attribute), times, hidden or one.opcode == 'async-start', fused)
            elif one.opcode == 'conditional':
                for branch in _branches(one.rest):
                    visit(branch, times, hidden, fused)

    visit(entry, 1, False, False)
    return Compiled(cycles, tuple(collectives), len(unknown))


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        head = re.match(r'(ENTRY )?%?([^ ]+) \(.*\) -> .* \{$', line)
        if head and not line.startswith(' '):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith('}'):
            current = None
        elif current is not None and (found := re.match(r'  (?:ROOT )?%?([^ ]+) = (.*)', line)):
            kind, rest = _split_type(found[2])
            opcode, _, rest = rest.partition('(')
            current.append(_Instruction(found[1], kind, opcode.strip(), rest))
    if entry is None:
        raise ValueError('the compiled text has no entry computation')
    return computations, entry


def _split_type(text: str) -> tuple[str, str]:
    """'(f32[2], s32[]) while(...)' -> its type and the rest."""
    if not text.startswith('('):
        kind, _, rest = text.partition(' ')
        return kind, rest
    depth = 0
    for i, char in enumerate(text):
        depth += (char == '(') - (char == ')')
        if depth == 0:
            return text[:i + 1], text[i + 1:]
    return text, ''


def _called(rest: str, attribute: str) -> str:
    return re.search(attribute + r'=%?([^,\s)}]+)', rest)[1]


def _branches(rest: str) -> Sequence[str]:
    several = re.search(r'branch_computations=\{([^}]*)\}', rest)
    if several:
        return [name.strip().lstrip('%') for name in several[1].split(',')]
    return [_called(rest, 'true_computation'), _called(rest, 'false_computation')]


def _length(condition: Sequence[_Instruction]) -> int | None:
    """Return the length of a loop that counts up from 0, whose condition is `counter < constant`, or None."""
    constants = {one.name: int(found[1]) for one in condition if one.opcode == 'constant'
                 and (found := re.match(r'(-?\d+)\)', one.rest))}
    compares = [one for one in condition if one.opcode == 'compare' or 'compare' in one.rest]
    if len(compares) != 1 or 'direction=LT' not in compares[0].rest or any(one.opcode == 'and' for one in condition):
        return None
    bound = [value for name, value in constants.items() if f'%{name}' in compares[0].rest]
    return bound[0] if len(bound) == 1 else None


def _operation(rest: str) -> str:
    """Return the module or function of the program that an instruction comes from."""
    found = re.search(r'op_name="([^"]*)"', rest)
    parts = [] if not found else [p for p in found[1].split('/') if p not in (
        'while', 'body', 'cond', 'closed_call', 'checkpoint', 'rematted_computation') and '(' not in p]
    return '/'.join(parts[-2:]) or 'other'


def _shapes(kind: str) -> Iterator[int]:
    for dtype, shape in re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', kind):
        if dtype in BYTES:
            yield BYTES[dtype] * math.prod(int(n) for n in shape.split(',') if n)


def _result_bytes(kind: str, opcode: str) -> int:
    """Return the bytes of a collective's result; the start of an asynchronous one lists its operands too."""
    sizes = list(_shapes(kind))
    return max(sizes) if opcode.endswith('-start') else sum(sizes)


def _group(rest: str) -> int:
    """Devices that take part together."""
    if found := re.search(r'replica_groups=\[(\d+),(\d+)\]', rest):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return int(np.prod([int(sizes[axis]) for axis in re.findall(r"'([^']+)'", found[2])]))
    if found := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
        return len(found[1].split(','))
    if found := re.search(r'source_target_pairs=\{', rest):
        return 2
    return 2
