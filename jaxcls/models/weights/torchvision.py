"""The images that torchvision's own files of weights are for, which hold no such fact.

A file of https://download.pytorch.org/models/ has the first digits of its SHA-256 in its
name. These are the `transforms` of torchvision 0.28 for the models that are here.
"""

import hashlib
import pathlib
import re

from jaxcls.models.weights.facts import Preprocessing, crop_of

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# (size, short edge before the crop, filter): the first digits of the files' SHA-256.
_FILES = {
    (224, 224, "bicubic"): "4e70ced5 4d563306",
    (224, 230, "bilinear"): "0c510722",
    (224, 232, "bilinear"): "110c445d 11ad3fa6 1a0047aa 5c1a4163 6075fbad 7ebf99e0"
    " 9ba9bcbe cd907fc2 d733dc28 ea097f82 f82ba261",
    (224, 232, "bicubic"): "704ceda3",
    (224, 236, "bilinear"): "983f1562",
    (224, 238, "bicubic"): "68c6b09e",
    (224, 242, "bilinear"): "852ce7e3",
    (224, 246, "bicubic"): "5e29d889",
    (224, 256, "bicubic"): "7f5810bc",
    (224, 256, "bilinear"): "047dcff4 0676ba61 19584684 32ee1156 394f9c45 397923af 6002323d"
    " 63fe2227 6c64b313 7be5be79 7cdf4587 8738ca79 8a719046 8ba56ff5 95faca4d abd245e5"
    " b0353104 b627a593 c7638314 c79401a0 c867db91 d86f8d99 dcbb9e9d f37072fd",
    (240, 255, "bilinear"): "c27df63c",
    (240, 256, "bicubic"): "bac287d4",
    (288, 288, "bicubic"): "c35c1473",
    (300, 320, "bicubic"): "b3899882",
    (380, 384, "bicubic"): "23ab8bcd",
    (384, 384, "bicubic"): "9ac1b537",
    (384, 384, "bilinear"): "dd5fe13b",
    (480, 480, "bilinear"): "dc08266a",
    (512, 512, "bicubic"): "4f3808c9",
}
FILES = {digits: form for form, each in _FILES.items() for digits in each.split()}


def preprocessing(file: pathlib.Path) -> Preprocessing | None:
    """Returns the preprocessing of a file that torchvision published; None for another.

    The name only says which file it may be: its content decides.
    """
    named = re.search(r"-([0-9a-f]{8})\.pth$", file.name)
    if not named or named[1] not in FILES:
        return None
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if not digest.startswith(named[1]):
        return None
    size, side, method = FILES[named[1]]
    return Preprocessing(_MEAN, _STD, size, crop_of(size, side), method)
