"""A report about two small networks, and a browser to look at it with."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.needs import require

# A file name is the one text in a report that anybody can choose.
HOSTILE = "dq <script>document.title='broken'<"


@pytest.fixture(scope="package")
def models(tmp_path_factory: Any) -> list[Path]:
    import tf_keras

    import tfdq
    from tfdq.data import load
    from tfdq.experiments.images import scaled
    from tfdq.experiments.settings import TrainingSettings
    from tfdq.experiments.training import train
    from tfdq.models import small_cnn
    from tflite_export import convert

    folder, digits = tmp_path_factory.mktemp("models"), load("digits")
    for name, beta in ((HOSTILE, 2e-3), ("_vq $a$", 0.0)):
        tf_keras.utils.set_random_seed(0)
        model = tfdq.quantize_model(
            small_cnn(width=8), beta, activation_bits=4, input_range=(0.0, 1.0)
        )
        train(model, digits, TrainingSettings(epochs=3))
        convert(model, folder / f"{name}.tflite", calibration=scaled(digits.x_train[:256]))
        model.save(folder / f"{name}.keras")
    return sorted(folder.glob("*.keras"))


@pytest.fixture(scope="package")
def report(models: list[Path], tmp_path_factory: Any) -> Path:
    from tfdq.report.networks import ImageSource
    from tfdq.report.run_report import write_report

    return write_report(
        models,
        tmp_path_factory.mktemp("report") / "report.html",
        source=ImageSource("digits"),
        images=40,
    )


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    webdriver = require("selenium.webdriver", "dev")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    with webdriver.Chrome(options=options, service=service) as opened:
        yield opened
