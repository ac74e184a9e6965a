import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import girih_data3d
from girih.commands.prepare import Prepare
from girih.labels import LabelMeanings, info_of_values, read_meanings, unnamed_labels


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, girih_data3d.Store]:
    """Datasets of one small case: "organs" has tissue labels 1 and 7, "empty" has labels of no voxel, "bare" none."""
    return {name: prepared(tmp_path_factory, name) for name in ("organs", "empty", "bare")}


def prepared(tmp_path_factory: pytest.TempPathFactory, name: str) -> girih_data3d.Store:
    raw, out = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp("prepared") / name
    image = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    labels = np.zeros((8, 8, 8), np.uint8)
    if name == "organs":
        labels[1, 1, 1], labels[3:5] = 7, 1
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), raw / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), raw / "labels.nii.gz")
    case = {"case_id": "a", "images": ["a.nii.gz"]} | ({} if name == "bare" else {"semantic": "labels.nii.gz"})
    (raw / "dataset.json").write_text(json.dumps({"schema": 1, "name": name, "classes": [], "cases": [case]}))
    Prepare(data=raw, out=out, workers=0).run()
    return girih_data3d.Store.open(out)


VALUES = {"channels": 1, "classes": ["label 1", "label 7"], "regions": [[1], [7]], "activation": "softmax"}


def test_every_value_that_occurs_is_a_class(stores: dict[str, girih_data3d.Store]) -> None:
    assert info_of_values(stores["organs"]) == VALUES


def test_a_dataset_without_a_labelled_voxel_is_refused(stores: dict[str, girih_data3d.Store]) -> None:
    with pytest.raises(ValueError, match=r"dataset 'empty' .*no voxel has a semantic label above 0"):
        info_of_values(stores["empty"])


def test_only_what_is_asked_for_is_looked_up(stores: dict[str, girih_data3d.Store]) -> None:
    told: Any = {"channels": 1, "classes": ["all"], "regions": [[1, 7]], "activation": "sigmoid"}
    meanings = LabelMeanings(list(stores.values()), {"empty": told})
    assert list(meanings) == ["organs", "empty"]  # in the order given, and with nothing opened
    assert len(meanings) == 2
    assert meanings["organs"] == VALUES
    assert meanings["empty"] == told
    with pytest.raises(KeyError, match="bare"):
        meanings["bare"]


def test_what_is_told_is_compared_with_what_occurs(stores: dict[str, girih_data3d.Store]) -> None:
    info: Any = {"channels": 1, "classes": ["all", "spot"], "regions": [[1, 7], [7]], "activation": "sigmoid"}
    assert unnamed_labels(stores["organs"], info) == []
    info["regions"] = [[0, 1], [1]]
    assert unnamed_labels(stores["organs"], info) == [
        "dataset 'organs': labels [7] are in no class and count as background"
    ]
    info["regions"] = [[1], [7, 99]]
    with pytest.raises(ValueError, match=r"'organs' .*class 'spot' is of labels \[99\] that never .*do: \[1, 7\]"):
        unnamed_labels(stores["organs"], info)


GOOD = {"classes": ["liver", "tumour"], "regions": [[1, 2], [2]], "activation": "sigmoid"}


def told(folder: Path, **datasets: Any) -> Path:
    path = folder / "labels.json"
    path.write_text(json.dumps({"schema": 1, "datasets": datasets}))
    return path


def test_a_file_says_what_labels_mean(stores: dict[str, girih_data3d.Store], tmp_path: Path) -> None:
    assert read_meanings(told(tmp_path, organs=GOOD), list(stores.values())) == {"organs": {"channels": 1, **GOOD}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": []}, r"dataset 'organs': found classes \[\], wanted"),
        ({"classes": ["a", "a"]}, "each once"),
        ({"classes": "ab"}, "found classes 'ab'"),
        ({"regions": [[1], [True]]}, r"class 'tumour': found labels \[True\]"),
        ({"regions": [[1, 2]]}, r"found regions \[\[1, 2\]\], wanted a list of labels for each of"),
        ({"activation": "tanh"}, "found activation 'tanh', wanted 'sigmoid' or 'softmax'"),
        ({"activation": "softmax"}, r"labels \[2\] in both 'liver' and 'tumour'"),
        ({"colour": 1}, "found .*'colour'.*, wanted the fields"),
    ],
)
def test_a_wrong_field_is_named(
    change: dict[str, Any], message: str, stores: dict[str, girih_data3d.Store], tmp_path: Path
) -> None:
    path = told(tmp_path, organs=GOOD | change)
    with pytest.raises(ValueError, match=message) as caught:
        read_meanings(path, list(stores.values()))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 2, "datasets": {}}', '{"schema": 1, "datasets": []}'])
def test_a_file_of_another_kind_is_refused(text: str, stores: dict[str, girih_data3d.Store], tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"labels\.json"):
        read_meanings(path, list(stores.values()))


def test_another_dataset_and_no_file_are_refused(stores: dict[str, girih_data3d.Store], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset 'brains' is not among those of --data"):
        read_meanings(told(tmp_path, brains=GOOD), list(stores.values()))
    with pytest.raises(ValueError, match="cannot be read"):
        read_meanings(tmp_path / "none.json", list(stores.values()))
