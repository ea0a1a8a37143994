"""A chat model behind HTTP, as the judge and as a policy that is evaluated."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from steptool.config.base import FreeMapping, Natural, Positive, StrictModel


class EndpointConfig(StrictModel):
    """A chat model behind an HTTP endpoint of OpenAI's form."""

    base_url: str = ""
    """Address up to the version, such as https://api.openai.com/v1 or http://localhost:8000/v1."""
    model: str = ""
    """Name of the model there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; it may be unset where the server needs none."""
    concurrency: Positive = 16
    """Requests in flight at once."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that the server may stay silent. All attempts and the waits between them may take retries + 1 times as
    long."""
    retries: Natural = 4
    """Further attempts after a lost connection, a 408, 409, 429 or 5xx, and an answer that is no chat completion."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature."""
    max_tokens: Positive = 1024
    """Tokens of an answer, at most."""
    request: FreeMapping = Field(default_factory=dict)
    """Further fields of every request, which replace those above; null removes one. A server that refuses max_tokens
    takes {max_tokens: null, max_completion_tokens: 1024}."""
    price_in: Annotated[float, Field(ge=0)] = 0.0
    """Money per million tokens read, for the account of costs."""
    price_out: Annotated[float, Field(ge=0)] = 0.0
    """Money per million tokens written, for the account of costs."""
