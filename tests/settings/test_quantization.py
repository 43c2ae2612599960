"""Each setting of a quantization: defined once, taken by that name and default everywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import tfdq.either_keras
import tfdq.keras3.model
import tfdq.keras3.settings
import tfdq.quantization.model
import tfdq.quantization.settings
from tfdq.experiments.settings import PenaltySettings, QuantizationSettings

CORES = [tfdq.quantization.settings.Settings, tfdq.keras3.settings.Settings]

# What a recipe calls otherwise, since its sections have names of their own.
OTHER_NAMES = {"beta": "lipschitz_beta", "name": "regularizer"}
# A run is quantized to the paper's 4 bits; 0 bits are a float network there.
OTHER_DEFAULTS = {"activation_bits": 4}
# A run's images are in [0, 1], and its weight of the penalty rises by the epoch; its network is one
# of tf_keras, which learns no steps.
ELSEWHERE = {"input_range", "beta_schedule", "ramp", "kernel_range"}


@pytest.mark.parametrize("core", [tfdq.quantization, tfdq.keras3])
@pytest.mark.parametrize("given_to", ["either", "core"])
def test_quantize_model_takes_the_settings(core: Any, given_to: str) -> None:
    function: Callable[..., Any] = core.model.quantize_model
    if given_to == "either":
        function = tfdq.either_keras.quantize_model
    taken = dict(inspect.signature(function).parameters)
    del taken["model"]
    # It says of which size the model is, and only the integers of Keras 3 models need to know.
    taken.pop("input_shape", None)
    defaults = {name: parameter.default for name, parameter in taken.items()}
    assert defaults.pop("layer_bits") is None
    settings = core.settings.Settings
    assert set(taken) == set(settings.model_fields)
    assert settings(**defaults) == settings()


def test_a_recipe_takes_the_same_settings() -> None:
    of_model = tfdq.keras3.settings.Settings.model_fields
    found = set()
    for section in (QuantizationSettings, PenaltySettings):
        for name, field in section.model_fields.items():
            if name in ELSEWHERE:
                continue
            original = of_model[OTHER_NAMES.get(name, name)]
            default = OTHER_DEFAULTS.get(name, original.get_default(call_default_factory=True))
            assert field.get_default(call_default_factory=True) == default, name
            if name not in {*OTHER_DEFAULTS, "name", "activation_range"}:
                assert field.description == original.description
            found.add(OTHER_NAMES.get(name, name))
    assert found == set(of_model) - ELSEWHERE


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight_bits": 1}, "^weight_bits must be a whole number from 2 to 8, got 1$"),
        ({"weight_bits": True}, "whole number from 2 to 8, got True"),
        ({"activation_bits": 4.0}, "whole number from 1 to 8, got 4.0"),
        ({"target": "1/j"}, "^target must be a finite number > 0 or '1/k', got '1/j'"),
        ({"target": [1.0]}, "target must be"),
        ({"input_range": (0.0,)}, "^input_range must be two finite numbers"),
        ({"layer_bits": {"a": (9, 8)}}, "^layer_bits.a must be bits, 2 to 8, or .* got .9, 8."),
        ({"weight_bit": 4}, "^unknown key 'weight_bit', did you mean 'weight_bits'"),
        ({"on": "x", "weight_bits": 9}, "^on: Input should be .*; weight_bits must be"),
    ],
)
def test_mistakes_are_named_all_at_once(given: dict[str, Any], message: str, core: Any) -> None:
    with pytest.raises(ValueError, match=message):
        core(**given)


@pytest.mark.parametrize("core", CORES)
def test_values_are_kept_as_they_are_meant(core: Any) -> None:
    settings = core(target=2, layer_bits={"a": [4, 3], "b": 2}, skip="logits", input_range=[-1, 1])
    assert settings.layer_bits == {"a": (4, 3), "b": 2}
    assert settings.bits_of("b", end=False) == (2, 2)
    assert settings.bits_of("c", end=True) == (8, 8)
    assert settings.skip == {"logits"}
    assert (settings.target, settings.input_range) == (2.0, (-1, 1))
    assert core(skip=["b", "a"]).model_dump(mode="json")["skip"] == ["a", "b"]
