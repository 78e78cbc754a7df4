"""How much torch has allocated at the worst moment: of its own allocator, so the same in every run."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def most_allocated(work: Callable[[], object]) -> int:
    """Return the most bytes that were allocated at a time, of those that were allocated in `work`.

    The profiler adds up allocations from its first use on, and sees no free outside its own time: what an earlier
    call left is taken off.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    found: list[Any] = []
    events: list[Any] = list(profiler.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if str(event.tag).endswith("Allocation"):
            found.append(event)
    first = min(found, key=lambda event: event.start_time_ns).extra_fields
    before = first.total_allocated - first.alloc_size
    return max(0, *(event.extra_fields.total_allocated - before for event in found))
