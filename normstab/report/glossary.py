"""What the words of a report mean, each in a sentence: the end of every report, and a part of its documentation."""

from __future__ import annotations

__all__ = ["GLOSSARY", "as_list"]

GLOSSARY = {
    "setting": "a point of the grid, such as norm l2 in fp16; its cells differ in their seed alone",
    "reference": "the same network, data and seed in float32",
    "site": "an operation of a module in one direction, module.operation[direction], where results are rounded",
    "first offence": "the earliest site and step of an overflow, a NaN, a division by zero or an underflow",
    "overflow": "a result beyond the largest number of its format, counted before it is made inf or the largest number",
    "underflow": "a result other than zero that the format rounds to zero",
    "gap": "the reference's accuracy minus the cell's, seed by seed; negative where the cell is more accurate; "
    "of networks for tokens the cell's token loss minus the reference's, in nats",
    "gap, sd": "the gap divided by the standard deviation of the reference's accuracy over its seeds",
    "cosine": "of the angle between the cell's gradient and its reference's in the same step, the least of the steps "
    "compared: 1 is the same direction, 0 none in common",
    "distance of the weights": "the norm of their difference from the reference's, over the norm of the reference's",
    "headroom": "the binades (factors of two) by which a norm layer's input could still grow before its results "
    "overflow; below zero it has been exceeded",
    "lost updates": "weight updates other than zero that left the stored weight as it was",
    "remedy": "a change with evidence in the records; tested here, where another setting of this grid has it; tried, "
    "where the cell trained with it for a while",
}
"""Term -> what it means, in the order in which a report needs them."""


def as_list() -> str:
    """Return the glossary as a Markdown list."""
    return "\n".join(f"- **{term}**: {meaning}." for term, meaning in GLOSSARY.items())
