"""Pictures: every kind of file comes out as RGB, hostile ones as an error, and pixels are those of the reference code."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiban.errors import ConfigError, DatasetError
from kiban.inputs.image import (
    CLIP_MEAN,
    CLIP_STD,
    clip_batch,
    clip_pixels,
    cover,
    diffusion_pixels,
    read_image,
    to_images,
)

KINDS = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze(-1) if channels == 1 else values)


def gradient(width: int, height: int) -> Image.Image:
    """Smooth, as photos are, with a sharp edge."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    red = np.where((x + y) % 120 < 60, x, 255 - y)
    return Image.fromarray(np.stack([red, y, 255 - x], -1).round().astype(np.uint8))


def packed(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image: Image.Image) -> Any:
    return np.asarray(image).astype(int)


# Reading


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_is_read_from_path_bytes_and_image(tmp_path: Path, kind: str) -> None:
    data, path = packed(gradient(37, 21), kind), tmp_path / "写真.bin"  # the content counts, not the extension
    path.write_bytes(data)
    expected = pixels(Image.open(io.BytesIO(data)).convert("RGB"))
    with Image.open(io.BytesIO(data)) as opened:
        found = [read_image(source) for source in (path, str(path), data, opened)]
    for image in found:
        assert image.mode == "RGB" and np.array_equal(pixels(image), expected)
    if kind in ("PNG", "BMP"):
        assert np.array_equal(expected, pixels(gradient(37, 21)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_stands_as_the_camera_was_held(kind: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = orientation
    data = packed(gradient(40, 24), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    found = read_image(data)
    assert found.size == ((40, 24) if orientation < 5 else (24, 40))
    assert np.array_equal(pixels(found), pixels(expected))
    assert not found.getexif() and not found.info  # nobody turns it once more, and no place of the camera travels on


def test_broken_or_senseless_exif_data_are_no_reason_to_lose_a_picture() -> None:
    for exif in (b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        data = packed(gradient(9, 5), "JPEG", exif=exif)
        assert read_image(data).size == (9, 5)
    senseless = Image.Exif()
    senseless[274] = 99
    assert read_image(packed(gradient(9, 5), "JPEG", exif=senseless)).size == (9, 5)


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 40, 200)])
def test_what_is_transparent_shows_the_background(background: tuple[int, int, int]) -> None:
    values = pixels(noise(6, 5, 4))
    values[..., 3] = np.linspace(0, 255, 30).reshape(5, 6).round()
    data = packed(Image.fromarray(values.astype(np.uint8)), "PNG")
    alpha = values[..., 3:] / 255
    expected = values[..., :3] * alpha + np.array(background) * (1 - alpha)
    found = pixels(read_image(data, background=background))
    assert np.abs(found - expected).max() <= 1
    assert (found[0, 0] == background).all() and (found[-1, -1] == values[-1, -1, :3]).all()


def test_transparency_of_palettes_grey_and_single_colours_is_seen() -> None:
    index = Image.fromarray(np.array([[0, 1], [2, 3]], dtype=np.uint8), mode="L")
    palette = Image.frombytes("P", (2, 2), bytes([0, 1, 2, 3]))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    clear = read_image(packed(palette, "PNG", transparency=bytes([255, 0, 128, 255])))
    assert pixels(clear).tolist() == [[[255, 0, 0], [255, 255, 255]], [[127, 127, 255], [9, 9, 9]]]
    one = read_image(packed(palette, "GIF", transparency=3))
    assert pixels(one)[1, 1].tolist() == [255, 255, 255] and pixels(one)[0, 0].tolist() == [255, 0, 0]
    grey = read_image(packed(index, "PNG", transparency=2), background=(1, 2, 3))
    assert pixels(grey).tolist() == [[[0] * 3, [1] * 3], [[1, 2, 3], [3] * 3]]
    colour = Image.new("RGB", (2, 1), (10, 20, 30))
    colour.putpixel((1, 0), (10, 20, 31))
    found = read_image(packed(colour, "PNG", transparency=(10, 20, 30)))
    assert pixels(found).tolist() == [[[255] * 3, [10, 20, 31]]]
    both = Image.fromarray(np.array([[[100, 0], [100, 255]]], dtype=np.uint8), mode="LA")
    assert pixels(read_image(packed(both, "PNG"))).tolist() == [[[255] * 3, [100] * 3]]


def test_sixteen_bits_of_grey_are_scaled_and_not_cut() -> None:
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    found = pixels(read_image(packed(Image.fromarray(values), "PNG")))
    assert np.array_equal(found, np.repeat((values >> 8)[..., None], 3, -1))
    clear = pixels(
        read_image(packed(Image.fromarray(values), "PNG", transparency=int(values[0, 1])), background=(7, 8, 9))
    )
    assert clear[0, 1].tolist() == [7, 8, 9] and np.array_equal(clear[1:], found[1:])


def test_cmyk_and_black_and_white_become_colours() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = pixels(read_image(packed(cmyk, "JPEG", quality=95)))
    assert np.abs(red - [255, 0, 0]).max() <= 3
    bits = Image.fromarray(np.array([[True, False]]))
    assert pixels(read_image(packed(bits, "PNG"))).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_a_moving_picture_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = packed(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels(read_image(data)) == [200, 0, 0]).all()


# Hostile files


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(30_000, 30_000), (9_000, 9_000), (10_000, 9_500), (2**31 - 1, 1), (1, 2**31 - 1)])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "bomb.png").write_bytes(bomb(*size))
    with pytest.raises(DatasetError, match=r"bomb\.png.*(pixels|broken)"):
        read_image(tmp_path / "bomb.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_bounds_can_be_set_and_what_fits_them_is_read(tmp_path: Path) -> None:
    data = packed(gradient(40, 30), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    assert read_image(data, max_pixels=1200, max_bytes=len(data)).size == (40, 30)
    with pytest.raises(DatasetError, match=r"members/7\.png.*1,199 pixels"):
        read_image(data, name="members/7.png", max_pixels=1199)
    with pytest.raises(DatasetError, match="1,199 pixels"):
        read_image(gradient(40, 30), max_pixels=1199)
    for source in (data, tmp_path / "a.png"):
        with pytest.raises(DatasetError, match="bytes"):
            read_image(source, max_bytes=len(data) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_off_anywhere_is_refused_or_whole(kind: str) -> None:
    """Some formats end in bytes that hold nothing; a picture of which a part is missing never comes out."""
    data = packed(noise(13, 11), kind, **({"lossless": True} if kind == "WEBP" else {}))
    whole, refused = pixels(read_image(data)), 0
    for length in range(len(data)):
        try:
            found = read_image(data[:length], name="cut")
        except DatasetError as error:
            assert "cut" in str(error) and "\n" not in str(error) and error.hint
            refused += 1
        else:
            assert np.array_equal(pixels(found), whole)
    assert refused >= len(data) - 20


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes_end_in_a_picture_or_an_error_of_ours(kind: str) -> None:
    data, random = packed(noise(13, 11), kind), np.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        changed = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 5)):
            changed[place] = random.integers(0, 256)
        try:
            outcomes.add(read_image(bytes(changed), max_pixels=10**6).mode)
        except DatasetError:
            outcomes.add("refused")
    assert outcomes == {"RGB", "refused"}


def test_a_picture_that_was_opened_lazily_and_cannot_be_decoded_is_refused() -> None:
    data = packed(noise(64, 64), "PNG")
    with pytest.raises(DatasetError, match="broken"):
        read_image(Image.open(io.BytesIO(data[: len(data) // 2])))


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\x80\x04cos\nsystem\n", bytes(1000)],
)
def test_what_is_no_picture_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"x\.png"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "TGA", "EPS"])
def test_other_formats_are_refused_however_good_the_file(kind: str) -> None:
    with pytest.raises(DatasetError, match="PNG, JPEG, WebP, GIF or BMP"):
        read_image(packed(gradient(16, 16), kind))


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(DatasetError, match="regular"):
        read_image(tmp_path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_image("a\0b.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DatasetError, match="regular"):
        read_image(tmp_path / "pipe.png")


def test_a_thread_of_a_picture_is_refused_instead_of_scaled_to_gigabytes(tmp_path: Path) -> None:
    gradient(1, 60_000).save(tmp_path / "thread.png")
    with pytest.raises(DatasetError, match=r"thread\.png.*too long and thin.*crop"):
        clip_pixels(tmp_path / "thread.png", size=224)


# Pixels

SIZES = [
    (224, 224),
    (225, 223),
    (640, 427),
    (427, 640),
    (333, 1000),
    (97, 31),
    (31, 97),
    (1, 1),
    (500, 499),
    (1023, 300),
]


@pytest.mark.parametrize("size", [224, 64, 75])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("make", [noise, gradient])
def test_pixels_for_clip_are_those_of_transformers_to_the_bit(make: Any, shape: tuple[int, int], size: int) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = make(*shape)
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    found = clip_pixels(image, size=size)
    assert found.shape == (3, size, size) and found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_other_modes_are_for_clip_as_in_transformers(mode: str) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = noise(90, 70, 4).convert(mode) if mode in ("LA", "RGBA") else gradient(90, 70).convert(mode)
    expected = CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(clip_pixels(image), expected)


def test_mean_and_std_can_be_another_models_and_a_batch_is_its_pictures(tmp_path: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = CLIPImageProcessorPil(image_mean=mean, image_std=std)(gradient(300, 260), return_tensors="pt")
    assert torch.equal(clip_pixels(gradient(300, 260), mean=mean, std=std), expected["pixel_values"][0])
    noise(30, 20).save(tmp_path / "a.png")
    batch = clip_batch([tmp_path / "a.png", gradient(50, 80)], size=32)
    assert torch.equal(batch[0], clip_pixels(tmp_path / "a.png", size=32))
    assert torch.equal(batch[1], clip_pixels(gradient(50, 80), size=32))
    assert clip_batch([], size=32).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("shape", [(512, 512), (513, 767), (100, 64), (15, 8)])
def test_pixels_for_diffusion_are_those_of_diffusers_to_the_bit(shape: tuple[int, int]) -> None:
    diffusers = pytest.importorskip("diffusers")
    processor = diffusers.image_processor.VaeImageProcessor()
    image = gradient(*shape)
    found = diffusion_pixels(image)
    assert torch.equal(found, processor.preprocess(image)[0])
    assert found.shape == (3, shape[1] // 8 * 8, shape[0] // 8 * 8)
    given = diffusion_pixels(image, width=64, height=40)
    assert torch.equal(given, processor.preprocess(image, width=64, height=40)[0])
    wild = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(to_images(wild), processor.postprocess(wild), strict=True):
        assert np.array_equal(pixels(ours), pixels(theirs))


def test_pixels_for_diffusion_go_from_minus_one_to_one() -> None:
    ends = Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 4, 1).repeat(8, 0)).convert("RGB")
    found = diffusion_pixels(ends)
    assert (float(found.min()), float(found.max())) == (-1.0, 1.0)
    middle = diffusion_pixels(Image.new("RGB", (8, 8), (51, 102, 204)))[:, 0, 0]
    torch.testing.assert_close(middle, torch.tensor([-0.6, -0.2, 0.6]))


def test_sizes_that_diffusion_cannot_have_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"width.*60.*multiple of 8.*64"):
        diffusion_pixels(gradient(64, 64), width=60)
    with pytest.raises(ConfigError, match="height"):
        diffusion_pixels(gradient(64, 64), height=0)
    gradient(64, 7).save(tmp_path / "flat.png")
    with pytest.raises(DatasetError, match=r"flat\.png.*64 x 7"):
        diffusion_pixels(tmp_path / "flat.png")
    assert diffusion_pixels(tmp_path / "flat.png", height=8).shape == (3, 8, 64)


def test_pictures_come_back_from_pixels() -> None:
    image = gradient(48, 40)
    assert np.array_equal(pixels(to_images(diffusion_pixels(image))[0]), pixels(image))
    assert len(to_images(torch.stack([diffusion_pixels(image)] * 3))) == 3
    back = to_images(clip_pixels(gradient(32, 32), size=32), mean=CLIP_MEAN, std=CLIP_STD)[0]
    assert np.array_equal(pixels(back), pixels(gradient(32, 32)))
    assert pixels(to_images(torch.full((3, 1, 1), 7.0))[0]).tolist() == [[[255] * 3]]
    assert pixels(to_images(torch.full((3, 1, 1), -7.0))[0]).tolist() == [[[0] * 3]]


@pytest.mark.parametrize(("shape", "target"), [((100, 50), (20, 20)), ((50, 100), (30, 20)), ((64, 64), (64, 32))])
def test_cover_keeps_proportions_and_takes_the_middle(shape: tuple[int, int], target: tuple[int, int]) -> None:
    """A horizontal ramp stays a ramp, symmetric about its middle, with the slope of its scale."""
    ramp = np.tile(np.linspace(0, 255, shape[0]), (shape[1], 1)).round().astype(np.uint8)
    found = pixels(cover(Image.fromarray(ramp).convert("RGB"), *target))[..., 0]
    assert found.shape == (target[1], target[0])
    scale = max(target[0] / shape[0], target[1] / shape[1])
    assert abs(found.mean() - 127.5) < 3
    assert (found[0, -3] - found[0, 2]) / (target[0] - 5) == pytest.approx(255 / shape[0] / scale, rel=0.1)
