"""The C++ of docs/deploy.md compiles, and its arithmetic is the interpreter's."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tflite_export.graph import Quantization, Tensor
from tflite_export.reference import dequantize, quantize

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"
COMPILER = shutil.which("g++") or shutil.which("clang++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

_MAIN = """
#include <cstdio>
int main() {
  float x, scale;
  int zero_point;
  while (std::scanf("%f %f %d", &x, &scale, &zero_point) == 3) {
    int8_t q = quantize(x, scale, zero_point);
    std::printf("%d %.9g\\n", q, dequantize(q, scale, zero_point));
  }
}
"""

_MICRO = """
#include <cstddef>
#include <cstdint>
namespace tflite {
struct Model {};
inline const Model* GetModel(const void*) { return nullptr; }
template <unsigned n> struct MicroMutableOpResolver {
  void AddConv2D(); void AddAdd(); void AddMean(); void AddFullyConnected();
};
struct Tensor { struct { int8_t* int8; } data; };
struct MicroInterpreter {
  template <unsigned n>
  MicroInterpreter(const Model*, const MicroMutableOpResolver<n>&, uint8_t*, size_t);
  int AllocateTensors(); int Invoke();
  Tensor* input(size_t); Tensor* output(size_t);
};
}
alignas(16) const unsigned char model_tflite[] = {0};
void setup_and_run(const unsigned char* pixels, int n) {
"""


def _snippets() -> list[str]:
    return re.findall(r"```cpp\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_arithmetic_is_the_interpreters(tmp_path):
    source, program = tmp_path / "grid.cc", tmp_path / "grid"
    source.write_text(_snippets()[0] + _MAIN)
    subprocess.run(
        [COMPILER, "-O2", "-Wall", "-Werror", source, "-o", program], check=True, timeout=120
    )
    rng = np.random.default_rng(0)
    for scale, zero_point in ((1 / 255, -128), (0.0235, 17), (2 / 255, 0), (0.5, 127)):
        grid = Tensor("", (), "int8", Quantization.per_tensor(scale, zero_point))
        ties = (np.arange(-300, 300) + 0.5) * float(grid.scale)
        values = np.concatenate(
            [rng.normal(0, 100 * scale, 2000), ties, [0.0, 1e30, -1e30, np.inf, -np.inf]]
        ).astype(np.float32)
        lines = "".join(f"{x:.9g} {float(grid.scale):.9g} {zero_point}\n" for x in values)
        done = subprocess.run(
            [program], input=lines, capture_output=True, text=True, check=True, timeout=60
        )
        found = np.array([line.split() for line in done.stdout.splitlines()], np.float64)
        integers = quantize(values, grid)
        np.testing.assert_array_equal(found[:, 0], integers)
        np.testing.assert_array_equal(found[:, 1].astype(np.float32), dequantize(integers, grid))


def test_microcontroller_code_compiles(tmp_path):
    source = tmp_path / "micro.cc"
    source.write_text(_MICRO + _snippets()[1] + "}\n")
    subprocess.run(
        [COMPILER, "-std=c++17", "-fsyntax-only", "-Wall", source], check=True, timeout=120
    )
