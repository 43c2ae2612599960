"""The fuzzer of `.tflite` files sees what it is for, and its cases can be repeated."""

import json
import subprocess
import sys

_FAILING = """
import json, os, signal
from tests.tflite_export import fuzz
calls = []
def exercise(content, folder):
    calls.append(content)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    return "ran", ["an odd thing"] if len(calls) == 1 else []
fuzz.exercise = exercise
fuzz.warm_up = lambda content, folder: None
found = []
fuzz.fuzz(fuzz.seeds_of_graphs(), range(4), found.append)
print(json.dumps(fuzz.summary(found)), [f["case"] for f in found if f["outcome"] == "died"])
"""


def test_the_fuzzer_sees_deaths_and_odd_things_and_goes_on():
    done = subprocess.run(
        [sys.executable, "-c", _FAILING], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts, died = done.stdout.strip().split("\n")[-1].rsplit(" [", 1)
    assert died == "1, 3]"
    assert json.loads(counts)["deaths"] == 2
    assert json.loads(counts)["odd"] == 2
    assert json.loads(counts)["cases"] == 4


def test_a_case_is_the_same_each_time():
    from tests.tflite_export.fuzz import case, seeds_of_graphs

    files = seeds_of_graphs()
    for number in range(10):
        assert case(files, number) == case(files, number)


def test_three_hundred_cases_meet_the_bar():
    """Seconds of processor time are a guard against minutes only: machines differ."""
    words = ("--cases", "300", "--seconds", "60", "--seeds")
    done = subprocess.run(
        [sys.executable, "-m", "tests.tflite_export.fuzz", *words],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    found = json.loads(done.stdout.strip().split("\n")[-1])
    assert done.returncode == 0, done.stderr[-3000:]
    assert found["cases"] == 300
    assert found["deaths"] == found["odd"] == found["slow"] == found["large"] == 0
    # Both kinds of files are among them: those that are refused, and those that are run.
    assert min(found["refused"], found["ran"]) > 30
