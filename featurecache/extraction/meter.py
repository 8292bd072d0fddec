"""Where the time of a run goes, what in the machine it waits for, and what would help.

Stages are ``read``, ``decode``, ``forward`` and ``write``. For each there are the seconds that threads were at it, and
the seconds in which the run had nothing to do but wait for it. On a CPU decoding and the forward pass share the cores,
so there a run that waits for neither long is bound by both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from featurecache.wording import counted

Stage = Literal["read", "decode", "forward", "write"]
STAGES: tuple[Stage, ...] = ("read", "decode", "forward", "write")

# Share of the cores that must be at work for them to be what binds.
_BUSY_CORES = 0.85
# Share of the CPU time from which on loading is worth advice.
_LARGE_SHARE = 0.3
# Tokens of a text on average, and share of padding, from which on they are named as what costs: of texts that are
# shorter, or fill half of a batch, a lower limit would save little.
_MANY_TOKENS, _MUCH_PADDING = 64, 0.5


class Spent(NamedTuple):
    """Seconds of reading, of decoding, and of both together those on a core: the rest was waiting for others."""

    read: float
    decode: float
    cpu: float


@dataclass(frozen=True)
class Usage:
    """What a `Meter` has seen.

    Attributes
    ----------
    num_inputs : int
        Inputs that came out at the end.
    seconds : float
        From the first input's start to the last one's end, as far as the run was at work.
    work, waited : dict of str to float
        Seconds by stage.
    cpu_seconds, loading_cpu_seconds : float
        Time on cores, of all processes of the run and of what reads and decodes.
    cores : int
        That the process may use.
    device : str
        Where the forward pass runs.
    num_tokens, num_padded : int
        Of texts, what they have and what the network computed; zero of images.
    one_length : bool
        All texts were padded to the most tokens.
    """

    num_inputs: int
    seconds: float
    work: dict[Stage, float]
    waited: dict[Stage, float]
    cpu_seconds: float
    loading_cpu_seconds: float
    cores: int
    device: str
    num_tokens: int = 0
    num_padded: int = 0
    one_length: bool = False

    @property
    def rate(self) -> float:
        """Inputs per second."""
        return self.num_inputs / self.seconds if self.seconds else 0.0

    @property
    def bottleneck(self) -> str:
        """``cores``, or the stage that the run waited for longest."""
        if self.cpu_seconds > _BUSY_CORES * self.cores * self.seconds:
            return "cores"
        longest = max(("decode", "forward", "write"), key=lambda stage: self.waited[stage])  # type: ignore[index]
        # Reading and decoding are one wait; which of the two it was, the work of the threads tells.
        return "read" if longest == "decode" and self.work["read"] > self.work["decode"] else longest

    @property
    def padding(self) -> float:
        """Share of padding in what the network computed; zero of images."""
        return 1 - self.num_tokens / self.num_padded if self.num_padded else 0.0

    @property
    def advice(self) -> str:
        """What to change."""
        by_length = self._advice_on_length() if self.bottleneck in ("cores", "forward") else None
        if self.bottleneck == "cores" and self.loading_cpu_seconds > _LARGE_SHARE * self.cpu_seconds:
            return "store smaller inputs (of images, leave --jpeg-decoding at scaled)"
        if self.bottleneck == "cores":
            return f"{by_length or 'a smaller network, smaller inputs of it'}, or a GPU"
        others = "a larger --batch-size, --precision bfloat16 on a GPU, or a smaller network"
        return {
            "read": "faster storage, or more --jobs where reading waits for a network",
            "decode": "more --jobs, or smaller inputs",
            "forward": others if by_length is None else f"{by_length}, {others}",
            "write": "faster storage for the cache, fewer --tap, or --dtype float16",
        }[self.bottleneck]

    def _advice_on_length(self) -> str | None:
        """Say what to change about the length of texts, where it is what costs."""
        if self.one_length and self.padding >= _MUCH_PADDING:
            return f"a lower --max-tokens ({self.padding:.0%} is padding: this network or tap takes one length alone)"
        tokens = self.num_tokens / max(self.num_inputs, 1)
        if tokens < _MANY_TOKENS:
            return None
        return f"a lower --max-tokens (texts have {tokens:.0f} tokens on average, and each takes its time)"

    def sentence(self) -> str:
        """Return what people read while it runs."""
        if self.bottleneck != "cores":
            return f"waiting for {self.bottleneck}"
        return f"cores busy, {self.loading_cpu_seconds / max(self.cpu_seconds, 1e-9):.0%} decoding"

    def summary(self) -> str:
        """Return one line for the end of a run."""
        work = [f"{stage} {self.work[stage]:.1f} s" for stage in STAGES]
        # Less would be printed as 0.0 s.
        waits = [f"{stage} {self.waited[stage]:.1f} s" for stage in STAGES if self.waited[stage] >= 0.05]
        waited = f"; waited for {', '.join(waits)}" if waits else ""
        busy = self.cpu_seconds / max(self.seconds, 1e-9)
        tokens = ""
        if self.num_padded:
            mean = self.num_tokens / max(self.num_inputs, 1)
            tokens = f" ({mean:.0f} tokens each, {self.padding:.0%} of the batches is padding)"
        return (
            f"{self.rate:.0f} inputs/s on {self.device}{tokens}; work: {', '.join(work)}{waited}; "
            f"{busy:.1f} of {counted(self.cores, 'core')} busy; the limit: {self.bottleneck}; to speed up: "
            f"{self.advice}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "inputs": self.num_inputs,
            "seconds": round(self.seconds, 3),
            "inputs_per_second": round(self.rate, 2),
            "work_seconds": {stage: round(value, 3) for stage, value in self.work.items()},
            "waited_seconds": {stage: round(value, 3) for stage, value in self.waited.items()},
            "cpu_seconds": round(self.cpu_seconds, 3),
            "loading_cpu_seconds": round(self.loading_cpu_seconds, 3),
            "cores": self.cores,
            "device": self.device,
            **({"tokens": self.num_tokens, "padded_tokens": self.num_padded} if self.num_padded else {}),
            "bottleneck": self.bottleneck,
            "advice": self.advice,
        }


class Meter:
    """Collects times from all threads of a run.

    Attributes
    ----------
    device : str
        Where the forward pass runs.
    waited : dict of str to float
        Seconds in which the run waited for each stage so far; only the thread that feeds the network adds to it.
    num_inputs : int
        That are done.
    """

    def __init__(self, *, cores: int, device: str = "cpu") -> None:
        self.device, self._cores = device, cores
        self._lock = threading.Lock()  # loading threads and the one that writes add to the same numbers
        self._work = dict.fromkeys(STAGES, 0.0)
        self.waited = dict.fromkeys(STAGES, 0.0)
        self.num_inputs = 0
        self._num_tokens, self._num_padded, self._one_length = 0, 0, False
        self._seconds, self._cpu_seconds = 0.0, 0.0
        self._loading_cpu_seconds, self._writing_cpu_seconds, self._elsewhere_cpu_seconds = 0.0, 0.0, 0.0
        self._started: tuple[float, float] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block as that of the run."""
        # Time of the process, not of this thread: libraries compute in threads of their own.
        self._started = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            now = time.perf_counter(), time.process_time()
            self._seconds += now[0] - self._started[0]
            self._cpu_seconds += now[1] - self._started[1]
            self._started = None

    def add_loading(self, spent: Spent, *, elsewhere: bool = False) -> None:
        """Add what a thread did that loads, or, elsewhere, another process."""
        with self._lock:
            self._work["read"] += spent.read
            self._work["decode"] += spent.decode
            self._loading_cpu_seconds += spent.cpu
            self._elsewhere_cpu_seconds += spent.cpu * elsewhere

    def add_tokens(self, num_tokens: int, num_padded: int, *, one_length: bool) -> None:
        """Count the tokens of a batch of texts; only the thread that feeds the network does.

        Parameters
        ----------
        num_tokens, num_padded : int
            Without padding and with it.
        one_length : bool
            Batches of other lengths are not to be had.
        """
        self._num_tokens += num_tokens
        self._num_padded += num_padded
        self._one_length = one_length

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Count the time of the block as work of this thread, which writes."""
        started, on_core = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            with self._lock:
                self._work["write"] += time.perf_counter() - started
                self._writing_cpu_seconds += time.thread_time() - on_core

    def usage(self) -> Usage:
        """Return what was seen so far."""
        seconds, cpu_seconds = self._seconds, self._cpu_seconds
        if self._started is not None:
            seconds += time.perf_counter() - self._started[0]
            cpu_seconds += time.process_time() - self._started[1]
        cpu_seconds += self._elsewhere_cpu_seconds
        work = dict(self._work)
        if self.device == "cpu":  # what is left: runtimes have threads of their own, which report nothing
            work["forward"] = max(cpu_seconds - self._loading_cpu_seconds - self._writing_cpu_seconds, 0.0)
        else:
            work["forward"] = self.waited["forward"]
        return Usage(
            num_inputs=self.num_inputs,
            seconds=seconds,
            work=work,
            waited=dict(self.waited),
            cpu_seconds=cpu_seconds,
            loading_cpu_seconds=self._loading_cpu_seconds,
            cores=self._cores,
            device=self.device,
            num_tokens=self._num_tokens,
            num_padded=self._num_padded,
            one_length=self._one_length,
        )
