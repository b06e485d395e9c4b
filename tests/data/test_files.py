"""Which files are meant, in what order, and what is read of them."""

import io
import os

import pytest
from PIL import features

from jaxcls.data import clean, decode, files, importers
from jaxcls.data.files import Bad
from jaxcls.errors import InputError
from jaxcls.predict import gallery
from tests.images import NOISE, encode, far, upright, write


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "sub/c.webp", "sub/a.tiff", "notes.txt", "x.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_gives_its_images_by_path_and_files_come_as_given(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    name = folder.name
    inside = [f"{name}/{n}" for n in ("a.png", "b.JPG", "sub/a.tiff", "sub/c.webp")]
    paths = [f"./{name}/x.npy", name, f"{name}//a.png", "no/such"]
    expected = [paths[0], *inside, *paths[2:]]
    assert list(files.images(paths)) == expected


def test_files_that_are_not_named_as_images_are_counted(folder, capsys):
    left_out = []
    assert len(list(files.images([str(folder), f"{folder}/x.npy"], left_out))) == 5
    assert left_out == [f"{folder}/notes.txt", f"{folder}/x.npy"]
    (folder / "sub/.hidden").touch()
    for name in ("a.png.json", "LICENSE", "z.csv"):
        (folder / "sub" / name).touch()
    left_out.clear()
    assert len(list(files.asked([str(folder)], False, left_out))) == 4
    assert f"{folder}/sub/.hidden" in left_out
    files.say_left_out([])
    assert capsys.readouterr().err == ""
    files.say_left_out(left_out)
    first = f"{folder}/notes.txt, {folder}/sub/LICENSE, {folder}/sub/a.png.json"
    more = len(left_out) - 3
    said = f"note: left out, hidden, or not named as images: {first} and {more} more\n"
    assert capsys.readouterr().err == said


# {format of Pillow: the suffixes of its files}, for each that it writes.
WRITTEN = {
    "JPEG": [".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo"],
    "PNG": [".png", ".apng"],
    "WEBP": [".webp"],
    "BMP": [".bmp"],
    "DIB": [".dib"],
    "GIF": [".gif"],
    "TIFF": [".tif", ".tiff"],
    "PPM": [".ppm", ".pgm", ".pbm", ".pnm"],
    "JPEG2000": [".jp2", ".j2k", ".j2c", ".jpf", ".jpx"],
    "TGA": [".tga"],
    "QOI": [".qoi"],
    "AVIF": [".avif"],
}


def test_prepare_predict_and_search_take_every_kind_that_can_be_read(tmp_path):
    root = tmp_path / "photos"
    kinds = [(form, suffix) for form, each in WRITTEN.items() for suffix in each]
    assert {suffix for _, suffix in kinds} == {*files.SUFFIXES} - {".heic", ".heif"}
    pixels = {}
    for form, suffix in kinds:
        for name in (f"a/{form}{suffix}", f"b/{form}{suffix.upper()}"):
            if form != "AVIF" or features.check("avif"):
                pixels[name] = encode(NOISE, form)
    write(root, pixels)
    names = sorted(pixels)
    prepared = importers.open_source(root, tmp_path, 0.0)
    assert [os.fsdecode(name) for name in prepared.splits["train"].names] == names
    assert [*files.images([str(root)])] == [f"{root}/{name}" for name in names]
    assert list(gallery.listed(str(root)).status) == names
    for name in names:
        data = files.read(f"{root}/{name}")
        seen = clean.pixels(data, decode.Decode(3))
        assert far(seen, upright(data)) == 0


def test_nothing_is_looked_at_before_it_is_asked_for():
    def paths():
        yield "a.png"
        raise AssertionError

    assert next(files.images(paths())) == "a.png"


def test_hidden_and_system_files_are_left_out(folder):
    for name in ("._a.png", ".hidden/a.png", "__MACOSX/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert len(list(files.below(str(folder)))) == 4
    (folder / ".hidden/b.txt").touch()
    assert list(files.below(f"{folder}/.hidden")) == [f"{folder}/.hidden/a.png"]


@pytest.mark.parametrize("target", ["nowhere", "x"])
def test_a_link_that_leads_nowhere_is_not_read(tmp_path, target):
    (tmp_path / "x").symlink_to(target)
    with pytest.raises(decode.DecodeError, match="a broken link"):
        files.read(f"{tmp_path}/x")


def test_a_folder_that_cannot_be_read_is_said_and_the_rest_is_found(folder, monkeypatch):
    scandir = os.scandir

    def refusing(path):  # As to anyone but root, whom nothing is refused.
        if path.endswith("sub/"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = list(files.below(str(folder)))
    assert found[2:] == [Bad(f"{folder}/sub", "Permission denied")]
    assert len(found) == 3


def test_prepare_predict_and_search_find_the_same_files_in_one_order(tmp_path):
    root = tmp_path / "photos"
    good = [
        "b-c/1.png", "b.d/1.PNG", "b/1.png", "b/a!.jpg", "b/a/1.png", "b/a0.tiff",
        "b/to/1.webp", "é/☃.png", os.fsdecode(b"\xff/\xfe\n.png"),
    ]  # fmt: skip
    left_out = [
        "b/.x.png", "b/.y/1.png", "b/Thumbs.db", "__MACOSX/b/1.png", "b/notes.txt",
        "b/LICENSE",
    ]  # fmt: skip
    outside = ["../other/1.webp"]
    for name in [*good[:6], *good[7:], *left_out, *outside]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, target in {
        "b/to": tmp_path / "other", "b/up": root, "b/gone.png": "nowhere", "b/me": "me",
        "b/missing": "nowhere",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    os.mkfifo(root / "b/pipe.png")
    bad = {
        "b/gone.png": "a broken link", "b/me": "a broken link",
        "b/missing": "a broken link", "b/pipe.png": "not a regular file",
        "b/up": "a link to a folder that it lies in",
    }  # fmt: skip
    prepared = importers.open_source(root, tmp_path, 0.0)
    assert [os.fsdecode(name) for name in prepared.splits["train"].names] == good
    assert prepared.rejected == list(bad.items())

    lists = [], []
    asked = list(files.images([str(root)], lists[0]))
    searched = gallery.listed(str(root), None, lists[1])
    others = ["b/LICENSE", "b/notes.txt"]
    hidden = ["__MACOSX/", "b/.x.png", "b/.y/", "b/Thumbs.db"]
    assert prepared.left_out == {
        "hidden, or of a system": hidden, "not named as an image": others,
    }  # fmt: skip
    assert lists[0] == lists[1] == [f"{root}/{name}" for name in (*others, *hidden)]
    assert [x for x in asked if not isinstance(x, Bad)] == [f"{root}/{x}" for x in good]
    assert list(searched.status) == good
    said = [Bad(f"{root}/{name}", why) for name, why in bad.items()]
    assert [x for x in asked if isinstance(x, Bad)] == searched.bad == said


def test_arguments_none_of_which_can_be_meant_are_refused_at_once(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, said in {
        ("no/such.png",): "no/such.png is not a file; give image files",
        ("",): "'' is not a file; give image files",
        ("no/such.png", f"{tmp_path}/empty"): "no/such.png is not a file",
        (f"{tmp_path}/empty",): f"{tmp_path}/empty holds no image; .apng, .avif, .bmp",
        ("-", "-"): "- is given twice",
    }.items():
        with pytest.raises(InputError) as refused:
            files.check(arguments)
        assert str(refused.value).startswith(said)
    (tmp_path / "gone.png").symlink_to("nowhere")  # Bad when its turn comes.
    files.check([str(folder), str(folder / "x.npy"), "-", str(tmp_path / "gone.png")])
    files.check([f"{folder}/a.png", "no/such.png", f"{tmp_path}/empty"])  # These two, too.


@pytest.mark.parametrize("end", [b"\n", b"\0"])
@pytest.mark.parametrize("chunk", [1, 4, 1 << 16])
def test_a_list_is_its_paths_whatever_their_bytes(end, chunk, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK", chunk)
    paths = [b"a b", "é☃".encode(), b"\xff\xfe", b" c\r"] + [b"d\ne"] * (end == b"\0")
    if chunk == 1:
        paths = [b"a"]
    text = end + end.join(paths)  # An empty path, and none that ends the last.
    found = list(files.listed(io.BytesIO(text), end))
    assert [os.fsencode(path) for path in found] == paths
    assert list(files.listed(io.BytesIO(text + end), end)) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"a.png\0b.png\0", "has a NUL byte"), (b"x" * 100_000, "over 65536 bytes in one")],
)
def test_what_is_no_list_of_paths_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        list(files.listed(io.BytesIO(text), b"\n"))


def test_a_folder_too_deep_is_said(tmp_path):
    (tmp_path / "/".join("a" * 102)).mkdir(parents=True)
    assert files.Bad("/".join("a" * 101), "a folder over 100 deep") in files.walk(tmp_path)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, "/dev/zero"):
        with pytest.raises(decode.DecodeError, match=r"^not a regular file$"):
            files.read(str(path))


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(decode.DecodeError, match="over the limit of 1,073,741,824"):
        files.read(str(tmp_path / "x.png"))
    (tmp_path / "y.png").write_bytes(b"y")
    assert files.read(str(tmp_path / "y.png")) == b"y"
