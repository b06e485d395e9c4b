"""Tars as tests need them, with members that no tool would write."""

import io
import tarfile


def member(name, size=0, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, target
    return info


def tar(files, extra=(), mode="w", form=tarfile.GNU_FORMAT):
    """The bytes of a tar of {name: bytes}, with `extra` members in front."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=form) as archive:
        for info in extra:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
        for name, data in files.items():
            archive.addfile(member(name, len(data)), io.BytesIO(data))
    return out.getvalue()
