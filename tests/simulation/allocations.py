"""How much torch has allocated at the worst moment: of its own allocator, so the same in every run."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def most_allocated(work: Callable[[], object]) -> int:
    """Return the most bytes that were allocated at a time, of those that were allocated in `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    totals = [0]
    events: list[Any] = list(profiler.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if str(event.tag).endswith("Allocation"):
            totals.append(event.extra_fields.total_allocated)
    return max(totals)
