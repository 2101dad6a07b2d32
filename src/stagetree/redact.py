"""Hide passwords in typed words, configurations and messages. Imports nothing."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
"""Takes the place of a secret, so that a recorded command shows where to give it again."""

_NAME = (
    r"[\w.%-]*(?:passw(?:or)?d|passphrase|pwd|secret|token|credential|signature|odbc_connect"
    r"|(?:api|access|account|private)_?key)[\w.%-]*"
)
_VALUE = r"(?:'[^']*'|\"[^\"]*\"|[^\s&;,'\"\])}]+)"
_NOT_A_REFERENCE = r"(?!\$\{|\*\*\*)"  # ${oc.env:PASSWORD} is none
_SECRETS = [
    # scheme://user:password@host; a password may hold anything but spaces and quotes, up to the last @
    (re.compile(rf"(://[^\s:/@'\"]*:){_NOT_A_REFERENCE}[^\s'\"]*@"), rf"\1{HIDDEN}@"),
    # https://token@host; of a database it is a user's name
    (re.compile(rf"(https?://){_NOT_A_REFERENCE}[^\s:/@'\"?]+@"), rf"\1{HIDDEN}@"),
    (re.compile(rf"(\b{_NAME}=){_NOT_A_REFERENCE}{_VALUE}", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(rf"([?&;](?:key|sig|pw|pass|auth|sas)=){_NOT_A_REFERENCE}{_VALUE}", re.IGNORECASE), rf"\1{HIDDEN}"),
    # {password: abc}, in an override
    (re.compile(rf"([{{,]\s*{_NAME}\s*:\s*){_NOT_A_REFERENCE}{_VALUE}", re.IGNORECASE), rf"\1{HIDDEN}"),
]
_OVERRIDE = re.compile(rf"^(\+{{0,2}}{_NAME}=){_NOT_A_REFERENCE}.+", re.IGNORECASE | re.DOTALL)
_IN_A_WORD = re.compile(rf"(://[^\s:/@'\"]*:){_NOT_A_REFERENCE}.*@", re.DOTALL)


def redact(text: str) -> str:
    """Hide the passwords of URIs, and each value of `key=value` whose key names a secret."""
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def redact_words(words: Iterable[str]) -> list[str]:
    """Hide the secrets in the words of a command; these may contain spaces and quotes."""
    return [redact(_IN_A_WORD.sub(rf"\1{HIDDEN}@", _OVERRIDE.sub(rf"\1{HIDDEN}", word))) for word in words]


def redact_values(value: Any) -> Any:
    """Hide the secrets in a configuration of plain values, mappings and lists."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if part and _is_secret(key) else redact_values(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_values(part) for part in value]
    return redact_words([value])[0] if isinstance(value, str) else value


def _is_secret(key: Any) -> bool:
    return re.fullmatch(_NAME, str(key), re.IGNORECASE) is not None
