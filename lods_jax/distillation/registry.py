"""From a name to an objective: a key of `OBJECTIVES`, or a user's own function, "package.module:factory" or "FILE.py:factory"."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from lods_jax.core.errors import UserError, one_line
from lods_jax.core.types import Objective
from lods_jax.distillation.objectives import OBJECTIVES


def make_objective(name: str, s: float | None = None, options: Mapping[str, float | str] | None = None) -> Objective:
    """The objective of a name, with its guidance scale and options.

    A name with a colon is code, which is imported and called: pass only names that the user has given. For a name that was read
    from a folder, check `is_code` first.

    Args:
        name: a key of `OBJECTIVES`, "package.module:factory" or "FILE.py:factory".
        s: guidance scale; None for the objective's default.
        options: other arguments of the factory, by name.

    Returns:
        The objective.

    Raises:
        UserError: there is no such objective, it takes no such option, or the user's code fails.
        ValueError: a number is out of range.

    Examples:
        >>> make_objective("lods-embedding", s=1000.0).trained_query
        'a'
    """
    given = dict(options or {}) | ({} if s is None else {"s": s})
    factory = load_objective(name)
    takes = list(inspect.signature(factory).parameters)
    for key in given:
        if key not in takes:
            raise UserError(f"objective {name} takes no {key}; it takes {', '.join(takes) or 'nothing'}")
    if not is_code(name):
        return factory(**given)
    with told(name, "failed"):
        made = factory(**given)
    if not isinstance(made, Objective):
        raise UserError(f"objective {name} must give a lods_jax.core.types.Objective, got a {type(made).__name__}")
    return made


def is_code(name: str) -> bool:
    """Whether the name of an objective is that of a function, "package.module:factory", which has to be imported.

    Args:
        name: of an objective.

    Returns:
        True for code, False for a key of `OBJECTIVES`.

    Examples:
        >>> is_code("my_project.objectives:cosine"), is_code("sds")
        (True, False)
    """
    return ":" in name


def load_objective(name: str) -> Callable[..., Objective]:
    """The factory of an objective.

    Args:
        name: a key of `OBJECTIVES`, "package.module:factory", also of the current folder, or "FILE.py:factory".

    Returns:
        The factory, a function that gives an `Objective`.

    Raises:
        UserError: the name is unknown, the module cannot be imported, or the attribute is no function.

    Examples:
        >>> load_objective("csd") is OBJECTIVES["csd"]
        True
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if not is_code(name):
        raise UserError(f"unknown objective {name}; there are {', '.join(OBJECTIVES)}, or package.module:factory")
    module, _, attribute = name.rpartition(":")
    with told(name, "cannot be imported"):
        factory = getattr(load_module(module), attribute)
    if not inspect.isfunction(factory):  # os.sep is no function, and sys.exit is none that gives an objective
        raise UserError(f"objective {name} must be a Python function that gives an Objective, got a {type(factory).__name__}")
    return factory


def load_module(name: str) -> ModuleType:
    """A module of a user's own.

    Args:
        name: "package.module", also of the current folder, or the path of a file that ends in .py.

    Returns:
        The module.

    Raises:
        ImportError: there is no such file.
    """
    if not name.endswith(".py"):
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)  # last: a file of the folder must not take the place of a library
        return importlib.import_module(name)
    if not Path(name).is_file():
        raise ImportError(f"there is no file {name}")
    own = f"file:{Path(name).resolve()}"  # a name that is nobody's
    spec = importlib.util.spec_from_file_location(own, name)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module  # where a dataclass looks for the module of its class
    spec.loader.exec_module(module)
    return module


@contextmanager
def told(name: str, what: str) -> Iterator[None]:
    """Turns any error of a user's own objective into one line. LODS_TRACEBACK=1 shows where it was raised.

    Args:
        name: of the objective.
        what: went wrong, for the line: "failed", say.

    Raises:
        UserError: the block raises anything.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = (
            one_line(error) if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {one_line(error)}"
        )
        raise UserError(f"objective {name} {what}: {reason}") from error
