"""A small terminal: what its screen shows after the bytes of a process."""

import re

_SEQUENCE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")


class Screen:
    """Lines of text of a width, which a cursor writes over; without scrolling."""

    def __init__(self, width: int) -> None:
        self.width, self.rows, self.row, self.column = width, [""], 0, 0
        self.is_cursor_hidden = False

    def write(self, text: str) -> "Screen":
        """Shows a text; raises `ValueError` for a sequence that it does not know."""
        while text:
            if found := _SEQUENCE.match(text):
                self._obey(*found.groups())
            elif text[0] == "\x1b":
                raise ValueError(text[:9])
            text = text[found.end() :] if found else self._put(text[0]) or text[1:]
        return self

    def lines(self) -> list[str]:
        """Returns the lines, without blanks at their ends."""
        return [row.rstrip() for row in self.rows]

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row += 1
        else:
            if self.column == self.width:  # A line breaks before what no longer fits.
                self.row, self.column = self.row + 1, 0
            self._write_at(character)
            self.column += 1
        self.rows += [""] * (self.row + 1 - len(self.rows))

    def _write_at(self, character: str) -> None:
        self.rows += [""] * (self.row + 1 - len(self.rows))
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]

    def _obey(self, numbers: str, letter: str) -> None:
        if letter == "K":
            kept = {"2": 0, "": self.column, "0": self.column}[numbers]
            self.rows[self.row] = self.rows[self.row][:kept]
        elif letter == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif (numbers, letter) in (("?25", "l"), ("?25", "h")):
            self.is_cursor_hidden = letter == "l"
        elif letter != "m":
            raise ValueError(numbers + letter)
