"""Alterations of a file's structure that keep it a file: what a fuzzer draws from.

Each takes a model in LiteRT's objects and a random generator, and alters the model in place.
"""

import copy
import zlib

import ai_edge_litert.schema_py_generated as litert
import numpy as np

from tests.tflite_export.hostile import add_metadata, packed
from tflite_export.files.metadata import GOLDEN_NAME, MODEL_NAME
from tflite_export.files.read import read
from tflite_export.ir import schema
from tflite_export.ops import OPERATORS

INTEGERS = (-(2**31), -1, 0, 1, 2, 3, 7, 100, 300, 2**15, 2**15 + 1, 2**16, 2**24, 2**31 - 1)
REALS = (0.0, -1.0, 1e-45, 1e-30, 1e-9, 1e-4, 0.5, 255.0, 1e4, 1e9, 3e38, np.inf, np.nan)


def pick(rng, items):
    """One of ``items``; None where there are none."""
    return items[int(rng.integers(len(items)))] if len(items) else None


def _operator(model, rng):
    return pick(rng, model.subgraphs[0].operators)


def _tensor(model, rng):
    return pick(rng, model.subgraphs[0].tensors)


def _listed(values):
    return [int(value) for value in (values if values is not None else [])]


def _as_list(values):
    return np.array(values, np.int32)


def drop_operand(model, rng):
    """Leave an operand out, or list it as -1."""
    operator = _operator(model, rng)
    inputs = _listed(operator.inputs)
    if not inputs:
        return
    place = int(rng.integers(len(inputs)))
    inputs[place : place + 1] = [-1] if rng.integers(2) else []
    operator.inputs = _as_list(inputs)


def drop_last_operand(model, rng):
    """Leave the last operand of an operator out: the bias of those that have one."""
    operator = _operator(model, rng)
    operator.inputs = _as_list(_listed(operator.inputs)[:-1])


def other_operand(model, rng):
    """Let an operator read another tensor."""
    operator = _operator(model, rng)
    inputs = _listed(operator.inputs)
    if inputs:
        inputs[int(rng.integers(len(inputs)))] = int(rng.integers(len(model.subgraphs[0].tensors)))
        operator.inputs = _as_list(inputs)


def one_operand_for_all(model, rng):
    """Let an operator read one tensor in place of all its operands."""
    operator = _operator(model, rng)
    inputs = _listed(operator.inputs)
    operator.inputs = _as_list([inputs[0]] * len(inputs)) if inputs else operator.inputs


def stored_batch(model, rng):
    """Store another batch than the signature's in one tensor, or in all."""
    batch = pick(rng, (0, 2, 7, 64, 2**20, 2**31 - 1, -1))
    tensors = model.subgraphs[0].tensors
    for tensor in tensors if rng.integers(2) else [pick(rng, tensors)]:
        if tensor.shapeSignature is not None and len(_listed(tensor.shape)):
            tensor.shape = _as_list([batch, *_listed(tensor.shape)[1:]])


def signature(model, rng):
    """Take a signature of a shape away, or open or close one of its sizes."""
    tensor = _tensor(model, rng)
    if tensor.shapeSignature is None or rng.integers(2):
        tensor.shapeSignature = None
        return
    sizes = _listed(tensor.shapeSignature)
    sizes[int(rng.integers(len(sizes)))] = pick(rng, (-1, 1, 7))
    tensor.shapeSignature = _as_list(sizes)


def size(model, rng):
    """Change a size of a shape, in store and signature."""
    tensor = _tensor(model, rng)
    sizes = _listed(tensor.shape)
    if sizes:
        place, value = int(rng.integers(len(sizes))), pick(rng, INTEGERS)
        sizes[place] = value
        tensor.shape = _as_list(sizes)
        if tensor.shapeSignature is not None and place < len(_listed(tensor.shapeSignature)):
            sizes = _listed(tensor.shapeSignature)
            sizes[place] = value
            tensor.shapeSignature = _as_list(sizes)


def larger_images(model, rng):
    """Multiply height and width of every image."""
    factor = int(pick(rng, (2, 4, 16, 64, 512)))
    for tensor in model.subgraphs[0].tensors:
        for name in ("shape", "shapeSignature"):
            sizes = _listed(getattr(tensor, name))
            if len(sizes) == 4 and tensor.buffer == 0:
                sizes[1:3] = [min(value * factor, 2**30) for value in sizes[1:3]]
                setattr(tensor, name, _as_list(sizes))


def option(model, rng):
    """Give an option of an operator an extreme value."""
    operator = _operator(model, rng)
    options = operator.builtinOptions
    names = sorted(vars(options)) if options is not None else []
    name = pick(rng, names)
    if name is None or not isinstance(getattr(options, name), (int, float, bool)):
        return
    value = getattr(options, name)
    if isinstance(value, float):
        setattr(options, name, float(pick(rng, REALS)))
    elif isinstance(value, bool):
        setattr(options, name, not value)
    elif name in ("padding", "mode", "fusedActivationFunction", "weightsFormat"):
        setattr(options, name, int(rng.integers(-1, 7)))
    else:
        setattr(options, name, int(pick(rng, INTEGERS)))


def other_code(model, rng):
    """Give an operator code another builtin operator, version or custom name."""
    code = pick(rng, model.operatorCodes)
    which = int(rng.integers(3))
    if which == 0:
        number = schema.OPERATOR_NAMES.index(pick(rng, (*OPERATORS, "LSTM", "WHILE", "CALL")))
        code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
    elif which == 1:
        code.version = int(pick(rng, INTEGERS))
    else:
        code.customCode = b"Custom"


def repeat_operator(model, rng):
    """Repeat an operator, with a result of its own that is dead or an output, or with the same."""
    subgraph = model.subgraphs[0]
    operator = copy.copy(_operator(model, rng))
    results = _listed(operator.outputs)
    if results and rng.integers(4):
        subgraph.tensors.append(copy.copy(subgraph.tensors[results[0]]))
        subgraph.tensors[-1].name = b"again"
        operator.outputs = _as_list([len(subgraph.tensors) - 1])
        if rng.integers(2):
            subgraph.outputs = _as_list([*_listed(subgraph.outputs), len(subgraph.tensors) - 1])
    place = (
        len(subgraph.operators) if rng.integers(2) else int(rng.integers(len(subgraph.operators)))
    )
    subgraph.operators.insert(place, operator)


def many_operators(model, rng):
    """Repeat the last operator many times in a row."""
    for _ in range(int(pick(rng, (10, 100, 2000)))):
        repeat_operator(model, rng)


def drop_operator(model, rng):
    """Take an operator away, or exchange two."""
    operators = model.subgraphs[0].operators
    place = int(rng.integers(len(operators)))
    if rng.integers(2):
        operators.pop(place)
    else:
        operators[place], operators[0] = operators[0], operators[place]


def results(model, rng):
    """Make another tensor a result of the graph: instead of the last, beside it, or twice."""
    subgraph = model.subgraphs[0]
    held = _listed(subgraph.outputs)
    added = int(rng.integers(len(subgraph.tensors)))
    choices = ([added], [*held, added], held * 2, [*held, *_listed(subgraph.inputs)], [])
    subgraph.outputs = _as_list(choices[int(rng.integers(len(choices)))])


def sources(model, rng):
    """Make another tensor an input of the graph, or list one twice."""
    subgraph = model.subgraphs[0]
    held = _listed(subgraph.inputs)
    added = int(rng.integers(len(subgraph.tensors)))
    subgraph.inputs = _as_list(pick(rng, ([*held, added], held * 2, [added], [])))


def scale(model, rng):
    """Give the grid of a tensor, or of all, an extreme scale or zero point."""
    value, zero = float(pick(rng, REALS)), int(pick(rng, (-129, -128, 0, 127, 128, 2**40)))
    tensors = model.subgraphs[0].tensors
    for tensor in tensors if rng.integers(3) == 0 else [pick(rng, tensors)]:
        grid = tensor.quantization
        if grid is None or grid.scale is None:
            continue
        if rng.integers(2):
            grid.scale = np.full(len(grid.scale), value, np.float32)
        else:
            grid.zeroPoint = np.full(len(grid.scale), zero, np.int64)


def scale_all(model, rng):
    """Multiply every scale by one factor: the integers stay what they were."""
    factor = np.float32(pick(rng, (1e-30, 1e-9, 1e-3, 1e3, 1e9, 1e30)))
    for tensor in model.subgraphs[0].tensors:
        grid = tensor.quantization
        if grid is not None and grid.scale is not None:
            power = factor * factor if tensor.type == litert.TensorType.INT32 else factor
            with np.errstate(all="ignore"):
                grid.scale = np.asarray(grid.scale, np.float32) * power


def grid(model, rng):
    """Take a grid away, give it more scales, or put its channels on another dimension."""
    tensor = _tensor(model, rng)
    if tensor.quantization is None or rng.integers(3) == 0:
        tensor.quantization = None
        return
    tensor.quantization.quantizedDimension = int(pick(rng, (-1, 0, 1, 3, 4, 2**31 - 1)))
    count = int(pick(rng, (0, 1, 2, 16)))
    tensor.quantization.scale = np.ones(count, np.float32)
    tensor.quantization.zeroPoint = np.zeros(int(pick(rng, (count, 0, 3))), np.int64)


def other_type(model, rng):
    """Give a tensor another type."""
    _tensor(model, rng).type = int(rng.integers(0, len(schema.TENSOR_TYPES)))


def constants(model, rng):
    """Fill a constant with one byte, cut it, or put random bytes in it."""
    buffer = pick(rng, model.buffers)
    if buffer.data is None:
        return
    held = np.array(buffer.data, np.uint8)
    which = int(rng.integers(4))
    if which == 0:
        held[:] = pick(rng, (0, 1, 127, 128, 255))
    elif which == 1:
        held = held[: int(rng.integers(len(held) + 1))]
    elif which == 2:
        held = rng.integers(0, 256, len(held)).astype(np.uint8)
    else:
        words = held[: len(held) // 4 * 4].view(np.int32)
        if len(words):
            words[int(rng.integers(len(words)))] = pick(rng, INTEGERS)
    buffer.data = held


def shared_buffer(model, rng):
    """Let tensors, or many more tensors, or metadata share one buffer."""
    tensors = model.subgraphs[0].tensors
    buffer = int(rng.integers(len(model.buffers)))
    which = int(rng.integers(4))
    if which == 0:
        pick(rng, tensors).buffer = buffer
    elif which == 1:
        model.buffers[buffer].data = np.zeros(1 << 20, np.uint8)
        for position in range(int(pick(rng, (2, 100, 4000)))):
            add_metadata(model, f"m{position}", buffer)
    elif which == 2:
        held = copy.copy(pick(rng, tensors))
        tensors.extend([held] * int(pick(rng, (2, 100, 4000))))
    else:
        data = np.zeros(1 << 20, np.uint8)
        model.buffers.append(litert.BufferT())
        model.buffers[-1].data = data
        held = litert.TensorT()
        held.buffer, held.name = len(model.buffers) - 1, b"shared"
        held.type = pick(rng, (litert.TensorType.INT4, litert.TensorType.INT8))
        held.shape = _as_list([1, (1 << 20) * (2 if held.type == litert.TensorType.INT4 else 1)])
        tensors.extend([held] * int(pick(rng, (2, 30, 4000))))


def facts(model, rng):
    """Put other facts in the file."""
    contents = (
        b"", b"[]", b"{", b"\xff", b"3", b'{"labels": 3}', b'{"labels": ["a"]}', b"[" * 50000,
        b'{"labels": [' + b'"a",' * 300 + b'"a"]}', b'{"labels": [1,2,3]}', b'{"labels": {"a": 1}}',
        b'{"labels": null, "bits": "\\ud800", "x": NaN}', b'{"format": ' + b"9" * 5000 + b"}",
    )  # fmt: skip
    _put(model, MODEL_NAME, pick(rng, contents))


def golden(model, rng):
    """Put other golden vectors in the file: damaged, cut, of many samples, or unpacking to much."""
    contents = (
        b"", b"xyz", zlib.compress(b""), zlib.compress(bytes(1000)), zlib.compress(bytes(10**6)),
        zlib.compress(bytes(64 << 20)), zlib.compress(bytes(1000))[:-3],
    )  # fmt: skip
    _put(model, GOLDEN_NAME, pick(rng, contents))


def _put(model, name, content):
    model.metadata = [e for e in model.metadata or [] if e.name not in (name, name.encode())]
    model.buffers.append(litert.BufferT())
    model.buffers[-1].data = np.frombuffer(content, np.uint8)
    add_metadata(model, name, len(model.buffers) - 1)


def names(model, rng):
    """Give a tensor an odd name, the graph's signature odd indices, or the model a long text."""
    which = int(rng.integers(3))
    if which == 0:
        _tensor(model, rng).name = pick(rng, (b"", b"\xff\xfe", b"a" * 100000, b"\x1b[2J\n"))
    elif which == 1 and model.signatureDefs:
        for entry in model.signatureDefs[0].inputs or []:
            entry.tensorIndex = int(pick(rng, (0, 3, 99, 2**31 - 1)))
    else:
        model.description = pick(rng, (b"", b"a" * 1000000, schema.PRODUCER.encode()))


MUTATIONS = (
    drop_operand, drop_last_operand, other_operand, one_operand_for_all, stored_batch, signature,
    size, larger_images, option, option, option, other_code, repeat_operator, repeat_operator,
    many_operators, drop_operator, results, sources, scale, scale_all, grid, other_type, constants,
    shared_buffer, facts, golden, names,
)  # fmt: skip
"""All alterations; those that reach most are listed more than once."""


def fit_shapes(model):
    """Give every result the shape that its operator's rule demands, so that more files are run.

    Stops at the first operator whose operands break its rule.
    """
    graph = read(packed(model), strict=False)
    for operator in graph.operators:
        spec = OPERATORS.get(operator.kind)
        if spec is None or operator.options is None or not operator.outputs:
            return
        index = operator.outputs[0]
        shape = spec.check(operator, graph.operands(operator), graph.tensors[index])
        held = model.subgraphs[0].tensors[index]
        held.shape = _as_list([1 if value == -1 else value for value in shape])
        held.shapeSignature = _as_list(shape) if -1 in shape else None
        graph.tensors[index] = _reshaped(graph.tensors[index], shape)


def _reshaped(tensor, shape):
    return type(tensor)(tensor.name, tuple(shape), tensor.dtype, tensor.quantization, tensor.data)


def flip_bytes(content, rng):
    """The bytes of a file with a few of them altered, moved or cut off, the tables above all."""
    damaged = bytearray(content)
    kind = int(rng.integers(4))
    for _ in range(int(rng.integers(1, 4))):
        first = max(len(damaged) - 6000, 0) if rng.integers(2) else 0
        place = int(rng.integers(first, max(len(damaged), first + 1)))
        if place >= len(damaged):
            break
        if kind == 0:
            damaged[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            damaged[place] = int(rng.integers(256))
        elif kind == 2:
            place = place // 4 * 4
            word = int(pick(rng, (0, 1, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1)))
            damaged[place : place + 4] = word.to_bytes(4, "little")
        else:
            other = int(rng.integers(max(len(damaged) - 64, 1)))
            damaged[place : place + 32] = damaged[other : other + 32]
    if rng.integers(10) == 0:
        damaged = damaged[: int(rng.integers(len(damaged) + 1))]
    return bytes(damaged)
