"""Texts that strangers wrote, made harmless: no control characters, no HTML in Markdown.

Names, questions and notes come from scenarios and records that anyone may have made; so do texts of exceptions.
"""

from __future__ import annotations

import re

__all__ = ["bounded", "inert", "one_line", "visible"]

# Control characters but tab and line feed, those that turn the direction of writing, and halves of characters.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST = 2000  # characters of a text that stands in a line


def visible(text: str) -> str:
    """Return `text` with what would steer a terminal spelled out: the code of each character."""
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def inert(text: str) -> str:
    """Return Markdown `text` in which nothing is read as HTML or as an image; anything else stays."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", visible(text)).replace("![", "!\\[")


def bounded(text: str, most: int = LONGEST) -> str:
    """Return at most `most` characters of `text`, and how many were left out."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text) - most:,} characters more)"


def one_line(text: str) -> str:
    """Return a text of at most LONGEST characters without line breaks: no heading, no list item begins in it."""
    return " ".join(bounded(text).splitlines())
