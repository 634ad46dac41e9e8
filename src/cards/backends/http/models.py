"""Loaders of models on servers, by address."""

from __future__ import annotations

from cards.backends.http.connect import connect_engine as load_engine
from cards.backends.http.connect import connect_reward as load_reward

__all__ = ["load_engine", "load_reward"]
