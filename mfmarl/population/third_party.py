"""Environments that nobody here wrote, by name: `magent2/battle_v4`, `mpe2/simple_spread_v3`,
`pettingzoo/sisl/pursuit-v5`, `gymnasium/CartPole-v1`, a user's class or factory.

Each is imported when it is chosen, and gymnasium with it: listing names imports nothing.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfmarl.errors import ConfigError, EnvironmentFault, MfmarlError, nearest

if TYPE_CHECKING:
    from mfmarl.population.single import Layout, Single

_FOLDERS = {"magent2": "magent2/environments", "mpe2": "mpe2"}
_PIP = {
    "magent2": "pip install 'mfmarl[magent]'",
    "mpe2": "pip install mpe2",
    "pettingzoo": "pip install pettingzoo",
    "gymnasium": "pip install gymnasium",
}
# What Gymnasium's families need beside it, and the extra that brings it.
_GYMNASIUM_NEEDS = {"box2d": "Box2D", "mujoco": "mujoco", "phys2d": "jax", "tabular": "jax", "ALE": "ale_py"}
_GYMNASIUM_EXTRAS = {
    "Box2D": "box2d", "mujoco": "mujoco", "jax": "jax", "ale_py": "atari", "pygame": "classic-control"
}  # fmt: skip
# What PettingZoo's own environments need beside it: the module that must be there, and the extra that brings it.
_NEEDS = {
    "atari": ("multi_agent_ale_py", "atari"),
    "butterfly": ("pymunk", "butterfly"),
    "butterfly/knights_archers_zombies": ("pygame", "butterfly"),
    "classic": ("pygame", "classic"),
    "classic/chess": ("chess", "classic"),
    "classic/hanabi": ("shimmy", "classic"),
    "classic/leduc_holdem": ("rlcard", "classic"),
    "classic/texas_holdem": ("rlcard", "classic"),
    "classic/texas_holdem_no_limit": ("rlcard", "classic"),
    "sisl": ("pygame", "sisl"),
    "sisl/multiwalker": ("Box2D", "sisl"),
}


@dataclass(frozen=True, eq=False)
class Maker:
    """Makes one environment per call, and can tell a child process how to make the same."""

    name: str
    make: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    pictures: bool = False
    """Whether `make` takes `render_mode`."""
    arrays: bool = False
    """Play MAgent2 through its arrays, not its dictionaries."""
    instance: Any = None
    """The one environment there is, if a ready-made one was given."""
    keywords: Mapping[str, Any] = field(default_factory=dict)
    """Every option it has, and its default."""

    def __call__(self, **extra: Any) -> Any:
        try:
            with quiet():
                made = self.make(**{**self.options, **extra})
                gymnasium = sys.modules.get("gymnasium")
                if gymnasium is not None and isinstance(made, gymnasium.Env):
                    from mfmarl.population.gymnasium_in import OneAgent

                    return OneAgent(made, self.name)
                return made
        except MfmarlError:
            raise
        except Exception as error:
            raise _refusal(self.name, {**self.options, **extra}, error) from error

    def picturing(self) -> Any:
        """An environment that makes pictures, or None."""
        if not self.pictures or "render_mode" in self.options:
            return self()
        return self(render_mode="rgb_array")

    def layout(
        self,
        env: Any,
        agents: Sequence[Any],
        grouping: Mapping[str, str] | None = None,
        masked: bool = False,
        max_steps: int | None = None,
    ) -> Layout:
        """The layout of one made here."""
        from mfmarl.population import magent
        from mfmarl.population.single import layout_of

        plain = layout_of(env, self.name, agents, grouping, masked, max_steps)
        return magent.array_layout(env, plain) if self.arrays else plain

    def arrays_fit(self, env: Any, agents: Sequence[Any], grouping: Mapping[str, str] | None) -> bool:
        """Whether a grouping of one's own keeps the order of MAgent2's arrays."""
        from mfmarl.population import magent
        from mfmarl.population.single import layout_of

        return magent.fits(env, layout_of(env, self.name, agents, grouping))

    def single(self, env: Any, layout: Layout, copy: int) -> Single:
        """The player of one made here."""
        from mfmarl.population import magent, single

        if self.arrays:
            return magent.ArraySingle(env, layout, copy)
        kind = single.TurnSingle if single.takes_turns(env) else single.ParallelSingle
        return kind(env, layout, copy)

    def address(self) -> dict[str, Any]:
        """JSON from which `maker_at` makes the same Maker in another process. Raises ConfigError if there is none."""
        try:
            options = json.loads(json.dumps(dict(self.options)))
        except (TypeError, ValueError):
            options = None
        if options != dict(self.options):
            raise ConfigError(f"{self.name}: its options cannot be written down for another process; use workers=0.")
        address = {"name": self.name, "options": options, "arrays": self.arrays}
        if "/" in self.name and self.name.partition("/")[0] in _PIP:
            return address
        qualified = getattr(self.make, "__qualname__", "")
        module = sys.modules.get(getattr(self.make, "__module__", ""), None)
        if self.instance is not None or not qualified or "<" in qualified or module is None:
            raise ConfigError(
                f"{self.name} is made by something that another process cannot import (a lambda, a local function, a "
                "ready-made environment); define it at the top of a file, or use workers=0 or workers='threads'."
            )
        return {
            **address,
            "module": module.__name__,
            "file": str(Path(module.__file__).resolve()) if module.__file__ else "",
            "attribute": qualified,
        }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Banners and deprecation warnings of other packages stay off standard output, which is ours to promise."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "hide")
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def _refusal(name: str, options: Mapping[str, Any], error: Exception) -> MfmarlError:
    """Why an environment could not be made: its options, what it lacks, or itself."""
    said = str(error).strip().split("\n")[0]
    absent = error if isinstance(error, ModuleNotFoundError) else error.__cause__
    if isinstance(absent, ModuleNotFoundError):
        return ConfigError(
            f"{name} needs the package {absent.name!r}, which is not installed: {_pip(name, absent.name)}.",
            "missing-extra",
        )
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    if isinstance(error, AssertionError | TypeError | ValueError | KeyError) and given:
        return ConfigError(f"{name} refuses its options ({given}): {type(error).__name__}: {said}.")
    return EnvironmentFault(
        f"{name} cannot be made{f' with {given}' if given else ''}: {type(error).__name__}: {said}."
    )


def _pip(name: str, package: str | None = None) -> str:
    space, _, rest = name.partition("/")
    if space == "gymnasium" and package in _GYMNASIUM_EXTRAS:
        return f"pip install 'gymnasium[{_GYMNASIUM_EXTRAS[package]}]'"
    if space == "pettingzoo" and rest.partition("/")[0] in ("atari", "butterfly", "classic", "sisl"):
        return f"pip install 'pettingzoo[{rest.partition('/')[0]}]'"
    return _PIP.get(space, "install it with pip")


# --------------------------------------------------------------------------------------------------- names


def _folder(package: str, inside: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0], *Path(inside).parts[1:]) if places else None


def _versioned(folder: Path | None) -> list[str]:
    return sorted(p.stem for p in folder.glob("*_v[0-9]*.py")) if folder and folder.is_dir() else []


def names() -> list[str]:
    """The third-party environments that are installed, by reading folders: nothing is imported."""
    found = [f"{space}/{stem}" for space, inside in _FOLDERS.items() for stem in _versioned(_folder(space, inside))]
    root = _folder("pettingzoo", "pettingzoo")
    for family in ("atari", "butterfly", "classic", "sisl"):
        for stem in _versioned(root / family if root else None):
            plain, _, version = stem.rpartition("_v")
            needed = _NEEDS.get(f"{family}/{plain}", _NEEDS[family])[0]
            if importlib.util.find_spec(needed) is not None:
                found.append(f"pettingzoo/{family}/{plain}-v{version}")
    return found + _gymnasium_names()


def _gymnasium_names() -> list[str]:
    """The newest version of each of Gymnasium's own, of the families whose packages are there, read from source."""
    folder = _folder("gymnasium", "gymnasium/envs")
    source = folder / "__init__.py" if folder else None
    newest: dict[str, int] = {}
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if source and source.is_file() else ():
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "register"):
            continue
        said = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        plain, _, version = str(said.get("id", "")).rpartition("-v")
        family = re.split("[.:]", str(said.get("entry_point", "")).removeprefix("gymnasium.envs."))[0]
        needed = _GYMNASIUM_NEEDS.get(family)
        there = family in ("classic_control", "toy_text") if needed is None else importlib.util.find_spec(needed)
        if version.isdigit() and there:
            newest[plain] = max(newest.get(plain, 0), int(version))
    return [f"gymnasium/{plain}-v{version}" for plain, version in sorted(newest.items())]


def maker(name: str, options: Mapping[str, Any] | None = None) -> Maker:
    """The Maker of a third-party environment by name, its options checked.

    Raises ConfigError: not installed (with the command), unknown (with the nearest), an option it does not
    have (with those it has) or of another type than its default.
    """
    space, _, rest = name.partition("/")
    options = dict(options or {})
    if space in _FOLDERS:
        return _from_folder(name, space, rest, options)
    if space == "pettingzoo":
        return _from_registry(name, rest, options)
    if space == "gymnasium":
        return _from_gymnasium(name, rest, options)
    raise ConfigError(f"Unknown environment {name!r}.{nearest(name, names())}")


def _installed(name: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{name} needs {package}, which is not installed: {_PIP[package]}.", "missing-extra")


def _from_folder(name: str, space: str, rest: str, options: dict[str, Any]) -> Maker:
    _installed(name, space)
    known = _versioned(_folder(space, _FOLDERS[space]))
    if rest not in known:
        raise ConfigError(f"Unknown environment {name!r}.{nearest(name, [f'{space}/{stem}' for stem in known])}")
    dotted = f"{_FOLDERS[space].replace('/', '.')}.{rest}"
    module = _imported(name, dotted)
    signature = _signature(module.raw_env if space == "mpe2" else module.parallel_env)
    if space == "magent2":
        # Rewards are options too, kept in a dictionary of defaults beside the environment.
        inner = sys.modules.get(module.parallel_env.__module__)
        extra = getattr(inner, "default_reward_args", None) or getattr(inner, "default_env_args", None) or {}
        signature = {**signature, **{key: (value, None) for key, value in extra.items()}}
        signature.pop("seed", None)
    options = _options(name, options, signature)
    make = module.parallel_env
    if space == "magent2":

        def make(**given: Any) -> Any:
            from mfmarl.population import magent

            return magent.mended(module.parallel_env(**given))

    return Maker(
        name, make, options, "render_mode" in signature, arrays=space == "magent2", keywords=_defaults(signature)
    )


def _from_registry(name: str, rest: str, options: dict[str, Any]) -> Maker:
    _installed(name, "pettingzoo")
    with quiet():
        import pettingzoo
        from pettingzoo.env_registry.exceptions import PettingZooRegistryError

    kinds = {"parallel": pettingzoo.parallel_registry, "aec": pettingzoo.aec_registry}
    for kind in ("parallel", "aec"):
        try:
            spec = pettingzoo.spec(kind, rest)
            break
        except PettingZooRegistryError:
            continue
    else:
        known = {f"pettingzoo/{id}" for registry in kinds.values() for id in registry}
        raise ConfigError(f"Unknown environment {name!r}.{nearest(name, known)}")
    target = spec.entry_point
    if isinstance(target, str):
        module_name, _, attribute = target.partition(":")
        module = _imported(name, module_name)
        # `parallel_env(**kwargs)` hides the signature; `raw_env` beside it has one.
        raw = getattr(module, "raw_env", None) if attribute in ("env", "parallel_env") else None
        target = raw or getattr(module, attribute)
    signature = _signature(target)
    options = _options(name, options, signature, _open_ended(target))

    def make(**given: Any) -> Any:
        return pettingzoo.make(kind, rest, **given)

    return Maker(
        name, make, options, pictures="render_mode" in signature or not signature, keywords=_defaults(signature)
    )


def _from_gymnasium(name: str, rest: str, options: dict[str, Any]) -> Maker:
    _installed(name, "gymnasium")
    with quiet():
        import gymnasium

    needed = _GYMNASIUM_NEEDS.get(rest.partition("/")[0]) if "/" in rest else None
    if rest not in gymnasium.registry and needed is not None:
        # Families that live in packages of their own register themselves when they are imported.
        _imported(name, needed)
    if rest not in gymnasium.registry:
        raise ConfigError(
            f"Unknown environment {name!r}.{nearest(name, [f'gymnasium/{known}' for known in gymnasium.registry])}"
        )
    spec = gymnasium.registry[rest]
    target: Any = spec.entry_point
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        target = getattr(_imported(name, module), attribute)
    signature = {key: (spec.kwargs.get(key, default), kind) for key, (default, kind) in _signature(target).items()}
    signature["max_episode_steps"] = (spec.max_episode_steps, None)
    options = _options(name, options, signature, _open_ended(target))

    def make(**given: Any) -> Any:
        # What it shows and pays is checked here, copy by copy and step by step.
        return gymnasium.make(rest, disable_env_checker=True, **given)

    return Maker(name, make, options, "render_mode" in signature, keywords=_defaults(signature))


def _imported(name: str, dotted: str) -> Any:
    try:
        with quiet():
            return importlib.import_module(dotted)
    except Exception as error:
        raise _refusal(name, {}, error) from error


def maker_of(target: Any, options: Mapping[str, Any] | None = None, name: str = "") -> Maker:
    """The Maker of a `ParallelEnv`, `AECEnv` or `gymnasium.Env` class, a function that makes one, or a ready-made one."""
    options = dict(options or {})
    if isinstance(target, Maker):
        return target
    if not callable(target):
        if options:
            raise ConfigError(f"{type(target).__name__} is made already, so it takes no options; give its class.")
        return Maker(name or type(target).__name__, lambda: target, instance=target)
    name = name or str(getattr(target, "__name__", type(target).__name__))
    signature = _signature(target)
    options = _options(name, options, signature, _open_ended(target))
    return Maker(name, target, options, pictures="render_mode" in signature, keywords=_defaults(signature))


def maker_at(address: Mapping[str, Any]) -> Maker:
    """The Maker of `Maker.address()`, in another process."""
    if "attribute" not in address:
        made = maker(address["name"], address["options"])
        return Maker(made.name, made.make, made.options, made.pictures, arrays=bool(address["arrays"]))
    target: Any = None
    if address["module"] != "__main__":
        with contextlib.suppress(Exception), quiet():
            target = importlib.import_module(address["module"])
    if target is None:
        from mfmarl.registry import load_file

        with quiet():
            target = load_file(Path(address["file"]))
    for part in address["attribute"].split("."):
        target = getattr(target, part)
    return Maker(address["name"], target, address["options"], arrays=bool(address["arrays"]))


# ------------------------------------------------------------------------------------------------- options

_Signature = dict[str, tuple[Any, Any]]  # name -> (default, annotation)


def _signature(target: Any) -> _Signature:
    """The keyword options of a callable; empty if it does not say."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: (p.default, p.annotation) for p in parameters if p.kind in kinds}


def _defaults(signature: _Signature) -> dict[str, Any]:
    return {key: default for key, (default, _) in signature.items() if key not in ("self", "render_mode")}


def _open_ended(target: Any) -> bool:
    """Whether it takes options that its signature does not name."""
    try:
        return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return True


def _options(name: str, options: Mapping[str, Any], signature: _Signature, open_ended: bool = False) -> dict[str, Any]:
    """Options known to the signature, words read as the type of the default."""
    checked = {}
    for key, value in options.items():
        if key not in signature and open_ended:
            checked[key] = value
            continue
        if key not in signature:
            known = ", ".join(sorted(signature))
            alike = [own for own in signature if own.lower() == key.lower()]
            hint = f" Did you mean {alike[0]!r}?" if alike else re.sub(r" Known: .*", "", nearest(key, signature))
            raise ConfigError(f"{name} has no option {key!r}.{hint} It has: {known or 'none'}.")
        checked[key] = _typed(name, key, value, signature[key][0])
    return checked


def _typed(name: str, key: str, value: Any, default: Any) -> Any:
    """The value, of the type of the default (a word from the command line is read)."""
    if default is inspect.Parameter.empty or default is None:
        return value
    kind = type(default)
    if isinstance(value, str) and kind in (int, float, bool):
        text = value.strip().lower() if kind is bool else value
        with contextlib.suppress(ValueError):
            value = json.loads(text)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, bool, str) and type(value) is not kind:
        raise ConfigError(
            f"{name}: the option {key} must be {_WORDS[kind]}, as its default {default!r}, not {value!r}."
        )
    return value


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
