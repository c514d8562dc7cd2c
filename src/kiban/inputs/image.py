"""Pictures from files of strangers to pixels that CLIP and Stable Diffusion read, and back.

A file is opened only if it is PNG, JPEG, WebP, GIF or BMP, and only if it is small enough once decoded. Colour profiles are
not applied, nor do CLIP's and Stable Diffusion's own programs apply them.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kiban.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 128 * 2**20
MAX_PIXELS = 2**26  # 8192 x 8192, which take 256 MiB in Pillow
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
WHITE = (255, 255, 255)
FACTOR = 8  # pixels to a latent of Stable Diffusion

Picture = Image.Image | Path | str | bytes
Colour = tuple[int, int, int]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SAVE_AGAIN = "open it in a picture editor and save it again as PNG or JPEG, or leave it out"


def read_image(
    source: Picture,
    *,
    name: str = "",
    background: Colour = WHITE,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Image.Image:
    """A picture as RGB, upright as its EXIF data say, of a moving one the first frame, transparency over background.

    source: a path, the bytes of a file, or an open image. name: what errors call it, by default the path.
    Raises DatasetError for what is no such file, is cut off or broken, or is larger than max_bytes or max_pixels.
    """
    if isinstance(source, Image.Image):
        name = name or str(getattr(source, "filename", "")) or "picture"
        return _finish(source, name, background, max_pixels)
    name = name or ("picture" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else _bytes(Path(source), name, max_bytes)
    if len(data) > max_bytes:
        raise _too_large(name, max_bytes)
    if not data:
        raise DatasetError(name, why="is empty", hint="leave it out")
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many(name, max_pixels) from error
    except UnidentifiedImageError as error:
        why = "is no PNG, JPEG, WebP, GIF or BMP file that can be read"
        raise DatasetError(name, why=why, hint="save it as PNG or JPEG") from error
    except Exception as error:  # the library has no class of its own for what is broken
        raise DatasetError(name, why=f"is a broken picture: {error}", hint=_SAVE_AGAIN) from error
    with opened:
        return _finish(opened, name, background, max_pixels)


def _bytes(path: Path, name: str, max_bytes: int) -> bytes:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise DatasetError(name, why="is not a regular file")  # a pipe or a device might never end
        if facts.st_size > max_bytes:
            raise _too_large(name, max_bytes)
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise DatasetError(name, why="no such file", hint="check the path") from error
    except (OSError, ValueError) as error:
        raise DatasetError(name, why=f"cannot be read: {error}", hint="check the path and its permissions") from error


def _too_large(name: str, max_bytes: int) -> DatasetError:
    return DatasetError(name, why=f"is larger than {max_bytes:,} bytes", hint="make it smaller, or leave it out")


def _too_many(name: str, max_pixels: int) -> DatasetError:
    hint = "make it smaller, or leave it out"
    return DatasetError(name, why=f"has more than {max_pixels:,} pixels once it is decoded", hint=hint)


def _finish(image: Image.Image, name: str, background: Colour, max_pixels: int) -> Image.Image:
    """Decode, turn upright, and convert to RGB."""
    if image.width * image.height > max_pixels:  # known from the header, before anything is decoded
        raise _too_many(name, max_pixels)
    try:
        image.load()
        turn = _TURNS.get(_orientation(image))
        colours = _rgb(image, background)
    except Exception as error:  # as above
        raise DatasetError(name, why=f"is a broken picture: {error}", hint=_SAVE_AGAIN) from error
    return colours if turn is None else colours.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """How the camera was held, 1 to 8 (EXIF tag 274); 1 if it is not told."""
    try:
        return int(image.getexif().get(274, 1))
    except Exception:  # broken EXIF data are no reason to lose the picture
        return 1


def _rgb(image: Image.Image, background: Colour) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return _without_facts(image.convert("RGB"))
    picture = image.convert("RGBA")
    ground = Image.new("RGBA", picture.size, (*background, 255))
    return Image.alpha_composite(ground, picture).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey picture by its upper bytes, as Pillow reads 16-bit colours; by itself it would cut at 255."""
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    clear = image.info.get("transparency")  # the value that stands for nothing
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _without_facts(image: Image.Image) -> Image.Image:
    """Pixels alone: text, EXIF and colour profiles of the file would travel on into what is saved."""
    image.info = {}
    return image


def cover(image: Image.Image, width: int, height: int, *, resample: Any = Image.Resampling.BICUBIC) -> Image.Image:
    """The middle of a picture at this size, scaled as little as covers it, with its proportions kept.

    Sizes are rounded down, and the cut is the one of transformers' processors. Raises DatasetError if the picture is so
    long and thin that scaling it would take too much memory.
    """
    if width * image.height <= height * image.width:
        scaled = (max(width, int(height * image.width / image.height)), height)
    else:
        scaled = (width, max(height, int(width * image.height / image.width)))
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise DatasetError("picture", why=f"is too long and thin: {image.width} x {image.height}", hint="crop it")
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return image.resize(scaled, resample).crop((left, top, left + width, top + height))


def clip_pixels(
    source: Picture,
    *,
    size: int = 224,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    name: str = "",
    background: Colour = WHITE,
) -> Tensor:
    """A picture as CLIP reads it, (3, size, size) float32: shortest side scaled (bicubic), middle cut out, normalised.

    Equal in every bit to transformers' CLIPImageProcessor with Pillow. Raises DatasetError as `read_image` does.
    """
    import torch

    image = read_image(source, name=name, background=background)
    try:
        pixels = np.asarray(cover(image, size, size)).transpose(2, 0, 1)  # (3, S, S)
    except DatasetError as error:
        raise DatasetError(name or _name(source), why=error.why, hint=error.hint) from error
    # A pixel has 256 values, so that a table of results is the arithmetic: in float64, then in float32.
    levels = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    result = np.empty(pixels.shape, dtype=np.float32)
    for channel in range(3):
        table = (levels - np.float32(mean[channel])) / np.float32(std[channel])
        result[channel] = table[pixels[channel]]
    return torch.from_numpy(result)


def clip_batch(sources: Sequence[Picture], *, size: int = 224) -> Tensor:
    """Pictures as CLIP reads them, (B, 3, size, size) float32. Raises DatasetError that names the unfit one."""
    import torch

    if not sources:
        return torch.empty(0, 3, size, size)
    return torch.stack([clip_pixels(source, size=size) for source in sources])


def _name(source: Picture) -> str:
    return str(source) if isinstance(source, str | Path) else "picture"


def diffusion_pixels(
    source: Picture, *, width: int | None = None, height: int | None = None, name: str = "", background: Colour = WHITE
) -> Tensor:
    """A picture as Stable Diffusion reads it, (3, H, W) float32 from -1 to 1.

    Scaled (Lanczos) to width and height, or down to the next multiples of 8 of its own; proportions are not kept, for
    which there is `cover`. Equal in every bit to diffusers' VaeImageProcessor. Raises ConfigError if width or height is
    not a multiple of 8, DatasetError as `read_image` does, or if the picture is less than 8 pixels wide or high.
    """
    import torch

    for label, value in (("width", width), ("height", height)):
        if value is not None and (value <= 0 or value % FACTOR):
            near = max(FACTOR, round(value / FACTOR) * FACTOR)
            raise ConfigError(label, why=f"{value} is not a multiple of {FACTOR}", hint=f"for example {near}")
    image = read_image(source, name=name, background=background)
    size = (width or image.width - image.width % FACTOR, height or image.height - image.height % FACTOR)
    if not all(size):
        why = f"is {image.width} x {image.height} pixels, fewer than {FACTOR} on a side"
        raise DatasetError(name or _name(source), why=why, hint="make it larger, or give width and height")
    values = np.asarray(image.resize(size, Image.Resampling.LANCZOS)).astype(np.float32) / 255.0
    return torch.from_numpy(2.0 * values.transpose(2, 0, 1) - 1.0).contiguous()


def to_images(
    pixels: Tensor, *, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.5,) * 3
) -> list[Image.Image]:
    """Pictures of pixels (B, 3, H, W) or (3, H, W), by default from -1 to 1; what lies beyond white or black is cut.

    mean and std are those that made them: CLIP_MEAN and CLIP_STD for what `clip_pixels` gives.
    """
    import torch

    batch = pixels.detach().cpu().float().reshape(-1, *pixels.shape[-3:])
    levels = batch * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    bytes_: NDArray[np.uint8] = (levels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in bytes_]
