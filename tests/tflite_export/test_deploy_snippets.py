"""The C++ and Kotlin of docs/deploy.md compile; the arithmetic is the interpreter's."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tflite_export.ir.affine import dequantize, quantize
from tflite_export.ir.graph import Quantization, Tensor

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


# As much of Android and LiteRT as the snippet touches. The interpreter hands back the first ten
# bytes that it was given.
_ANDROID = """
package android.content.res
import java.io.File
import java.io.FileDescriptor
import java.io.RandomAccessFile
class AssetFileDescriptor(path: String) {
  val fileDescriptor: FileDescriptor = RandomAccessFile(path, "r").fd
  val startOffset: Long = 3L
  val declaredLength: Long = File(path).length() - 3L
}
class AssetManager(val folder: String) {
  fun openFd(name: String) = AssetFileDescriptor(folder + "/" + name)
}
"""
_LITERT = """
package org.tensorflow.lite
import java.nio.ByteBuffer
class Interpreter(val model: ByteBuffer, val options: Options) {
  class Options {
    fun setNumThreads(count: Int): Options { println("threads " + count); return this }
    fun setUseXNNPACK(use: Boolean): Options { println("xnnpack " + use); return this }
  }
  fun run(input: Any, output: Any) {
    println("model " + model.remaining() + " " + model.get(0))
    val given = input as ByteBuffer
    println("input " + given.remaining())
    val scores = (output as Array<ByteArray>)[0]
    for (i in scores.indices) scores[i] = given.get(i)
    println("integers " + scores.joinToString(" "))
  }
}
"""
_APP = """
import android.content.res.AssetManager
{imports}
class Context(val assets: AssetManager)
fun main(arguments: Array<String>) {{
  val context = Context(AssetManager(arguments[0]))
  val rgb = ByteArray(32 * 32 * 3) {{ (it * 37 % 256).toByte() }}
{body}
  println("best " + best)
}}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("kotlinc") is None, reason="needs Debian's package kotlin")
def test_the_android_code_compiles_and_feeds_the_pixels(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```kotlin\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    imports = [line for line in snippet.splitlines() if line.startswith("import ")]
    body = [line for line in snippet.splitlines() if not line.startswith("import ")]
    app = _APP.format(imports="\n".join(imports), body="\n".join(body))
    sources = {"Android.kt": _ANDROID, "LiteRT.kt": _LITERT, "App.kt": app}
    for name, text in sources.items():
        (tmp_path / name).write_text(text)
    jar = tmp_path / "app.jar"
    command = ["kotlinc", *(tmp_path / name for name in sources), "-include-runtime", "-d", jar]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "model.tflite").write_bytes(b"...model")
    done = subprocess.run(
        ["java", "-cp", str(jar), "AppKt", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said["threads"] == "4"
    assert said["xnnpack"] == "true"
    # The part of the assets' file that is the model: 5 bytes from its offset on.
    assert said["model"] == f"5 {ord('m')}"
    assert said["input"] == str(32 * 32 * 3)
    # A camera's byte b, 0..255, goes in as the integer b - 128; here b = 37 i mod 256.
    integers = [37 * i % 256 - 128 for i in range(10)]
    assert said["integers"].split() == [str(i) for i in integers]
    assert int(said["best"]) == int(np.argmax(integers))
