"""Mutations of a valid input: damage, as of a disk, and malice, as of another's file.

Each is drawn from a `random.Random`, so a seed makes the same bytes again.
"""

import json
import re

MOST = 1 << 20  # The bytes of a mutated input; the bounds hold for inputs of this size.
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_NUMBERS = (
    *(b"0", b"-1", b"1", b"2147483648", b"4294967296", b"9223372036854775808"),
    *(b"1000000000", b"1e999", b"-1e999", b"1e-999", b"NaN", b"Infinity", b"1.5", b"0x10"),
    *(b"9" * 40, b"9" * 5000, b"1e400000000", "\u0663".encode(), b"1_000", b"007"),
)
_TOKENS = (
    *(b"\0", b"\x1b[2J\x1b]0;x\x07", b"\r\n", b"\n\n", b'"', b"'", b"\\", b"/", b",", b"|"),
    *(b"../../outside", b"/etc/hostname", b"~", b"~nobody/x", b"file://x", b"%s%n{0}$HOME"),
    *(
        "\u202eabc".encode(),
        "\u2028".encode(),
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
    ),
    *(b"(", b")", b"()", b"[]", b"{}", b"**", b"None", b"true", b"null", b"lambda:0", b"~"),
    *(b"[" * 3000, b"(" * 3000, b"[" * 100_000, b"{" * 3000, b"-" * 3000, b"x|" * 3000),
    *(b"(((((a+)+)+)+)+)$", b"a" * 70_000, b"9**9**9", b"1 " * 3000, b"not " * 3000),
)
_VALUES = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, 10**9, 10**40, -(10**40)),
    *(1.5, 1e308, float("inf"), float("nan"), "", "x", "0", "\0\x1b[31m\n", "\ud800"),
    *(
        "../../outside",
        "\u202ex",
        "x" * 70_000,
        "9" * 5000,
        [],
        {},
        [[]],
        [None],
        {"": None},
    ),
    *([0] * 3000, ["x"] * 3000, {"x": {"x": 1}}, {str(n): n for n in range(3000)}),
)
_DEEP = (b"[" * 900 + b"]" * 900, b"[" * 100_000 + b"]" * 100_000)
_DEEP += (b'{"a":' * 900 + b"1" + b"}" * 900, b'{"a":' * 50_000 + b"1" + b"}" * 50_000)


def mutated(rng, data, others=()):
    """`data` after one to three mutations; others: inputs that it may be spliced with."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kinds = [_structured] * 4 if data[:1] in b"[{" else []
        kinds += [_number, _token] * 2 if _is_text(data) else [_integer] * 2
        kinds += [_flip, _flip, _truncate, _insert, _delete, _swap, _repeat]
        kind = rng.choice(kinds + [_splice] * bool(others))
        data = kind(rng, data, others) if kind is _splice else kind(rng, data)
        data = data[:MOST]
    return data


def _is_text(data):
    return all(byte > 8 for byte in data[:200])


def _place(rng, data):
    """Where something is changed: anywhere, or in the header, which most readers trust."""
    return rng.randrange(1 + (min(len(data), 64) if rng.random() < 0.3 else len(data)))


def _flip(rng, data):
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if made:
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def _truncate(rng, data):
    return data[: rng.randrange(len(data) + 1)]


def _insert(rng, data):
    at = _place(rng, data)
    filled = bytes([rng.choice((0, 0xFF, 0x20, rng.randrange(256)))])
    more = rng.choice(
        (rng.randbytes(rng.randrange(1, 40)), filled * rng.randrange(1, 3000))
    )
    return data[:at] + more + data[at:]


def _delete(rng, data):
    at = _place(rng, data)
    return data[:at] + data[at + rng.randrange(1, 40) :]


def _swap(rng, data):
    a, b, c = sorted(_place(rng, data) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _repeat(rng, data):
    a, b = sorted(_place(rng, data) for _ in range(2))
    times = rng.choice((2, 2, 2, 10, 10, 10, 100, 1000, 100_000))
    return data[:b] + data[a:b] * min(times, MOST // max(b - a, 1)) + data[b:]


def _splice(rng, data, others):
    other = rng.choice(others)
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def _integer(rng, data):
    """Replaces bytes by an integer at a limit, of either order of bytes."""
    size = rng.choice((1, 2, 4, 4, 8))
    value = rng.choice(
        (0, 1, -1, -2, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 1 << 28)
    )
    value %= 1 << 8 * size
    at = _place(rng, data)
    made = value.to_bytes(size, rng.choice(("little", "big")))
    return data[:at] + made + data[at + size :]


def _number(rng, data):
    """Replaces a number in a text."""
    found = [*_NUMBER.finditer(data[:100_000])]
    if not found:
        return _token(rng, data)
    each = rng.choice(found)
    return data[: each.start()] + rng.choice(_NUMBERS) + data[each.end() :]


def _token(rng, data):
    at = _place(rng, data)
    return data[:at] + rng.choice(_TOKENS) + data[at + rng.choice((0, 0, 1, 5)) :]


def _structured(rng, data):
    """Changes a value of JSON, or of a line of it: another type, a lost or a new key."""
    lines = data.splitlines(keepends=True) or [b""]
    try:
        json.loads(data)
        place, lines = 0, [data]
    except (ValueError, RecursionError):
        place = rng.randrange(len(lines))
    try:
        tree = json.loads(lines[place])
    except (ValueError, RecursionError):
        return _token(rng, data)
    mark = '"mark of what is replaced"'
    tree, more = _changed(rng, tree, json.loads(mark))
    try:
        text = json.dumps(tree).encode().replace(mark.encode(), more)
    except RecursionError:  # An earlier mutation made it deep.
        return _token(rng, data)
    return b"".join([*lines[:place], text + b"\n", *lines[place + 1 :]])


def _changed(rng, tree, mark):
    """A tree with a change in it, and the bytes for `mark`, if it is there."""
    nodes = [(holder, key) for holder in _holders(tree) for key in _keys(holder)]
    if not nodes or rng.random() < 0.03:
        return mark, rng.choice(_DEEP)
    holder, key = rng.choice(nodes)
    how = rng.randrange(10)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[rng.choice(("x", "", "\x1b[1m", "step", "a\nb", "\ud800"))] = holder.pop(key)
    elif how == 2:
        holder[key] = mark
        return tree, rng.choice(_DEEP)
    elif how == 3:
        other, name = rng.choice(nodes)
        holder[key] = json.loads(json.dumps(other[name]))
    else:
        holder[key] = rng.choice(_VALUES)
    return tree, b""


def _holders(tree):
    """Every dict and list of a tree, itself too."""
    if isinstance(tree, dict | list):
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree[:50]:
            yield from _holders(value)


def _keys(holder):
    return [*holder] if isinstance(holder, dict) else [*range(min(len(holder), 50))]
