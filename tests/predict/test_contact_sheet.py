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


def test_a_file_that_is_gone_is_white(tmp_path):
    assert (contact_sheet.thumbnail(str(tmp_path / "gone.png")) == 255).all()


def test_a_row_may_be_shorter_and_a_sheet_is_replaced(tmp_path):
    colours = {
        name: np.full((SIDE, SIDE, 3), value)
        for name, value in zip("ab", (9, 200), strict=True)
    }
    file = tmp_path / "x.png"
    for rows in ([[("a", "")], [("b", ""), ("a", "")]], [[("b", "1\n2")]]):
        contact_sheet.check(file)
        contact_sheet.write(file, rows, colours)
        with Image.open(file) as image:
            pixels = np.asarray(image)
        height, width = len(pixels) // len(rows), SIDE + 4
        for number, row in enumerate(rows):
            for column in range(max(map(len, rows))):
                top, left = number * height, column * width
                value = colours[row[column][0]][0, 0, 0] if column < len(row) else 255
                assert (pixels[top : top + SIDE, left : left + SIDE] == value).all()


@pytest.mark.parametrize("data", [b"", b"mine", "png"])
def test_what_is_no_sheet_is_not_replaced(tmp_path, data):
    file = tmp_path / "x.png"
    if data == "png":
        Image.new("L", (3, 3)).save(file)
    else:
        file.write_bytes(data)
    with pytest.raises(
        InputError, match=r"x.png is a file already, and no sheet; try --she"
    ):
        contact_sheet.check(file)
