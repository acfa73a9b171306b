"""Lists out of a teacher's reply: numbered items, and entries with labelled parts.

    numbered_items("Sure!\\n1. Name a bird.\\n2. Sum up\\n   the text.")
    # ["Name a bird.", "Sum up the text."]

    labelled_entries("Example 1\\nInput: 2 + 2\\nOutput: 4", ("Input", "Output"))
    # [{"Input": "2 + 2", "Output": "4"}]

Small models write malformed lists. Nothing is guessed: a reply without a list is turned down as "no_list",
and an entry that lacks a part or has one twice is a Rejected("malformed") in its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdbench.errors import Rejected

# "3. ...", "3) ...", "**3.** ...", "Task 3: ..."
_ITEM = re.compile(
    r"(?P<indent>[ \t]*)(?:[*#]+ ?)?(?:(?:task|instruction|item) )?\d{1,4}[.):][*]*(?:[ \t]+(?P<text>.*))?",
    re.IGNORECASE | re.ASCII,
)
# A line that only parts entries: "---", "###", "Example 2:", "**Task 3**"
_RULE = re.compile(
    r"[-=#*]{3,}|[#* ]*(?:example|instance|task|item)(?: \d{1,4})?[.:)* ]*", re.IGNORECASE | re.ASCII
)
_SHOWN = 80  # characters of a reply in a detail


def numbered_items(text: str) -> list[str]:
    """The items of a numbered list, each on one line and without bold marks; empty ones are left out.

    A line below an item belongs to it, and so does a list that is indented further than the first item;
    what stands before the list or after a blank line belongs to none. Raises
    kdbench.errors.Rejected("no_list").
    """
    items: list[list[str]] = []
    indent = 0
    ended = False
    for line in text.splitlines():
        match = _ITEM.fullmatch(line)
        if match and (not items or len(match["indent"]) <= indent):
            indent = indent if items else len(match["indent"])
            items.append([match["text"] or ""])
            ended = False
        elif not line.strip():
            ended = True
        elif items and not ended:
            items[-1].append(line)
    joined = [" ".join(" ".join(lines).replace("**", "").split()) for lines in items]
    if not any(joined):
        raise Rejected("no_list", f"no numbered list in: {text.strip()[:_SHOWN]}")
    return [item for item in joined if item]


def labelled_entries(text: str, labels: Sequence[str]) -> list[dict[str, str] | Rejected]:
    """The entries of a reply, in order; each begins at a line with the first label ("Input: ...").

    A label counts at the beginning of a line, in any case, with a number or bold marks around it. An entry
    without each label exactly once is a Rejected("malformed") in its place. Raises
    kdbench.errors.Rejected("no_list") where no line has the first label.
    """
    names = {label.lower(): label for label in labels}
    pattern = re.compile(
        rf"[ \t>#*]*(?:\d{{1,4}}[.)][ \t]*)?[*]*({'|'.join(map(re.escape, names))})"
        r"[ \t]*\d{0,4}[ \t]*[*]*:[*]*",
        re.IGNORECASE | re.ASCII,
    )
    entries: list[list[tuple[str, list[str]]]] = []
    for line in text.splitlines():
        match = pattern.match(line)
        if match is None:
            if entries:
                entries[-1][-1][1].append(line)
            continue
        label = names[match[1].lower()]
        if label == labels[0]:
            entries.append([])
        if entries:
            entries[-1].append((label, [line[match.end() :]]))
    if not entries:
        raise Rejected("no_list", f"no line begins with '{labels[0]}:' in: {text.strip()[:_SHOWN]}")
    return [_entry(parts, labels) for parts in entries]


def _entry(parts: Sequence[tuple[str, list[str]]], labels: Sequence[str]) -> dict[str, str] | Rejected:
    found = [label for label, _ in parts]
    for label in labels:
        if found.count(label) != 1:
            wrong = "no" if label not in found else "more than one"
            return Rejected("malformed", f"{wrong} '{label}:' after '{labels[0]}:{parts[0][1][0][:_SHOWN]}'")
    return {label: _bare(lines) for label, lines in parts}


def _bare(lines: list[str]) -> str:
    """The text of a part, without the line that parts its entry from the next."""
    while lines and (not lines[-1].strip() or _RULE.fullmatch(lines[-1].strip())):
        lines.pop()
    return "\n".join(lines).strip()
