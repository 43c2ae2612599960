"""From figures to verdicts: intervals over seeds, paired tests, claims."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.weightstats import DescrStatsW

from tfdq.experiments.figures import figures_of, mask
from tfdq.experiments.recipe import Claim
from tfdq.experiments.summary import average, in_worst_case, judge
from tfdq.report import experiment_table


def bits(values: Any) -> str:
    return "".join(str(int(value)) for value in values)


def test_intervals_are_students_over_seeds() -> None:
    rng = np.random.default_rng(0)
    values = {seed: bits(rng.random(200) < 0.5 + 0.1 * seed) for seed in range(3)}
    found = average(values)
    shares = [mask(text).mean() for text in values.values()]
    low, high = DescrStatsW(shares).tconfint_mean()
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(
        (np.mean(shares), max(low, 0), min(high, 1))
    )
    assert list(found["seeds"].values()) == pytest.approx(shares)


def test_one_seed_has_the_images_interval() -> None:
    from statsmodels.stats.proportion import proportion_confint

    found = average({0: bits([1] * 30 + [0] * 70)})
    assert (found["low"], found["high"]) == pytest.approx(
        proportion_confint(30, 100, method="wilson")
    )
    alone = average({0: 2.5})
    assert (alone["mean"], alone["low"], alone["images"]) == (2.5, None, None)


def with_suite(part: str, names: list[str] | None) -> dict[str, Any]:
    """A run of Square alone, and of a suite whose black-box attacks stand under a key."""
    kept = {} if names is None else {"black_box": names}
    suite = {"eps": {"8": {"white_box": "1110", part: "1100", "worst": "1100"}}, **kept}
    attacks = {"8": {"square": "1000"}}
    return {
        "variant": "a",
        "seed": 0,
        "figures": {"clean": "1111", "attacks": attacks, "suite": suite},
    }


@pytest.mark.parametrize("part", ["square", "black_box"])
def test_the_black_box_attacks_of_a_suite_are_not_the_single_square(part: str) -> None:
    found = figures_of([with_suite(part, None)], [], "a")
    assert found["square@8"] == {0: "1000"}
    assert found["black_box@8"] == {0: "1100"}


@pytest.mark.parametrize(
    ("names", "single", "title"),
    [
        (["square"], False, "Square"),
        (["square"], True, "black-box attacks"),
        (["square", "strip"], False, "black-box attacks"),
    ],
)
def test_only_square_that_stands_alone_is_called_so(
    names: list[str], single: bool, title: str
) -> None:
    run = with_suite("black_box", names)
    if not single:
        run["figures"]["attacks"] = {}
    metrics = {key: average(v) for key, v in figures_of([run], [], "a").items()}
    results = {"summary": {"a": metrics}, "audits": {}, "runs": [run]}
    heading = experiment_table._table(results, "8")[2]
    first = " | Square" if single else ""
    assert heading == f"| variant | clean{first} | white box | {title} | worst case |"
    (text,) = experiment_table._hidden({"a": metrics}, title)
    assert ("Square alone breaks" in text) == (title == "Square")


CLAIM = Claim(text="a beats b", better="a", worse="b", metric="fgsm")


def runs(name: str, seeds: dict[int, str], worst: str | None = None) -> list[dict[str, Any]]:
    return [
        {
            "variant": name,
            "seed": seed,
            "figures": {
                "clean": text,
                "attacks": {"4": {"fgsm": "1" * len(text)}, "8": {"fgsm": text}},
                **({"suite": {"eps": {"8": {"worst": worst}}}} if worst else {}),
            },
        }
        for seed, text in seeds.items()
    ]


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([60, 60, 60], [30, 30, 30], "holds"),
        ([30, 30, 30], [60, 60, 60], "reversed"),
        ([60, 60, 60], [58, 58, 58], "not shown"),
        ([60, 60, 30], [30, 30, 60], "not shown"),
        ([60, 60, 60], [30, 30, 60], "not shown"),
    ],
)
def test_a_claim_needs_every_seed(a: list[int], b: list[int], verdict: str) -> None:
    def first(counts: list[int]) -> dict[int, str]:
        return {seed: bits([1] * n + [0] * (100 - n)) for seed, n in enumerate(counts)}

    figures = {
        "a": figures_of(runs("a", first(a)), [], "a"),
        "b": figures_of(runs("b", first(b)), [], "b"),
    }
    found = judge(CLAIM, figures)
    assert found["verdict"] == verdict
    assert found["metric"] == "fgsm@8"
    assert found["tests"][0]["difference"] == pytest.approx((a[0] - b[0]) / 100)
    expected = binomtest(max(a[0] - b[0], 0), abs(a[0] - b[0])).pvalue if a[0] != b[0] else 1.0
    assert found["tests"][0]["p"] == pytest.approx(expected)


def test_a_claim_is_judged_in_the_worst_case_too() -> None:
    good, bad = bits([1] * 60 + [0] * 40), bits([1] * 30 + [0] * 70)
    figures = {
        # Better under FGSM, worse when attacked in earnest: masked gradients.
        "a": figures_of(runs("a", {0: good}, worst=bad), [], "a"),
        "b": figures_of(runs("b", {0: bad}, worst=good), [], "b"),
    }
    assert judge(CLAIM, figures)["verdict"] == "holds"
    worst = in_worst_case(CLAIM, figures)
    assert worst is not None
    assert worst["verdict"] == "reversed"
    assert in_worst_case(CLAIM.model_copy(update={"metric": "clean"}), figures) is None


def test_what_was_not_measured_has_no_verdict() -> None:
    assert judge(CLAIM, {"a": {}, "b": {}})["verdict"] == "not measured"
    assert judge(CLAIM, {})["verdict"] == "not measured"


def test_amplification_needs_three_seeds_that_agree() -> None:
    claim = CLAIM.model_copy(update={"metric": "amplification"})
    low = {"amplification@8": {0: 1.0, 1: 1.1, 2: 0.9}}
    high = {"amplification@8": {0: 2.0, 1: 2.1, 2: 1.9}}
    assert judge(claim, {"a": low, "b": high})["verdict"] == "holds"
    assert judge(claim, {"a": high, "b": low})["verdict"] == "reversed"
    two = {"amplification@8": {0: 1.0, 1: 1.1}}
    assert judge(claim, {"a": two, "b": high})["verdict"] == "not shown"
