"""Secrets stay out of what is written down: values of secret-looking environment variables are blotted out of any text.

Error texts come from libraries and tasks; one of them may quote a signed URL or a password. What goes into the ledger stays there
for ever, so everything free-form passes through here first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_SECRET_NAME = re.compile(r"SECRET|TOKEN(?!IZERS)|PASSWORD|PASSWD|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
_SHORTEST = 6
"""Shorter values would blot out ordinary words."""
_IN_URL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=X-Amz-Signature=)[0-9a-fA-F]+|(?<=X-Amz-Credential=)[^&\s]+")
BLOT = "[redacted]"


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` without the values of secret-looking variables, credentials in URLs, and signatures."""
    environment = os.environ if environment is None else environment
    for name, value in environment.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name):
            text = text.replace(value, BLOT)
    return _IN_URL.sub(BLOT, text)


def redact_json(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """The same for every string inside a JSON-shaped value."""
    if isinstance(value, str):
        return redact(value, environment)
    if isinstance(value, Mapping):
        return {k: redact_json(v, environment) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact_json(v, environment) for v in value]
    return value
