"""Text of users and tools, kept from changing the structure of a conversation."""

from __future__ import annotations

import re

from steptool.chat.formats import Format
from steptool.chat.template import ChatTemplate, structure_words


class StructureFilter:
    """Breaks the words that carry the structure of a conversation where a user, a tool or a schema writes them.

    These are the control tokens, the tags that the chat template itself writes, what opens and closes calls and
    observations in the format, and the template's role words at the beginning of a line. A space goes after the first
    character of each (`< /tool_response>`), or before the colon of a role word.
    """

    def __init__(self, template: ChatTemplate, form: Format) -> None:
        tags, roles = structure_words(template.literals)
        tags |= {*template.control_tokens, *form.marks}
        tags |= {part.strip() for part in form.observation if part.strip().startswith("<")}
        longest_first = sorted((tag for tag in tags if len(tag.strip()) > 1), key=len, reverse=True)
        self._tags = re.compile("|".join(re.escape(tag) for tag in longest_first) or r"(?!)")
        self._roles = re.compile(rf"^(\s*(?:{'|'.join(map(re.escape, sorted(roles))) or '(?!)'})):", re.MULTILINE)

    def clean(self, text: str) -> str:
        """The text with every such word broken."""
        return self._roles.sub(r"\1 :", self._tags.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text))
