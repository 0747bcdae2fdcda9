"""Pictures in: whatever a user holds (a path, a PIL image, an array, a tensor) becomes one float tensor.

The one convention of this room: an image is a float32 tensor (C, H, W) with values in [0, 1] and C the
number of channels that the model reads. Everything that differs is settled here, once: Exif orientation,
palettes, 16-bit scans, transparency (laid over white), grey for a colour model and colour for a grey one.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from core.errors import UserError

# ITU-R BT.601 luma, the weights PIL's convert("L") uses.
LUMA = (0.299, 0.587, 0.114)


def image_extensions() -> frozenset[str]:
    """Lower-case file endings (with the dot) that PIL can open."""
    Image.init()
    return frozenset(ext for ext, fmt in Image.registered_extensions().items() if fmt in Image.OPEN)


class Encoded(NamedTuple):
    """A picture's file in memory, and what to call it in a message."""

    content: bytes
    name: str


def open_image(source: str | os.PathLike[str] | Encoded) -> Image.Image:
    """Read a whole picture, from disk or from its bytes, turned upright by its Exif tag.

    Raises:
        UserError: the file is missing, is no picture, or is cut off; the sentence names it.
    """
    path = source.name if isinstance(source, Encoded) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage that can be read past, as Pillow does
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source.content) if isinstance(source, Encoded) else source) as image:
                image.load()
                return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise UserError(f"There is no file '{path}'.") from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a folder; a picture was expected.") from None
    except UnidentifiedImageError:
        raise UserError(f"'{path}' is not a picture that can be read (unknown or damaged format).") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  Pillow's decoders raise whatever they trip over in a damaged file
        raise UserError(f"'{path}' cannot be read as a picture: {error}.") from None


def to_image_tensor(value: Any, in_chans: int) -> Tensor:
    """Turn one picture of any common kind into a float32 tensor (in_chans, H, W) in [0, 1].

    Args:
        value: a path; a PIL image; a NumPy array (H, W) or (H, W, C); a tensor (H, W) or (C, H, W).
            Integer arrays are scaled by their type's largest value, float ones must lie in [0, 1].
        in_chans: channels wanted. 1 and 3 are converted into each other; any other number must be met.

    Raises:
        UserError: wrong type, shape, range, or a channel count that cannot be converted.
    """
    if isinstance(value, str | os.PathLike | Encoded):
        value = open_image(value)
    if isinstance(value, Image.Image):
        tensor = _from_pil(value)
    elif isinstance(value, np.ndarray):
        if value.ndim not in (2, 3):
            raise UserError(f"An image array must have shape (H, W) or (H, W, C), not {value.shape}.")
        tensor = torch.from_numpy(
            np.array(value if value.ndim == 3 else value[..., None])
        )  # a copy: it may be read-only
        tensor = tensor.permute(2, 0, 1)
    elif isinstance(value, Tensor):
        if value.ndim not in (2, 3):
            raise UserError(f"An image tensor must have shape (H, W) or (C, H, W), not {tuple(value.shape)}.")
        tensor = value if value.ndim == 3 else value[None]
    else:
        raise UserError(f"A picture may be a path, PIL image, NumPy array or tensor, not {type(value).__name__}.")
    if 0 in tensor.shape:
        raise UserError(f"The image is empty: its shape is {tuple(tensor.shape)}.")
    return _fit_channels(_to_unit_range(tensor), in_chans)


def _from_pil(image: Image.Image) -> Tensor:
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode == "La" or image.mode == "RGBa":
        image = image.convert(image.mode.upper())
    if image.mode.startswith("I;16"):
        array = np.asarray(image).astype(np.float32) / 65535.0
    elif image.mode == "I":
        # PIL opens 16-bit PNGs in mode "I" in some versions: 32-bit storage, 16-bit values.
        array = np.asarray(image).astype(np.float32)
        array = (array / (65535.0 if array.max(initial=0) > 255 else 255.0)).clip(0.0, 1.0)
    elif image.mode == "F":
        array = np.asarray(image, dtype=np.float32)
    else:
        if image.mode == "1":
            image = image.convert("L")
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            image = image.convert("RGB")
        array = np.asarray(image)
    # A copy: PIL's buffer is read-only and torch may write.
    tensor = torch.from_numpy(np.array(array))
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)


def _to_unit_range(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool:
        return tensor.float()
    if not tensor.is_floating_point():
        if tensor.is_complex():
            raise UserError("A complex tensor is not a picture.")
        return tensor.to(torch.float32) / torch.iinfo(tensor.dtype).max
    tensor = tensor.to(torch.float32)
    low, high = tensor.min().item(), tensor.max().item()
    # `not <=` and not `>`: NaN must fail too.
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise UserError(
            f"A floating-point image must lie in [0, 1]; this one spans [{low:.4g}, {high:.4g}]. "
            "Divide by 255, or pass uint8."
        )
    return tensor.clamp(0.0, 1.0)


def _fit_channels(tensor: Tensor, in_chans: int) -> Tensor:
    """Lay transparency over white, then convert grey and colour into each other."""
    channels = tensor.shape[0]
    if channels == in_chans:
        return tensor.contiguous()
    if channels in (2, 4) and in_chans in (1, 3):
        alpha = tensor[-1:]
        tensor = tensor[:-1] * alpha + (1 - alpha)
        channels -= 1
    if channels == in_chans:
        return tensor
    if channels == 1 and in_chans == 3:
        return tensor.expand(3, -1, -1).contiguous()
    if channels == 3 and in_chans == 1:
        return (tensor * tensor.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)
    hint = " (arrays are (H, W, C), tensors are (C, H, W))" if channels > 4 else ""
    raise UserError(f"The model reads {in_chans} channel(s) and the image has {channels}{hint}.")


def list_images(folder: Path) -> list[Path]:
    """All pictures below a folder, by their ending, in sorted order; hidden files are left out."""
    endings = image_extensions()
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix.lower() in endings and not path.name.startswith(".")
    )
