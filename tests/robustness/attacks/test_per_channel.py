"""Radii and ranges with a number for each channel: attacks on normalized images are those on plain.

A network that takes images normalized to `(x - mean) / std` is the same classifier in other units:
with the radius and the range in those units, an attack must find the same images.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfdq.robustness import (
    AdversarialTraining,
    RobustnessReport,
    audit,
    evaluate,
    run_attack,
    transfer_matrix,
)
from tfdq.robustness.attacks import available_attacks
from tfdq.robustness.attacks.fab import project_to_hyperplane
from tfdq.robustness.attacks.projections import linf_bounds
from tfdq.robustness.targets import as_target

MEAN = np.array([0.5, 0.4, 0.3])
STD = np.array([0.25, 0.5, 0.125])  # powers of two: no digit is lost between the units
EPS = 8 / 255
LIMITS = (-MEAN / STD, (1 - MEAN) / STD)
RNG = np.random.default_rng(3)
X = (RNG.integers(0, 256, (40, 6, 6, 3)) / 255).astype(np.float32)
FIRST = RNG.normal(size=(108, 40)).astype(np.float32)
SECOND = RNG.normal(size=(40, 5)).astype(np.float32)


def plain(x: tf.Tensor) -> tf.Tensor:
    hidden = tf.nn.relu(tf.reshape(x, [-1, 108]) @ FIRST - FIRST.sum(0) / 2)
    return hidden @ SECOND / 3


def normalized(z: tf.Tensor) -> tf.Tensor:
    return plain(z * STD.astype(np.float32) + MEAN.astype(np.float32))


Y = plain(X).numpy().argmax(1)
Z = ((X - MEAN) / STD).astype(np.float32)

QUICK: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "r+fgsm": {},
    "bim": {"steps": 4},
    "pgd": {"steps": 4, "restarts": 2},
    "t-pgd": {"steps": 4, "scale": 1.0},
    "apgd-ce": {"steps": 12},
    "apgd-dlr": {"steps": 12},
    "apgd-t": {"steps": 6, "target_classes": 2},
    "fab": {"steps": 6, "target_classes": 2, "restarts": 2},
    "square": {"queries": 60},
    "spsa": {"steps": 3, "samples": 16},
}


def target(function: Any) -> Any:
    return as_target(function, differentiable=True)


@pytest.mark.parametrize("name", QUICK)
def test_normalized_images_are_attacked_as_plain_ones(name: str) -> None:
    options = {"early_stop": name == "fab", **QUICK[name]}
    one = run_attack(name, target(plain), X, Y, EPS, **options)
    other = run_attack(name, target(normalized), Z, Y, EPS / STD, clip=LIMITS, **options)
    moved = np.abs(one.x_adv.astype(np.float64) - X)
    assert moved.max() > 0.9 * EPS or name == "fab"
    again = other.x_adv * STD + MEAN
    # Signs of gradients near 0 may differ between the units, and so may what follows.
    same = np.isclose(again, one.x_adv, atol=2e-5).all((1, 2, 3))
    assert same.mean() >= 0.9
    np.testing.assert_array_equal(other.success[same], one.success[same])
    assert one.success.mean() > 0


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("name", [*QUICK, "mim", "cw"])
def test_what_is_returned_lies_in_the_box_exactly(name: str, early_stop: bool) -> None:
    options = {"mim": {"steps": 4}, "cw": {"steps": 5, "search_steps": 2}}.get(name, {})
    options |= QUICK.get(name, {})
    box = np.array([0.3, 0.0, 0.05])
    eps, norm = (box, "linf") if "linf" in available_attacks()[name].norms else (0.7, "l2")
    limits = ([0.0, 0.25, 0.0], [1.0, 0.75, 0.5])
    x = np.clip(X, *limits).astype(np.float32)
    y = plain(x).numpy().argmax(1)
    made = run_attack(
        name, target(plain), x, y, eps, norm=norm, clip=limits, early_stop=early_stop, **options
    )
    moved = np.abs(made.x_adv.astype(np.float64) - x)
    if norm == "linf":
        assert (moved <= box).all()
        assert moved[..., 1].max() == 0
    else:
        assert np.sqrt((moved**2).sum((1, 2, 3))).max() <= eps
    assert moved.max() > 0
    assert (made.x_adv >= np.float32(limits[0])).all()
    assert (made.x_adv <= np.float32(limits[1])).all()
    saved = json.loads(json.dumps(made.settings))
    assert saved["clip"] == [list(end) for end in limits]
    assert saved["eps"] == (box.tolist() if norm == "linf" else eps)


def test_equal_numbers_are_one_number() -> None:
    one = run_attack("pgd", target(plain), X, Y, EPS, steps=3)
    for clip in ((np.zeros(3), np.ones(3)), ([0, 0, 0], 1), (np.float32(0), np.ones((1, 1, 3)))):
        many = run_attack("pgd", target(plain), X, Y, np.full(3, EPS), clip=clip, steps=3)
        np.testing.assert_array_equal(many.x_adv, one.x_adv)
        assert many.settings == one.settings


def test_bounds_are_those_of_each_channel_alone() -> None:
    x = RNG.uniform(0.2, 0.8, (5, 4, 4, 3)).astype(np.float32)
    eps, low, high = np.array([0.1, 0.0, 1.0]), np.array([0.0, 0.1, 0.15]), np.array([1, 0.9, 0.85])
    found = linf_bounds(x, eps, (low, high))
    for channel in range(3):
        alone = linf_bounds(
            x[..., channel], float(eps[channel]), (float(low[channel]), float(high[channel]))
        )
        for bound, expected in zip(found, alone, strict=True):
            np.testing.assert_array_equal(bound[..., channel], expected)


def test_paces_of_a_projection_are_a_change_of_units() -> None:
    """min ||d / p||_inf with <w, d> = g is, in units of p, the projection with weights w p."""
    shape = (20, 2, 2, 3)
    w, t = RNG.normal(size=shape), RNG.uniform(0.1, 0.9, shape)
    gaps = RNG.normal(size=20) / 4
    pace = np.broadcast_to([1.0, 0.5, 0.25], shape[1:]).ravel()
    unit = pace.reshape(shape[1:])
    direct = project_to_hyperplane(t, w, gaps, 0.0, 1.0, pace)
    scaled = project_to_hyperplane(t / unit, w * unit, gaps, np.zeros(12), 1 / pace)
    np.testing.assert_allclose(direct, scaled * unit, atol=1e-6)
    still = project_to_hyperplane(t, w, gaps, 0.0, 1.0, np.where(pace == 0.5, 0.0, pace))
    assert not still[..., 1].any()
    full = project_to_hyperplane(t, w, gaps * 1e6, 0.0, 1.0, np.where(pace == 0.5, 0.0, pace))
    assert not full[..., 1].any()
    ends = t + np.abs(full) * np.sign(full)
    assert (np.isclose(ends, 0, atol=1e-6) | np.isclose(ends, 1, atol=1e-6))[..., [0, 2]].all()


@pytest.mark.parametrize(
    ("eps", "clip", "options", "error", "message"),
    [
        (np.ones(2) * [1, 2], (0.0, 1.0), {}, ValueError, r"eps has shape \(2,\).*channel \(3\)"),
        (0.1, (np.array([0, -1.0]), 1.0), {}, ValueError, r"clip has shape \(2,\)"),
        (0.1, ([0, 0, 1], [1, 1, 1]), {}, ValueError, "low < high"),
        (0.1, ([0, 0, -1], [1, 2]), {}, ValueError, "the ends of clip have shapes"),
        (0.1, (0, 1, 2), {}, ValueError, r"clip must be \(low, high\)"),
        (0.1, 1.0, {}, ValueError, r"clip must be \(low, high\)"),
        (0.1, ("a", 1.0), {}, TypeError, r"clip\[0\] must be a number"),
        ([0.1, -0.1, 0.1], (0.0, 1.0), {}, ValueError, "eps must be a finite number >= 0"),
        ([0.1, np.nan, 0.1], (0.0, 1.0), {}, ValueError, "eps must be a finite number >= 0"),
        ([], (0.0, 1.0), {}, ValueError, "eps must be a finite number >= 0"),
        ([0.1, 0.2, 0.1], (0.0, 1.0), {"norm": "l2"}, ValueError, "'linf' only"),
        (0.1, ([0.0, 0.5, 0.0], 1.0), {}, ValueError, r"outside clip=\(\[0.0, 0.5, 0.0\], 1\)"),
    ],
)
def test_what_fits_no_image_is_named(
    eps: Any, clip: Any, options: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        run_attack("pgd", target(plain), X, Y, eps, clip=clip, **options)


def test_evaluations_in_both_units_agree(tmp_path: Any) -> None:
    settings: dict[str, Any] = {
        "attacks": ["fgsm", "square"],
        "options": {"square": {"queries": 30}},
    }
    one = evaluate(target(plain), X, Y, epsilons=[EPS / 2, EPS], **settings)
    radii = [EPS / STD, EPS / 2 / STD]
    other = evaluate(
        target(normalized), Z, Y, epsilons=radii, clip=LIMITS, results=tmp_path, **settings
    )
    assert other.epsilons == (EPS / 2 / STD.min(), EPS / STD.min())
    for mine, theirs in zip(one.epsilons, other.epsilons, strict=True):
        same = one.survived("model", mine) == other.survived("model", theirs)
        assert same.mean() >= 0.95
    again = RobustnessReport.from_json(other.to_json())
    assert again.settings["radii"][f"{EPS / STD.min():.10g}"] == (EPS / STD).tolist()
    assert again.settings["clip"] == [end.tolist() for end in LIMITS]
    assert "eps 0.251 (in the channel of the largest)" in again.to_markdown()
    again.plot()
    with pytest.raises(ValueError, match="neither lies inside the other"):
        evaluate(target(plain), X, Y, epsilons=[[0.1, 0.2, 0.1], [0.2, 0.1, 0.1]], **settings)
    with pytest.raises(ValueError, match="is more than images in"):
        evaluate(target(plain), X, Y, epsilons=[[0.1, 1.2, 0.1]], **settings)


def test_audits_and_transfers_in_both_units_agree() -> None:
    settings: dict[str, Any] = {"examples": 24, "queries": 20, "white_box": [("pgd", {"steps": 5})]}
    checks = [
        "zero gradients", "local linearity", "single step vs iterated", "monotone in epsilon",
        "unbounded epsilon", "random sampling", "planted adversarial image",
    ]  # fmt: skip
    one = audit(target(plain), X, Y, eps=EPS, checks=checks, **settings)
    other = audit(target(normalized), Z, Y, eps=EPS / STD, clip=LIMITS, checks=checks, **settings)
    assert [c.status for c in other.checks] == [c.status for c in one.checks]
    rise = [report.check("monotone in epsilon").figures for report in (one, other)]
    np.testing.assert_allclose(rise[1]["accuracies"], rise[0]["accuracies"], atol=0.09)
    np.testing.assert_allclose(rise[1]["epsilons"], np.array(rise[0]["epsilons"]) / STD.min())
    assert json.loads(other.to_json())["settings"]["radius"] == (EPS / STD).tolist()
    assert "eps 0.25098 (in the channel of the largest)" in other.to_markdown()
    first = transfer_matrix({"m": target(plain)}, X, Y, eps=EPS, steps=4)
    second = transfer_matrix({"m": target(normalized)}, Z, Y, eps=EPS / STD, clip=LIMITS, steps=4)
    assert abs(int(first.standing[0, 0]) - int(second.standing[0, 0])) <= 2
    assert json.loads(second.to_json())["settings"]["radius"] == (EPS / STD).tolist()


@pytest.mark.parametrize("attack", ["fgsm", "r+fgsm", "pgd"])
def test_training_perturbs_in_both_units_alike(attack: str) -> None:
    import tf_keras

    layers = tf_keras.layers

    def trainer(scale: Any, shift: Any, **options: Any) -> AdversarialTraining:
        image = layers.Input((6, 6, 3))
        scaled = layers.Rescaling(scale, shift)(image)
        dense = layers.Dense(5, kernel_initializer="glorot_uniform")
        model = tf_keras.Model(image, dense(layers.Flatten()(scaled)))
        dense.kernel.assign(FIRST[:, :5])
        made = AdversarialTraining(model, attack, steps=3, **options)
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made.compile("sgd", loss)
        return made

    one = trainer(1.0, 0.0, eps=EPS)
    other = trainer(STD.tolist(), MEAN.tolist(), eps=EPS / STD, clip=LIMITS)
    seed = tf.constant([1, 2])
    moved = one.perturb(X, Y, seed).numpy()
    np.testing.assert_allclose(other.perturb(Z, Y, seed).numpy() * STD + MEAN, moved, atol=1e-5)
    assert np.abs(moved - X).max() > 0.9 * EPS
    again = AdversarialTraining.from_config(json.loads(json.dumps(other.get_config())))
    np.testing.assert_array_equal(again.eps, other.eps)
    np.testing.assert_array_equal(again.clip, other.clip)
