"""APGD, targeted FAB and Square against pyautoattack, example by example, from the same draws."""

from __future__ import annotations

import numpy as np
import pytest

from tests.needs import require
from tfdq.robustness.attacks import run_attack
from tfdq.robustness.attacks.fab import project_to_hyperplane
from tfdq.robustness.attacks.torch_bridge import as_torch_module

torch = require("torch", "autoattack")
pyautoattack = require("pyautoattack", "autoattack")

# TensorFlow has the cores; PyTorch's own threads would only fight it for them.
torch.set_num_threads(1)
EPS = 0.1


@pytest.fixture(scope="module")
def bridge(target):
    return as_torch_module(target)


@pytest.fixture
def tensors(sample):
    return torch.tensor(np.moveaxis(sample.x, -1, 1).copy()), torch.tensor(sample.y)


class SharedDraws:
    """Stands for `torch.rand` and draws what our generator draws, in [n, c, h, w]."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng([seed, 0])

    def rand(self, shape):
        shape = tuple(shape)
        if len(shape) < 3:  # a position: a double, as `Generator.random()`
            return torch.tensor([self.rng.random()])
        if len(shape) == 3:  # one sign a channel, [c, 1, 1]
            draw = self.rng.random((1, *shape[1:], shape[0]), dtype=np.float32)
            return torch.tensor(np.moveaxis(draw, -1, 1)[0].copy())
        n, channels, height, width = shape
        draw = self.rng.random((n, height, width, channels), dtype=np.float32)
        return torch.tensor(np.moveaxis(draw, -1, 1).copy())


def reference(monkeypatch, bridge, tensors, name, **settings):
    """The adversarial images of pyautoattack, [n, h, w, c], and which of them are misclassified."""
    x, y = tensors
    draws = SharedDraws()
    monkeypatch.setattr(torch, "rand", draws.rand)
    suite = pyautoattack.AutoAttack(bridge, eps=EPS, seed=0, version="custom", attacks=[name])
    suite.apgd.n_restarts = suite.fab.n_restarts = 1
    for attack in (suite.apgd, suite.apgd_targeted, suite.fab, suite.square):
        for key, value in settings.items():
            setattr(attack, key, value)
    adversarial, _ = suite.run_standard_evaluation(x, y, batch_size=256)
    success = (bridge(adversarial).argmax(1) != y).numpy()
    return np.moveaxis(adversarial.numpy(), 1, -1), success


@pytest.mark.parametrize(
    ("ours", "theirs", "options", "settings"),
    [
        ("apgd-ce", "apgd-ce", {}, {}),
        ("apgd-dlr", "apgd-dlr", {}, {}),
        ("apgd-t", "apgd-t", {"target_classes": 2}, {"n_target_classes": 2}),
        (
            "fab",
            "fab-t",
            {"target_classes": 2, "steps": 40},
            {"n_target_classes": 2, "n_iter": 40},
        ),
    ],
)
def test_verdicts_are_those_of_pyautoattack(
    ours, theirs, options, settings, monkeypatch, bridge, tensors, target, sample
):
    result = run_attack(ours, target, sample.x, sample.y, EPS, **options)
    _, expected = reference(monkeypatch, bridge, tensors, theirs, **settings)
    assert 0.1 < np.mean(expected) < 0.9
    # Two of 200: a rounding in the last place can flip the sign of a gradient near zero.
    assert np.sum(result.success != expected) <= 2
    assert np.mean(~result.success) <= np.mean(~expected) + 0.01


def test_square_takes_the_very_same_steps(monkeypatch, bridge, tensors, target, sample):
    result = run_attack("square", target, sample.x, sample.y, EPS, queries=200)
    images, expected = reference(monkeypatch, bridge, tensors, "square", n_queries=200)
    assert np.sum(result.success != expected) <= 2
    both = result.success & expected & result.correct
    assert both.sum() >= 10
    np.testing.assert_allclose(result.x_adv[both], images[both], atol=1e-6)


def test_apgd_starts_and_steps_alike(monkeypatch, bridge, tensors, target, sample):
    """After few steps the iterates themselves agree, not only their verdicts."""
    options = {"steps": 3, "early_stop": False}
    result = run_attack("apgd-ce", target, sample.x, sample.y, EPS, **options)
    monkeypatch.setattr(torch, "rand", SharedDraws().rand)
    attack = pyautoattack.autopgd_base.APGDAttack(bridge, eps=EPS, n_iter=3, seed=0)
    images = np.moveaxis(attack.perturb(*tensors, best_loss=True).numpy(), 1, -1)
    assert np.mean(np.abs(result.x_adv - images) > 1e-5) < 0.01


def test_projection_is_that_of_pyautoattack():
    from pyautoattack.fab_projections import projection_linf

    rng = np.random.default_rng(0)
    normals = rng.normal(size=(60, 40)).astype(np.float32)
    normals[:10, :20] = 0
    points = rng.random((60, 40), dtype=np.float32)
    gaps = (rng.normal(size=60) * np.geomspace(0.01, 30, 60)).astype(np.float32)
    ours = project_to_hyperplane(points, normals, gaps, 0.0, 1.0)
    offsets = (normals * points).sum(axis=1) + gaps
    theirs = projection_linf(
        torch.tensor(points), torch.tensor(normals), torch.tensor(offsets)
    ).numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_bridge_passes_gradients_of_tensorflow(bridge, target, sample):
    from tfdq.robustness.attacks.losses import cross_entropy

    x = torch.tensor(np.moveaxis(sample.x[:20], -1, 1).copy(), requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        bridge(x), torch.tensor(sample.y[:20]), reduction="sum"
    )
    loss.backward()
    _, _, expected = target.loss_gradient(cross_entropy, sample.x[:20], sample.y[:20])
    np.testing.assert_allclose(np.moveaxis(x.grad.numpy(), 1, -1), expected, atol=1e-5)
