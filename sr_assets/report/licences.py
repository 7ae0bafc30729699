"""Licences by the names that hubs use: a recipe's words as an identifier, or as another licence.

Who may use what is for people to judge; nothing here allows or forbids.
"""

from __future__ import annotations

import re

#: SPDX identifiers that the Hugging Face hub knows too, there in lower case.
_SPDX = (
    "AFL-3.0", "AGPL-3.0", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause", "BSD-3-Clause",
    "BSD-3-Clause-Clear", "BSL-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0",
    "CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-ND-3.0", "CC-BY-NC-ND-4.0",
    "CC-BY-NC-SA-2.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-SA-3.0",
    "CC-BY-SA-4.0", "CC0-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "CDLA-Sharing-1.0",
    "ECL-2.0", "EPL-1.0", "EPL-2.0", "EUPL-1.1", "EUPL-1.2", "GPL-2.0", "GPL-3.0", "ISC",
    "LGPL-2.1", "LGPL-3.0", "LPPL-1.3c", "MIT", "MPL-2.0", "MS-PL", "NCSA", "OFL-1.1", "OSL-3.0",
    "PostgreSQL", "Unlicense", "WTFPL", "Zlib",
)  # fmt: skip
#: What only the hub names.
_HUB_ONLY = (
    "bsd", "c-uda", "cc", "gpl", "lgpl", "odbl", "odc-by", "openrail", "openrail++", "pddl",
)  # fmt: skip
_KNOWN: dict[str, str | None] = {name.lower(): name for name in _SPDX} | dict.fromkeys(_HUB_ONLY)
_ALSO = {
    "apache": "apache-2.0", "apache2": "apache-2.0", "cc0": "cc0-1.0", "odbl-1.0": "odbl",
    "odc-by-1.0": "odc-by", "pddl-1.0": "pddl", "public-domain": "cc0-1.0",
}  # fmt: skip

#: Licences under which anybody may pass pictures on, named or not.
FREE_LICENCES = frozenset(
    {"cc0-1.0", "pddl", "unlicense", "mit", "apache-2.0", "wtfpl", "bsd-2-clause", "bsd-3-clause"}
    | {f"cc-by-{version}" for version in ("2.0", "2.5", "3.0", "4.0")}
    | {f"cc-by-sa-{version}" for version in ("3.0", "4.0")}
)


def hub_licence(text: str | None) -> str | None:
    """The Hugging Face hub's identifier of a licence; None for one that it does not list.

    >>> hub_licence("CC BY 4.0"), hub_licence("GPL-3.0-or-later"), hub_licence("our own")
    ('cc-by-4.0', 'gpl-3.0', None)
    """
    plain = re.sub(r"[\s_]+", "-", (text or "").strip().lower())
    plain = re.sub(r"-(only|or-later)$|\+$", "", plain) if plain != "openrail++" else plain
    plain = _ALSO.get(plain, plain)
    return plain if plain in _KNOWN else None


def spdx_licence(text: str | None) -> str | None:
    """The SPDX identifier of a licence; None for one without."""
    known = _KNOWN.get(hub_licence(text) or "")
    if known and re.match(r"[AL]?GPL-", known):
        later = re.search(r"(or-later|\+)$", (text or "").strip().lower())
        return f"{known}-{'or-later' if later else 'only'}"
    return known


def licence_fields(text: str | None) -> dict[str, str]:
    """Of a card's front matter: `license`, and `license_name` of one that the hub does not list."""
    if not text:
        return {"license": "unknown"}
    known = hub_licence(text)
    if known:
        return {"license": known}
    name = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    return {"license": "other", "license_name": name or "other"}
