"""The choices that the page offers: models, methods by family, and their settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cards.boundaries import Boundary
from cards.example import PROMPT
from cards.methods.base import FAMILIES, Method
from cards.registry import method_classes
from cards.serve.catalog import Catalog
from cards.serve.service import Service
from cards.settings import BOUNDARIES, NUMBERS, WHOLE_NUMBERS, Setting, settings_of

EXAMPLES = [  # about topics that the embedded LM knows; the first one is in the prompt field at the start
    PROMPT,
    "What did you think of the new Star Wars film?",
    "Which album should I listen to first?",
    "Is basketball more fun to watch than tennis?",
]
KINDS: dict[Any, str] = {bool: "bool", int: "integer", float: "number", str: "text", Boundary: "text", type(None): "none"}
KINDS |= {NUMBERS: "numbers", WHOLE_NUMBERS: "numbers"}


def offer(catalog: Catalog) -> dict[str, Any]:
    """Return the models of the server with their methods, in JSON types."""
    return {"families": FAMILIES, "examples": EXAMPLES, "models": [_model(service) for service in catalog.services]}


def _model(service: Service) -> dict[str, Any]:
    limits = service.options
    methods = [name for name in method_classes() if name in service.methods.offered]
    return {
        "name": service.name,
        "reward": service.reward_name,
        "target": service.reward and service.reward.target,
        "chats": service.engine.chats,
        "max_tokens": min(64, limits.limit_tokens),
        "limit_tokens": limits.limit_tokens,
        "entropy_threshold": service.engine.entropy_threshold,
        "method": service.methods.default,
        "methods": [_method(service.methods.make(name, {})) for name in methods],
    }


def _method(method: Method) -> dict[str, Any]:
    settings = [describe(setting) for setting in visible_settings(method)]
    return {"name": method.name, "family": method.family, "summary": method.summary, "settings": settings}


def visible_settings(method: Method) -> list[Setting]:
    """Return the settings that visitors may change, with the method's values as defaults."""
    allowed = [setting for setting in settings_of(method).values() if setting.spec.client and not setting.spec.loads]
    return [replace(setting, default=getattr(method, setting.name)) for setting in allowed if setting.typed]


def describe(setting: Setting) -> dict[str, Any]:
    """Return a setting in JSON types. `choices` are suggestions, `kinds` the types that its values can have."""
    words = [kind for kind in setting.kinds if isinstance(kind, str)]
    choices = BOUNDARIES if Boundary in setting.kinds else setting.spec.choices or words
    return {
        "name": setting.name,
        "help": setting.help,
        "default": setting.default_text,
        "kinds": [KINDS.get(kind, "text") for kind in setting.kinds if not isinstance(kind, str)],
        "words": words,
        "choices": list(dict.fromkeys([setting.default_text, *choices])) if choices else [],
        "range": setting.slider,
        "advanced": setting.spec.advanced,
    }
