"""A fuzzer for ``.tflite`` files that knows their structure.

Each case takes a seed file (of this package's writer or of TensorFlow's converter), alters its
structure or its bytes, and gives it to everything that reads such files: the runtime with every
kernel set, the integer twin, certificates and the commands. It runs in a worker process with limits
of its own, so that a death is seen, counted and told, and the next worker goes on.

    python -m tests.tflite_export.fuzz --cases 20000 --out fuzz.jsonl

A call with the same ``--out`` goes on where it was stopped.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from tests.tflite_export.graphs import GRAPHS, feeds
from tests.tflite_export.hostile import opened, packed
from tests.tflite_export.mutations import MUTATIONS, fit_shapes, flip_bytes, pick
from tflite_export.__main__ import main as command
from tflite_export.files.metadata import (
    GOLDEN_NAME,
    MODEL_NAME,
    GoldenVectors,
    pack_facts,
    pack_golden,
)
from tflite_export.files.validate import validate
from tflite_export.files.write import write
from tflite_export.ir.graph import DTYPES
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.runtime.memory import added_peak
from tflite_export.runtime.reference import run

SECONDS, MEBIBYTES = 5.0, 1024.0
"""What a case may take: processor time, and memory above what the worker held."""

_KILL_SECONDS = 120.0
_ADDRESS_SPACE = 16 << 30
_KERNELS = ("default", "builtin", "reference")


def seeds_of_graphs():
    """A file of each operator, with golden vectors and labels."""
    found = {}
    for name, make in GRAPHS.items():
        graph = make(1)
        inputs = feeds(graph, 4)
        values = run(graph, inputs)
        outputs = [values[graph.integer_output(index)] for index in graph.outputs]
        graph.metadata[GOLDEN_NAME] = pack_golden(GoldenVectors(inputs, outputs))
        classes = graph.tensors[graph.outputs[0]].shape[-1]
        graph.metadata[MODEL_NAME] = pack_facts({"labels": [f"c{i}" for i in range(classes)]})
        found[name] = write(graph)
    return found


def seeds_of_converters():
    """Files of this package's exporter and of TensorFlow's converter, of small networks."""
    import tensorflow as tf
    import tf_keras

    import tfdq
    import tflite_export

    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(1)
    entry = layers.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same")(entry)
    x = left = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.MaxPooling2D(2)(layers.Add()([left, x]))
    x = layers.AveragePooling2D(2)(x)
    x = layers.Flatten()(x)
    model = tf_keras.Model(entry, layers.Dense(5)(x))
    images = np.random.default_rng(0).random((32, 12, 12, 3)).astype(np.float32)
    quantized = tfdq.quantize_model(model)
    quantized.compile("sgd", "mse")
    quantized.fit(images, np.zeros((32, 5)), 16, 1, verbose=0)
    found = {
        f"tfdq {kind}": tflite_export.convert(
            quantized, calibration=images, golden=4, input_type=kind, labels=list("abcde")
        ).content
        for kind in ("int8", "float32")
    }
    whole = tf_keras.Sequential([model, layers.Softmax()])
    for kind in ("floats", "dynamic", "int8"):
        converter = tf.lite.TFLiteConverter.from_keras_model(whole)
        if kind != "floats":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "int8":
            converter.representative_dataset = lambda: ([image[None]] for image in images)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        found[f"stock {kind}"] = converter.convert()
    return found


def case(seeds, number):
    """The file of a case: a seed altered by draws that the number alone determines."""
    rng = np.random.default_rng([16, number])
    content = seeds[sorted(seeds)[int(rng.integers(len(seeds)))]]
    if rng.integers(5) == 0:
        return flip_bytes(packed(opened(content)), rng), "flip_bytes"
    model, done = opened(content), []
    for _ in range(int(pick(rng, (1, 1, 1, 2, 3)))):
        mutation = pick(rng, MUTATIONS)
        try:
            mutation(model, rng)
        except (AttributeError, IndexError, TypeError, ValueError, OverflowError):
            # The alterations before left nothing for this one to act on.
            continue
        done.append(mutation.__name__)
    if rng.integers(2):
        with contextlib.suppress(Exception):
            fit_shapes(model)
    try:
        return packed(model), " ".join(done)
    except Exception:
        return flip_bytes(packed(opened(content)), rng), "flip_bytes"


def _inputs(graph):
    rng = np.random.default_rng(0)
    found = []
    for index in graph.inputs:
        tensor = graph.tensors[index]
        shape = (2, *tensor.shape[1:])
        if tensor.quantization is None:
            found.append(rng.random(shape).astype(DTYPES[tensor.dtype]))
        else:
            found.append(rng.integers(0, 100, shape).astype(DTYPES[tensor.dtype]))
    return found


def exercise(content, folder):
    """Give a file to everything that reads files; a `ValueError` is a right answer.

    Returns:
        "ran" if it was valid, "refused" if not; and the odd things: wrong exceptions, statuses,
        errors that don't name the file.
    """
    path = folder / "case.tflite"
    path.write_bytes(content)
    odd = []

    def attempt(what, action):
        try:
            return action()
        except ValueError as error:
            return error
        except Exception as error:
            odd.append(f"{what}: {type(error).__name__}: {error}"[:300])
            return error

    def called(*words):
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            status = command([str(word) for word in words])
        text = said.getvalue()
        unnamed = status == 2 and words[0] != "run" and str(path) not in text
        if status not in (0, 1, 2) or unnamed:
            odd.append(f"{words[0]}: status {status}: {text}"[:300])

    graph = attempt("validate", lambda: validate(path))
    attempt("inspect", lambda: called("inspect", path))
    if isinstance(graph, Exception):
        attempt("Interpreter", lambda: Interpreter(content))
        attempt("selftest", lambda: called("selftest", path))
        return "refused", odd
    values = _inputs(graph)
    for kernels in _KERNELS:
        found = attempt(kernels, lambda k=kernels: Interpreter(path, kernels=k).invoke(values))
        if isinstance(found, ValueError) and str(path) not in str(found):
            _note_unnamed(odd, found)
    _with_tensorflow(path, graph, values, attempt)
    np.save(folder / "x.npy", values[0])
    attempt("run", lambda: called("run", path, folder / "x.npy", "--raw", "--top", "3"))
    attempt("verify", lambda: called("verify", path))
    attempt("selftest", lambda: called("selftest", path))
    return "ran", odd


def _note_unnamed(odd, error):
    """Note an error at loading that does not name the file; one at running has no need to."""
    if "does not load" in str(error):
        odd.append(f"unnamed: {error}"[:300])


def _with_tensorflow(path, graph, values, attempt):
    from tfdq.certificates import certify
    from tflite_export.twin.integer_twin import IntegerTwin

    twin = attempt("twin", lambda: IntegerTwin(path))
    if isinstance(twin, Exception):
        return
    attempt("twin", lambda: twin.integers(values if len(values) > 1 else values[0]))
    if _is_classifier(graph):
        images = _images(graph, values)
        labels = np.zeros(len(images), np.int64)
        attempt("certify", lambda: certify(path, images, labels, norm="linf", max_steps=2))
        attempt("certify", lambda: certify(path, images, labels, method="lipschitz"))


def _is_classifier(graph):
    """Whether a graph has one input, on a grid, and one output, as certificates demand."""
    quantized = graph.tensors[graph.inputs[0]].quantization is not None
    return len(graph.inputs) == len(graph.outputs) == 1 and quantized


def _images(graph, values):
    tensor = graph.tensors[graph.inputs[0]]
    return (values[0].astype(np.float32) - tensor.zero_point) * tensor.scale


def warm_up(content, folder):
    """Load what the cases use, so that none is charged for it."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    exercise(content, folder)
    # What stands by now is left out of the collections that each measurement begins with.
    gc.freeze()


def _work(seeds, numbers, pipe):
    """The worker: runs cases and writes a line of JSON before and after each."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm_up(seeds["convolution"], folder)
        for number in numbers:
            content, mutations = case(seeds, number)
            _tell(pipe, {"start": number})
            began, held = time.process_time(), []
            peak = added_peak(lambda c=content, h=held: h.append(exercise(c, folder)))
            outcome, odd = held[0]
            seconds = time.process_time() - began
            _tell(
                pipe,
                {
                    "case": number,
                    "outcome": outcome,
                    "seconds": round(seconds, 3),
                    "mib": round(peak, 1),
                    "size": len(content),
                    "mutations": mutations,
                    "odd": odd,
                },
            )


def _tell(pipe, line):
    os.write(pipe, (json.dumps(line) + "\n").encode())


def _spawn(seeds, numbers):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _work(seeds, numbers, writing)
        except BaseException as error:
            _tell(writing, {"fault": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(0)
    os.close(writing)
    return child, reading


def fuzz(seeds, numbers, record):
    """Run cases in workers, one after the other dies.

    Args:
        seeds: files by name.
        numbers: of the cases.
        record: called with the finding on each case.
    """
    left = list(numbers)
    while left:
        child, reading = _spawn(seeds, left)
        current, began, rest = None, 0.0, b""
        while True:
            ready, _, _ = select.select([reading], [], [], 1.0)
            if not ready:
                if current is not None and _processor_time(child) - began > _KILL_SECONDS:
                    os.kill(child, signal.SIGKILL)
                continue
            block = os.read(reading, 1 << 16)
            if not block:
                break
            *lines, rest = (rest + block).split(b"\n")
            for line in map(json.loads, lines):
                if "start" in line:
                    current, began = line["start"], _processor_time(child)
                elif "fault" in line:
                    raise RuntimeError(f"the fuzzer itself failed: {line['fault']}")
                else:
                    record(line)
                    left.remove(line["case"])
                    current = None
        os.close(reading)
        _, status = os.waitpid(child, 0)
        if current is None:
            if left:
                raise RuntimeError(f"the worker ended with status {status} between cases")
            return
        record({"case": current, "outcome": "died", "signal": os.WTERMSIG(status), "odd": []})
        left.remove(current)


def _processor_time(process):
    """Seconds of processor time that a process has taken; a machine may be busy with others."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def summary(findings, seconds=SECONDS):
    """Counts of what was found; the bar is 0 in deaths, odd, slow and large."""
    alive = [f for f in findings if f["outcome"] != "died"]
    outcomes = Counter(f["outcome"] for f in findings)
    return {
        "cases": len(findings),
        "refused": outcomes["refused"],
        "ran": outcomes["ran"],
        "deaths": outcomes["died"],
        "odd": sum(bool(f["odd"]) for f in findings),
        "slow": sum(f["seconds"] > seconds for f in alive),
        "large": sum(f["mib"] > MEBIBYTES for f in alive),
        "most_seconds": max((f["seconds"] for f in alive), default=0.0),
        "most_mib": max((f["mib"] for f in alive), default=0.0),
    }


def _apart(action):
    """The value of a call in a process of its own, which leaves this one's TensorFlow unused."""
    with tempfile.NamedTemporaryFile() as held:
        child = os.fork()
        if child == 0:
            try:
                np.savez(held, **{k: np.frombuffer(v, np.uint8) for k, v in action().items()})
            except BaseException as error:
                print(f"no seeds: {error!r}", file=sys.stderr)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError("the seeds could not be made")
        with np.load(held.name) as found:
            return {name: found[name].tobytes() for name in found}


def main(arguments=None):
    """Run the fuzzer from the command line; the exit status says whether the bar was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="processor time that a case may take"
    )
    parser.add_argument("--out", type=Path, help="findings, a line each; goes on where it stopped")
    parser.add_argument(
        "--seeds", type=Path, nargs="*", help="files in place of those that converters make here"
    )
    options = parser.parse_args(arguments)
    if options.seeds is None:
        made = _apart(seeds_of_converters)
    else:
        made = {path.stem: path.read_bytes() for path in options.seeds}
    seeds = {**seeds_of_graphs(), **made}
    findings = []
    if options.out and options.out.exists():
        findings = [json.loads(line) for line in options.out.read_text().splitlines()]
    done = {finding["case"] for finding in findings}
    numbers = range(options.first, options.first + options.cases)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(options.out.open("a")) if options.out else None

        def record(finding):
            findings.append(finding)
            if log:
                log.write(json.dumps(finding) + "\n")
                log.flush()

        fuzz(seeds, [n for n in numbers if n not in done], record)
    for finding in findings:
        if finding["outcome"] == "died" or finding["odd"]:
            print(json.dumps(finding), file=sys.stderr)
    found = summary(findings, options.seconds)
    print(json.dumps(found))
    return int(any(found[name] for name in ("deaths", "odd", "slow", "large")))


if __name__ == "__main__":
    sys.exit(main())
