"""The cost of a program: floating point operations from its jaxpr, time and traffic from its compiled text.

XLA's own analysis counts the body of a loop once, but a gradient step nests loops over micro-batches and layers. This
module multiplies by the lengths of the loops: the jaxpr states them, and in the compiled text they are constants of the
loop conditions. Times are the cycles that the TPU compiler estimates for every fusion.
"""

import dataclasses
import math
import re
from typing import Any, Iterator, Mapping, Sequence

from jax.extend.core import jaxprs_in_params

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8,
         'u64': 8, 'f64': 8}
KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation on one device.

    Attributes:
      kind: one of KINDS.
      devices: number of devices that take part together.
      bytes: size of its result.
      times: number of executions.
      hidden: whether it overlaps with other work, as part of an asynchronous pair or a fusion.
    """

    kind: str
    devices: int
    bytes: int
    times: int
    hidden: bool

    @property
    def bytes_sent(self) -> float:
        """Return the bytes that leave a device in all executions, by the ring algorithm."""
        n = self.devices
        share = {'all-gather': (n - 1) / n, 'reduce-scatter': n - 1, 'all-reduce': 2 * (n - 1) / n,
                 'all-to-all': (n - 1) / n, 'collective-permute': 1}[self.kind]
        return self.times * self.bytes * share


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """The cost of a compiled program on one device, as its text states it.

    Attributes:
      cycles: estimated cycles of fusions, by JAX's name of the operation.
      collectives: all collective operations.
      open_loops: number of loops of unknown length, whose bodies are counted once.
    """

    cycles: Mapping[str, float]
    collectives: tuple[Collective, ...]
    open_loops: int


def flops(jaxpr: Any) -> int:
    """Return the floating point operations of the matrix products of a closed jaxpr, recomputation included.

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
    """One line of a computation, `name = type opcode(rest`."""

    name: str
    type: str
    opcode: str
    rest: str


def program_cost(text: str) -> ProgramCost:
    """Return the cost of a program from the text of its optimized HLO module for TPU.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = _parse(text)
    cycles, collectives, open_loops = {}, [], 0

    def visit(name: str, times: int, hidden: bool, fused: bool):
        nonlocal open_loops
        for op in computations[name]:
            kind = next((k for k in KINDS if op.opcode in (k, f'{k}-start')), None)
            if kind:
                collectives.append(Collective(
                    kind, _group(op.rest), _result_bytes(op.type, op.opcode), times,
                    hidden or fused or op.opcode.endswith('-start')))
            estimate = re.search(r'"estimated_cycles":"(\d+)"', op.rest)
            if estimate and not fused:
                operation = _operation(op.rest)
                cycles[operation] = cycles.get(operation, 0) + times * int(estimate[1])
            if op.opcode == 'while':
                length = _length(computations[_called(op.rest, 'condition')])
                open_loops += length is None
                visit(_called(op.rest, 'body'), times * (length or 1), hidden, fused)
            elif op.opcode == 'fusion':
                visit(_called(op.rest, 'calls'), times, hidden, True)
            elif op.opcode in ('call', 'async-start'):
                attribute = 'calls' if 'calls=' in op.rest else 'to_apply'
                visit(_called(op.rest, attribute), times, hidden or op.opcode == 'async-start', fused)
            elif op.opcode == 'conditional':
                for branch in _branches(op.rest):
                    visit(branch, times, hidden, fused)

    visit(entry, 1, False, False)
    return ProgramCost(cycles, tuple(collectives), open_loops)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Return the instructions of every computation by its name, and the name of the entry computation."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        head = re.match(r'(ENTRY )?%?([^ ]+) \(.*\) -> .* \{$', line)
        if head and not line.startswith(' '):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith('}'):
            current = None
        elif current is not None and (match := re.match(r'  (?:ROOT )?%?([^ ]+) = (.*)', line)):
            type_text, rest = _split_type(match[2])
            opcode, _, rest = rest.partition('(')
            current.append(_Instruction(match[1], type_text, opcode.strip(), rest))
    if entry is None:
        raise ValueError('the compiled text has no entry computation')
    return computations, entry


def _split_type(text: str) -> tuple[str, str]:
    """Split '(f32[2], s32[]) while(...)' into the type and the rest."""
    if not text.startswith('('):
        type_text, _, rest = text.partition(' ')
        return type_text, rest
    depth = 0
    for i, char in enumerate(text):
        depth += (char == '(') - (char == ')')
        if depth == 0:
            return text[:i + 1], text[i + 1:]
    return text, ''


def _called(rest: str, attribute: str) -> str:
    """Return the name of the computation in an attribute of an instruction."""
    return re.search(attribute + r'=%?([^,\s)}]+)', rest)[1]


def _branches(rest: str) -> Sequence[str]:
    """Return the names of the branch computations of a conditional."""
    listed = re.search(r'branch_computations=\{([^}]*)\}', rest)
    if listed:
        return [name.strip().lstrip('%') for name in listed[1].split(',')]
    return [_called(rest, 'true_computation'), _called(rest, 'false_computation')]


def _length(condition: Sequence[_Instruction]) -> int | None:
    """Return the length of a loop with the condition `counter < constant`, counting from 0, or None for other loops."""
    constants = {op.name: int(match[1]) for op in condition if op.opcode == 'constant'
                 and (match := re.match(r'(-?\d+)\)', op.rest))}
    compares = [op for op in condition if op.opcode == 'compare' or 'compare' in op.rest]
    if len(compares) != 1 or 'direction=LT' not in compares[0].rest or any(op.opcode == 'and' for op in condition):
        return None
    bounds = [value for name, value in constants.items() if f'%{name}' in compares[0].rest]
    return bounds[0] if len(bounds) == 1 else None


def _operation(rest: str) -> str:
    """Return the JAX operation that an instruction comes from, such as 'gate/dot_general'."""
    match = re.search(r'op_name="([^"]*)"', rest)
    parts = [] if not match else [p for p in match[1].split('/') if p not in (
        'while', 'body', 'cond', 'closed_call', 'checkpoint', 'rematted_computation') and '(' not in p]
    return '/'.join(parts[-2:]) or 'other'


def _sizes(type_text: str) -> Iterator[int]:
    """Yield the bytes of every array in a type, such as 8 and 4 for '(f32[2], s32[])'."""
    for dtype, shape in re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', type_text):
        if dtype in BYTES:
            yield BYTES[dtype] * math.prod(int(n) for n in shape.split(',') if n)


def _result_bytes(type_text: str, opcode: str) -> int:
    """Return the bytes of a collective's result; the type of an asynchronous start also lists its operands."""
    sizes = list(_sizes(type_text))
    return max(sizes) if opcode.endswith('-start') else sum(sizes)


def _group(rest: str) -> int:
    """Return the number of devices that take part in a collective together; 2 for one that sends between pairs."""
    if match := re.search(r'replica_groups=\[(\d+),(\d+)\]', rest):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", match[2]))
    if match := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
        return len(match[1].split(','))
    return 2
