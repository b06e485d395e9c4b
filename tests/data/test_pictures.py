"""Pictures of arrays: what is where in them."""

import numpy as np

from jaxcls.data import pictures


def test_a_cell_of_the_confusion_matrix_is_as_dark_as_its_share_of_the_row():
    matrix = np.array([[8, 2, 0], [0, 0, 0], [5, 0, 5]])
    picture = pictures.confusion(matrix, ["a", "b", "c"]).astype(float)
    side = 36
    corner = np.array(picture.shape[:2]) - 3 * side
    # Beside the counts, which stand in the middle.
    cells = picture[corner[0] + 2 :: side, corner[1] + 2 :: side].mean(-1)
    assert cells.shape == (3, 3)
    order = np.argsort(-cells, axis=None, kind="stable")
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    assert np.diff(share.ravel()[order]).min() >= 0
    assert cells[2, 0] == cells[2, 2]


def test_counts_and_names_are_written_where_there_is_room():
    def ink(count, name):
        picture = pictures.confusion(np.eye(count, dtype=int), [name] * count)
        return picture, (picture.min(-1) < 40).sum()

    for count in (2, 20, 50):
        (_, none), (_, some) = ink(count, ""), ink(count, "zebra")
        assert some > none
    assert (ink(51, "")[0] == ink(51, "zebra")[0]).all()
    assert max(ink(100, "")[0].shape) < 1000


def test_names_may_hold_any_signs():
    for name in ("$^", "a\nb", "", "斑馬", "x" * 500):
        assert pictures.confusion(np.eye(2, dtype=int), [name, "b"]).shape == (182, 182, 3)


def test_the_grid_holds_the_images_in_rows_of_eight():
    images = np.zeros((10, 64, 64, 1), np.float32)
    images += np.arange(10).reshape(-1, 1, 1, 1) / 10
    picture = pictures.grid(images, ["a caption"] * 10)
    height, width = picture.shape[0] // 2, picture.shape[1] // 8
    for i, image in enumerate(images):
        top, left = (i // 8) * height, (i % 8) * width
        assert (picture[top : top + 64, left : left + 64] == round(255 * image.max())).all()


def test_images_of_any_size_are_shown_in_sizes_that_can_be_seen():
    for side, shown in ((8, 64), (100, 100), (256, 128)):
        picture = pictures.grid(np.zeros((1, side, side, 3), np.float32), [""])
        assert (picture[:shown, :shown] == 0).all()
        assert (picture[shown + 1 :] == 255).all()
        assert (picture[:, shown + 1 :] == 255).all()
