"""Files of results, plain and packed."""

import json
import lzma
import tracemalloc
from pathlib import Path

import pytest

from tests.documentation.markdown import ROOT
from tfdq.experiments import result_files
from tfdq.experiments.known_results import KnownResults
from tfdq.experiments.result_files import read_results_file
from tfdq.report.results_page import read_results

CONTENT = {"format": "tfdq experiment", "runs": []}


@pytest.mark.parametrize("asked", ["results.json", "results.json.xz"])
def test_a_packed_file_is_found_by_both_names(tmp_path: Path, asked: str) -> None:
    (tmp_path / "results.json.xz").write_bytes(lzma.compress(json.dumps(CONTENT).encode()))
    assert read_results_file(tmp_path / asked) == CONTENT


def test_the_plain_file_comes_first_where_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "results.json.xz").write_bytes(lzma.compress(b"1"))
    (tmp_path / "results.json").write_text("2")
    assert read_results_file(tmp_path / "results.json") == 2
    assert read_results_file(tmp_path / "results.json.xz") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole xz file"),
        (b"no xz", "not a whole xz file"),
        (lzma.compress(b"{}" * 5000)[:-9], "not a whole xz file"),
        (lzma.compress(b"{"), "not JSON"),
        (lzma.compress(b"\xff"), "not JSON"),
        (lzma.compress(b"[" * 100_000), "not JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "results.json.xz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"results\.json\.xz.*{message}"):
        read_results_file(path)
    with pytest.raises(ValueError, match=message):
        KnownResults([path])


def test_a_packed_file_cannot_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_files, "LARGEST", 2**20)
    path = tmp_path / "results.json.xz"
    path.write_bytes(lzma.compress(b" " * 2**26))
    tracemalloc.start()
    with pytest.raises(ValueError, match="unpacks to more than 1 MiB"):
        read_results_file(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    content = json.dumps(read_results_file(ROOT / "results" / "placement_seeds.json"))
    (tmp_path / "one.json").write_text(content)
    assert list(read_results(tmp_path)) == ["one"]
    (tmp_path / "one.json.xz").write_bytes(lzma.compress(content.encode()))
    with pytest.raises(ValueError, match="'one' twice"):
        read_results(tmp_path)


def test_the_record_is_small() -> None:
    folder = ROOT / "results"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2**20
    assert KnownResults([folder / "white_box.json"]).without([])
