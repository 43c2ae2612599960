"""What needs no TensorFlow does not load it."""

import subprocess
import sys
from pathlib import Path


def test_packages_and_embedded_data_load_without_tensorflow():
    code = (
        "import sys, tfdq.data, tfdq.models; tfdq.data.load('digits'); "
        "print([m for m in ('tensorflow', 'keras', 'tf_keras') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr
