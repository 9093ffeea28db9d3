"""The ingress' end of a call, against replicas that are lost, full, or of another bundle."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("ray.serve", reason="needs the extra ray")  # whose own import warns

from ray.exceptions import ActorDiedError, OwnerDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from serve.cluster import outputs as module
from serve.cluster.messages import Admitted, OtherBundle, Refused, Step
from serve.cluster.outputs import ReplicaOutputs
from serve.engine import Draining, EngineDead, Output, PromptTooLong, QueueFull, TokenOutput
from serve.experts import ExpertVersion

LOST = ActorDiedError()
FIRST = Step(Output("r", (TokenOutput(1),)))
LAST = Step(Output("r", (TokenOutput(2),), "length"))


class Answers:
    """One call's answers; an exception among them is raised, None waits for ever."""

    def __init__(self, script: list[object]):
        self.script, self.cancelled = script, asyncio.Event()

    def __aiter__(self) -> AsyncIterator[object]:
        return self

    async def __anext__(self) -> object:
        if not self.script:
            raise StopAsyncIteration
        answer = self.script.pop(0)
        if answer is None:
            await self.cancelled.wait()
            raise asyncio.CancelledError
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def cancel(self) -> None:
        self.cancelled.set()


class Replicas:
    """Gives each call the next script."""

    def __init__(self, *scripts: list[object]):
        self.calls, self.ended, self.dead = [Answers(script) for script in scripts], 0, False
        self.made: list[Answers] = []

    def call(self) -> Answers:
        self.made.append(self.calls.pop(0))
        return self.made[-1]

    def health(self) -> None:
        if self.dead:
            raise EngineDead("no replica")

    def end(self) -> None:
        self.ended += 1

    def outputs(self) -> ReplicaOutputs:
        version = ExpertVersion("sql", Path("/sql"), "digest", 1)
        return ReplicaOutputs(self.call, ((version, 1.0),), None, self.health, self.end)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    monkeypatch.setattr(module, "_WATCH", 0.01)


async def tokens(outputs: ReplicaOutputs) -> list[int]:
    await outputs.admitted()
    return [token.token async for output in outputs for token in output.tokens]


async def test_a_call_that_goes_well():
    replicas = Replicas([Admitted(), FIRST, LAST])
    outputs = replicas.outputs()
    assert await tokens(outputs) == [1, 2]
    assert replicas.ended == 1
    assert outputs.experts[0][0].digest == "digest"
    assert await anext(outputs, None) is None


@pytest.mark.parametrize(
    "lost",
    [
        [LOST],
        [Admitted(), LOST],
        [Admitted()],
        [Refused(EngineDead("the loop ended"))],
        [Refused(Draining("on its way out"))],
        [OwnerDiedError("00", None, "")],
    ],
)
async def test_a_replica_lost_before_the_first_token_is_replaced(lost):
    replicas = Replicas(lost, [Admitted(), FIRST, LAST])
    assert await tokens(replicas.outputs()) == [1, 2]
    assert len(replicas.made) == 2


async def test_a_replica_lost_after_the_first_token_ends_the_request():
    replicas = Replicas([Admitted(), FIRST, LOST], [Admitted(), FIRST, LAST])
    outputs = replicas.outputs()
    await outputs.admitted()
    assert (await anext(outputs)).tokens[0].token == 1
    with pytest.raises(EngineDead, match="lost"):
        await anext(outputs)
    assert (len(replicas.made), replicas.ended) == (1, 1)


async def test_a_request_that_ends_replicas_is_given_up():
    replicas = Replicas([LOST], [LOST], [LOST], [Admitted(), FIRST, LAST])
    with pytest.raises(EngineDead):
        await replicas.outputs().admitted()
    assert (len(replicas.made), replicas.ended) == (3, 1)


async def test_replicas_of_another_bundle_hand_it_on_as_often_as_it_takes():
    replicas = Replicas(*([OtherBundle()] for _ in range(5)), [Admitted(), FIRST, LAST])
    assert await tokens(replicas.outputs()) == [1, 2]
    assert len(replicas.made) == 6


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Refused(PromptTooLong("too long")), PromptTooLong),
        (Refused(QueueFull("full")), QueueFull),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), QueueFull),
    ],
)
async def test_a_refusal_is_the_callers(answer, error):
    replicas = Replicas([answer])
    with pytest.raises(error):
        await replicas.outputs().admitted()
    assert (len(replicas.made), replicas.ended) == (1, 1)


async def test_a_fault_in_a_replica_is_not_tried_again():
    replicas = Replicas([RayTaskError("generate", "a traceback", ValueError("ours"))])
    with pytest.raises(EngineDead, match="the replica failed to run the request") as raised:
        await replicas.outputs().admitted()
    assert isinstance(raised.value.__cause__, RayTaskError)
    assert (len(replicas.made), replicas.ended) == (1, 1)


async def test_nobody_waits_where_there_is_no_replica():
    replicas = Replicas([None])
    replicas.dead = True
    with pytest.raises(EngineDead, match="no replica"):
        await replicas.outputs().admitted()
    assert replicas.made[0].cancelled.is_set()
    assert replicas.ended == 1


async def test_leaving_cancels_the_call_and_ends_the_outputs():
    replicas = Replicas([Admitted(), FIRST, None])
    outputs = replicas.outputs()
    await outputs.admitted()
    await anext(outputs)
    waiting = asyncio.create_task(anext(outputs, None))
    await asyncio.sleep(0)
    outputs.leave()
    assert await waiting is None
    assert replicas.made[0].cancelled.is_set()
    assert replicas.ended == 1


async def test_a_cancelled_reader_cancels_the_call():
    replicas = Replicas([Admitted(), None])
    outputs = replicas.outputs()
    await outputs.admitted()
    waiting = asyncio.create_task(anext(outputs))
    await asyncio.sleep(0.005)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert replicas.made[0].cancelled.is_set()
    assert replicas.ended == 1
