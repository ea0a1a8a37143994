"""The colours of models: one model has the same colour on every page."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

KNOWN = {"base": "c-base", "warm_start": "c-warm_start", "steptool": "c-steptool", "champion": "c-one"}
"""Classes of the models that the workflows themselves name."""
FURTHER = ("c-two", "c-three", "c-four", "c-five", "c-six")
"""Classes of all other models, and after these the known ones that a page does not need."""


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """The CSS class of each model. Its name decides, and the next free class follows where two names meet."""
    colours: dict[str, str] = {model: KNOWN[model] for model in models if model in KNOWN}
    for model in sorted({*models} - KNOWN.keys()):
        first = hashlib.sha256(model.encode()).digest()[0]
        order = [*(FURTHER[(first + step) % len(FURTHER)] for step in range(len(FURTHER))), *KNOWN.values()]
        colours[model] = next((colour for colour in order if colour not in colours.values()), order[0])
    return {model: colours[model] for model in dict.fromkeys(models)}
