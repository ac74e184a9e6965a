"""boxes.csv: every box of the folder, in numbers that agree with the JSON, safe to open, whoever writes it."""

import csv
import errno
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from girih.outputs import table, write_case, write_table
from girih_detectors.inference import restore
from girih_metrics.formats.table import read_rows

TURN = np.array([[0.0, 0.0, 2.0, -10.0], [3.0, 0.0, 0.0, 20.0], [0.0, -4.0, 0.0, 30.0], [0.0, 0.0, 0.0, 1.0]])


def write(out: Path, case_id: str, boxes, scores, *, labels=None, classes=("nodule", "cyst"), affine=TURN) -> None:
    prepared = {"source_affine": affine, "affine": affine, "source_shape_zyx": (20, 20, 20)}
    found = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 6),
        "scores": np.array(scores, np.float32),
        "labels": np.array([0] * len(scores) if labels is None else labels, np.int64),
    }
    write_case(out, restore(found, prepared, case_id=case_id, classes=classes), formats=())


def rows(out: Path) -> list[dict[str, str]]:
    with write_table(out).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_by_hand(tmp_path: Path) -> None:
    """Index (x, y, z) lies at RAS (2 z - 10, 3 x + 20, 30 - 4 y); the box is voxels z 1-3, y 2-4, x 3-5."""
    write(tmp_path, "a", [[1, 2, 3, 4, 5, 6]], [0.5], labels=[1])
    (row,) = rows(tmp_path)
    assert {name: row[name] for name in ("case_id", "class", "score", "box")} == {
        "case_id": "a",
        "class": "cyst",
        "score": "0.5",
        "box": "1",
    }
    number = {name: float(value) for name, value in row.items() if name not in ("case_id", "class")}
    assert [number[name] for name in ("z0", "y0", "x0", "z1", "y1", "x1")] == [1, 2, 3, 4, 5, 6]
    ras = [number[f"{name}_ras_mm"] for name in ("x0", "y0", "z0", "x1", "y1", "z1")]
    assert ras == [2 * 0.5 - 10, 3 * 2.5 + 20, 30 - 4 * 4.5, 2 * 3.5 - 10, 3 * 5.5 + 20, 30 - 4 * 1.5]
    lps = [number[f"{name}_lps_mm"] for name in ("x0", "y0", "z0", "x1", "y1", "z1")]
    assert lps == [3, -36.5, 12, 9, -27.5, 24]
    assert [number[f"center_{axis}_ras_mm"] for axis in "xyz"] == [-6, 32, 18]
    assert [number[f"center_{axis}_lps_mm"] for axis in "xyz"] == [6, -32, 18]
    assert [number[f"size_{axis}_mm"] for axis in "zyx"] == [6, 12, 9]  # 3 voxels of 2, 4 and 3 mm


def test_rows_are_sorted_and_numbered_as_in_the_other_files(tmp_path: Path) -> None:
    unit = [0, 0, 0, 1, 1, 1]
    write(tmp_path, "b", [unit, unit], [0.9, 0.2])
    write(tmp_path, "a", [unit, unit, unit], [0.3, 0.7, 0.7])  # a file of somebody who does not sort
    write(tmp_path, "empty", [], [])
    order = [(row["case_id"], row["box"], round(float(row["score"]), 3)) for row in rows(tmp_path)]
    assert order == [("a", "2", 0.7), ("a", "3", 0.7), ("a", "1", 0.3), ("b", "1", 0.9), ("b", "2", 0.2)]
    with write_table(tmp_path, min_score=0.5).open() as file:
        assert [row["case_id"] for row in csv.DictReader(file)] == ["a", "a", "b"]
    with pytest.raises(ValueError, match=r"min_score is 1\.5, wanted 0 to 1"):
        write_table(tmp_path, min_score=1.5)


def test_a_box_with_the_least_score_is_in_the_table(tmp_path: Path) -> None:
    write(tmp_path, "a", [[0, 0, 0, 1, 1, 1]] * 2, [0.5, 0.25])
    with write_table(tmp_path, min_score=0.5).open() as file:
        assert [row["score"] for row in csv.DictReader(file)] == ["0.5"]


def test_rows_are_sorted_by_case_id_and_not_by_file_name(tmp_path: Path) -> None:
    for case_id in ("a b", "a", "a-b"):  # "a b.json" comes before "a.json"
        write(tmp_path, case_id, [[0, 0, 0, 1, 1, 1]], [0.5])
    assert [row["case_id"] for row in rows(tmp_path)] == ["a", "a b", "a-b"]


def test_an_empty_folder_gives_a_header_and_none_an_error(tmp_path: Path) -> None:
    assert rows(tmp_path) == []
    assert (tmp_path / "boxes.csv").read_text().startswith('"case_id","class","score","box","z0",')
    with pytest.raises(ValueError, match="is not a folder of predictions"):
        write_table(tmp_path / "none")


def test_the_table_is_read_by_the_metrics_as_predictions(tmp_path: Path) -> None:
    write(tmp_path, "a", [[1, 2, 3, 4, 5, 6]], [0.5])
    (row,) = read_rows(write_table(tmp_path), ("case_id", "class", "score", "z0", "y0", "x0", "z1", "y1", "x1"))
    assert row["case_id"] == "a"


NUMBER = re.compile(r"-?[0-9.]+")
SIGNS = "=+-@\uff1d\uff0b\uff0d\uff20\t\r\n"
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="/\\\u2028\u2029"),
    min_size=1,
    max_size=12,
).filter(lambda text: not text.startswith("."))
ODD = ["=1+1", "+1", "-x", "@a", "'=x", "\uff1d1", 'a,b;"c"', "a b", "\u00e4\u2028b", '=HYPERLINK("x"),', "x;=1+1"]


@settings(max_examples=40)
@given(NAMES | st.sampled_from(ODD), st.sampled_from(["", "\t", "\r", "\n", "a;", 'a;"', "a\n;'"]))
def test_names_come_back_and_are_never_formulas(tmp_path_factory, name: str, lead: str) -> None:
    out = tmp_path_factory.mktemp("out")
    case_id = name.encode()[:60].decode(errors="ignore").replace("/", "_")
    write(out, case_id, [[0, 0, 0, 1, 1, 1]], [0.5], classes=(f"{lead}{name}\n", "cyst"))
    (row,) = rows(out)
    for cell, wanted in ((row["case_id"], case_id), (row["class"], f"{lead}{name}\n")):
        assert cell[0] not in SIGNS
        assert re.sub("(^|(?<=[;\"\t\r\n]))'", "", cell) == wanted
        assert (cell[0] == "'") == (wanted[0] in SIGNS + "'")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    "name", ["=1+1", "x;=1+1", 'x;"=1+1";y', 'x;"";+1', 'x";-1', "x;\n=1", "x\t@y", "\n=1", "x;'=1"]
)
def test_no_cell_is_a_formula_whatever_separates_cells(tmp_path: Path, name: str, separator: str) -> None:
    case_id = name.translate({9: "_", 10: "_"})
    write(tmp_path, case_id, [[0, 0, 0, 1, 1, 1]], [0.5], classes=(name, "cyst"))
    text = write_table(tmp_path).read_text(encoding="utf-8")
    for line in text.splitlines()[1:]:
        assert line[0] not in SIGNS
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
        for cell in row:
            assert not cell.startswith(tuple(SIGNS)) or NUMBER.fullmatch(cell), row


def test_text_is_in_quotation_marks_and_numbers_are_not(tmp_path: Path) -> None:
    write(tmp_path, "1", [[0, 0, 0, 1, 1, 1]], [0.5], classes=("2", "cyst"))
    line = write_table(tmp_path).read_text().splitlines()[1]
    assert line.startswith('"1","2",0.5,1,0.0,')
    assert line.count('"') == 4


def test_numbers_are_those_of_the_json(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 10, (5, 3))
    write(tmp_path, "a", np.concatenate([low, low + rng.uniform(0, 5, (5, 3))], axis=1), np.sort(rng.random(5))[::-1])
    record, found = json.loads((tmp_path / "a.json").read_text()), rows(tmp_path)
    for row, box, ras, score in zip(found, record["boxes"], record["boxes_ras_mm"], record["scores"], strict=True):
        assert [float(row[name]) for name in ("z0", "y0", "x0", "z1", "y1", "x1")] == box
        assert float(row["score"]) == score
        seen = [float(row[f"{name}_ras_mm"]) for name in ("x0", "y0", "z0", "x1", "y1", "z1")]
        assert_allclose(seen, ras, rtol=0, atol=0.5001 * 10**-table.DECIMALS_MM)
        assert not any(value == "-0.0" for value in row.values())


def test_a_file_that_is_no_case_is_named_and_the_table_before_stays(tmp_path: Path) -> None:
    write(tmp_path, "a", [[0, 0, 0, 1, 1, 1]], [0.5])
    before = write_table(tmp_path).read_bytes()
    whole = (tmp_path / "a.json").read_text()
    cases = {
        whole[: len(whole) // 2]: r"b\.json: not JSON",
        whole: r"b\.json: case_id is 'a', wanted the file's name, 'b'",
        "[]": r"b\.json: schema is None",
        whole.replace('"scores"', '"score"'): r"b\.json: scores is missing",
        whole.replace("0.5\n", "NaN\n"): r"b\.json: scores row 0 is nan",
    }
    for text, message in cases.items():
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            write_table(tmp_path)
    assert (tmp_path / "boxes.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "boxes.csv"]


def test_folders_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a", [[0, 0, 0, 1, 1, 1]], [0.5])
    (tmp_path / "b.json").mkdir()
    (tmp_path / "._a.json").write_bytes(b"\0\5\x16\7")
    assert [row["case_id"] for row in rows(tmp_path)] == ["a"]


def test_a_file_that_cannot_be_read_is_named_and_not_the_table(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "a", [[0, 0, 0, 1, 1, 1]], [0.5])
    (tmp_path / "b.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"b\.json cannot be read: No such file"):
        write_table(tmp_path)
    (tmp_path / "b.json").unlink()
    read_text = Path.read_text

    def broken(path: Path, *args, **kwargs) -> str:
        if path.suffix == ".json" and path.parent == tmp_path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", broken)
    with pytest.raises(ValueError, match=r"a\.json cannot be read: Input/output error"):
        write_table(tmp_path)


def test_a_case_that_ends_meanwhile_is_in_the_table(tmp_path: Path, monkeypatch) -> None:
    """Another process writes case b after this one has looked: this one writes once more before it leaves."""
    write(tmp_path, "a", [[0, 0, 0, 1, 1, 1]], [0.5])
    write_aside, late = table.write_aside, iter("b")

    def meanwhile(*args, **kwargs) -> None:
        if (name := next(late, None)) is not None:
            write(tmp_path, name, [[0, 0, 0, 1, 1, 1]], [0.5])
        write_aside(*args, **kwargs)

    monkeypatch.setattr(table, "write_aside", meanwhile)
    assert [row["case_id"] for row in rows(tmp_path)] == ["a", "b"]


def test_a_folder_that_never_rests_is_written_twice(tmp_path: Path, monkeypatch) -> None:
    """Who ends after this one writes the table too."""
    write_aside, written = table.write_aside, []

    def meanwhile(*args, **kwargs) -> None:
        written.append(f"c{len(written)}")
        if len(written) > 9:
            pytest.fail("it would go on forever")
        write(tmp_path, written[-1], [[0, 0, 0, 1, 1, 1]], [0.5])
        write_aside(*args, **kwargs)

    monkeypatch.setattr(table, "write_aside", meanwhile)
    assert [row["case_id"] for row in rows(tmp_path)] == ["c0"]
    assert len(written) == 2
    monkeypatch.undo()
    assert [row["case_id"] for row in rows(tmp_path)] == ["c0", "c1"]


def test_a_full_disk_keeps_the_table_before(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "a", [[0, 0, 0, 1, 1, 1]], [0.5])
    before = write_table(tmp_path).read_bytes()
    write(tmp_path, "b", [[0, 0, 0, 1, 1, 1]], [0.5])

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"boxes\.csv cannot be written: No space left"):
            write_table(tmp_path)
    assert (tmp_path / "boxes.csv").read_bytes() == before
    assert len(rows(tmp_path)) == 2
