"""Ray's workers as an executor: tensors and experts as tasks, on this machine or a cluster."""

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Task(Future[_T]):
    """A Ray task's result. Cancelling it ends the task in its process."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        super().__init__()
        self._end = cancel

    def cancel(self) -> bool:
        """End the task; False if it is done already."""
        if self.done():
            return False
        self._end()
        return True


class RayPool(Executor):
    """Runs each call as a Ray task with one core and one thread, so that sums are those of a merge in one process.

    It joins the cluster that `RAY_ADDRESS` names, or starts a Ray on this machine, which ends
    with it. Inputs and the bundle's directory must have the same paths on all machines.

    Attributes:
        width: tasks at a time.
    """

    def __init__(self) -> None:
        """Join or start.

        Raises:
            ImportError: the extra `ray` is not installed.
        """
        try:
            import ray  # an extra
        except ImportError as error:
            raise ImportError("merging with Ray needs it: pip install 'overtone[ray]'") from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if (address := os.environ.get("RAY_ADDRESS")) is None:
            ray.init(address="local", log_to_driver=False, include_dashboard=False)
        else:
            ray.init(address=address, log_to_driver=False)
        self._ray = ray
        self._task = ray.remote(num_cpus=1)(_alone)
        self._functions: dict[Callable[..., Any], Any] = {}
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.width = max(1, int(resources.get("CPU", 1)))

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run a function elsewhere. It travels once, however often it is called."""
        if fn not in self._functions:
            self._functions[fn] = self._ray.put(fn)
        task = self._task.remote(self._functions[fn], *args, **kwargs)
        future: _Task[_T] = _Task(lambda: self._ray.cancel(task, force=True))
        future.set_running_or_notify_cancel()

        def settle(done: Future[_T]) -> None:
            error = done.exception()
            if error is None:
                future.set_result(done.result())
            else:
                future.set_exception(getattr(error, "cause", None) or error)  # the task's own, without Ray's wrapping

        task.future().add_done_callback(settle)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Leave the cluster, or end what was started."""
        self._ray.shutdown()


def _alone(function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    import torch  # in the task's process

    torch.set_num_threads(1)
    return function(*args, **kwargs)
