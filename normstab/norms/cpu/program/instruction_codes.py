"""The instructions of the interpreter as integers: what its rows hold, and the code of each."""

from __future__ import annotations

__all__ = ["CODES", "ROW"]

# The fields of a row.
ROW = ("code", "a", "b", "c", "y", "site")
# Name of an instruction -> its code; those with the name of a step compute it on blocks and on numbers of groups.
CODES = {
    name: code
    for code, name in enumerate(
        (
            "cast", "add", "sub", "mul", "div", "sqrt", "sign", "abs", "aten::neg", "aten::eq.Scalar",
            "aten::lt.Scalar", "aten::gt.Scalar", "aten::where.self", "GATHER", "SCATTER", "PARAMETERS", "SUM",
            "FINISH", "FILL", "LOAD", "STORE", "LOOP", "END", "apply",
        )
    )
}  # fmt: skip
