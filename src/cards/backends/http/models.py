"""Models on servers, by address."""

from __future__ import annotations

from cards.backends.http.connect import connect as load_engine
from cards.backends.http.rewards import connect as load_reward

__all__ = ["load_engine", "load_reward"]
