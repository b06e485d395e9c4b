"""A contact sheet: what a picture is made to, and what may be replaced."""

import numpy as np
import pytest
from PIL import Image

from jaxcls.errors import InputError
from jaxcls.predict import contact_sheet
from jaxcls.predict.contact_sheet import SIDE


def test_a_picture_keeps_its_shape_on_white(tmp_path):
    red = (255, 0, 0)
    Image.new("RGB", (400, 200), red).save(tmp_path / "wide.png")
    Image.new("RGB", (4, 8), red).save(tmp_path / "high.png")
    wide, high = (
        contact_sheet.thumbnail(str(tmp_path / f"{name}.png")) for name in ("wide", "high")
    )
    expected = np.full((SIDE, SIDE, 3), 255, np.uint8)
    expected[SIDE // 4 : -SIDE // 4] = red
    np.testing.assert_array_equal(wide, expected)
    np.testing.assert_array_equal(high, expected.transpose(1, 0, 2))


def test_a_row_may_be_shorter_a_file_gone_and_a_sheet_is_replaced(tmp_path):
    for name, value in (("a", 9), ("b", 200)):
        Image.new("L", (5, 5), value).save(tmp_path / f"{name}.png")
    a, b, gone = (str(tmp_path / f"{name}.png") for name in ("a", "b", "gone"))
    file = tmp_path / "x.png"
    for found, expected in (
        ([(a, []), (b, [(a, 1.0), (gone, 0.5)])], [[9, 255, 255], [200, 9, 255]]),
        ([(b, [])], [[200]]),
    ):
        contact_sheet.check(file)
        contact_sheet.draw(file, found, str(tmp_path))
        with Image.open(file) as image:
            pixels = np.asarray(image)
        height, width = len(pixels) // len(expected), SIDE + 4
        for place, value in np.ndenumerate(expected):
            top, left = place[0] * height, place[1] * width
            assert (pixels[top : top + SIDE, left : left + SIDE] == value).all()


def test_what_is_no_picture_is_not_replaced(tmp_path):
    file = tmp_path / "x.png"
    file.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"x.png is a file already, and no sheet; try --s"):
        contact_sheet.check(file)
