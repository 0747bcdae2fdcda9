"""The pipeline: what goes in, what comes out, and what happens to a picture that cannot be read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apps.vision import Prediction, VisionPipeline, build_vision_model
from core.errors import UserError

DATA = {
    "dataset": "colours",
    "class_names": ["red", "green", "blue"],
    "num_classes": 3,
    "img_size": [8, 8],
    "in_chans": 3,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "crop_pct": 1.0,
    "interpolation": "bilinear",
}
MODEL = {"embed_dim": 16, "depth": 1, "head_dim": 8, "patch_size": 4, "scan": "split2"}
PAINT = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def pipe() -> VisionPipeline:
    """A model that tells red from green from blue, by a hand-set patch embedding and head."""
    torch.manual_seed(0)
    model = build_vision_model(MODEL, DATA)
    with torch.no_grad():
        model.pos_embed.zero_()
        model.patch_embed.proj.weight.zero_()
        for channel in range(3):
            model.patch_embed.proj.weight[channel, channel] = 1.0
        model.head.weight.zero_()
        model.head.weight[:, :3] = torch.eye(3)
    return VisionPipeline(model, {"app": "vision", "model": MODEL, "data": DATA})


def picture(colour: str, size: tuple[int, int] = (20, 14)) -> Image.Image:
    return Image.new("RGB", size, PAINT[colour])


def one(answer: Prediction | list[Prediction]) -> Prediction:
    assert isinstance(answer, Prediction)
    return answer


@pytest.mark.parametrize("colour", PAINT)
def test_one_picture_of_every_kind(pipe: VisionPipeline, colour: str, tmp_path: Path) -> None:
    image = picture(colour)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    kinds: list[Any] = [tmp_path / "a.png", str(tmp_path / "a.png"), image, image.convert("RGBA"), array, array / 255.0]
    kinds += [torch.tensor(array).permute(2, 0, 1)]
    answers = [one(pipe(kind)) for kind in kinds]
    for answer in answers:
        assert (answer.label, answer.index) == (colour, list(PAINT).index(colour))
        assert answer.score == pytest.approx(answers[0].score, abs=1e-5)
    top = answers[0].top
    assert top[0][0] == colour
    assert {label for label, _ in top} == set(PAINT)
    assert sum(score for _, score in top) == pytest.approx(1.0, abs=1e-5)
    assert answers[0].score == max(score for _, score in top)


def test_several_pictures_keep_their_order(pipe: VisionPipeline) -> None:
    colours = ["blue", "red", "green", "red", "blue"]
    answers = pipe([picture(c, size=(9 + i, 8)) for i, c in enumerate(colours)], batch_size=2, top_k=1)
    assert isinstance(answers, list)
    assert [a.label for a in answers] == colours
    assert all(len(a.top) == 1 for a in answers)
    batch = pipe(np.stack([np.asarray(picture(c)) for c in colours]))
    assert isinstance(batch, list)
    assert [a.label for a in batch] == colours
    assert pipe([]) == []


def test_a_grey_model_reads_colour_and_a_colour_model_grey(pipe: VisionPipeline) -> None:
    assert one(pipe(Image.new("L", (5, 5), 200))).label in PAINT
    data = {**DATA, "in_chans": 1, "mean": [0.5], "std": [0.5]}
    grey = VisionPipeline(build_vision_model(MODEL, data), {"app": "vision", "model": MODEL, "data": data})
    assert one(grey(picture("red"))).label in PAINT


def test_wrong_pictures_and_options_are_explained(pipe: VisionPipeline) -> None:
    with pytest.raises(UserError, match="no file"):
        pipe("nowhere.png")
    with pytest.raises(UserError, match="top_k"):
        pipe(picture("red"), top_k=0)
    with pytest.raises(UserError, match="batch_size"):
        pipe([picture("red")], batch_size=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good pictures, one of them deeper, and two that cannot be read."""
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    picture("red").save(root / "a.png")
    picture("green").save(root / "c.jpg")
    picture("blue").save(root / "more" / "d.png")
    (root / "b.png").write_text("no picture")
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:40])
    (root / "notes.txt").write_text("not a picture, and not meant to be one")
    return root


def test_a_folder_to_json_lines(pipe: VisionPipeline, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "answers.jsonl"
    assert pipe.predict_files(str(folder), output, top_k=2, batch_size=2) == 1
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [Path(r["file"]).name for r in rows] == ["a.png", "b.png", "c.jpg", "cut.png", "d.png"]
    assert [r.get("label") for r in rows] == ["red", None, "green", None, "blue"]
    assert "b.png" in rows[1]["error"]
    assert len(rows[0]["top"]) == 2
    assert rows[0]["top"][0] == {"label": "red", "score": rows[0]["score"]}


def test_a_folder_to_csv(pipe: VisionPipeline, folder: Path, tmp_path: Path) -> None:
    assert pipe.predict_files(str(folder), tmp_path / "answers.csv", top_k=2) == 1
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["label_1"] for r in rows] == ["red", "", "green", "", "blue"]
    assert float(rows[0]["score_1"]) > float(rows[0]["score_2"])
    assert "b.png" in rows[1]["error"]


def test_output_may_be_a_folder(pipe: VisionPipeline, folder: Path, tmp_path: Path) -> None:
    assert pipe.predict_files(str(folder / "a.png"), tmp_path / "answers") == 0
    assert json.loads((tmp_path / "answers" / "predictions.jsonl").read_text())["label"] == "red"
    with pytest.raises(UserError, match=r"\.jsonl"):
        pipe.predict_files(str(folder / "a.png"), tmp_path / "answers.xlsx")


def test_no_output_prints_a_table(pipe: VisionPipeline, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipe.predict_files(str(folder / "a.png")) == 0
    printed = capsys.readouterr().out
    assert "red" in printed
    assert "probability" in printed


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_lines_on_standard_output(
    pipe: VisionPipeline, folder: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipe.predict_files(str(folder), format=form, top_k=2) == 1
    out, err = capsys.readouterr()
    if form == "csv":
        labels = [row["label_1"] for row in csv.DictReader(io.StringIO(out))]
    else:
        labels = [json.loads(line).get("label", "") for line in out.splitlines()]
    assert labels == ["red", "", "green", "", "blue"]
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert ["b.png" in skipped[0], "cut.png" in skipped[1]] == [True, True]
    assert "2 of 5 pictures could not be read" in err


def test_answers_are_out_as_soon_as_they_are_known(pipe: VisionPipeline, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "answers.jsonl"

    def asked() -> Iterator[str]:
        for name in ("a.png", "c.jpg", "b.png", "a.png"):
            yield f"{folder / name}\n"
        assert len(target.read_text().splitlines()) == 4  # two batches are written before the next line is waited for
        yield f"{folder / 'c.jpg'}\n"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", asked())
        assert pipe.predict_files("-", target, batch_size=2) == 1
    assert len(target.read_text().splitlines()) == 5


def test_brackets_in_names_are_no_markup(
    pipe: VisionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("[red]x[blue].png").write_text("no picture")
    picture("red").save("[bold].png")
    assert pipe.predict_files(".") == 1
    printed = capsys.readouterr()
    assert "[bold].png" in printed.out
    assert "[red]x[blue].png" in printed.err


@pytest.mark.parametrize(
    ("output", "form", "sentence"),
    [
        (None, "xml", "expected one of"),
        ("x.jsonl", "table", "screen"),
        ("x.jsonl", "csv", "disagree"),
        ("x.txt", None, "ending"),
    ],
)
def test_wrong_forms_are_explained(
    pipe: VisionPipeline, folder: Path, output: str | None, form: str | None, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        pipe.predict_files(str(folder), None if output is None else Path(output), format=form)


def test_paths_from_standard_input(
    pipe: VisionPipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder / 'c.jpg'}\n\n{folder / 'gone.png'}\n{folder / 'a.png'}\n"))
    assert pipe.predict_files("-", tmp_path / "x.jsonl") == 1
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [r.get("label") for r in rows] == ["green", None, "red"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(UserError, match="no pictures"):
        pipe.predict_files("-")


def test_wrong_inputs_are_explained(pipe: VisionPipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        pipe.predict_files(str(tmp_path / "gone"))
    with pytest.raises(UserError, match="no pictures"):
        pipe.predict_files(str(tmp_path))
    with pytest.raises(UserError, match="topk"):
        pipe.predict_files(str(tmp_path), topk=3)


def test_saved_and_loaded_it_answers_the_same(pipe: VisionPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    assert {"model.safetensors", "config.json"} <= {p.name for p in (tmp_path / "model").iterdir()}
    loaded = VisionPipeline.from_pretrained(str(tmp_path / "model"))
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (11, 8, 3), dtype=np.uint8))
    assert loaded(image) == pipe(image)
