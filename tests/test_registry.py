"""Names: the package's own, plugins' and those of a user's files; found without importing, refused with a hint."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfmarl import registry
from mfmarl.errors import ConfigError, EnvironmentFault, nearest
from mfmarl.registry import Entry, entries, import_user_code, load_file, lookup, register


@pytest.fixture(scope="module", autouse=True)
def _everything_is_imported() -> None:
    """Before any test's registrations are taken back: a module registers once, when it is first imported."""
    for entry in registry._scan().values():
        entry.load()


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Whatever a test registers, loads or puts on the path is gone after it."""
    registered, modules, path = dict(registry._registered), set(sys.modules), list(sys.path)
    yield
    registry._registered.clear()
    registry._registered.update(registered)
    registry.plugins.cache_clear()
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("mfmarl_user_", "broken_plugin", "working_plugin", "my_package")):
            del sys.modules[name]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


ENV = '''
"""A user's file."""
from mfmarl.registry import register

@register("{name}")
class {cls}:
    """A meadow where nothing happens.

    More text.
    """

class Unregistered:
    """Plain."""
'''

AGENT = """
from dataclasses import dataclass
from mfmarl.learning.agent import Agent
from mfmarl.registry import register

@register("meek", independent="meek_alone")
class Meek(Agent):
    '''Yields.'''
"""

# -------------------------------------------------------------------------------------- the package's own


def test_listing_names_imports_neither_torch_nor_numpy_and_takes_little_time() -> None:
    program = (
        "import sys, time\n"
        "begin = time.process_time()\n"
        "from mfmarl.registry import entries\n"
        "names = [*entries('environment'), *entries('agent')]\n"
        "spent = time.process_time() - begin\n"
        "heavy = [m for m in ('torch', 'numpy', 'gymnasium', 'pettingzoo', 'mfmarl.envs.ising') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
        "assert 'ising' in names and 'mfq' in names and 'iql' in names, names\n"
        "print(spent)\n"
    )
    spent = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(spent) < 0.15  # measured: 0.06


@pytest.mark.parametrize("kind", ["environment", "agent"])
def test_every_name_found_in_the_source_is_what_its_module_registers(kind: registry.Kind) -> None:
    """What scanning says without importing, the import confirms: class, summary and twins."""
    scanned = {name: entry for (of, name), entry in registry._scan().items() if of == kind}
    assert scanned
    for name, entry in scanned.items():
        target = entry.load()
        assert entry.where == f"{target.__module__}:{target.__qualname__}"
        known = registry._registered[kind, name]
        assert known.target is target
        assert (known.summary, known.twin, known.overrides) == (entry.summary, entry.twin, entry.overrides)
        assert entry.summary


def test_independent_learners_are_their_twins_without_a_field() -> None:
    for found in (registry._scan(), registry._registered):
        pairs = {"mfq": "iql", "mfac": "iac", "mfppo": "ippo"}
        for name, twin in pairs.items():
            importlib.import_module(f"mfmarl.agents.{name}")
            learner, alone = found["agent", name], found["agent", twin]
            assert (learner.twin, alone.twin) == (twin, name)
            assert learner.where == alone.where
            assert alone.overrides == (("field", "nothing"),)
            assert learner.overrides == ()
            assert alone.load() is learner.load()


def test_one_broken_file_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "my_package/__init__.py", "")
    written(tmp_path, "my_package/broken.py", "@register('broken')\nclass Broken(:\n")
    written(tmp_path, "my_package/fine.py", ENV.format(name="fine", cls="Fine"))
    written(tmp_path, "my_package/dotted.py", "import mfmarl\n@mfmarl.register(name='dotted')\ndef make(): 'Makes.'\n")
    written(
        tmp_path,
        "my_package/odd.py",
        "@register(f'{1}')\nclass A: ...\n@register\nclass B: ...\n@other('x')\nclass C: ...\n",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {
        entry.name: entry.summary
        for path in sorted((tmp_path / "my_package").glob("*.py"))
        for node in registry._statements(path)
        if hasattr(node, "decorator_list")
        for entry in registry._decorated(node, "environment", f"my_package.{path.stem}")  # type: ignore[arg-type]
    }
    assert found == {"fine": "A meadow where nothing happens", "dotted": "Makes"}


# ------------------------------------------------------------------------------------------- registering


def test_registering_returns_the_class_and_makes_it_known() -> None:
    class Meadow:
        """Grass.

        And more."""

    assert register("meadow")(Meadow) is Meadow
    entry = lookup("environment", "meadow")
    assert (entry.load(), entry.summary, entry.kind, entry.twin) == (Meadow, "Grass", "environment", "")
    assert "meadow" in entries("environment")
    assert "meadow" not in entries("agent")


@pytest.mark.parametrize(
    "name", ["", "Big", "a b", "../up", "/root", "a/../b", "a//b", "-x", "a/b/c/d", "x" * 101, "é", "a\n"]
)
def test_what_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a name"):
        register(name)
    with pytest.raises(ConfigError, match="cannot be a name"):
        register("fine", independent=name or "/")


@pytest.mark.parametrize("name", ["magent2/mine", "pettingzoo/x/y"])
def test_the_names_of_third_parties_are_theirs(name: str) -> None:
    with pytest.raises(ConfigError, match="belongs to third parties"):
        register(name)


def test_a_taken_name_is_refused_and_a_repeated_registration_is_not(tmp_path: Path) -> None:
    class Other:
        pass

    with pytest.raises(ConfigError, match="'ising' is taken by mfmarl.envs.ising:Ising"):
        register("ising")(Other)
    register("meadow")(Other)
    register("meadow")(Other)
    first = load_file(written(tmp_path, "one.py", ENV.format(name="shared", cls="One")))
    with pytest.raises(ConfigError, match="'shared' is taken by mfmarl_user_one"):
        load_file(written(tmp_path, "two.py", ENV.format(name="shared", cls="Two")))
    assert lookup("environment", "shared").load() is first.One
    # The same file under another name, as when a script runs as __main__ and is loaded by its path.
    spec = importlib.util.spec_from_file_location("my_package_again", tmp_path / "one.py")
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    sys.modules["my_package_again"] = again
    spec.loader.exec_module(again)
    assert lookup("environment", "shared").load() is again.One


def test_twins_are_for_agents_and_have_names_of_their_own(tmp_path: Path) -> None:
    class Meadow:
        pass

    with pytest.raises(ConfigError, match="is for agents"):
        register("meadow", independent="lonely")(Meadow)
    with pytest.raises(ConfigError, match="different names"):
        register("meadow", independent="meadow")
    taken = AGENT.replace("meek_alone", "iql")
    with pytest.raises(ConfigError, match="'iql' is taken by mfmarl.agents.mfq"):
        load_file(written(tmp_path, "taken.py", taken))
    assert "meek" not in entries("agent")


# ------------------------------------------------------------------------------------------ a user's files


def test_a_file_and_class_name_an_environment_registered_or_not(tmp_path: Path) -> None:
    path = written(tmp_path, "mine.py", ENV.format(name="mine", cls="Mine"))
    for given in (str(path), f"{path}:Mine", f"{path}:mine"):
        entry = lookup("environment", given)
        assert entry.load().__name__ == "Mine"
        assert entry.name == given
        assert entry.summary == "A meadow where nothing happens"
        assert entry.origin == str(path)
    assert lookup("environment", f"{path}:Unregistered").load().__name__ == "Unregistered"
    assert lookup("environment", "mine").load() is lookup("environment", str(path)).load()


def test_a_file_is_imported_once_and_not_as_main(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "print('imported', __name__)\nif __name__ == '__main__':\n    raise SystemExit\nclass A:\n    pass\n"
    path = written(tmp_path, "once.py", text)
    first = load_file(path)
    assert load_file(tmp_path / "x" / ".." / "once.py") is first
    assert capsys.readouterr().out.count("imported mfmarl_user_once_") == 1


def test_two_files_of_like_paths_are_two_modules(tmp_path: Path) -> None:
    """Found in review: a/b_c.py and a/b/c.py were one name in sys.modules, so one of them was never loaded."""
    one = written(tmp_path, "a/b_c.py", "class A:\n    place = 1\n")
    two = written(tmp_path, "a/b/c.py", "class A:\n    place = 2\n")
    three = written(tmp_path, "a/d/c.py", "class A:\n    place = 3\n")
    assert [load_file(p).A.place for p in (one, two, three)] == [1, 2, 3]


def test_a_file_finds_those_beside_it_without_hiding_anybodys(tmp_path: Path) -> None:
    written(tmp_path, "my_package_rules.py", "LIMIT = 7\n")
    written(tmp_path, "json.py", "raise RuntimeError('a file of the user hides the standard library')\n")
    path = written(
        tmp_path, "uses.py", "import json\nfrom my_package_rules import LIMIT\nclass A:\n    limit = LIMIT\n"
    )
    assert lookup("environment", f"{path}:A").load().limit == 7


def test_a_file_with_one_agent_and_its_twin_has_one_agent(tmp_path: Path) -> None:
    path = written(tmp_path, "meek.py", AGENT)
    agent, twin = lookup("agent", str(path)), lookup("agent", f"{path}:meek_alone")
    assert (agent.overrides, agent.twin) == ((), "meek_alone")
    assert (twin.overrides, twin.twin) == ((("field", "nothing"),), "meek")
    assert lookup("agent", f"{path}:Meek").overrides == ()
    assert lookup("agent", "meek_alone").load() is agent.load()


def test_files_that_name_nothing_usable_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "mine.py", ENV.format(name="mine", cls="Mine") + "\nNUMBER = 3\n")
    for given, words in (
        (f"{path}:Mina", "has no 'Mina'. Did you mean 'Mine'?"),
        (f"{path}:NUMBER", "'NUMBER' in mine.py is not an environment"),
        (f"{tmp_path}/none.py:A", "There is no file"),
        (f"{tmp_path}/none.py", "There is no file"),
    ):
        with pytest.raises(ConfigError) as caught:
            lookup("environment", given)
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="is not an agent"):
        lookup("agent", f"{path}:Mine")
    with pytest.raises(ConfigError, match=r"registers 0 agents \(none\)"):
        lookup("agent", str(path))
    agent = written(tmp_path, "meek.py", AGENT)
    with pytest.raises(ConfigError, match="is not an environment"):
        lookup("environment", f"{agent}:Meek")
    two = written(tmp_path, "two.py", ENV.format(name="first", cls="A") + ENV.format(name="second", cls="B"))
    with pytest.raises(ConfigError, match=r"registers 2 environments \(first, second\); say which"):
        lookup("environment", str(two))


@pytest.mark.parametrize("fault", ["1 / 0", "raise SystemExit(3)", "import no_such_module", "class A(:"])
def test_a_file_that_fails_says_so_and_leaves_nothing_behind(tmp_path: Path, fault: str) -> None:
    path = written(tmp_path, "half.py", ENV.format(name="half", cls="Half") + fault + "\n")
    for _ in range(2):
        with pytest.raises(EnvironmentFault, match=r"half.py cannot be imported: \w+"):
            lookup("environment", f"{path}:Half")
    assert "half" not in entries("environment")
    path.write_text(ENV.format(name="half", cls="Half"), encoding="utf-8")  # mended, it loads
    assert lookup("environment", str(path)).load().__name__ == "Half"


def test_user_code_is_a_file_or_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    import_user_code(str(written(tmp_path, "mine.py", ENV.format(name="mine", cls="Mine"))))
    written(tmp_path, "my_package_env.py", ENV.format(name="theirs", cls="Theirs"))
    import_user_code("my_package_env")
    assert {"mine", "theirs"} <= set(entries("environment"))
    for name, error in (("no_such_module", ConfigError), ("", ConfigError), (f"{tmp_path}/no.py", ConfigError)):
        with pytest.raises(error):
            import_user_code(name)
    written(tmp_path, "my_package_bad.py", "raise SystemExit\n")
    with pytest.raises(EnvironmentFault, match="my_package_bad"):
        import_user_code("my_package_bad")


# ----------------------------------------------------------------------------------------------- plugins


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two installed distributions: one works, one cannot be imported."""
    written(tmp_path, "working_plugin.py", "class Nest:\n    class Meadow:\n        pass\n")
    written(tmp_path, "broken_plugin.py", "raise RuntimeError('the plugin is broken')\n")
    for name, points in (
        (
            "working",
            "[mfmarl.envs]\nplugged = working_plugin:Nest.Meadow\nmissing = working_plugin:Gone\nising = working_plugin:Nest\n",
        ),
        (
            "broken",
            "[mfmarl.envs]\nshattered = broken_plugin:Env\nBad Name = broken_plugin:Env\n[mfmarl.agents]\ncrook = broken_plugin:Agent\n",
        ),
    ):
        written(tmp_path, f"{name}-1.2.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        written(tmp_path, f"{name}-1.2.dist-info/entry_points.txt", points)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.plugins.cache_clear()


@pytest.mark.usefixtures("plugins")
def test_a_broken_plugin_is_listed_and_fails_alone_when_chosen() -> None:
    known = entries("environment")
    assert {"plugged", "shattered", "missing", "ising"} <= set(known)
    assert "Bad Name" not in known
    assert "broken_plugin" not in sys.modules
    assert "crook" in entries("agent")
    assert known["plugged"].origin == "working 1.2"
    assert known["plugged"].load().__qualname__ == "Nest.Meadow"
    with pytest.raises(
        EnvironmentFault, match=r"'shattered' of broken 1\.2 cannot be imported: RuntimeError: the plugin is"
    ):
        lookup("environment", "shattered").load()
    with pytest.raises(EnvironmentFault, match="AttributeError"):
        lookup("environment", "missing").load()
    assert lookup("environment", "ising").load().__module__ == "mfmarl.envs.ising"  # the package's own wins


def installed(folder: Path, name: str, version: str, points: str, wants: str = "") -> None:
    more = f"Requires-Dist: {wants}\n" if wants else ""
    written(
        folder,
        f"{name}-{version}.dist-info/METADATA",
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}",
    )
    written(folder, f"{name}-{version}.dist-info/entry_points.txt", points)


def test_of_plugins_of_one_name_it_is_told_which_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "of_alpha.py", "class World: ...\n")
    written(tmp_path, "of_beta.py", "class World: ...\n")
    installed(tmp_path, "beta", "2.0", "[mfmarl.envs]\nshared_world = of_beta:World\nising = of_beta:World\n")
    installed(
        tmp_path,
        "Alpha",
        "1.0",
        "[mfmarl.envs]\nshared_world = of_alpha:World\n../up = of_alpha:World\nmpe2/x = of_alpha:World\n",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.plugins.cache_clear()
    found = {(p.entry.name, p.entry.origin): p.hidden for p in registry.plugins("environment")}
    assert found == {
        ("shared_world", "Alpha 1.0"): "",
        ("shared_world", "beta 2.0"): "the name is Alpha 1.0's",
        ("ising", "beta 2.0"): "the name is mfmarl's",
        ("../up", "Alpha 1.0"): "its name cannot be a name here",
        ("mpe2/x", "Alpha 1.0"): "its name cannot be a name here",
    }
    assert lookup("environment", "shared_world").load().__module__ == "of_alpha"
    assert not {"of_beta"} & set(sys.modules)
    registry.plugins.cache_clear()


@pytest.mark.parametrize(
    ("code", "points", "words"),
    [
        ("import mfmarl.nothing_of_the_sort", "faulty = faulty_plugin:World", "it asks for mfmarl>=99, and this is"),
        (
            "from mfmarl.errors import ConfigError\nraise ConfigError('no')",
            "faulty = faulty_plugin:World",
            "ConfigError: no",
        ),
        ("World = 3", "faulty = faulty_plugin:World", "is not an environment"),
        ("from mfmarl.learning.agent import Agent as World", "faulty = faulty_plugin:World", "is not an environment"),
        ("raise SystemExit(3)", "faulty = faulty_plugin:World", "SystemExit"),
    ],
)
def test_a_faulty_plugin_is_named_with_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, points: str, words: str
) -> None:
    written(tmp_path, "faulty_plugin.py", code + "\n")
    installed(tmp_path, "faulty", "0.3", f"[mfmarl.envs]\n{points}\n", "mfmarl>=99")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "faulty_plugin", raising=False)
    registry.plugins.cache_clear()
    with pytest.raises(EnvironmentFault) as caught:
        lookup("environment", "faulty").load()
    assert caught.value.code == "plugin"
    assert "faulty 0.3" in str(caught.value) and words in str(caught.value)
    registry.plugins.cache_clear()


@pytest.mark.parametrize("name", ["theirs.py:World", "theirs.py"])
def test_a_file_that_was_not_typed_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    registry.demand_typed("ising", "run")
    with pytest.raises(ConfigError, match=r"run plays theirs\.py.*--import theirs\.py") as caught:
        registry.demand_typed(name, "run")
    assert caught.value.code == "untrusted-file"
    written(tmp_path, "theirs.py", "World = 3\n")
    registry.import_user_code("theirs.py")
    registry.demand_typed(name, "run")


# ----------------------------------------------------------------------------------------------- looking up


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    for kind, given, hint in (
        ("environment", "isnig", "Did you mean 'ising'?"),
        ("agent", "mfqq", "Did you mean 'mfq'?"),
        ("environment", "congestoin", "Did you mean 'congestion'?"),
        ("environment", "mfq", "mfmarl list"),
        ("agent", "magent2/battle_v4", "mfmarl list"),
        ("environment", "", "mfmarl list"),
    ):
        with pytest.raises(ConfigError, match=f"Unknown {kind} {given!r}") as caught:
            lookup(kind, given)  # type: ignore[arg-type]
        assert hint in str(caught.value)


def test_third_party_names_keep_their_case_and_their_place() -> None:
    for name, origin in (
        ("magent2/battle_v4", "magent2"),
        ("mpe2/simple_spread_v3", "mpe2"),
        ("pettingzoo/sisl/pursuit-v5", "pettingzoo"),
    ):
        assert lookup("environment", name) == Entry(
            name, "environment", f"third party: {origin}", registry.NAMESPACES[origin], origin=origin
        )


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "magent2/../../etc",
        "magent2/..",
        "magent2/",
        "magent2//x",
        "pettingzoo/a/b/c/d",
        "/etc/passwd",
        "mfmarl.envs.ising:Ising",
        "os:system",
        "magent2/x;y",
    ],
)
def test_a_path_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError):
        lookup("environment", name)


def test_the_nearest_name_or_all_of_them() -> None:
    assert nearest("isng", ["ising", "congestion"]) == " Did you mean 'ising'?"
    assert nearest("zzz", ["b", "a"]) == " Known: a, b."
    assert nearest("zzz", []) == ""


# ------------------------------------------------------------------------------- what only few ever meet


def test_what_a_class_of_the_package_says_is_said_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin's own complaint is told as the plugin's; the package's own needs no frame."""
    written(tmp_path, "my_package_says.py", "from mfmarl.errors import ConfigError\nraise ConfigError('install it')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"^install it$"):
        Entry("x", "environment", "my_package_says:World").load()
    with pytest.raises(
        EnvironmentFault, match=r"^The agent 'x' of mfmarl cannot be imported: .*'mfmarl\.gone'$"
    ) as caught:
        Entry("x", "agent", "mfmarl.gone:World").load()
    assert caught.value.code != "plugin"
    with pytest.raises(EnvironmentFault, match=r"'x' of p 1 cannot be imported: ConfigError: install it$") as caught:
        Entry("x", "environment", "my_package_says:World", origin="p 1", distribution="no-such-distribution").load()
    assert caught.value.code == "plugin"
    there = object()
    assert Entry("x", "environment", "mfmarl.gone:World", target=there).load() is there


def test_what_a_plugin_asks_of_this_package_is_told_only_where_it_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "asking", "1.0", "", "MFMARL (>=99)")
    installed(tmp_path, "silent", "1.0", "", "mfmarl-extras>=99")
    installed(tmp_path, "nothing", "1.0", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry._wants("asking").startswith(" (it asks for MFMARL (>=99), and this is ")
    assert [registry._wants(name) for name in ("silent", "nothing", "no-such-distribution", "")] == [""] * 4


def test_a_class_typed_into_a_shell_keeps_its_name_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = [type(name, (), {"__module__": "builtins"}) for name in ("One", "Two")]
    register("typed")(typed[0])
    register("typed")(typed[0])
    with pytest.raises(ConfigError, match=r"The environment name 'typed' is taken by builtins:One; choose another"):
        register("typed")(typed[1])
    assert lookup("environment", "typed").load() is typed[0]
    assert lookup("environment", "typed").origin == "builtins"


def test_only_what_derives_the_agent_is_one() -> None:
    from mfmarl.learning import agent

    class Agent:
        """Of the same name, and no agent."""

    near = type("Near", (), {"__module__": agent.__name__})
    for target in (Agent, near, lambda: None):
        register("near_agent")(target)
        assert "near_agent" in entries("environment") and "near_agent" not in entries("agent")
        del registry._registered["environment", "near_agent"]


def test_statements_that_register_nothing_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scanned like the package's own folder: assignments, plain classes and functions stand between the names."""
    text = (
        '"""A file."""\nLIMIT = 3\n@register("first")\nclass First:\n    """One.\n\n    More."""\n\nclass Plain: ...\n'
        '@register("second", independent="third")\nclass Second: ...\n'
    )
    written(tmp_path, "places/b_unusual.py", text)
    written(tmp_path, "places/a_usual.py", '@register("usual")\nclass Usual:\n    """Two. Three."""\n    x = 1\n')
    written(tmp_path, "places/notes.txt", '@register("text")\nclass Text: ...\n')

    class Spec:
        submodule_search_locations = (str(tmp_path / "places"),)

    monkeypatch.setattr(
        registry.importlib.util, "find_spec", lambda package: Spec if package == "mfmarl.envs" else None
    )
    found = registry._scan.__wrapped__()
    assert list(found) == [("environment", name) for name in ("usual", "first", "second", "third")]
    assert found["environment", "usual"].where == "mfmarl.envs.a_usual:Usual"
    assert [entry.summary for entry in found.values()][:3] == ["Two. Three", "One", ""]
    assert found["environment", "second"].twin == "third" and found["environment", "third"].twin == "second"


def test_a_distribution_that_names_a_name_twice_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "of_twice.py", "class A: ...\nclass B: ...\n")
    installed(
        tmp_path, "twice", "1.0", "[mfmarl.envs]\ndoubled = of_twice:A\ndoubled = of_twice:B\nlone = of_twice:A\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.plugins.cache_clear()
    found = [(p.entry.name, p.hidden) for p in registry.plugins("environment") if p.entry.origin == "twice 1.0"]
    assert found == [("doubled", ""), ("lone", "")]
    assert registry.plugins("environment") is registry.plugins("environment")
    assert not [p for p in registry.plugins("agent") if p.entry.origin == "twice 1.0"]


def test_only_python_files_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"notes\.txt is not a Python file"):
        load_file(written(tmp_path, "notes.txt", "x = 1\n"))
    assert str(tmp_path) not in sys.path


def test_a_module_in_the_working_folder_is_found_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "my_package_local.py", ENV.format(name="local", cls="Local"))
    written(tmp_path, "my_package_proud.py", "from mfmarl.errors import ConfigError\nraise ConfigError('not today')\n")
    written(tmp_path, "my_package_wants.py", "import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    importlib.invalidate_caches()
    module = import_user_code("my_package_local")
    assert module.Local is lookup("environment", "local").load()
    assert sys.path.index(str(tmp_path)) == len(sys.path) - 1
    import_user_code("my_package_local")
    assert sys.path.count(str(tmp_path)) == 1
    with pytest.raises(ConfigError, match=r"^not today$"):
        import_user_code("my_package_proud")
    with pytest.raises(ConfigError, match=r"'my_package_wants' cannot be imported: No module named 'no_such_module'"):
        import_user_code("my_package_wants")
    with pytest.raises(ConfigError, match="There is no file gone.py to import") as caught:
        import_user_code("gone.py")
    assert caught.value.code == "no-file"
    for name in ("a-b", "a.b-c", "a..b", "a b", ".a"):
        with pytest.raises(ConfigError, match="is neither a Python file .* nor a module's name"):
            import_user_code(name)


def test_an_error_of_ours_or_the_users_hand_leaves_a_file_as_it_is(tmp_path: Path) -> None:
    for raised, seen in (("ConfigError('mine')", ConfigError), ("KeyboardInterrupt", KeyboardInterrupt)):
        path = written(tmp_path, "loud.py", f"from mfmarl.errors import ConfigError\nraise {raised}\n")
        with pytest.raises(seen) as caught:  # itself, in no frame of ours
            load_file(path)
        assert type(caught.value) is seen
        assert registry._module_name(path.resolve()) not in sys.modules


def test_codes_tell_names_from_files(tmp_path: Path) -> None:
    for kind, name, code in (
        ("environment", "isnig", "unknown-name"),
        ("environment", "magent2/x;y", "unknown-name"),
        ("environment", str(tmp_path / "none.py"), "no-file"),
    ):
        with pytest.raises(ConfigError) as caught:
            lookup(kind, name)  # type: ignore[arg-type]
        assert caught.value.code == code
    for name in ("Big", "mpe2/mine"):
        with pytest.raises(ConfigError) as caught:
            register(name)
        assert caught.value.code == "bad-name"
    assert lookup("environment", "pettingzoo/SISL/Pursuit-v5").name == "pettingzoo/SISL/Pursuit-v5"
    with pytest.raises(ConfigError, match=r"Unknown environment 'magnt2/\.\.\.'\. Did you mean 'magent2/\.\.\.'"):
        lookup("environment", "magnt2/...")
    register("x" * 100)
    register("a/b/c")
