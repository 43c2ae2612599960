"""Recipes: what ships, what is refused, how variants, setups and overrides combine."""

import re
from pathlib import Path
from typing import Any

import pytest

from tfdq.experiments.recipe import (
    SCALES,
    load_recipe,
    parse_assignment,
    recipe_names,
    tomllib,
)
from tfdq.experiments.settings import PenaltySettings, RunSettings, parse_squeezer

EXPERIMENTS = {"amplification", "beta", "bits", "black-box", "clean", "white-box"}
OWN = {"small": {"ablation", "colour", "levels"}, "paper": {"colour"}}
SHIPPED = [(scale, name) for scale in SCALES for name in sorted(EXPERIMENTS | OWN[scale])]


@pytest.mark.parametrize("scale", SCALES)
def test_every_experiment_of_the_paper_ships_at_both_scales(scale: str) -> None:
    assert set(recipe_names(scale)) == EXPERIMENTS | OWN[scale]


@pytest.mark.parametrize(("scale", "name"), SHIPPED)
def test_shipped_recipes_are_valid_on_every_setup(scale: str, name: str) -> None:
    root = Path(load_recipe.__code__.co_filename).parent / "recipes" / scale
    setups = tomllib.loads((root / "setups.toml").read_text())
    for setup in setups:
        recipe = load_recipe(name, scale, setup)
        names = [variant.name for variant in recipe.variants]
        assert len(set(names)) == len(names)
        # A claim about a variant that does not exist would never be judged.
        for claim in recipe.content.claims:
            assert claim.better in names, claim.text
            assert claim.worse in names, claim.text


def test_the_paper_scale_is_the_papers() -> None:
    models = {
        (v.settings.data.name, v.settings.model.name)
        for setup in ("cifar10-wrn", "cifar10-vgg16", "svhn-wrn", "svhn-vgg16")
        for v in load_recipe("bits", "paper", setup).variants
    }
    assert models == {
        (data, model) for data in ("cifar10", "svhn_cropped") for model in ("wrn-28-10", "vgg16")
    }
    recipe = load_recipe("bits", "paper")
    bits = {v.settings.quantization.activation_bits for v in recipe.variants}
    assert bits == {0, 1, 2, 3, 4, 5}
    svhn = load_recipe("white-box", "paper", "svhn-wrn").variants[0].settings
    assert svhn.evaluation.epsilons == (8.0, 16.0)
    assert svhn.training.augment == "none"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_the_papers_penalty_is_the_papers(name: str, scale: str) -> None:
    """On the trained kernel, towards singular values of 1; ours differs from it in both."""
    for variant in load_recipe(name, scale).variants:
        penalty = variant.settings.penalty
        if penalty.beta > 0:
            papers = variant.name.startswith("DQ (paper)")
            paper_range = variant.settings.quantization.activation_range == "relu6"
            assert paper_range == papers
            assert (penalty.on, penalty.target) == (
                ("kernel", 1.0) if papers else ("deployed", "1/k")
            )


def test_the_exact_penalty_aims_at_the_convolutions_own_norm() -> None:
    assert PenaltySettings(name="conv_orthogonal").target == 1.0
    assert PenaltySettings(name="conv_orthogonal", target="1/k").target == "1/k"


def test_white_box_crosses_networks_and_defences() -> None:
    names = {v.name for v in load_recipe("white-box").variants}
    networks = ("float", "VQ (paper)", "VQ", "DQ (paper)", "DQ")
    defences = ("", " + squeezing", " + FGSM training", " + R+FGSM training")
    assert names == {network + defence for network in networks for defence in defences}


def write(path: Path, text: str) -> str:
    path.write_text(f'title = "T"\npaper = "P"\n{text}')
    return str(path)


ONE = '[[variants]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"sed = 1\n{ONE}", "unknown key 'sed', did you mean 'seeds'"),
        (f"[training]\nepoch = 3\n{ONE}", "unknown key 'training.epoch', did you mean 'epochs'"),
        (f"[quantization]\nactivation_bits = 9\n{ONE}", "quantization.activation_bits.*got 9"),
        (f"[quantization]\nweight_bits = 1\n{ONE}", "quantization.weight_bits.*got 1"),
        (f"[penalty]\nbeta = -1\n{ONE}", "penalty.beta.*got -1"),
        (f"[penalty]\nbeta = inf\n{ONE}", "penalty.beta must be a finite number >= 0, got inf"),
        (f"[penalty]\non = 'folds'\n{ONE}", "penalty.on.*'folded'"),
        (f"[penalty]\nramp = [3, 1]\n{ONE}", "ramp must be .begin, end."),
        (f"[penalty]\nbeta = 0\nramp = [0, 1]\n{ONE}", "ramp needs a penalty"),
        (f"[quantization]\nskip = ['logits']\n{ONE}", "set evaluation.export = false"),
        (f"[model]\nname = 'resnet2'\n{ONE}", "no model 'resnet2'.*resnet20"),
        (f"[model]\nstart = 'a.keras'\noptions = {{ width = 4 }}\n{ONE}", "model.start out"),
        (f"[adversarial]\nattack = 'square'\n{ONE}", "adversarial.attack"),
        (f"[adversarial]\neps = 0\n{ONE}", "adversarial.eps.*got 0"),
        (f"[training]\nwarmup_epochs = 9\nepochs = 9\n{ONE}", "warmup_epochs must be below epochs"),
        (f"[evaluation]\nepsilons = [8, 300]\n{ONE}", "epsilons are in 1/255.*300"),
        (f"[evaluation]\nimages = 10\n{ONE}", "suite_images .200. must not exceed images .10."),
        (f"[evaluation]\nsqueezing = ['median_9']\n{ONE}", "squeezing takes.*'median_9'"),
        (f"[evaluation]\naudit_images = 4\n{ONE}", "audit_images must be 0 or at least 8"),
        (ONE + ONE, "every variant needs a name of its own"),
        ("", "variants: Field required"),
        (f"[figure]\nkind = 'lines'\n{ONE}", "needs x"),
        (f"[transfer]\nsurrogates = ['b']\n{ONE}", r"transfer names variants \['b'\]"),
        ("title = 3", "is no TOML"),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(write(tmp_path / "mine.toml", text))


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", f"[penalty]\nbeta = -1\n[training]\nepochs = 0\n{ONE}")
    with pytest.raises(ValueError, match=r"mine.toml.*penalty.beta.*; training.epochs"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name_or_path": "bit"}, "no recipe 'bit' at scale small: choose one of .*bits"),
        ({"name_or_path": "bits", "scale": "huge"}, "scale must be one of small, paper"),
        ({"name_or_path": "bits", "setup": "imagenet"}, "no setup 'imagenet'; it has fashion"),
        (
            {"name_or_path": "bits", "only": ["vq"]},
            r"no variant 'vq'; it has 'float', 'VQ \(paper\)', 'VQ'",
        ),
        ({"name_or_path": "bits", "overrides": {"epochs": [3]}}, "write section.setting"),
        ({"name_or_path": "bits", "overrides": {"a.b.c": [3]}}, "unknown key 'a'"),
    ],
)
def test_unknown_names_are_answered_with_the_known(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(**arguments)


def test_only_takes_a_grid_or_one_of_its_variants() -> None:
    grid = [v.name for v in load_recipe("beta", only=["DQ"]).variants]
    assert len(grid) == 6
    chosen = load_recipe("beta", only=[grid[3], "VQ"]).variants
    assert [v.name for v in chosen] == ["VQ", grid[3]]


def test_only_what_is_kept_is_checked() -> None:
    torch = {"training.backend": ["torch"]}
    (variant,) = load_recipe("white-box", only=["DQ"], overrides=torch).variants
    assert variant.settings.training.backend == "torch"
    with pytest.raises(ValueError, match=r"'float \+ squeezing'.*evaluation.squeezing"):
        load_recipe("white-box", overrides=torch)


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"no recipe 'none\.toml'"):
        load_recipe("none.toml")


def test_grid_and_overrides_make_variants(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.toml",
        '[penalty]\nbeta = 0.5\n[[variants]]\nname = "a"\n'
        'grid = { "quantization.activation_bits" = [2, 3] }\n',
    )
    recipe = load_recipe(path, overrides={"penalty.beta": [0.1, 0.2], "training.epochs": [2]})
    assert [v.name for v in recipe.variants] == [
        f"a, activation_bits {bits}, beta {beta}" for bits in (2, 3) for beta in (0.1, 0.2)
    ]
    assert recipe.variants[3].settings.quantization.activation_bits == 3
    assert recipe.variants[3].settings.penalty.beta == 0.2
    assert {v.settings.training.epochs for v in recipe.variants} == {2}
    assert recipe.variants[0].point == {"quantization.activation_bits": 2, "penalty.beta": 0.1}


def test_a_recipe_that_names_neither_data_nor_epochs(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", ONE)
    (variant,) = load_recipe(path).variants
    assert (variant.settings.data.name, variant.settings.training.epochs) == ("fashion_mnist", 8)
    assert variant.settings.training_key(0) == "c47ef88bde36"


def test_variants_override_the_recipe_and_the_recipe_its_setup(tmp_path: Path) -> None:
    (tmp_path / "mine-setups.toml").write_text(
        "[one]\ntraining = { epochs = 3, batch_size = 16 }\n[two]\ndata = { name = 'digits' }\n"
    )
    path = write(
        tmp_path / "mine.toml",
        "setups = 'mine-setups.toml'\n[training]\nepochs = 4\n"
        "[[variants]]\nname = 'a'\nset = { training = { learning_rate = 0.5 } }\n",
    )
    training = load_recipe(path).variants[0].settings.training
    assert (training.epochs, training.batch_size, training.learning_rate) == (4, 16, 0.5)
    assert load_recipe(path, setup="two").variants[0].settings.data.name == "digits"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("penalty.beta=0.001,0.002", ("penalty.beta", [0.001, 0.002])),
        ("penalty.on=folded,deployed", ("penalty.on", ["folded", "deployed"])),
        ("evaluation.epsilons=[8, 16],[4]", ("evaluation.epsilons", [[8, 16], [4]])),
        ("model.options={width=8}", ("model.options", [{"width": 8}])),
        ("model.options={a=1, b=[2, 3]},{}", ("model.options", [{"a": 1, "b": [2, 3]}, {}])),
        ("data.name='a,b',c", ("data.name", ["a,b", "c"])),
        ("evaluation.export=false", ("evaluation.export", [False])),
        ('data.name="a"', ("data.name", ["a"])),
        ("data.name=/x/y.npz", ("data.name", ["/x/y.npz"])),
    ],
)
def test_assignments(text: str, expected: tuple[str, list[Any]]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["beta=1", "penalty.beta", "penalty.beta=", "penalty.beta=1,,2"])
def test_bad_assignments(text: str) -> None:
    with pytest.raises(ValueError, match=r"--set takes section.setting=value"):
        parse_assignment(text)


@pytest.mark.parametrize("value", ["it's,b", "[8, 16,[4]", "{a = 1,2", "a],b", '"a,b'])
def test_a_quote_or_bracket_that_stays_open_swallows_nothing(value: str) -> None:
    with pytest.raises(ValueError, match=rf"no partner in .*{re.escape(value)}.*; add it, or put"):
        parse_assignment(f"data.name={value}")


def settings(**changes: Any) -> RunSettings:
    return RunSettings.model_validate(changes)


@pytest.mark.parametrize("scale", SCALES)
def test_colour_crosses_networks_bits_and_trainings_on_keras_3(scale: str) -> None:
    recipe = load_recipe("colour", scale)
    networks = ["float", *(f"{name}, activation_bits {n}" for name in ("VQ", "DQ") for n in (8, 4))]
    trainings = ("", " + N-FGSM training", " + TRADES")
    names = {"".join([kind, how, *rest]) for how in trainings
             for kind, *rest in (re.split("(?=,)", network) for network in networks)}  # fmt: skip
    assert {variant.name for variant in recipe.variants} == names
    for variant in recipe.variants:
        given = variant.settings
        assert given.training.backend == {"small": "tensorflow", "paper": "jax"}[scale]
        assert given.evaluation.epsilons == (2.0, 4.0, 8.0)
        assert (given.penalty.beta > 0) == variant.name.startswith("DQ")
        how = ("n-fgsm", "adversarial") if "N-FGSM" in variant.name else ("none", "adversarial")
        how = ("pgd", "trades") if "TRADES" in variant.name else how
        assert (given.adversarial.attack, given.adversarial.objective) == how
        assert given.evaluation.suite_images == {"small": 200, "paper": 1000}[scale]


def test_what_was_trained_before_keeps_its_name() -> None:
    before = {"data": {"name": "fashion_mnist"}, "training": {"epochs": 8}}
    assert settings(**before).training_key(0) == "c47ef88bde36"
    assert settings(**before).evaluation_key() == "9bef30a09b4b"
    vanilla_float = settings(**before, quantization={"activation_bits": 0}, penalty={"beta": 0})
    assert vanilla_float.training_key(0) == "558306edfbc3"


def test_what_does_nothing_does_not_tell_runs_apart() -> None:
    vanilla = settings(penalty={"beta": 0.0})
    assert vanilla.training_key(0) == settings(
        penalty={"beta": 0.0, "on": "kernel"}, training={"checkpoint_steps": 7}
    ).training_key(0)
    assert vanilla.training_key(0) == settings(
        penalty={"beta": 0.0}, data={"dir": "/elsewhere"}, evaluation={"images": 300}
    ).training_key(0)
    float_network = settings(penalty={"beta": 0.0}, quantization={"activation_bits": 0})
    assert float_network.training_key(0) == settings(
        penalty={"beta": 0.0}, quantization={"activation_bits": 0, "weight_bits": 4}
    ).training_key(0)


@pytest.mark.parametrize(
    "changes",
    [
        {"penalty": {"beta": 0.003}},
        {"penalty": {"on": "folded"}},
        {"quantization": {"activation_bits": 3}},
        {"quantization": {"batch_norm_momentum": 0}},
        {"quantization": {"layer_bits": {"logits": 8}}},
        {"adversarial": {"attack": "r+fgsm"}},
        {"training": {"learning_rate": 1e-3}},
        {"training": {"schedule": "one-cycle"}},
        {"training": {"cutout": 8}},
        {"data": {"train_images": 100}},
        {"model": {"options": {"width": 8}}},
    ],
)
def test_what_changes_the_weights_tells_runs_apart(changes: dict[str, Any]) -> None:
    assert settings(**changes).training_key(0) != settings().training_key(0)
    assert settings().training_key(1) != settings().training_key(0)


def test_the_precision_of_a_float_network_tells_runs_apart() -> None:
    plain, mixed = (
        settings(quantization={"activation_bits": 0}, training={"precision": name})
        for name in ("float32", "bfloat16")
    )
    assert plain.training_key(0) != mixed.training_key(0)


def test_the_kind_of_evaluation_tells_results_apart() -> None:
    assert (
        settings(evaluation={"images": 300}).evaluation_key()
        != settings(evaluation={"images": 301}).evaluation_key()
    )


def test_every_setting_is_documented() -> None:
    page = Path(load_recipe.__code__.co_filename).parents[2] / "docs" / "experiments.md"
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page.read_text(), re.MULTILINE))
    for section, field in RunSettings.model_fields.items():
        listed = set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", rows[section])))
        assert listed == set(type(field.default).model_fields), section


@pytest.mark.parametrize("text", ["bit_depth_0", "median_1", "median", "blur_3", "bit_depth_x"])
def test_unknown_squeezers(text: str) -> None:
    with pytest.raises(ValueError, match="squeezing takes"):
        parse_squeezer(text)
