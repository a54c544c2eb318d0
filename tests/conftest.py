"""What several test files share: one real sandbox, and an executor that only pretends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import settings

from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.types import Execution, Job, Status, Tier

# No test asks the hub; those of the hub's client have one of their own. Read when the client is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

settings.register_profile("no deadline", deadline=None)  # one example is slow when the machine is busy
settings.load_profile("no deadline")


class FakeExecutor:
    """Starts no process: ``answer`` says how a program ends on an input. Remembers the batches it was given."""

    tier = Tier.FULL

    def __init__(self, answer: Callable[[str, str], Execution]) -> None:
        self.answer = answer
        self.batches: list[list[Job]] = []

    def run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
        self.batches.append(list(jobs))
        return [tuple(self.answer(str(job.program), text) for text in job.inputs) for job in jobs]

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def sandbox() -> Iterator[SandboxExecutor]:
    """The real executor, with one worker; starting it takes a fifth of a second."""
    with SandboxExecutor(workers=1) as executor:
        yield executor


@pytest.fixture
def fake() -> Callable[[Callable[[str, str], Execution]], FakeExecutor]:
    """Makes an executor that answers by a function of program and input."""
    return FakeExecutor


@pytest.fixture
def echo() -> FakeExecutor:
    """An executor for which every program returns its argument."""
    return FakeExecutor(lambda program, text: Execution(Status.OK, text))


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have torch use one thread, and TRL say nothing of what is experimental."""
    import torch  # the tests of the environments and the sandbox need none

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
