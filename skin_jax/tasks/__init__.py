"""Tasks that are trained. `declared`, the settings, needs no JAX; the rest loads when asked for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skin_jax.tasks.registry import (
        TASKS,
        Drawn,
        Kind,
        Score,
        Task,
        build,
        can,
        kind,
        require,
    )

__all__ = ["TASKS", "Drawn", "Kind", "Score", "Task", "build", "can", "kind", "require"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from skin_jax.tasks import registry

    return getattr(registry, name)
