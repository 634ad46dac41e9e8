"""The host of a vLLM engine: its processes, and the thread whose event loop communicates with them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from itertools import count
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import torch

from cards.backends.configuration import resolve_dtype
from cards.errors import MissingExtraError, ModelError, PromptError, SettingError, UnavailableError, UnknownNameError
from cards.parts import Composite

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is reserved for responses

try:
    from vllm import ModelRegistry, PoolingParams, SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs import tokens_input
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
except ImportError as error:
    raise MissingExtraError(f"Models named vllm:NAME need vLLM ({error})", "vllm") from error

T = TypeVar("T")
# vLLM's default blocks of 128 tokens do not share short prompts
CPU_OPTIONS = {"block_size": 32, "kv_cache_memory_bytes": 2**30}
SHUTDOWN_TIMEOUT = 20.0  # seconds for vLLM's processes to end by themselves
BASE_OPTIONS = {"skip_tokenizer_init": True, "enable_prefix_caching": True, "disable_log_stats": True}


class Host(Composite):
    """A model in vLLM.

    model: folder or Hugging Face name. name: the name in messages. options: those of vLLM's AsyncEngineArgs.
    Raises SettingError or UnknownNameError on a wrong option, ModelError if vLLM does not start.
    """

    def __init__(self, model: str, name: str, device: str = "auto", dtype: str = "auto", **options: Any) -> None:
        self.name = name
        check_host(device, options)
        kind = current_platform.device_type
        self.dtype = resolve_dtype(dtype, torch.device(kind))
        options = BASE_OPTIONS | (CPU_OPTIONS if kind == "cpu" else {}) | options
        written: Any = str(self.dtype).removeprefix("torch.")
        self.numbers = count()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self.loop.run_forever, name="cards-vllm", daemon=True)
        thread.start()

        async def start() -> AsyncLLM:
            resource_tracker.ensure_running()  # starting it later would unblock SIGINT again
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited, so that Ctrl-C does not end vLLM's processes
            return AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, dtype=written, **options))

        try:
            self.llm: AsyncLLM = asyncio.run_coroutine_threadsafe(start(), self.loop).result()
        except Exception as error:
            _shut_down(self.loop, thread, self.tasks)
            raise ModelError(f"vLLM did not start with model {name!r}: {error}") from error
        self._finalizer = weakref.finalize(self, _shut_down, self.loop, thread, self.tasks, self.llm)

    def submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run a coroutine in the event loop, from any thread. Cancelling the future cancels the coroutine."""
        if not self._finalizer.alive:
            raise ModelError("This model was closed; load it again to use it.")

        async def tracked() -> T:
            task = asyncio.current_task()
            assert task is not None
            self.tasks.add(task)
            try:
                return await work()
            finally:
                self.tasks.discard(task)

        return asyncio.run_coroutine_threadsafe(tracked(), self.loop)

    async def generate(self, tokens: list[int], **params: Any) -> AsyncGenerator[Any, None]:
        """Yield vLLM's RequestOutputs with the new tokens, in the event loop. `params` are those of SamplingParams.

        Closing the iterator aborts the request.
        """
        sampling = SamplingParams(**params, detokenize=False, output_kind=RequestOutputKind.DELTA)
        async with aclosing(self.llm.generate(tokens_input(tokens), sampling, str(next(self.numbers)))) as outputs:
            with self._failures():
                async for output in outputs:
                    yield output

    async def classify(self, tokens: list[int]) -> Any:
        """Return vLLM's PoolingRequestOutput of a text, with the raw classifier outputs, in the event loop."""
        params = PoolingParams(task="classify", use_activation=False)
        with self._failures():
            return await anext(self.llm.encode(tokens_input(tokens), params, str(next(self.numbers))))

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (EngineDeadError, EngineGenerateError) as error:
            cause = error.__cause__ or "its processes ended; see their messages on standard error"
            raise UnavailableError(f"vLLM failed while it served model {self.name!r}: {cause}.") from error
        except ValueError as error:
            raise PromptError(f"vLLM rejected a text for model {self.name!r}: {error}") from error

    async def settle(self) -> None:
        """Wait until cancelled tasks have ended."""

        async def wait_for_cancelled() -> None:
            await asyncio.gather(*(task for task in self.tasks if task.cancelling()), return_exceptions=True)

        if self._finalizer.alive:
            await asyncio.wrap_future(self.submit(wait_for_cancelled))

    def forget(self) -> None:
        """Drop the prefix cache."""
        self.submit(self.llm.reset_prefix_cache)

    async def aclose(self) -> None:
        """Cancel all requests and end vLLM's processes."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Cancel all requests and end vLLM's processes. The calling thread waits for it."""
        self._finalizer()
        self.__dict__.pop("llm", None)  # freed here, because vLLM's clean-up fails when the interpreter exits


def check_host(device: str, options: Iterable[str]) -> None:
    """Raise SettingError for a device that vLLM does not use here, and UnknownNameError for the name of an unknown option."""
    kind, known = current_platform.device_type, AsyncEngineArgs.__dataclass_fields__
    if device not in ("auto", kind):
        raise SettingError(
            f"device must be auto or {kind!r} for this installation of vLLM, got {device!r}. Choose among GPUs with "
            "CUDA_VISIBLE_DEVICES."
        )
    for option in options:
        if option not in known:
            raise UnknownNameError("vLLM option", option, known)


def known_architectures() -> frozenset[str]:
    """Return the names of the architectures in vLLM's registry."""
    return frozenset(ModelRegistry.get_supported_archs())


def _shut_down(
    loop: asyncio.AbstractEventLoop, thread: threading.Thread, tasks: set[asyncio.Task[Any]], llm: AsyncLLM | None = None
) -> None:
    if threading.current_thread() is thread:  # if the thread's last task held the last reference to the host
        threading.Thread(target=_shut_down, args=(loop, thread, tasks, llm)).start()
        return

    async def cancel() -> None:
        running = [task for task in tasks if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if llm is not None:
            llm.shutdown(timeout=SHUTDOWN_TIMEOUT)

    asyncio.run_coroutine_threadsafe(cancel(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    if llm is not None:
        llm.engine_core.resources.ctx.destroy(linger=0)  # vLLM leaves this to the garbage collector
        llm.shutdown = lambda *_, **__: None  # vLLM's __del__ calls it again, even when the interpreter exits
