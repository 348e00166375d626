# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Which values are black and white in gray pictures of more than 8 bits."""

import logging
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vitadapter_fast.commands import cli

Image = pytest.importorskip("PIL.Image", reason="needs the [cli] extra")
pytest.importorskip("rich", reason="needs the [cli] extra")

from vitadapter_fast.commands.features.gray import value_range, white  # noqa: E402
from vitadapter_fast.commands.features.photos import (  # noqa: E402
    find_photos,
    photo_suffixes,
    read_photo,
)
from vitadapter_fast.errors import CommandError  # noqa: E402

SIDE = 64
UNIT = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)
GRAY = UNIT * 255


def read(values: npt.NDArray[Any], path: Path, **tags: Any) -> npt.NDArray[np.int64]:
    """Return the gray that a picture of these values comes out with."""
    options = {"tiffinfo": tags["tags"]} if tags else {}
    Image.fromarray(values).save(path, **options)
    return read_photo(path, (SIDE, SIDE))[..., 0].astype(np.int64)


VALUES = {
    "unit": (UNIT, GRAY),
    "dark": (UNIT / 4, GRAY / 4),
    "over_1": (UNIT * 1.001, GRAY),
    "signed": (UNIT * 2 - 1, GRAY),
    "bytes": (UNIT * 255, GRAY),
    "dim_bytes": (UNIT * 200, GRAY * 200 / 255),
    "16_bits": (UNIT * 65535, GRAY),
    "12_bits": (UNIT * 4000, GRAY),
    "tomography": (UNIT * 4000 - 1000, GRAY),
    "radiance": (UNIT * 1e6, GRAY),
    "black": (UNIT * 0, GRAY * 0),
    "half": (UNIT * 0 + 0.5, GRAY * 0 + 128),
    "constant": (UNIT * 0 + 1000, GRAY * 0 + 255),
}
WHOLE = ("bytes", "dim_bytes", "16_bits", "12_bits", "black", "constant")
STORED = [
    *((name, "float32") for name in VALUES),
    *((name, "int32") for name in (*WHOLE, "tomography", "radiance")),
    *((name, "uint16") for name in WHOLE),
]


@pytest.mark.parametrize(("name", "kind"), STORED, ids=map("-".join, STORED))
def test_values_mean_the_same_however_they_are_stored(name: str, kind: str, tmp_path: Path) -> None:
    values, expected = VALUES[name]
    got = read(values.astype(kind), tmp_path / "photo.tif")
    # The half percent at each end that does not count.
    assert abs(got - expected).max() <= 2


def test_pfm_is_read_by_the_same_rule(tmp_path: Path) -> None:
    header = f"Pf\n{SIDE} {SIDE}\n-1.0\n".encode()
    (tmp_path / "photo.pfm").write_bytes(header + UNIT[::-1].astype("<f4").tobytes())
    got = read_photo(tmp_path / "photo.pfm", (SIDE, SIDE))[..., 0]
    assert abs(got - GRAY).max() <= 2


def test_white_has_no_cliff() -> None:
    brightest = np.geomspace(1e-3, 1e7, 20_000)
    whites = np.array([white(each) for each in brightest])
    step = brightest[1] / brightest[0]
    assert (np.diff(whites) >= 0).all()
    assert (whites[1:] / whites[:-1] < step**2.001).all()
    assert (whites >= brightest * (1 - 1e-9)).all()


def test_values_just_below_0_change_little(tmp_path: Path) -> None:
    got = read((UNIT - 0.02).astype(np.float32), tmp_path / "photo.tif")
    assert abs(got - GRAY).max() <= 8


@pytest.mark.parametrize("odd", [1e9, -1e9, np.nan, np.inf, -np.inf])
def test_one_odd_pixel_changes_nothing_else(odd: float, tmp_path: Path) -> None:
    values = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (16, 1))
    expected = read(values, tmp_path / "photo.tif")
    values[0, 0] = odd
    Image.fromarray(values).save(tmp_path / "odd.tif")
    got = read_photo(tmp_path / "odd.tif", (32, 32))[8:, :, 0]
    assert (got == read_photo(tmp_path / "photo.tif", (32, 32))[8:, :, 0]).all()
    assert expected.max() > 250


def test_picture_without_a_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no pixel is a finite number"):
        read(np.full((SIDE, SIDE), np.nan, dtype=np.float32), tmp_path / "photo.tif")


def test_range_that_the_file_declares_holds(tmp_path: Path) -> None:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    for tag, value in ((340, -1.0), (341, 3.0)):
        tags.tagtype[tag] = 12
        tags[tag] = value
    got = read(UNIT.astype(np.float32), tmp_path / "photo.tif", tags=tags)
    assert abs(got - (UNIT + 1) / 4 * 255).max() <= 1


def test_bits_that_the_file_declares_hold() -> None:
    declaring = SimpleNamespace(tag_v2={258: (12,)})
    assert value_range(declaring, UNIT, None)[:2] == (0.0, 4095.0)  # type: ignore[arg-type,index]


@pytest.mark.parametrize(
    "tags", [{340: (1.0,), 341: (1.0,)}, {340: 0.0, 341: 3.4e38}, {258: (16,)}]
)
def test_range_that_says_nothing_is_not_taken(tags: dict[int, Any]) -> None:
    declaring = SimpleNamespace(tag_v2=tags)
    assert value_range(declaring, UNIT, None)[:2] == (0.0, 1.0)  # type: ignore[arg-type,index]


@pytest.mark.parametrize("nothing", [-9999.0, -32768.0, 9999.0, float(np.finfo("f").min)])
def test_what_was_not_measured_does_not_count(nothing: float, tmp_path: Path) -> None:
    values = UNIT.astype(np.float32)
    values[: SIDE // 4] = nothing
    got = read(values, tmp_path / "photo.tif", tags={42113: f"{nothing:.9g} "})
    assert abs(got - GRAY)[SIDE // 2 :].max() <= 2
    assert (got[: SIDE // 8] == (0 if nothing < 0 else 255)).all()


def test_user_sets_the_range_and_is_told_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray((UNIT * 8).astype(np.float32)).save(tmp_path / "photo.tif")
    with caplog.at_level(logging.INFO, "vitadapter_fast"):
        by_pixels = read_photo(tmp_path / "photo.tif", (SIDE, SIDE))
        by_user = read_photo(tmp_path / "photo.tif", (SIDE, SIDE), (-8.0, 8.0))
    assert by_pixels.min() == 0 and by_user.min() in (127, 128)
    told = [each.getMessage().partition("photo.tif: ")[2] for each in caplog.records]
    assert told == [
        "black is 0, white 7.95897, by its pixels; --range LOW HIGH sets others",
        "black is -8, white 8, as --range says",
    ]


def white_is_zero(values: npt.NDArray[Any], path: Path) -> Path:
    """Write a TIFF of these values that says that white is 0, which Pillow itself does not."""
    Image.fromarray(values).save(path)
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, entry) == (262,):
            struct.pack_into("<H", content, entry + 8, 0)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "values",
    [
        (UNIT * 255).astype(np.uint8),
        (UNIT * 65535).astype(np.uint16),
        (UNIT * 4000).astype(np.uint16),
        UNIT.astype(np.float32),
    ],
    ids=["8_bits", "16_bits", "12_bits", "unit"],
)
def test_picture_whose_white_is_0_is_no_negative(values: npt.NDArray[Any], tmp_path: Path) -> None:
    path = white_is_zero(values, tmp_path / "photo.tif")
    got = read_photo(path, (SIDE, SIDE))[..., 0].astype(np.int64)
    assert abs(got - (255 - GRAY)).max() <= 2


def test_range_of_a_picture_whose_white_is_0_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = (UNIT * 8).astype(np.float32)
    values[0, 0] = np.nan
    path = white_is_zero(values, tmp_path / "photo.tif")
    with caplog.at_level(logging.INFO, "vitadapter_fast"):
        got = read_photo(path, (SIDE, SIDE), (0.0, 16.0))[..., 0]
    assert got[-1, -1] in (127, 128) and got[0, 1] >= 254
    assert got[0, 0] == 0
    told = "black is 16, white 0, as --range says; the file has white at the low end"
    assert caplog.records[0].getMessage().endswith(told)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA"])
def test_range_that_has_no_effect_is_told(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(GRAY.astype(np.uint8)).convert(mode).save(path)
    assert (read_photo(path, (32, 32)) == read_photo(path, (32, 32), (0.0, 9.0))).all()
    (told,) = [each.getMessage() for each in caplog.records]
    assert told.startswith(f"{path}: --range says nothing of it") and told.endswith(f"got {mode}")


@pytest.mark.parametrize("values", [["2", "1"], ["1", "1"]], ids=" ".join)
def test_empty_range_is_an_error(values: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["features", "--device", "cpu", "--range", *values]) == 1
    assert capsys.readouterr().err.endswith(": wanted LOW below HIGH\n")


def test_folder_takes_what_pillow_reads(tmp_path: Path) -> None:
    for suffix in (".jfif", ".jp2", ".avif", ".JPG", ".pfm", ".tga"):
        assert suffix.lower() in photo_suffixes()
        (tmp_path / f"photo{suffix}").touch()
    for suffix in (".h5", ".mpg", ".eps", ".pdf", ".txt", ".safetensors"):
        (tmp_path / f"other{suffix}").touch()
    failures: list[str] = []
    found = find_photos([tmp_path], failures)
    assert {path.stem for path in found} == {"photo"} and len(found) == 6
    assert failures == []


def test_too_many_pixels_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(CommandError, match=r"too large: wanted at most 179 million.*tiles$"):
        read_photo(path, (96, 96))


@pytest.mark.filterwarnings("error")
def test_many_pixels_are_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("1", (10_000, 10_000)).save(path)
    assert read_photo(path, (32, 32)).shape == (32, 32, 3)
