"""The package as a user gets it: what it holds, what it imports, what it never calls."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import mfmarl
from mfmarl.selftest.source import ALLOWED as SHIPPED
from mfmarl.selftest.source import forbidden

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = ("mfmarl", "envs", "agents")


def tracked() -> list[Path]:
    """Every file that git tracks and that is still there, relative to the root; links are not followed."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    paths = [Path(name) for name in listing.split("\0") if name]
    return [path for path in paths if (ROOT / path).is_file() and not (ROOT / path).is_symlink()]


def sources(*folders: str) -> list[Path]:
    """Python files under these folders, tracked or not; the links mfmarl/envs and mfmarl/agents are not followed."""
    return sorted(
        Path(folder) / name
        for top in folders
        for folder, _, names in os.walk(ROOT / top)
        for name in names
        if name.endswith(".py")
    )


def installed_name(path: Path) -> str:
    """Where a source file lies once installed: envs/ising.py as mfmarl/envs/ising.py."""
    return str(path if path.parts[0] == "mfmarl" else "mfmarl" / path)


# What is in the package


def test_the_packages_listed_are_the_packages_that_exist() -> None:
    folders = {path.parent.relative_to(ROOT) for path in sources(*FOLDERS)}
    names = {installed_name(folder).replace("/", ".") for folder in folders}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(names)


def test_every_package_folder_has_an_init() -> None:
    assert [str(path.parent) for path in sources(*FOLDERS) if not (path.parent / "__init__.py").exists()] == []


def test_the_links_for_editors_lead_to_the_top_level_folders() -> None:
    for name in ("envs", "agents"):
        assert (ROOT / "mfmarl" / name).resolve() == ROOT / name


def test_only_gymnasium_has_an_upper_bound() -> None:
    bounded = [line for line in PROJECT["project"]["dependencies"] if re.search(r"<|==|~=", line)]
    assert bounded == ["gymnasium>=1.2,<1.5"]


def test_the_lock_pins_every_dependency_once_and_without_a_local_build() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {
        canonicalize_name(pin.name): re.fullmatch(r"==([0-9][0-9A-Za-z.]*)", str(pin.specifier)) for pin in pins
    }
    assert len(versions) == len(pins)
    assert [name for name, match in versions.items() if match is None] == []
    assert "pygame" not in versions  # the same module as pygame-ce: the two overwrite each other

    extras = PROJECT["project"]["optional-dependencies"]
    dev = {extra for line in extras["dev"] if Requirement(line).name == "mfmarl" for extra in Requirement(line).extras}
    wanted = [PROJECT["project"]["dependencies"], extras["dev"], *(extras[extra] for extra in dev)]
    for requirement in (Requirement(line) for lines in wanted for line in lines):
        if requirement.name == "mfmarl":
            continue
        match = versions.get(canonicalize_name(requirement.name))
        assert match is not None, f"{requirement.name} is not in the lock: run `make lock`"
        assert requirement.specifier.contains(match[1]), f"{requirement} but the lock has {match[1]}"


def test_every_third_party_import_is_a_declared_dependency() -> None:
    from importlib.metadata import packages_distributions

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    extras = [
        line for name, lines in PROJECT["project"]["optional-dependencies"].items() if name != "dev" for line in lines
    ]
    declared = {canonicalize_name(Requirement(line).name) for line in [*PROJECT["project"]["dependencies"], *extras]}
    of_module = packages_distributions()
    missing = set()
    for path in sources(*FOLDERS):
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top in ("mfmarl", "__future__"):
                continue
            if not {canonicalize_name(name) for name in of_module.get(top, [top])} & declared:
                missing.add(f"{path.relative_to(ROOT)}: {top}")
    assert sorted(missing) == []


def test_every_plain_dependency_is_imported_somewhere() -> None:
    from importlib.metadata import packages_distributions

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    of_module = packages_distributions()
    used = {
        canonicalize_name(name)
        for path in sources(*FOLDERS)
        for module in imported(ast.parse(path.read_text(encoding="utf-8")))
        for name in of_module.get(module.partition(".")[0], [])
    }
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"]}
    assert declared - used == set()


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


# Wheel and sdist


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist, built from a copy of the tracked files: nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "copy"
    for path in tracked():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, copy / path)
    for name in ("envs", "agents"):
        (copy / "mfmarl" / name).symlink_to(f"../{name}")
    # The sdist is built from the tree and the wheel from the sdist, as for a release.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_holds_every_tracked_file_of_the_package_and_nothing_else(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[0]) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {installed_name(path) for path in tracked() if path.parts[0] in FOLDERS}
    assert held == expected
    assert {"mfmarl/envs/__init__.py", "mfmarl/agents/__init__.py", "mfmarl/py.typed"} <= held


def test_the_sdist_holds_each_file_once_and_no_tests(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {str(path) for path in tracked() if path.parts[0] in FOLDERS} <= held
    assert {"pyproject.toml", "LICENSE", "README.md"} <= held
    folders = {"envs", "agents", "mfmarl", "requirements", "mfmarl.egg-info"}
    assert {name for name in held if "/" in name and name.partition("/")[0] not in folders} == set()
    assert {name for name in held if name.startswith(("mfmarl/envs/", "mfmarl/agents/"))} == set()


def test_the_metadata_names_the_version_the_command_and_the_licence(distributions: tuple[Path, Path]) -> None:
    from email.parser import Parser

    with zipfile.ZipFile(distributions[0]) as archive:
        (folder,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
        commands = archive.read(f"{folder}/entry_points.txt").decode()
    assert metadata["Version"] == mfmarl.__version__
    assert metadata["License-Expression"] == "MIT"
    assert "mfmarl = mfmarl.__main__:run" in commands


def test_an_installed_wheel_leaves_a_users_own_envs_and_agents_alone(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    with zipfile.ZipFile(distributions[0]) as archive:  # a wheel of pure Python is installed by unpacking it
        archive.extractall(site)
    for name in ("envs", "agents"):
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").write_text(f"OWNER = 'the user of {name}'\n")
    program = """
import importlib, json, pkgutil
import envs, agents, mfmarl, mfmarl.envs, mfmarl.agents
modules = [m.name for p in (mfmarl.envs, mfmarl.agents) for m in pkgutil.iter_modules(p.__path__, p.__name__ + ".")]
files = [importlib.import_module(name).__file__ for name in modules]
print(json.dumps([envs.OWNER, agents.OWNER, mfmarl.__file__, mfmarl.envs.__file__, mfmarl.agents.__file__, *files]))
"""
    search = os.pathsep.join([str(home), str(site)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=home,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second, *files = json.loads(done.stdout)
    assert (first, second) == ("the user of envs", "the user of agents")
    assert [file for file in files if not Path(file).is_relative_to(site)] == []


# What is imported


@pytest.mark.parametrize(
    "statement",
    [
        "import mfmarl",
        "import mfmarl.registry",
        "import mfmarl.cli",
        "from mfmarl.registry import entries; assert len(entries('agent')) + len(entries('environment')) > 1",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(statement: str) -> None:
    heavy = ["torch", "numpy", "scipy", "matplotlib", "gymnasium", "pettingzoo", "stable_baselines3", "safetensors"]
    program = f"import sys; {statement}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# What is never called: the search is the self-test's own (mfmarl.selftest.source).

PEER = "a peer, written as its users would"
ALLOWED = {
    (name.removeprefix("mfmarl/") if "/agents/" in name else name, what): why for (name, what), why in SHIPPED.items()
} | {
    ("scripts/bench/bench_training.py", "torch.manual_seed"): PEER,
    ("scripts/bench/bench_training.py", "torch.rand_like"): PEER,
    ("scripts/bench/bench_training.py", "torch.randperm"): PEER,
    ("scripts/bench/peer_supersuit.py", "torch.manual_seed"): PEER,
}
"""Exceptions, (file, what is called) -> why it is right there."""


@pytest.mark.parametrize("folder", [*FOLDERS, "scripts"])
def test_nothing_is_unpickled_evaluated_or_drawn_from_a_shared_generator(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sources(folder)
        for line, what in forbidden(path.read_text(encoding="utf-8"))
        if (str(path.relative_to(ROOT)), what) not in ALLOWED
    ]
    assert found == []


def test_every_exception_is_still_needed() -> None:
    called = {
        (file, what)
        for file in {file for file, _ in ALLOWED}
        for _, what in forbidden((ROOT / file).read_text(encoding="utf-8"))
    }
    assert set(ALLOWED) - called == set()


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle", "pickle"),
        ("import torch.multiprocessing as mp", "torch.multiprocessing"),
        (
            "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor()",
            "concurrent.futures.ProcessPoolExecutor",
        ),
        ("from multiprocessing import Pool", "multiprocessing.Pool"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("from torch import load as read\nread('x')", "torch.load"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle"),
        ("eval('1')", "eval"),
        ("def f(code):\n    exec(code)", "exec"),
        ("import yaml\nyaml.load('x')", "yaml"),
        ("import numpy as np\nnp.random.seed(0)", "numpy.random.seed"),
        ("import numpy as np\nnp.random.normal()", "numpy.random.normal"),
        ("import numpy as np\nnp.random.default_rng()", "numpy.random.default_rng"),
        ("import numpy as np\nnp.random.RandomState()", "numpy.random.RandomState"),
        ("import torch\ntorch.manual_seed(0)", "torch.manual_seed"),
        ("import torch\ntorch.rand(3)", "torch.rand"),
        ("import torch\nx = torch.empty(3).uniform_()", ".uniform_"),
        ("def f(p):\n    return p.multinomial(1)", ".multinomial"),
        ("import torch\ntorch.empty(3).normal_()", ".normal_"),
        ("from torch import nn\nnn.init.orthogonal_(w)", "torch.nn.init.orthogonal_"),
        ("import random\nrandom.shuffle([])", "random.shuffle"),
        ("from stable_baselines3 import PPO\nPPO.load('x')", "stable_baselines3.PPO.load"),
    ],
)
def test_the_search_for_forbidden_calls_finds_them(source: str, what: str) -> None:
    assert what in [name for _, name in forbidden(source)]


@pytest.mark.parametrize(
    "source",
    [
        "import ast\nast.literal_eval('1')",
        "network.eval()",
        "import re\nre.compile('x')",
        "import json\njson.load(file)",
        "import numpy as np\nnp.load('x', allow_pickle=False)\nnp.random.default_rng(3).normal()",
        "import torch\ntorch.rand(3, generator=g)\ntorch.compile(f)\nw.normal_(generator=g)",
        "from mfmarl import random\nrandom.uniform(key, ids)",
        "import random\nimport numpy as np\nrandom.setstate(random.getstate())\nnp.random.set_state(np.random.get_state())",
        "rng.multinomial(10, p)\nrng.normal()",
        "from torch import nn\nnn.init.zeros_(w)\nnn.init.orthogonal_(w, generator=g)",
        "import torch\nd = torch.distributions.Categorical(p)",
    ],
)
def test_the_search_for_forbidden_calls_leaves_the_rest_alone(source: str) -> None:
    assert forbidden(source) == []


def test_unpickling_inside_the_package_fails_every_test() -> None:
    import pickle  # noqa: TID251

    payload = pickle.dumps(Path("x"))
    assert pickle.loads(payload) == Path("x")  # others may: hypothesis and pytest are not ours to judge
    scope = {"__name__": "mfmarl.learning.pretender"}
    exec("def read(loads, payload):\n    return loads(payload)", scope)
    with pytest.raises(AssertionError, match=r"mfmarl\.learning\.pretender unpickles"):
        scope["read"](pickle.loads, payload)  # type: ignore[operator]


# What is written down


def test_no_tracked_file_names_a_path_of_this_machine() -> None:
    # A file path is one of this machine's when its first two folders exist here; these exist everywhere.
    everywhere = ("/bin", "/dev", "/etc", "/proc", "/sbin", "/sys", "/tmp", "/usr", "/var")
    pattern = re.compile(r"(?<![\w.:/~$})\]>-])(/[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)")
    found = []
    for path in tracked():
        content = (ROOT / path).read_bytes()
        if b"\0" in content:
            content = content if str(ROOT).encode() in content else b""
        text = content.decode("utf-8", errors="replace")
        if str(ROOT) in text:
            found.append(f"{path}: {ROOT}")
        for match in pattern.finditer(text):
            if not match[1].startswith(everywhere) and Path(match[1].rstrip(".")).exists():
                found.append(f"{path}: {match[1]}")
    assert found == []


def test_the_changelog_has_an_entry_for_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?{re.escape(mfmarl.__version__)}\b", changelog, re.MULTILINE)
