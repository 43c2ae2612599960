"""The command line: ``python -m tflite_export run|benchmark|inspect|verify|selftest FILE``.

All but ``verify`` work where there is no TensorFlow. Options, exit statuses, and what goes to
stdout and stderr are as for the command ``tfdq``.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any, NoReturn

from tflite_export import commands
from tflite_export.endings import Ended
from tflite_export.ir.limits import OPTION_HELP
from tflite_export.quiet_stderr import native_stderr_turned_away

GOOD, ANSWER_IS_NO, MISTAKE, FAULT = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit status: 0 good; 1 the file does not hold what was promised; 2 a mistake in the call
        or a damaged file; 3 a fault of tflite_export; 130
        interrupted, 143 terminated.
    """
    options = _parser().parse_args(arguments)
    options.verbose = options.verbose or options.debug
    # Read by TensorFlow when `verify` loads it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if options.verbose else "3")
    ended = Ended()
    try:
        quiet = nullcontext() if options.verbose else native_stderr_turned_away()
        with ended.by_signals(), quiet:
            return int(options.command(options))
    except KeyboardInterrupt:
        said = f"{ended.word}; nothing was written; the same command starts again"
        # Where the terminal was closed nobody reads it.
        with suppress(OSError):
            print(said, file=sys.stderr, flush=True)
        return ended.status
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        return _report(error)


def _report(error: Exception) -> int:
    """Say what went wrong in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (ValueError, OSError, ImportError)):
        print(f"error: {text}", file=sys.stderr)
        return MISTAKE
    print(
        f"error: {type(error).__name__}: {text} (a fault of tflite_export or of a library: please "
        "report it with the output of the same command with --debug)",
        file=sys.stderr,
    )
    return FAULT


class _Parser(argparse.ArgumentParser):
    """One line for a mistake."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and leave."""
        self.exit(MISTAKE, f"error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m tflite_export",
        description="Run, measure, look into and verify exported models.",
        epilog="Results go to stdout, progress and messages to stderr. Exit status: 0 good; 1 the "
        "file does not hold what was promised; 2 a mistake in the call or a damaged file; 3 a "
        "fault of tflite_export; 130 interrupted.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    _shared(parser, default=False)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    run = _command(subparsers, "run", commands.run, "run the model on images stored as .npy")
    run.add_argument(
        "images", help=".npy file of images, shape (n, ...), floats as trained on or raw integers"
    )
    run.add_argument("--out", metavar="FILE", help="write the outputs to this .npy file")
    run.add_argument("--raw", action="store_true", help="raw output integers instead of floats")
    run.add_argument("--top", type=int, default=1, help="classes to print for each image")
    run.add_argument("--batch-size", type=int, default=64, help="images in a call")
    timing = _command(
        subparsers, "benchmark", commands.benchmark, "measure latency, throughput, size, memory"
    )
    timing.add_argument("other", nargs="?", help="a second file, measured in turns with the first")
    timing.add_argument(
        "--batch-size", type=int, nargs="+", default=[1, 32], help="images in a call, several sizes"
    )
    timing.add_argument("--calls", type=int, default=100, help="timed calls in each setting")
    timing.add_argument("--warm-up", type=int, default=10, help="calls before them")
    timing.add_argument("--seconds", type=float, default=10.0, help="longest time of a setting")
    timing.add_argument(
        "--any-operators",
        action="store_true",
        help="time a file with operators outside this package's set, as other tools write",
    )
    inspect = _command(
        subparsers,
        "inspect",
        commands.inspect,
        "list layers, types, scales, bits in use, MACs",
        runs=False,
    )
    inspect.add_argument(
        "--resolver",
        action="store_true",
        help="for TensorFlow Lite Micro: the C++ lines that register the file's operators, and the "
        "bytes that its arena needs at least",
    )
    inspect.add_argument(
        "--c-array", metavar="FILE.cc", help="write the file as an aligned array in C++"
    )
    verify = _command(
        subparsers, "verify", commands.verify, "compare with the integer twin, prove integer only"
    )
    verify.add_argument("--trained", help="the trained model (a file tfdq.load_model takes)")
    verify.add_argument("--images", help=".npy file of images; the golden vectors otherwise")
    verify.add_argument(
        "--trust",
        action="store_true",
        help="load tf_keras models that hold code (Lambda, SavedModel): it is run. Code in files "
        "of Keras 3 never is",
    )
    test = _command(
        subparsers,
        "selftest",
        commands.selftest,
        "does this runtime compute the trained integers?",
    )
    test.add_argument(
        "--make",
        action="store_true",
        help="for a file without golden vectors: write a copy with those that this runtime "
        "computes, and test the copy; they show agreement between runtimes, not with training",
    )
    test.add_argument("--out", metavar="COPY", help="where --make writes the copy")
    test.add_argument("--images", help=".npy file of inputs for --make; random ones otherwise")
    return parser


class _Version(argparse.Action):
    """Print the version of the distribution that brought the package."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it and leave."""
        from importlib.metadata import PackageNotFoundError, version

        for name in ("tfdq", "tfdq-edge"):
            try:
                print(version(name))
            except PackageNotFoundError:
                continue
            parser.exit()
        parser.exit(MISTAKE, "error: neither tfdq nor tfdq-edge is installed\n")


def _shared(parser: argparse.ArgumentParser, default: Any) -> None:
    """Add the options that may stand before the command or behind it."""
    for names, text in (
        (("-q", "--quiet"), "results and errors only"),
        (("-v", "--verbose"), "notices of the libraries, too"),
        (("--debug",), "--verbose, and where an error arose"),
    ):
        parser.add_argument(*names, action="store_true", default=default, help=text)


def _command(
    subparsers: Any,
    name: str,
    function: Callable[[argparse.Namespace], int],
    text: str,
    runs: bool = True,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=text)
    parser.add_argument("file", help="the .tflite file")
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.add_argument(
        "--cost-limit",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help=OPTION_HELP,
    )
    _shared(parser, default=argparse.SUPPRESS)
    parser.set_defaults(command=function)
    if not runs:
        return parser
    if name == "benchmark":
        parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads")
    else:
        parser.add_argument("--threads", type=int, default=1, help="number of threads")
    if name != "verify":
        parser.add_argument(
            "--kernels",
            default="default",
            choices=("default", "builtin", "reference"),
            help="kernel set",
        )
        parser.add_argument(
            "--runtime",
            choices=("ai-edge-litert", "tflite-runtime", "tensorflow"),
            help="which runtime",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
