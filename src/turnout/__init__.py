"""Zero-downtime rollouts for any TCP daemon behind one fixed address.

For programs that register themselves: :class:`turnout.Registry`, see :mod:`turnout.registry`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from turnout.core.model import Cause, Daemon, Deployment, Desired, DrainCause, Identity, Snapshot, State, Workspace
    from turnout.core.outcome import Outcome, Reason
    from turnout.errors import TurnoutError
    from turnout.registry import Registry, this_process

__version__ = "0.2.0"
__all__ = [
    "Cause",
    "Daemon",
    "Deployment",
    "Desired",
    "DrainCause",
    "Identity",
    "Outcome",
    "Reason",
    "Registry",
    "Snapshot",
    "State",
    "TurnoutError",
    "Workspace",
    "__version__",
    "this_process",
]
_HOMES: Final = {
    "Outcome": "turnout.core.outcome",
    "Reason": "turnout.core.outcome",
    "Registry": "turnout.registry",
    "TurnoutError": "turnout.errors",
    "this_process": "turnout.registry",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name stands for
    """Import what is asked for when it is asked for: the keeper imports this and nothing but the standard library."""
    if name not in __all__:
        raise AttributeError(f"module 'turnout' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "turnout.core.model")), name)
