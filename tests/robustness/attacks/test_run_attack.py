"""What holds for every attack: the ball, the clip range, the counts, the errors."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.exhaustive import only
from tfdq.experiments.settings import EvaluationSettings
from tfdq.experiments.suite import attack_options, suite_of
from tfdq.robustness.attacks import (
    AttackCost,
    attack,
    attack_suites,
    available_attacks,
    register_attack,
    registry,
    run_attack,
)
from tfdq.robustness.targets import as_target

# A few steps each: what is tested here does not depend on strength.
QUICK = {
    "fgsm": {},
    "r+fgsm": {},
    "bim": {"steps": 3},
    "pgd": {"steps": 3},
    "mim": {"steps": 3},
    "t-pgd": {"steps": 3},
    "apgd-ce": {"steps": 6},
    "apgd-dlr": {"steps": 6},
    "apgd-t": {"steps": 4, "target_classes": 2},
    "fab": {"steps": 4, "target_classes": 2},
    "square": {"queries": 20},
    "spsa": {"steps": 2, "samples": 8},
    "cw": {"steps": 10, "search_steps": 3},
}
NAMES = ["fgsm", "r+fgsm", "bim", "pgd", "mim", "cw", "spsa"]
NAMES += ["apgd-ce", "apgd-dlr", "apgd-t", "fab", "square"]


def test_every_promised_attack_is_registered():
    assert set(NAMES) <= set(available_attacks())


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("scale", [1.0, 255.0])
@pytest.mark.parametrize("name", QUICK)
def test_inside_the_ball_and_the_range(name, scale, early_stop, float_model, sample):
    spec = available_attacks()[name]
    x, y = (scale * sample.x[:24]).astype(np.float32), sample.y[:24]
    model = float_model if scale == 1 else _divided(float_model)
    for norm in spec.norms:
        eps = (0.1 if norm == "linf" else 0.7) * scale
        result = run_attack(
            name,
            model,
            x,
            y,
            eps,
            norm=norm,
            clip=(0.0, scale),
            early_stop=early_stop,
            **QUICK[name],
        )
        delta = result.x_adv.astype(np.float64) - x
        size = np.abs(delta).max() if norm == "linf" else np.sqrt((delta**2).sum((1, 2, 3))).max()
        assert size <= eps
        assert result.x_adv.min() >= 0
        assert result.x_adv.max() <= scale
        assert result.x_adv.dtype == np.float32
        predicted = np.argmax(float_model.predict(result.x_adv / scale, verbose=0), axis=1)
        assert np.mean((predicted != y) == result.success) >= 23 / 24
        if early_stop:
            kept = ~result.correct
            np.testing.assert_array_equal(result.x_adv[kept], x[kept])
            assert (result.gradients[kept] == 0).all()
            assert (result.queries[kept] == 1).all()


_MODELS = {}


def _divided(model):
    """The same classifier for images in 0..255."""
    if id(model) not in _MODELS:
        _MODELS[id(model)] = tf.Module(name="divided")
        _MODELS[id(model)] = as_target(
            lambda x: model(x / 255.0, training=False), differentiable=True, name="divided"
        )
    return _MODELS[id(model)]


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "square", "spsa"])
def test_seeds_decide_everything(name, float_model, sample):
    x, y = sample.x[:20], sample.y[:20]

    def run(seed):
        return attack(name, float_model, x, y, 0.1, seed=seed, early_stop=False, **QUICK[name])

    first, again, other = run(1), run(1), run(2)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_eps_zero_returns_the_images(float_model, sample):
    for name in ("fgsm", "pgd", "apgd-ce", "square", "fab"):
        result = run_attack(name, float_model, sample.x[:8], sample.y[:8], 0.0, **QUICK[name])
        np.testing.assert_array_equal(result.x_adv, sample.x[:8])


def test_counts_are_those_of_the_target(float_model, sample):
    for name in ("pgd", "apgd-t", "fab", "square", "spsa"):
        target = as_target(float_model, name=f"counted {name}")
        result = run_attack(name, target, sample.x[:40], sample.y[:40], 0.1, **QUICK[name])
        assert result.queries.sum() == target.queries
        assert result.gradients.sum() == target.gradients


def test_targeted_batches_hold_every_class_once_for_every_image(target, sample):
    from tfdq.robustness.attacks.base import AttackTask

    x, y = sample.x[:20], sample.y[:20]
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 10)).astype(np.float32)
    task = AttackTask(target, target, x, y, 0.1, "linf", (0.0, 1.0), rng, logits)
    seen = []
    for rows, aims in task.targeted_batches(9):
        assert len(rows) <= 128
        seen += [*zip(rows.tolist(), aims.astype(int).tolist(), strict=True)]
        task.broken[3] = True
    order = np.argsort(-logits, axis=1)
    for image in range(20):
        classes = [aim for row, aim in seen if row == image]
        expected = order[image, 1:].tolist()
        assert classes == (expected[: len(classes)] if image == 3 else expected)
    assert 0 < len([row for row, _ in seen if row == 3]) < 9


def test_gradients_of_pgd_stop_with_success(float_model, sample):
    result = run_attack("pgd", float_model, sample.x, sample.y, 0.15, steps=20)
    failed = result.correct & ~result.success
    assert (result.gradients[failed] == 20).all()
    assert result.gradients[result.success].mean() < 15


def test_batches_are_independent_of_the_dataset(float_model, sample):
    x, y = sample.x[:50], sample.y[:50]
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
    from_dataset = run_attack("pgd", float_model, dataset, None, 0.1, steps=3, batch_size=16)
    from_arrays = run_attack("pgd", float_model, x, y, 0.1, steps=3, batch_size=16)
    np.testing.assert_array_equal(from_dataset.x_adv, from_arrays.x_adv)
    np.testing.assert_array_equal(from_dataset.labels, y)


def test_labels_and_images_of_other_types(float_model, sample):
    x, y = sample.x[:30], sample.y[:30]
    expected = attack("fgsm", float_model, x, y, 0.1)
    one_hot = np.eye(10, dtype=np.float32)[y]
    np.testing.assert_array_equal(attack("fgsm", float_model, x, one_hot, 0.1), expected)
    column = y[:, None].astype(np.uint8)
    np.testing.assert_array_equal(attack("fgsm", float_model, x, column, 0.1), expected)
    doubles = attack("fgsm", float_model, x.astype(np.float64), y, 0.1)
    np.testing.assert_array_equal(doubles, expected)
    bytes_ = np.rint(x * 255).astype(np.uint8)
    result = run_attack("fgsm", _divided(float_model), bytes_, y, 8, clip=(0, 255))
    assert result.x_adv.dtype == np.float32
    assert np.abs(result.x_adv - bytes_).max() <= 8


def test_surrogate_attacks_a_black_box(float_model, other_float_model, sample):
    def predict(x):
        return float_model(x, training=False).numpy()

    transfer = run_attack("pgd", predict, sample.x, sample.y, 0.1, surrogate=other_float_model)
    assert transfer.settings["surrogate"] == other_float_model.name
    white = run_attack("pgd", float_model, sample.x, sample.y, 0.1)
    assert white.robust_accuracy < transfer.robust_accuracy < transfer.clean_accuracy
    own = run_attack("pgd", predict, sample.x, sample.y, 0.1, surrogate=float_model)
    assert own.robust_accuracy == pytest.approx(white.robust_accuracy, abs=0.01)


def test_without_early_stop_every_image_is_attacked(float_model, sample):
    wrong = (sample.y + 1) % 10
    result = run_attack("pgd", float_model, sample.x[:20], wrong[:20], 0.1, early_stop=False)
    assert not result.correct.any()
    assert (result.gradients == 20).all()
    assert (np.abs(result.x_adv - sample.x[:20]).max(axis=(1, 2, 3)) > 0.05).all()


def test_settings_are_ready_for_json(float_model, sample):
    result = run_attack("pgd", float_model, sample.x[:4], sample.y[:4], 0.1, steps=2)
    settings = json.loads(json.dumps(result.settings))
    assert settings["options"]["steps"] == 2
    assert settings["options"]["restarts"] == 1
    assert settings["eps"] == 0.1


def test_progress_is_told(float_model, sample):
    told = []
    run_attack(
        "fgsm",
        float_model,
        sample.x[:25],
        sample.y[:25],
        0.1,
        batch_size=10,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(10, 25), (20, 25), (25, 25)]


def test_own_attack(monkeypatch, float_model, sample):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_attack("corner", gradients=False)
    def corner(task, *, sign=1.0):
        return task.project(task.x + sign * task.eps)

    result = run_attack("corner", float_model, sample.x[:10], sample.y[:10], 0.1, sign=-1.0)
    expected = np.clip(sample.x[:10] - 0.1, 0, 1)
    moved = result.correct
    np.testing.assert_allclose(result.x_adv[moved], expected[moved], atol=1e-6)
    with pytest.raises(ValueError, match="already registered"):
        register_attack("corner", gradients=False)(corner)


def _with_nan(x):
    x = x.copy()
    x[0, 0, 0, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: {**a, "name": "pdg"}, ValueError, "unknown attack 'pdg'; known: apgd-ce"),
        (lambda a: {**a, "eps": -0.1}, ValueError, "eps must be a finite number >= 0"),
        (lambda a: {**a, "eps": float("nan")}, ValueError, "eps must be a finite"),
        (lambda a: {**a, "norm": "l1"}, ValueError, "works in linf and l2, not in norm 'l1'"),
        (lambda a: {**a, "clip": (1.0, 0.0)}, ValueError, "low < high"),
        (lambda a: {**a, "batch_size": 0}, ValueError, "batch_size must be at least 1"),
        (lambda a: {**a, "stpes": 3}, TypeError, "no option stpes; it has: steps, step_size"),
        (lambda a: {**a, "x": _with_nan(a["x"])}, ValueError, "NaN"),
        (lambda a: {**a, "x": 2 * a["x"]}, ValueError, "reaches from 0 to 2, outside clip"),
        (lambda a: {**a, "x": 255 * a["x"]}, ValueError, "divide images of bytes by 255, or"),
        (lambda a: {**a, "x": a["x"][:0]}, ValueError, "at least one image"),
        (lambda a: {**a, "x": a["x"].astype(str)}, TypeError, "x must hold numbers"),
        (lambda a: {**a, "y": None}, ValueError, "y is None"),
        (lambda a: {**a, "y": a["y"][:3]}, ValueError, "8 images but labels of shape"),
        (lambda a: {**a, "y": a["y"] + 10}, ValueError, r"labels must lie in 0\.\.9"),
        (lambda a: {**a, "y": a["y"] - 20}, ValueError, "labels must be >= 0"),
        (lambda a: {**a, "y": a["y"] + 0.5}, TypeError, "class numbers"),
        (lambda a: {**a, "y": np.full((8, 10), 0.1)}, TypeError, "one-hot"),
    ],
)
def test_bad_input_is_named(change, error, message, float_model, sample):
    arguments = {"name": "pgd", "x": sample.x[:8], "y": sample.y[:8], "eps": 0.1}
    arguments = change(arguments)
    with pytest.raises(error, match=message):
        run_attack(
            arguments.pop("name"),
            float_model,
            arguments.pop("x"),
            arguments.pop("y"),
            arguments.pop("eps"),
            **arguments,
        )


@pytest.mark.parametrize("one_hot", [False, True])
def test_an_unbatched_dataset_is_attacked_as_arrays_are(float_model, sample, one_hot):
    x, y = sample.x[:20], sample.y[:20]
    labels = np.eye(10)[y] if one_hot else y
    dataset = tf.data.Dataset.from_tensor_slices((x, labels))
    from_dataset = run_attack("pgd", float_model, dataset, None, 0.1, steps=3)
    from_arrays = run_attack("pgd", float_model, x, y, 0.1, steps=3)
    np.testing.assert_array_equal(from_dataset.x_adv, from_arrays.x_adv)
    np.testing.assert_array_equal(from_dataset.labels, y)


def test_bad_datasets_are_named(float_model, sample):
    pairs = tf.data.Dataset.from_tensor_slices((sample.x[:8], sample.y[:8]))
    with pytest.raises(ValueError, match="y was given as well"):
        run_attack("fgsm", float_model, pairs.batch(4), sample.y[:8], 0.1)
    with pytest.raises(ValueError, match="empty"):
        run_attack("fgsm", float_model, pairs.take(0).batch(4), None, 0.1)
    with pytest.raises(ValueError, match=r"infinite: use dataset\.take"):
        run_attack("fgsm", float_model, pairs.repeat(), None, 0.1)
    images = tf.data.Dataset.from_tensor_slices(sample.x[:8])
    with pytest.raises(ValueError, match=r"single images of shape \(8, 8, 1\).*dataset\.batch"):
        run_attack("fgsm", float_model, images, sample.y[:8], 0.1)
    named = pairs.map(lambda image, label: {"image": image, "label": label})
    with pytest.raises(ValueError, match=r"must give images or \(images, labels\)"):
        run_attack("fgsm", float_model, named.batch(4), None, 0.1)


# Half a minute each is what these take to trace.
_LONG = {"apgd-ce", "apgd-dlr", "t-pgd"}


@pytest.mark.parametrize("name", only([*QUICK], *(QUICK.keys() - _LONG)))
def test_an_image_that_stands_costs_what_the_attack_says(name, target, sample):
    spec, options = available_attacks()[name], QUICK[name]
    right = target.predict(sample.x) == sample.y
    x, y = sample.x[right][:6], sample.y[right][:6]
    for norm in spec.norms:
        result = run_attack(name, target, x, y, 1e-6, norm=norm, **options)
        assert not result.success.any()
        cost = spec.cost(options, classes=10)
        assert (result.gradients == cost.gradients).all()
        # The clean and the final verdict are a query each; a search asks nothing twice.
        assert (result.queries - 2 <= cost.queries).all()
        assert result.queries.max() - 2 >= 0.4 * cost.queries


def test_what_an_attack_needs_and_a_model_has_not(float_model):
    known = available_attacks()
    network = as_target(float_model)
    box = as_target(network.logits, differentiable=False)
    assert known["pgd"].missing(box, 10) == "no gradients"
    assert known["square"].missing(box, 2) == ""
    assert known["low-bit"].missing(network, 10) == "not a quantized model"
    assert known["apgd-t"].missing(network, 3) == "fewer than 4 classes"
    assert known["apgd-t"].missing(network, 4) == ""


def test_an_attack_that_says_nothing_of_its_cost(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    register_attack("walk", gradients=True)(lambda task, *, steps=4, restarts=2: task.x)
    register_attack("ask", gradients=False)(lambda task, *, queries=7: task.x)
    known = available_attacks()
    assert known["walk"].cost({"steps": 5}, 10) == AttackCost(gradients=10, queries=2)
    assert known["ask"].cost({}, 10) == AttackCost(gradients=0, queries=8)


def test_an_attack_joins_suites_tables_and_experiments_where_it_is_registered(monkeypatch):
    assert attack_suites()["standard"] == ("apgd-ce", "apgd-t", "fab", "square")
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    register_attack(
        "walk",
        gradients=True,
        title="Walk",
        suites={"standard": 35, "own": 1},
        settings={"steps": "pgd_steps"},
    )(lambda task, *, steps=4: task.x)
    assert attack_suites()["standard"] == ("apgd-ce", "apgd-t", "walk", "fab", "square")
    assert attack_suites()["own"] == ("walk",)
    spec = available_attacks()["walk"]
    assert (spec.label({}), spec.label({"steps": 7})) == ("Walk-4", "Walk-7")
    settings = EvaluationSettings(suite="standard", pgd_steps=9)
    assert attack_options(settings, "walk") == {"steps": 9}
    assert suite_of(settings) == (("apgd-ce", "apgd-t", "walk", "fab"), ("square",))
    assert suite_of(EvaluationSettings(suite="none")) == ((), ())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"suites": ["record"]}, TypeError, r"a mapping such as .*got \['record'\]"),
        ({"suites": {"recrod": 1}}, ValueError, "no suite 'recrod' .*did you mean 'record'"),
        ({"suites": {"none": 1}}, ValueError, "'none' cannot be a suite"),
        ({"suites": {"pgd": 1}}, ValueError, "'pgd' cannot be a suite.*quick, record, standard"),
        ({"suites": {"record": "late"}}, ValueError, "must be a number, got 'late'"),
        ({"suites": {"record": True}}, ValueError, "must be a number, got True"),
        ({"settings": "pgd_steps"}, TypeError, "a mapping such as .*got 'pgd_steps'"),
        ({"settings": {"step": "pgd_steps"}}, ValueError, "'step', which .* has not; it has steps"),
        ({"settings": {"steps": 5}}, ValueError, "such as 'pgd_steps', got 5"),
    ],
)
def test_registering_with_a_mistake(monkeypatch, given, error, message):
    available_attacks()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    with pytest.raises(error, match=message):
        register_attack("walk", gradients=True, **given)(lambda task, *, steps=4: task.x)
    assert "walk" not in available_attacks()


def test_a_setting_that_experiments_have_not(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    given = {"steps": "suite_strengths"}
    register_attack("walk", gradients=True, settings=given)(lambda task, *, steps=4: task.x)
    with pytest.raises(ValueError, match=r"'suite_strengths', which there is not; .*pgd_steps"):
        attack_options(EvaluationSettings(), "walk")


def test_labels_name_the_number_of_steps_where_there_are_several():
    known = available_attacks()
    assert known["fgsm"].label({}) == "FGSM"
    assert known["pgd"].label({"steps": 20}) == "PGD-20"


@pytest.mark.parametrize(("name", "classes"), [("apgd-t", 3), ("apgd-dlr", 2)])
def test_losses_that_need_more_classes(name, classes, sample):
    def few(x):
        return tf.reshape(x, (-1, 64))[:, 20 : 20 + classes]

    target = as_target(few, differentiable=True)
    y = target.predict(sample.x)
    with pytest.raises(ValueError, match=f"{name} needs at least {classes + 1} classes"):
        run_attack(name, target, sample.x, y, 0.1)
