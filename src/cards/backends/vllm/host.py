"""A vLLM engine, in processes of its own, and the thread whose event loop talks to it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from itertools import count
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import torch

from cards.backends.configuration import pick_dtype
from cards.errors import MissingExtraError, ModelError, SettingError, UnavailableError, UnknownNameError

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for what the user asked for

try:
    from vllm import PoolingParams, SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs import tokens_input
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
except ImportError as error:
    raise MissingExtraError(f"Models named vllm:NAME need vLLM ({error})", "vllm") from error

T = TypeVar("T")
ON_CPU = {"block_size": 32, "kv_cache_memory_bytes": 2**30}  # vLLM's own blocks of 128 tokens share no short prompts
PATIENCE = 20.0  # seconds for vLLM's processes to end by themselves
ALWAYS = {"skip_tokenizer_init": True, "enable_prefix_caching": True, "disable_log_stats": True}


class Host:
    """`model`, a folder or a Hugging Face name, in vLLM; options are those of its AsyncEngineArgs, `name` is for messages.

    Raises SettingError or UnknownNameError on a wrong option, ModelError if vLLM does not start.
    """

    def __init__(self, model: str, name: str, device: str = "auto", dtype: str = "auto", **options: Any) -> None:
        self.name = name
        kind = current_platform.device_type
        if device not in ("auto", kind):
            raise SettingError(
                f"This vLLM runs on {kind!r}, not on {device!r}: set device to auto, and choose among GPUs by the environment "
                "(CUDA_VISIBLE_DEVICES)."
            )
        known = AsyncEngineArgs.__dataclass_fields__
        for option in options:
            if option not in known:
                raise UnknownNameError("option of vLLM", option, known)
        dtype = str(pick_dtype(dtype, torch.device(kind))).removeprefix("torch.")
        options = ALWAYS | (ON_CPU if kind == "cpu" else {}) | options
        self.numbers = count()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self.loop.run_forever, name="cards-vllm", daemon=True)
        thread.start()

        async def start() -> AsyncLLM:
            resource_tracker.ensure_running()  # which else, once it is needed, would undo the next line
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # vLLM's processes inherit that: Ctrl-C is for us
            return AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, dtype=dtype, **options))

        try:
            self.llm: AsyncLLM = asyncio.run_coroutine_threadsafe(start(), self.loop).result()
        except Exception as error:
            _end(self.loop, thread, self.tasks)
            raise ModelError(f"vLLM does not start with model {name!r}: {error}") from error
        self._ending = weakref.finalize(self, _end, self.loop, thread, self.tasks, self.llm)

    def begin(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Have the loop do some work, from any thread; cancelling the future cancels the work."""
        if not self._ending.alive:
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
        """vLLM's RequestOutputs of what is new, under its SamplingParams; closing the iterator aborts the request. Runs in
        the loop."""
        sampling = SamplingParams(**params, detokenize=False, output_kind=RequestOutputKind.DELTA)
        async with aclosing(self.llm.generate(tokens_input(tokens), sampling, str(next(self.numbers)))) as outputs:
            with self._failures():
                async for output in outputs:
                    yield output

    async def classify(self, tokens: list[int]) -> Any:
        """vLLM's PoolingRequestOutput of a text, with the raw outputs of the classifier. Runs in the loop."""
        params = PoolingParams(task="classify", use_activation=False)
        with self._failures():
            return await anext(self.llm.encode(tokens_input(tokens), params, str(next(self.numbers))))

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (EngineDeadError, EngineGenerateError) as error:
            cause = error.__cause__ or "its processes ended; what they wrote to standard error says why"
            raise UnavailableError(f"vLLM failed while it served model {self.name!r}: {cause}.") from error

    async def settle(self) -> None:
        """Wait until what was cancelled has ended."""

        async def ended() -> None:
            await asyncio.gather(*(task for task in self.tasks if task.cancelling()), return_exceptions=True)

        if self._ending.alive:
            await asyncio.wrap_future(self.begin(ended))

    def forget(self) -> None:
        """Drop the prefix cache."""
        self.begin(self.llm.reset_prefix_cache)

    async def aclose(self) -> None:
        """End vLLM's processes; requests that are being served are cancelled."""
        await asyncio.to_thread(self._ending)
        self.__dict__.pop("llm", None)  # not at the interpreter's end, when its own clean-up fails


def _end(
    loop: asyncio.AbstractEventLoop, thread: threading.Thread, tasks: set[asyncio.Task[Any]], llm: AsyncLLM | None = None
) -> None:
    if threading.current_thread() is thread:  # as when its last task held the last reference
        threading.Thread(target=_end, args=(loop, thread, tasks, llm)).start()
        return

    async def cancel() -> None:
        running = [task for task in tasks if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if llm is not None:
            llm.shutdown(timeout=PATIENCE)

    asyncio.run_coroutine_threadsafe(cancel(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    if llm is not None:
        llm.engine_core.resources.ctx.destroy(linger=0)  # which vLLM leaves to the garbage collector
        llm.shutdown = lambda *_, **__: None  # which its __del__ calls, at the interpreter's end too
