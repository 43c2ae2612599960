"""Files as a stranger might make them: opened with LiteRT's own schema, altered, packed again."""

import sys

import ai_edge_litert.schema_py_generated as litert
import flatbuffers
import numpy as np

from tflite_export.files.metadata import DIGEST_NAME
from tflite_export.ir import schema


def count_calls(action):
    """How many functions a call calls, of Python and of C: what it costs, on any machine alike."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


def opened(content):
    """The model in a file as LiteRT's objects, without the digest and the name of its writer."""
    model = litert.ModelT.InitFromPackedBuf(bytearray(content), 0)
    model.description = b"somebody else"
    model.metadata = [e for e in model.metadata or [] if e.name != DIGEST_NAME.encode()]
    return model


def packed(model):
    """The bytes of a model in LiteRT's objects."""
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), schema.FILE_IDENTIFIER)
    return bytes(builder.Output())


def store_shape(model, index, batch):
    """Store ``batch`` as the first size of a tensor; its signature stays."""
    tensor = model.subgraphs[0].tensors[index]
    tensor.shape = np.array([batch, *list(tensor.shape)[1:]], np.int32)


def add_metadata(model, name, buffer):
    """Add a metadata entry: a name, and the index of its buffer."""
    entry = litert.MetadataT()
    entry.name, entry.buffer = name, buffer
    model.metadata.append(entry)
