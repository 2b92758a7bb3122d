"""Peak memory of a function, as PyTorch's own CPU allocator tells it."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object]) -> int:
    """The most memory that tensors made within ``function`` took at once, freed ones left out.

    The profiler reports every allocation of PyTorch, also those inside an operation; memory that a
    matrix library takes for itself is not among them. What ``function`` returns is freed first.

    >>> import torch
    >>> peak_bytes(lambda: torch.ones(1000) + torch.ones(1000)) // 1000
    12
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    results = profiler.profiler
    if results is None or results.kineto_results is None:
        raise RuntimeError("the profiler kept no events")
    live = peak = 0
    moments = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(moments, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


__all__ = ["peak_bytes"]
