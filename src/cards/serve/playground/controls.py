"""The settings of a method as controls, read off its dataclass as the command line reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio.components import Component

from cards.boundaries import Boundary
from cards.decoder import Decoder
from cards.errors import CardsError, SettingError
from cards.methods.base import Method
from cards.registry import method_classes
from cards.settings import BOUNDARIES, Setting, settings_of

DecoderOf = Callable[[str, Mapping[str, Any]], Decoder]  # of a method name and settings by name


def offered(decoder_of: DecoderOf) -> list[str]:
    """Names of the methods that run."""
    names = []
    for name in method_classes():
        with suppress(CardsError):
            decoder_of(name, {})
            names.append(name)
    return names


def shown(method: Method) -> list[Setting]:
    """The settings that a visitor may change, with the method's values as defaults."""
    own = [setting for setting in settings_of(method).values() if setting.spec.client and not setting.spec.loads]
    return [replace(setting, default=getattr(method, setting.name)) for setting in own if setting.typed]


def control(setting: Setting) -> Component:
    """A slider for a number in a range, a text field for a setting that may be none, a list for words, a box for yes or no."""
    default = setting.default
    about: dict[str, Any] = {"label": setting.name.replace("_", " "), "info": setting.help}
    about |= {"interactive": True, "min_width": 240}
    words = [kind for kind in setting.kinds if isinstance(kind, str)]
    if bool in setting.kinds:
        return gr.Checkbox(default, **about)
    if Boundary in setting.kinds or words:
        choices = BOUNDARIES if Boundary in setting.kinds else setting.spec.choices or words
        return gr.Dropdown(list(dict.fromkeys([setting.default_text, *choices])), value=setting.default_text, **about)
    if setting.slider is not None:
        low, high, step = setting.slider
        return gr.Slider(min(low, default), max(high, default), default, step=step, **about)
    text = "" if default is None else setting.default_text
    return gr.Textbox(text, placeholder="none", **about)  # gr.Number takes none for 0


def values_of(settings: Sequence[Setting], given: Sequence[Any]) -> dict[str, Any]:
    """Settings by name from what their controls hold, where that is not the default. Raises SettingError."""
    values = {}
    for setting, value in zip(settings, given, strict=True):
        text = _typed(value)
        if text == setting.default_text:
            continue
        try:
            parsed = setting.parse(text)
        except SettingError as error:
            raise SettingError(str(error).removeprefix("--")) from None
        if parsed != setting.default:
            values[setting.name] = parsed
    return values


def _typed(value: Any) -> str:
    """As one would type it on the command line; whole numbers may come as fractions from a page."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
