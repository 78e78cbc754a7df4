"""The format that stands first in a precision, or the question to ask back where the name may mean several machines.

`fp16` rounds every result; `half`, a recipe, is what model.half() does. `float16` could be either.
"""

from __future__ import annotations

from normstab.errors import FormatError, PrecisionError, near
from normstab.numerics.formats import FORMATS, AnyFormat, parse_format
from normstab.numerics.recipes import RECIPES
from normstab.numerics.spelling.typed_names import FP8

__all__ = ["machine_format"]

# A name that may mean several machines -> those.
_HALF = "fp16 (every result rounded to fp16) or half (what model.half() does: norm layers wide inside)"
_FP8 = f"{FP8} for every result, or a machine with scales: fp8-tensorwise, fp8-rowwise, fp8-block128, mxfp8"
_AMP = "amp-fp16 or amp-bf16 (torch.autocast)"
_ASKED = {
    "float16": _HALF,
    "f16": _HALF,
    "fp8": _FP8,
    "float8": _FP8,
    "fp6": "mxfp6-e2m3 or mxfp6-e3m2 (operands in blocks with scales), or e2m3 or e3m2 for every result",
    "fp4": "nvfp4 or mxfp4 (operands in blocks with scales), or e2m1 for every result",
    "amp": _AMP,
    "autocast": _AMP,
    "mixed": _AMP,
    "16-mixed": "amp-fp16 (torch.autocast in float16)",
    "bf16-mixed": "amp-bf16 (torch.autocast in bfloat16)",
    "16-true": "half (what model.half() does)",
    "bf16-true": "bfloat16 (what model.bfloat16() does)",
}


def machine_format(text: str, name: str) -> AnyFormat:
    """Return the format called `name`, with which the precision `text` computes.

    Where the name is the whole machine and may mean several, raise PrecisionError with those; with a rounding after
    it, or `uniform:` before it, it is a format. Raises FormatError or PrecisionError for a name that is none.
    """
    is_whole = text.strip().lower().partition(";")[0].strip() == name
    if is_whole and name in _ASKED:
        raise PrecisionError(f"precision {text!r}: did you mean {_ASKED[name]}?")
    try:
        return parse_format(name)
    except FormatError as error:
        hint = near(name, (*RECIPES, *FORMATS))
        if hint != near(name, FORMATS):  # a recipe is nearest
            raise PrecisionError(f"precision {text!r}: unknown recipe or format {name!r}{hint}") from error
        raise
