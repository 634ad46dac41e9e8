"""Controls of the page for the settings of a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio.components import Component

from cards.boundaries import Boundary
from cards.errors import SettingError
from cards.methods.base import Method
from cards.settings import BOUNDARIES, Setting, settings_of

INPUT: dict[str, Any] = {"interactive": True, "min_width": 240}


def visible_settings(method: Method) -> list[Setting]:
    """Return the settings that visitors may change, with the method's values as defaults."""
    allowed = [setting for setting in settings_of(method).values() if setting.spec.client and not setting.spec.loads]
    return [replace(setting, default=getattr(method, setting.name)) for setting in allowed if setting.typed]


def control(setting: Setting) -> Component:
    """Return a checkbox for a boolean, a dropdown for named values, a slider for a number in a range, else a text field."""
    default = setting.default
    options = {"label": setting.name.replace("_", " "), "info": setting.help} | INPUT
    names = [kind for kind in setting.kinds if isinstance(kind, str)]
    if bool in setting.kinds:
        return gr.Checkbox(default, **options)
    if Boundary in setting.kinds or names:
        choices = BOUNDARIES if Boundary in setting.kinds else setting.spec.choices or names
        return gr.Dropdown(list(dict.fromkeys([setting.default_text, *choices])), value=setting.default_text, **options)
    if setting.slider is not None:
        low, high, step = setting.slider
        return gr.Slider(min(low, default), max(high, default), default, step=step, **options)
    text = "" if default is None else setting.default_text
    return gr.Textbox(text, placeholder="none", **options)  # gr.Number reads an empty field as 0


def values_of(settings: Sequence[Setting], given: Sequence[Any]) -> dict[str, Any]:
    """Return the settings whose controls differ from the default, as in a request to the API. Raises SettingError."""
    values = {}
    for setting, value in zip(settings, given, strict=True):
        text = _as_text(value)
        if text == setting.default_text:
            continue
        try:
            parsed = setting.parse(text)
        except SettingError as error:
            raise SettingError(str(error).removeprefix("--")) from None
        if parsed != setting.default:
            values[setting.name] = text if Boundary in setting.kinds or setting.nests else parsed
    return values


def _as_text(value: Any) -> str:
    """Return the value as written on the command line. A page may send an integer as a float."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
