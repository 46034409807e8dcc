"""jaxclip: what separates robust CLIPs from less robust models, in pure JAX.

Public names are imported when first used, so that ``import jaxclip`` and ``jaxclip --help`` stay quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors, which do not run what is below
    from checkpoints_conversion.convert import convert as convert
    from jaxclip import analysis as analysis
    from jaxclip.embedding import embed as embed
    from jaxclip.errors import InputError as InputError
    from jaxclip.evaluation import evaluate as evaluate
    from jaxclip.model import load_model as load_model
    from jaxclip.store import open_store as open_store
    from jaxclip.zero_shot import zero_shot_head as zero_shot_head

__version__ = "0.1.0"

_PUBLIC = {
    "load_model": "jaxclip.model",
    "convert": "checkpoints_conversion.convert",
    "zero_shot_head": "jaxclip.zero_shot",
    "evaluate": "jaxclip.evaluation",
    "embed": "jaxclip.embedding",
    "open_store": "jaxclip.store",
    "InputError": "jaxclip.errors",
    "analysis": "jaxclip",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'jaxclip' has no attribute {name!r}")
    if _PUBLIC[name] == __name__:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
