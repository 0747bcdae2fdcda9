"""Reading pictures: every common kind becomes the same float tensor, and what cannot be read says so."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apps.vision.images import LUMA, Encoded, list_images, open_image, to_image_tensor
from apps.vision.transforms import EvalTransform, InputSpec, denormalise, normalise, train_transform
from core.errors import UserError

RGB = np.random.RandomState(0).randint(0, 256, (6, 9, 3), dtype=np.uint8)


def test_the_same_picture_in_every_form(tmp_path: Path) -> None:
    expected = torch.from_numpy(RGB).permute(2, 0, 1).float() / 255
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    forms = [path, str(path), Image.fromarray(RGB), RGB, RGB / 255.0, torch.from_numpy(RGB).permute(2, 0, 1), expected]
    forms.append(RGB.astype(np.uint16) * 257)
    for form in forms:
        torch.testing.assert_close(to_image_tensor(form, 3), expected)


def test_grey_and_colour_become_each_other() -> None:
    grey = to_image_tensor(Image.fromarray(RGB), 1)
    luma = (torch.from_numpy(RGB).float() / 255 * torch.tensor(LUMA)).sum(-1)
    torch.testing.assert_close(grey[0], luma)
    as_pil = torch.from_numpy(np.array(Image.fromarray(RGB).convert("L"))).float() / 255
    assert (grey[0] - as_pil).abs().max() < 1.5 / 255
    colour = to_image_tensor(RGB[..., 0], 3)
    assert colour.shape == (3, 6, 9)
    assert (colour == colour[:1]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_laid_over_white(channels: int) -> None:
    rgba = np.dstack([RGB, np.zeros((6, 9), np.uint8)])
    rgba[0, 0] = (0, 0, 0, 255)
    image = to_image_tensor(Image.fromarray(rgba), channels)
    assert image.shape[0] == channels
    assert (image[:, 0, 0] == 0).all()
    assert (image.flatten(1)[:, 1:] > 0.999).all()
    torch.testing.assert_close(to_image_tensor(rgba, channels), image)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "RGBA", "RGBX"])
def test_every_mode_of_pil(mode: str) -> None:
    source = Image.fromarray(RGB)
    if mode == "I;16":
        image = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(RGB[..., 0].astype(np.float32) / 255)
    else:
        image = source.convert("P").convert("PA") if mode == "PA" else source.convert(mode)
    for channels in (1, 3):
        tensor = to_image_tensor(image, channels)
        assert tensor.shape == (channels, 6, 9)
        assert tensor.dtype == torch.float32
        assert tensor.min() >= 0
        assert 0.5 < tensor.max() <= 1


def test_exif_turns_the_picture_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(RGB).save(path, exif=exif)
    assert open_image(path).size == (6, 9)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="folder"):
        open_image(tmp_path)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"text\.png"):
        open_image(tmp_path / "text.png")
    for ending in ("jpg", "png"):
        whole = tmp_path / f"whole.{ending}"
        Image.fromarray(np.random.RandomState(1).randint(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
        cut = tmp_path / f"cut.{ending}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(UserError, match=f"cut.{ending}"):
            open_image(cut)
    (tmp_path / "empty.png").touch()
    with pytest.raises(UserError, match=r"empty\.png"):
        open_image(tmp_path / "empty.png")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (np.full((4, 4, 3), 200.0), "Divide by 255"),
        (np.full((4, 4, 3), np.nan), r"\[0, 1\]"),
        (np.zeros((0, 4, 3)), "empty"),
        (np.zeros((2, 4, 4, 3)), "shape"),
        (np.zeros((3, 8, 8)), "arrays are"),
        (torch.zeros(8, 8, 3), "tensors are"),
        (torch.zeros(5), "shape"),
        (7, "int"),
    ],
)
def test_wrong_values_are_explained(value: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        to_image_tensor(value, 3)


def test_list_images_knows_endings(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.JPG", "c.webp"]


def spec(**changes: object) -> InputSpec:
    values: dict = {"img_size": [8, 12], "in_chans": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1], **changes}
    return InputSpec.create(**values)


def test_evaluation_resizes_and_cuts_the_centre() -> None:
    # Left half black, right half white; twice as wide as needed: the cut keeps the middle.
    image = torch.zeros(3, 16, 48)
    image[..., 24:] = 1.0
    out = EvalTransform(spec(interpolation="bilinear")).crop(image)
    assert out.shape == (3, 8, 12)
    assert out[..., :5].max() < 0.01
    assert out[..., 7:].min() > 0.99


@pytest.mark.parametrize("size", [(8, 12), (1, 1), (500, 3), (3, 500), (9, 13)])
def test_evaluation_takes_any_size(size: tuple[int, int]) -> None:
    out = EvalTransform(spec(crop_pct=0.875))(torch.rand(3, *size))
    assert out.shape == (3, 8, 12)
    assert out.isfinite().all()


def test_normalise_and_back() -> None:
    image = torch.rand(2, 3, 8, 12)
    out = normalise(image, spec())
    torch.testing.assert_close(out[:, 2], (image[:, 2] - 0.6) / 0.1)
    torch.testing.assert_close(denormalise(out, spec()), image)


def test_spec_survives_json() -> None:
    assert InputSpec.from_dict({**spec().to_dict(), "class_names": ["a"]}) == spec()


@pytest.mark.parametrize(
    "changes",
    [{"img_size": 0}, {"mean": [0.5]}, {"crop_pct": 0.0}, {"interpolation": "lanczos7"}, {"img_size": [1, 2, 3]}],
)
def test_wrong_specs_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UserError):
        spec(**changes)


@pytest.mark.parametrize(
    "augment",
    [
        {"kind": "none"},
        {"kind": "affine", "degrees": 10, "translate": 0.1, "scale": 0.1, "shear": 5},
        {"kind": "crop", "padding": 2, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 1.0},
        {"kind": "resize_crop", "color_jitter": 0.4, "re_prob": 0.5},
    ],
)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_training_transforms(augment: dict, in_chans: int) -> None:
    one = spec(in_chans=in_chans, mean=[0.5] * in_chans, std=[0.25] * in_chans)
    transform = train_transform(augment, one)
    for picture in (Image.fromarray(RGB), torch.rand(in_chans, 20, 17)):
        outs = [transform(picture) for _ in range(6)]
        assert all(out.shape == (in_chans, 8, 12) and out.isfinite().all() for out in outs)
        assert (augment["kind"] == "none") == all(torch.equal(outs[0], out) for out in outs)


def test_wrong_augmentation_is_explained() -> None:
    with pytest.raises(UserError, match="affine"):
        train_transform({"kind": "afine"}, spec())
    with pytest.raises(UserError, match="paddin"):
        train_transform({"kind": "crop", "paddin": 2}, spec())


def test_rand_augment_survives_its_highest_magnitude() -> None:
    """timm's posterize asks Pillow for 0 bits there, which Pillow 13 refuses."""
    transform = train_transform({"kind": "crop", "auto_augment": "rand-m10-n15-inc1"}, spec())
    for _ in range(20):
        assert transform(Image.fromarray(RGB)).isfinite().all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["png", "jpeg", "gif", "bmp", "tiff", "webp", "ico", "ppm"])
def test_damaged_files_are_read_or_named(form: str) -> None:
    """Whatever happens to a file's bytes: a picture comes out, or one sentence, never another exception."""
    buffer = io.BytesIO()
    Image.fromarray(RGB).resize((30, 40)).save(buffer, form)
    random = np.random.RandomState(0)
    complaints: list[str] = []
    for _ in range(60):
        content = bytearray(buffer.getvalue())
        for _ in range(random.randint(1, 6)):
            content[random.randint(min(len(content), 300))] = random.randint(256)
        if random.rand() < 0.3:
            content = content[: random.randint(1, len(content))]
        try:
            assert EvalTransform(spec())(Encoded(bytes(content), "this one")).isfinite().all()
        except UserError as error:
            complaints.append(str(error))
    assert len(complaints) > 5
    assert all("this one" in sentence for sentence in complaints)
