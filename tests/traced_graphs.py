"""TensorFlow's traced graphs do not go by themselves: graph and operations hold each other in C++.

Python's collector cannot see that circle. Ten thousand objects stay behind with a short ``fit`` of
a small model, and every later collection walks them.
"""

from __future__ import annotations

import gc
import sys
from types import FrameType

_INSIDE = ("Operation", "SymbolicTensor")


def release() -> int:
    """Empty every traced graph that nothing but its own operations and tensors refers to.

    Returns:
        How many there were, those emptied before among them.
    """
    if "tensorflow" not in sys.modules:
        return 0
    from tensorflow.python.framework.func_graph import FuncGraph, dismantle_func_graph

    graphs = {id(item): item for item in gc.get_objects() if issubclass(type(item), FuncGraph)}
    # A graph may refer to another, by its attributes; that counts where it is in use itself.
    owners = {
        id(part): key
        for key, graph in graphs.items()
        for part in (graph, *gc.get_referents(graph))
        if part is graph or isinstance(part, dict)
    }
    refers: dict[int | None, set[int]] = {}
    for referrer in gc.get_referrers(*graphs.values()):
        own = referrer is graphs or isinstance(referrer, FrameType)
        if not own and type(referrer).__name__ not in _INSIDE:
            found = {id(item) for item in gc.get_referents(referrer)} & graphs.keys()
            refers.setdefault(owners.get(id(referrer)), set()).update(found)
    held, front = set[int](), refers.get(None, set())
    while front:
        held |= front
        front = {key for graph in front for key in refers.get(graph, ())} - held
    unused = graphs.keys() - held
    for key in unused:
        dismantle_func_graph(graphs[key])
    return len(unused)
