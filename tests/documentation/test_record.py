"""What the pages say of the results on record is what the records say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.learned_steps import GRIDS
from tests.documentation.markdown import ROOT
from tfdq.experiments.result_files import read_results_file
from tfdq.experiments.settings import RunSettings
from tfdq.models import create
from tfdq.report.experiment_table import as_markdown
from tfdq.report.results_page import page, read_results

RESULTS = ROOT / "results"


def summary(name: str) -> dict[str, Any]:
    content = read_results_file(RESULTS / f"{name}.json")
    return content["summary"]  # type: ignore[no-any-return]


def cell(metric: dict[str, float]) -> str:
    return "{mean:.1f} [{low:.1f}, {high:.1f}]".format(
        **{key: 100 * metric[key] for key in ("mean", "low", "high")}
    )


def test_the_page_of_results_is_up_to_date() -> None:
    assert page(read_results(RESULTS), "results") == (ROOT / "docs" / "RESULTS.md").read_text()


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("float", "float"),
        ("VQ", "VQ"),
        ("DQ", "DQ"),
        ("VQ + adversarial training", "VQ + R+FGSM training"),
        ("DQ + adversarial training", "DQ + R+FGSM training"),
    ],
)
def test_the_table_of_the_readme(name: str, variant: str) -> None:
    """Grey 4 bits and float from one record, 8 bits from another, colour from a third."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    colour = summary("white_box_cifar10_jpeg").get(variant)
    for bits, record, of in (("4 bits", "white_box", ""), ("8 bits", "levels", "tflite ")):
        found = summary(record).get(variant)
        if found is None:
            assert (bits, name) == ("8 bits", "float")
            continue
        cells = [cell(found[f"{of}clean"]), cell(found[f"{of}worst@8"]), "", ""]
        if colour is not None and bits == "4 bits":
            cells[2:] = cell(colour["clean"]), cell(colour["worst@8"])
        kernels = "float32" if variant == "float" else bits
        row = f"| {name} | {kernels} | {' | '.join(cells)} | {kibibytes(record, variant)} |"
        assert row.replace("|  |", "| |").replace("|  |", "| |") in lines


def kibibytes(record: str, variant: str) -> int:
    """Return the size of a variant's file, or of its float32 weights where it has none."""
    content = read_results_file(RESULTS / f"{record}.json")
    figures = [run["figures"] for run in content["runs"] if run["variant"] == variant]
    sizes = {found["tflite"]["bytes"] for found in figures if "tflite" in found}
    if not sizes:
        model = create("small_cnn", (28, 28, 1), 10, stem_strides=2)
        sizes = {4 * model.count_params()}
    (size,) = sizes
    return round(size / 1024)


def test_the_readme_says_what_each_row_was_measured_on() -> None:
    """Network or file, which attacks, and in which seeds the audits failed."""
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    content = read_results_file(RESULTS / "white_box.json")
    on_file = content["summary"]["DQ"]["tflite worst@8"]["mean"]
    figures = {
        name: [run["figures"] for run in content["runs"] if run["variant"] == name]
        for name in ("float", "DQ")
    }
    (images,) = {found["tflite"]["suite"]["images"] for found in figures["DQ"]}
    assert f"on the file of DQ at 4 bits the worst case is {100 * on_file:.1f} ({images}" in text
    attacks = {name: {tuple(f["suite"]["attacks"]) for f in figures[name]} for name in figures}
    ((of_float,), (of_dq,)) = attacks["float"], attacks["DQ"]
    assert set(of_dq) - set(of_float) == {"low-bit"}
    assert len(of_float) == 4
    assert "so float was attacked by the four others" in text
    assert content["audits"]["DQ + R+FGSM training"] == {"0": ["local linearity"], "1": [], "2": []}
    without = {"0": ["local linearity", "planted adversarial image"], "1": [], "2": []}
    assert content["audits"]["VQ + R+FGSM training"] == without
    assert (
        "failed the audit of seed 0: local linearity with the penalty, a planted adversarial "
        "image as well without it; seeds 1 and 2 passed."
    ) in text


def test_the_readme_cites_the_certified_accuracy_of_the_file_of_8_bits() -> None:
    content = json.loads((RESULTS / "complete_verification.json").read_text(encoding="utf-8"))
    assert content["settings"]["bits"] == 8
    clean, certified = (
        100 * np.mean([run["accuracy"][name] for run in content["runs"].values()])
        for name in ("clean", "certified by intervals")
    )
    images = content["settings"]["images"]
    cell = f"{certified:.1f} % certified at 1/255 at {clean:.1f} clean ({images} images)"
    row = f"[`IntervalTraining`](docs/certificates.md), 8 bits, then `certify` | {cell} |"
    assert row in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_compares_with_a_float_network_trained_on_attacks() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    found = summary("white_box")["float + R+FGSM training"]["worst@8"]["mean"]
    assert f"a float network trained so keeps {100 * found:.1f}." in text


@pytest.mark.parametrize(
    ("row", "variant"),
    [
        ("no penalty (VQ)", "VQ, observed range"),
        ("trained kernel, target 1, 0.002 (the paper's)", "DQ (paper), observed range"),
        ("deployed, target 1, 0.002", "deployed, target 1, observed range"),
        ("folded, 1/k, 0.002", "folded, 1/k, observed range"),
        (
            "**deployed, 1/k, 0.002: the default**",
            "deployed, 1/k, observed range, beta 0.002",
        ),
        ("deployed, 1/k, 0.005", "deployed, 1/k, observed range, beta 0.005"),
        ("conv_orthogonal, target 1, 0.005", "conv_orthogonal, target 1, observed range"),
        ("srip, 1/k, 0.05", "srip, 1/k, observed range"),
        ("spectral, 1/k, 0.05", "spectral, 1/k, observed range"),
        ("8 bits, no penalty", "VQ, 8 bits, observed range"),
        ("8 bits, deployed, 1/k, 0.002", "deployed, 1/k, 8 bits, observed range"),
        ("2 bits, no penalty", "VQ, 2 bits, observed range"),
        ("2 bits, deployed, 1/k, 0.002", "deployed, 1/k, 2 bits, observed range"),
    ],
)
def test_the_ablation_on_observed_ranges(row: str, variant: str) -> None:
    found = summary("lipschitz_ablation")[variant]
    means = " | ".join(f"{100 * found[key]['mean']:.1f}" for key in ("clean", "fgsm@8", "pgd@8"))
    audits = read_results_file(RESULTS / "lipschitz_ablation.json")["audits"]
    passed = sum(not failed for failed in audits[variant].values())
    line = f"| {row} | {means} | {cell(found['worst@8'])} | {passed} of {len(audits[variant])} |"
    assert line in (ROOT / "docs" / "lipschitz.md").read_text(encoding="utf-8").splitlines()


def test_the_readme_cites_the_held_out_images() -> None:
    found = summary("levels_held_out")
    pairs = [
        f"{100 * found[name]['tflite clean']['mean']:.1f} / "
        f"{100 * found[name]['tflite worst@8']['mean']:.1f}"
        for name in ("VQ", "DQ", "VQ + R+FGSM training", "DQ + R+FGSM training")
    ]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{', '.join(pairs[:3])} and {pairs[3]}" in text


def test_a_recompressed_copy_is_never_called_by_the_data_sets_name() -> None:
    text = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8").lower()
    assert "cifar10 (jpeg copy) (all training images)" in text
    assert text.count("cifar10 (") == text.count("cifar10 (jpeg copy)")


def test_outcomes_of_file_and_network_are_counted() -> None:
    content = read_results_file(RESULTS / "white_box.json")
    same = count = 0
    for run in content["runs"]:
        if "suite" not in run["figures"].get("tflite", {}):
            continue
        of_file, of_network = (
            np.array(list(part["suite"]["eps"]["8"]["worst"]))
            for part in (run["figures"]["tflite"], run["figures"])
        )
        equal = of_file == of_network[: len(of_file)]
        same, count = same + int(equal.sum()), count + len(equal)
    assert 0.95 * count < same < count
    text = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    assert f"the same outcome in the worst case on {same:,} of {count:,} images" in text


def test_figures_that_only_square_brings_down_are_named() -> None:
    """Counted from what each image met, in every record."""
    text = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    named = sum(text.count(f"points at eps {strength}/255)") for strength in (4, 8, 16))
    expected = 0
    for content in read_results(RESULTS).values():
        gaps: dict[tuple[str, str], list[float]] = {}
        for run in content["runs"]:
            for strength, parts in run["figures"].get("suite", {}).get("eps", {}).items():
                white, worst = (
                    np.mean([mark == "1" for mark in parts[kind]])
                    for kind in ("white_box", "worst")
                )
                gaps.setdefault((run["variant"], strength), []).append(float(white - worst))
        for (variant, strength), values in gaps.items():
            if np.mean(values) > 0.02:
                expected += 1
                assert (
                    f"{variant} ({100 * np.mean(values):.1f} points at eps {strength}/255)" in text
                )
    assert named == expected


def test_a_figure_that_only_square_brings_down_gets_a_note() -> None:
    results = read_results_file(RESULTS / "white_box.json")
    before = as_markdown(results)
    figure = results["summary"]["DQ"]
    figure["white_box@8"]["mean"] = figure["worst@8"]["mean"] + 0.021
    note = "Not to be called robust, as Square alone breaks more than 2 points of what"
    assert note not in before
    assert f"{note} the white-box attacks leave: DQ (2.1 points at eps 8/255)." in as_markdown(
        results
    )


def test_what_was_trained_with_the_earlier_penalty_is_named() -> None:
    results = read_results_file(RESULTS / "white_box.json")
    settings = {
        variant["name"]: RunSettings.model_validate(variant["settings"])
        for variant in results["recipe"]["variants"]
    }
    folded = [n for n, s in settings.items() if s.quantized and s.penalty.on == "deployed"]
    folded = [name for name in folded if settings[name].penalty.beta > 0]
    assert "DQ" in folded
    assert not any("VQ" in name or "paper" in name for name in folded)
    note = f"channel's kernel alone: {'; '.join(folded)}. The present one"
    assert note in as_markdown(results)
    for run in results["runs"]:
        run["training_key"] = settings[run["variant"]].training_key(run["seed"])
    assert "channel's kernel alone" not in as_markdown(results)


def test_the_certified_accuracies() -> None:
    content = read_results_file(RESULTS / "certified_accuracy.json")
    text = " ".join((ROOT / "docs" / "certificates.md").read_text(encoding="utf-8").split())
    for part in content.values():
        assert len(part["runs"]) == 3
        for metric, figure in part["summary"].items():
            seeds = [run["accuracy"][metric] for run in part["runs"].values()]
            assert figure["mean"] == pytest.approx(np.mean(seeds))
            if metric != "abstained":
                assert cell(figure).replace(" [", " % [") in text, metric


def test_the_worked_example_of_the_audit() -> None:
    """Every figure of the table, of the tried ranges and of the two verdicts."""
    found = read_results_file(RESULTS / "mlperf_tiny_resnet8.json")
    measured, sha256 = found["measured"], found["file"]["sha256"]
    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    columns = ("standard suite", "PGD-20", "Square", "PGD-20 through the softmax")
    for eps in (1, 2, 4, 8):
        cells = [cell_of(measured[f"{name} at {eps}/255"]) for name in columns]
        assert f"| {eps}/255 | {' | '.join(cells)} |" in text.splitlines()
    assert f"| 0 | | {cell_of(measured['clean'])} | | |" in text.splitlines()
    running = " ".join(text.split())
    left = measured["standard suite at 1/255"]
    assert f"at 1/255 the suite leaves {left['standing']} of {left['images']} images" in running
    assert measured["standard suite at 2/255"]["standing"] == 0
    for name, accuracy in measured["input range"]["tried"]["accuracy"].items():
        assert f"{name} {100 * accuracy:.1f} %" in running
    assert f"`{sha256[:16]}...`" in running
    assert f"on {100 * measured['zero gradients']['probabilities']:.1f} % of the images" in running
    assert measured["zero gradients"]["logits"] == 0.0
    assert measured["audit at 8/255"]["verdict"]["status"] == "passed"
    reasons = measured["audit through the softmax at 8/255"]["verdict"]["reasons"]
    assert f"failed: {', '.join(reasons)}." in running


def test_what_fine_tuning_keeps() -> None:
    """Every row of the table, and the point that it promises, of two seeds each."""
    found = read_results_file(RESULTS / "fine_tuning.json")["fine_tuning"]
    text = (ROOT / "docs" / "lipschitz.md").read_text(encoding="utf-8")
    for name in ("DS-CNN", "EfficientNet-Lite", "MobileNetV2"):
        for momentum in ("0.9", "0.99"):
            means = [
                np.mean(
                    [
                        found[f"{name}, momentum {momentum}, beta {beta}, seed {seed}"]["file"]
                        for seed in (0, 1)
                    ],
                    axis=0,
                )
                for beta in ("0", "0.002")
            ]
            cells = [" ".join(f"{100 * value:.1f}" for value in mean) for mean in means]
            assert f"| {name} | {momentum} | {' | '.join(cells)} |" in text.splitlines()
            assert (means[1] >= means[0] - 0.01).all()


def test_what_beta_buys() -> None:
    """Every row of the table of two seeds, and the point that fine-tuning may lose."""
    found = read_results_file(RESULTS / "fine_tuning.json")
    text = (ROOT / "docs" / "lipschitz.md").read_text(encoding="utf-8")
    rows = text.partition("<!-- beta -->")[2].partition("<!-- /beta -->")[0].splitlines()

    def files(name: str, momentum: str, beta: str) -> np.ndarray:
        keys = [f"{name}, momentum {momentum}, beta {beta}, seed {seed}" for seed in (0, 1)]
        return np.mean([found["fine_tuning"][key]["file"] for key in keys], axis=0)

    for beta in ("0", "0.001", "0.002", "0.005"):
        seeds = [found["robustness"][f"beta {beta}, seed {seed}"] for seed in (0, 1)]
        cells = [" ".join(f"{100 * seed[key]:.1f}" for seed in seeds) for key in ("clean", "worst")]
        lost = {"0": "", "0.001": "not measured"}.get(beta)
        if lost is None:
            most = max(
                float((files(name, momentum, "0") - files(name, momentum, beta)).max())
                for name in ("DS-CNN", "EfficientNet-Lite", "MobileNetV2")
                for momentum in ("0.9", "0.99")
            )
            assert most <= 0.01
            lost = f"{100 * most:.1f}"
        line = f"| {beta} | {' | '.join(cells)} | {lost} |"
        assert line.replace("|  |", "| |") in rows


def cell_of(share: dict[str, float]) -> str:
    return "{value:.1f} [{low:.1f}, {high:.1f}]".format(
        **{key: 100 * share[key] for key in ("value", "low", "high")}
    )


def test_learned_steps_are_those_on_record() -> None:
    record = json.loads((RESULTS / "learned_steps.json").read_text())
    page = (ROOT / "docs" / "keras3-training.md").read_text()
    for bits, beta in ((4, "0"), (4, "0.002"), (2, "0"), (2, "0.002")):
        found = record[f"{bits} bits, beta {beta}, seed 0"]
        cells = [100 * found[grid] for grid in GRIDS]
        row = next(line for line in page.splitlines() if line.startswith(f"| {bits} | {beta} |"))
        shown = [float(text) for text in row.strip("| ").split("|")[2:]]
        np.testing.assert_allclose(shown, cells, atol=0.0501)


def test_the_page_says_what_the_complete_procedure_decided() -> None:
    content = json.loads((RESULTS / "complete_verification.json").read_text(encoding="utf-8"))
    runs = list(content["runs"].values())
    assert len(runs) == 3

    def over_seeds(name: str) -> str:
        values = np.array([100 * run["accuracy"][name] for run in runs])
        half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
        mean = values.mean()
        return f"{mean:.1f} % [{mean - half:.1f}, {mean + half:.1f}]"

    unknown = [100 * run["accuracy"]["unknown"] for run in runs]
    seconds = [run["seconds"]["in all"] for run in runs]
    text = " ".join((ROOT / "docs" / "certificates.md").read_text(encoding="utf-8").split())
    assert f"the first {content['settings']['images']} test images" in text
    assert f"a file of {runs[0]['KiB']:.0f} KiB. It classifies {over_seeds('clean')}" in text
    assert (
        f"At 1/255 intervals certify {over_seeds('certified by intervals')}; the complete "
        f"procedure verifies {over_seeds('verified')}, breaks {over_seeds('broken')} and leaves "
        f"{min(unknown):.1f} to {max(unknown):.1f} % unknown, in {min(seconds):.0f} to "
        f"{max(seconds):.0f} s for all on one thread."
    ) in text
    assert not any(
        key.endswith(("verified, branching", "broken, branching"))
        for run in runs
        for key in run["decided"]
    )


def test_what_files_keep_without_training() -> None:
    """Every row of the table, and that no file is half a point behind the converter's."""
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    table = text.partition("<!-- post-training -->")[2].partition("<!-- /post-training -->")[0]
    rows = [
        f"| {name} | {100 * found['float']:.2f} | {100 * found['file']:.2f} "
        f"| {100 * found['stock file']:.2f} | {found['time over stock']:.2f} |"
        for name, found in read_results_file(RESULTS / "post_training.json")["networks"].items()
    ]
    assert table.split("\n")[3:-1] == rows
    for found in read_results_file(RESULTS / "post_training.json")["networks"].values():
        assert found["file"] >= found["stock file"] - 0.005
