"""The catalog of a server: its entries of model, reward and method, by name and alias."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cards.errors import check
from cards.serve.api_key import named_keys
from cards.serve.errors import ApiError
from cards.serve.gate import Gate
from cards.serve.limits import Meters
from cards.serve.metrics import Metrics
from cards.serve.options import ServerOptions
from cards.serve.readiness import Readiness
from cards.serve.service import TOKENIZING_THREADS, Entry, Service, Shared
from cards.serve.tracing import Tracing


class Catalog:
    """The services of all entries. The first one serves requests that name no model.

    Entries with the same engine share its cache slots, and so one gate. Raises SettingError for names that are not unique,
    MismatchError if a method cannot run on its models, and PromptError if a chat template cannot use the defaults for chats.
    """

    def __init__(self, entries: Sequence[Entry], options: ServerOptions, tracing: Tracing) -> None:
        self.options, self.tracing = options, tracing
        names = [name for entry in entries for name in (entry.name, *entry.aliases)]
        twice = next((name for name in names if names.count(name) > 1), None)
        check(twice is None, f"Names and aliases of models must be unique, but {twice!r} occurs twice.")
        engines = {id(entry.engine): entry.engine for entry in entries}
        self.gates = {key: Gate(options.max_running or engine.rows, options.max_queue) for key, engine in engines.items()}
        self.keys = named_keys(options.api_keys)
        limits = options.limit_key_running, options.limit_key_requests, options.limit_key_tokens
        self.meters = Meters(self.keys, *limits)
        self.metrics = Metrics(list(self.gates.values()), list(engines.values()), self.meters if self.keys else None)
        pool = ThreadPoolExecutor(TOKENIZING_THREADS, "cards-tokenizing")
        shared = Shared(options, tracing, self.metrics, pool, Gate(TOKENIZING_THREADS, options.max_queue))
        checks: dict[tuple[int, int], Readiness] = {}
        self.services = []
        for entry in entries:
            key = id(entry.engine), id(entry.reward)
            readiness = checks.setdefault(key, Readiness(entry.engine, entry.reward))
            self.services.append(Service(entry, shared, self.gates[id(entry.engine)], readiness))
        self.readiness = list(checks.values())
        self.names = {name: service for service in self.services for name in (service.name, *service.entry.aliases)}

    @property
    def default(self) -> Service:
        return self.services[0]

    def find(self, name: str | None) -> Service:
        """Return the service of a model by name or alias; the first one for None. Raises ApiError (404)."""
        if name is None:
            return self.default
        if name not in self.names:
            listed = ", ".join(map(repr, self.names))
            why = f"Unknown model {name!r}. This server has {listed}."
            raise ApiError(404, why, param="model", code="model_not_found")
        return self.names[name]

    @property
    def draining(self) -> bool:
        """Whether the server is shutting down, and new requests fail."""
        return self.default.shared.draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self.default.shared.draining = value

    @property
    def idle(self) -> bool:
        return all(gate.idle for gate in self.gates.values())

    @property
    def full(self) -> bool:
        return any(gate.full for gate in self.gates.values())

    async def failure(self) -> str | None:
        """Return which model fails, or None."""
        for readiness in self.readiness:
            if failure := await readiness.check():
                return failure
        return None

    def end(self) -> None:
        """End all requests with an error, because the server ends."""
        for service in self.services:
            service.end()
