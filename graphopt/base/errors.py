"""Every error that graphopt raises for a user: what, where and what to do."""

from __future__ import annotations


class GraphoptError(Exception):
    """Base of all of graphopt's errors; `exit_code` is the command line's exit status."""

    exit_code = 1


class UsageError(GraphoptError, ValueError):
    """An argument, a file or a combination of them that cannot be used."""

    exit_code = 2


class BudgetParseError(UsageError):
    """A number of bytes that cannot be read, or that has two readings."""


class ProblemError(UsageError):
    """A problem file that is malformed; the message names the field."""


class OnnxError(UsageError):
    """An ONNX file that cannot be read, or that asks for what is not known here; the message names op and node."""


class ScheduleError(UsageError):
    """A schedule that is not valid for its problem; the message names the step."""


class InfeasibleError(GraphoptError):
    """No schedule of this planner fits; in the problem's own bytes, nothing resident counted.

    `minimum_bytes` is the least budget for which the planner has a schedule.
    """

    exit_code = 3

    def __init__(self, budget_bytes: int, minimum_bytes: int) -> None:
        super().__init__(
            f"no schedule fits in {budget_bytes:,} bytes; the smallest that does needs {minimum_bytes:,} bytes"
        )
        self.budget_bytes = budget_bytes
        self.minimum_bytes = minimum_bytes


#: By these words accelerate's `find_executable_batch_size` and Lightning's batch-size finder know an error for one that
#: a smaller batch may mend. They look at `args`; what is shown is the message alone.
OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


class BudgetError(GraphoptError, RuntimeError):
    """The model does not train inside the budget; what looks for a batch size takes it for being out of memory.

    `minimum_bytes` is the least budget that would do; `drivers` says what fills it.
    """

    exit_code = 3

    def __init__(self, message: str, minimum_bytes: int, drivers: tuple[str, ...] = ()) -> None:
        super().__init__(f"{message}\n({OUT_OF_MEMORY})")
        self.message = message
        self.minimum_bytes = minimum_bytes
        self.drivers = drivers

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[BudgetError], tuple[str, int, tuple[str, ...]]]:
        return type(self), (self.message, self.minimum_bytes, self.drivers)


class VerificationError(GraphoptError):
    """Optimized and eager differ; `tensor` names the first one that does."""

    exit_code = 4

    def __init__(self, message: str, tensor: str = "", largest_difference: float = 0.0) -> None:
        super().__init__(message)
        self.tensor = tensor
        self.largest_difference = largest_difference


class NonFiniteGradientError(GraphoptError, RuntimeError):
    """The norm of the gradients is not finite, and the step was asked to raise then; nothing was written."""


class CaptureError(GraphoptError, RuntimeError):
    """The model could not be captured as a graph that can be planned; what eager would raise may be the reason."""

    exit_code = 5


class PassError(GraphoptError, RuntimeError):
    """A pass over a graph failed, or was not given or did not leave what it should: a fault of graphopt's own."""


class PlanMismatchError(GraphoptError):
    """A plan that was made for another graph, or whose file was changed."""

    exit_code = 6


class CompileError(GraphoptError):
    """Machine code that cannot be compiled or loaded here; the message's first line is the reason."""


class OffloadError(GraphoptError, RuntimeError):
    """A value that was moved out of memory could not be written or read back; no gradient or parameter was changed."""


class RankError(GraphoptError, RuntimeError):
    """One of several processes failed, or did not come where the others waited for it."""
