"""Options, names, configurations and plugins that cannot be used, and poor surroundings."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from mfmarl import registry
from mfmarl.errors import ConfigError
from mfmarl.learning.build import choose_device
from mfmarl.learning.run_config import RunOptions
from mfmarl.options import from_table
from mfmarl.population.parallel import PopulationParallelEnv
from mfmarl.selftest.case import Case, case, expect
from mfmarl.selftest.command import Answer, forked, fresh
from mfmarl.selftest.configurations import every_class

_CONFIG = '[run]\nsteps = 4\n[environment]\nname = "congestion"\n[agents.all]\nname = "mfq"\n'


def _refused(folder: Path, content: bytes, code: str, *words: str) -> Answer:
    """`train --config` of that content: exit 2, a line for each problem, no run left behind."""
    (folder / "bad.toml").write_bytes(content)
    answer = forked(["train", "--config", "bad.toml", "--quiet"], folder).expect(2, code, "bad.toml", *words)
    expect(not (folder / "runs").exists(), "a run folder was left behind")
    expect(len(answer.err) < 5000, f"the message has {len(answer.err)} letters")
    return answer


@case(66, "an unknown key, or one with a typing error", "S3", "all at once with their lines and the key meant, exit 2")
def unknown_key(folder: Path) -> None:
    text = _CONFIG.replace("steps", "step").replace('"mfq"\n', '"mfq"\ngama = 0.5\nbnis = 3\n') + "[agent.red]\na = 1\n"
    text = text.replace('"congestion"\n', '"congestion"\nhorizn = 5\n')
    answer = _refused(folder, text.encode(), "unknown-option")
    for line, meant in ((2, "'steps'"), (5, "'horizon'"), (8, "'gamma'"), (9, "'bins'"), (10, "'agents'")):
        told = [each for each in answer.err.splitlines() if f"line {line}:" in each]
        expect(
            len(told) == 1 and f"Did you mean {meant}?" in told[0],
            f"line {line} is not answered with {meant}: {answer.err!r}",
        )
    words = ["train", "congestion", "--num-agnets", "9", "--gama", "1", "--setps", "3", "--queit"]
    forked(words, folder).expect(2, "unknown-option", "'num-agents'", "'gamma'", "'steps'", "'--quiet'")
    # Every key there is, its last letter doubled.
    for who, cls in every_class().items():
        names = [field.name for field in dataclasses.fields(cls) if field.init]
        for name in names:
            try:
                from_table(cls, {name + name[-1]: 0}, "here")
            except ConfigError as error:
                found = [line for line in str(error).splitlines() if f"here: {name}{name[-1]} is not an option" in line]
                expect(
                    len(found) == 1 and "Did you mean" in found[0], f"{who}: {name}{name[-1]} is answered with {error}"
                )
            else:
                expect(name + name[-1] in names, f"{who}: {name}{name[-1]} was accepted")


@case(
    67,
    "a value of the wrong type, or beyond all bounds, or a file that is no configuration",
    "S3",
    "one line each, exit 2, no traceback",
)
def wrong_value(folder: Path) -> None:
    values = (
        ("true", "wrong-type"), ('"10"', "wrong-type"), ("1e3", "wrong-type"), ("-1", "bounds"), ("nan", "bounds"), ("inf", "bounds"),
        ("1e400", "bounds"), ("1" + "0" * 30, "bounds"), ("9" * 5000, "syntax"), ("[1, 2]", "wrong-type"), ("[" * 5000, "syntax"),
        ("1\nsteps = 2", "syntax"), ("\0", "syntax"), ("0x", "syntax"), ("1979-05-27", "wrong-type"),
    )  # fmt: skip
    for value, code in values:
        _refused(folder, _CONFIG.replace("steps = 4", f"steps = {value}").encode(), code)
    _refused(folder, _CONFIG.encode().replace(b"ion", b"\xff\xfe"), "syntax", "line 4")
    _refused(folder, b"# " + b"x" * 2**20 + b"\n" + _CONFIG.encode(), "no-file", "1,048,576")
    for given in ("/dev/zero", str(folder), "nowhere.toml"):
        forked(["train", "--config", given], folder).expect(2, "no-file", given)
    # A mark of byte order and the ends of lines of another system are no faults.
    (folder / "good.toml").write_bytes(b"\xef\xbb\xbf" + _CONFIG.replace("\n", "\r\n").encode())
    forked(["train", "--config", "good.toml", "--name", "good", "--quiet", "--num-agents", "4"], folder).expect(0)
    expect((folder / "runs" / "good" / "report.html").is_file(), "the configuration with a byte order mark was not run")


@case(68, "an unknown environment, agent, solver or command", "S3", "the nearest names and how to list them, exit 2")
def unknown_name(folder: Path) -> None:
    for arguments, meant in (
        (["train", "isng"], "'ising'"),
        (["train", "congestion", "--agent", "mfqq"], "'mfq'"),
        (["compare", "congestion,bech_bar"], "'beach_bar'"),
        (["list", "mfpo"], "'mfppo'"),
        (["lsit"], "'list'"),
        (["train", "Ising"], "'ising'"),
    ):
        answer = forked(arguments, folder).expect(2, "unknown-name", meant)
        expect(answer.err.count("\n") == 1, f"more than a line: {answer.err!r}")
    forked(["solve", "beach_bar", "--solver", "omdd"], folder).expect(2, "", "'omd'")
    for name in ("../../etc/passwd", "os:system", "mfmarl.envs.ising:Ising"):
        forked(["train", name], folder).expect(2)
    (folder / "theirs.py").write_text("import pathlib\npathlib.Path('executed').touch()\n", encoding="utf-8")
    answer = _refused(
        folder, _CONFIG.replace("congestion", "theirs.py:World").encode(), "untrusted-file", "--import theirs.py"
    )
    expect(not (folder / "executed").exists(), f"a file that only a configuration names was executed: {answer.err!r}")
    solved = '[environment]\nname = "theirs.py:World"\n[solvers.omd]\nname = "omd"\n'
    (folder / "solve.toml").write_text(solved, encoding="utf-8")
    forked(["solve", "--config", "solve.toml"], folder).expect(2, "untrusted-file", "line 2", "--import theirs.py")
    expect(not (folder / "executed").exists(), "a file that only a game's configuration names was executed")


def _installed(folder: Path, name: str, points: str, code: str, more: str = "") -> None:
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    about = folder / f"{name}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n{more}", encoding="utf-8")
    (about / "entry_points.txt").write_text(points, encoding="utf-8")


def _with_plugins(folder: Path) -> None:
    sys.path.append(str(folder))  # not first: the working folder is no place to import from
    registry.plugins.cache_clear()


@case(
    69,
    "a plugin that cannot be imported, is of another version, or has a name that is taken",
    "S3",
    "the others work; it is named with distribution and version",
)
def broken_plugin(folder: Path) -> None:
    works = "from mfmarl.envs.congestion import Congestion\n\nclass World(Congestion):\n    pass\n"
    _installed(
        folder, "sound_plugin", "[mfmarl.envs]\nsound = sound_plugin:World\nshared = sound_plugin:World\n", works
    )
    _installed(
        folder,
        "torn_plugin",
        "[mfmarl.envs]\ntorn = torn_plugin:World\nshared = torn_plugin:World\nising = torn_plugin:World\n",
        "import nothing_of_the_sort\n",
        "Requires-Dist: mfmarl>=99\n",
    )
    prepare: Callable[[], None] = partial(_with_plugins, folder)
    listed = forked(["list"], folder, prepare).expect(
        0, "", "sound_plugin 1.2", "torn_plugin 1.2", "the name is mfmarl's"
    )
    expect("the name is sound_plugin 1.2's" in listed.out, f"which of two plugins is meant is not said: {listed.out!r}")
    forked(["train", "torn"], folder, prepare).expect(
        3, "plugin", "torn_plugin 1.2", "nothing_of_the_sort", "mfmarl>=99"
    )
    forked(["info", "--check-plugins"], folder, prepare).expect(0, "", "works", "broken", "torn_plugin")
    few = ["--steps", "4", "--num-agents", "4", "--name", "one", "--quiet"]
    forked(["train", "sound", *few], folder, prepare).expect(0)
    forked(["train", "ising", "--steps", "4", "--num-agents", "9", "--name", "two", "--quiet"], folder, prepare).expect(
        0
    )


@case(
    70,
    "a seed that is negative, no whole number, or too large; a seed of numpy's",
    "S2",
    "numpy's whole numbers as Python's; all else is refused in a sentence",
)
def seeds(folder: Path) -> None:
    for text, code in (
        ("-1", "bounds"),
        ("1.5", "wrong-type"),
        ("1e3", "wrong-type"),
        ("true", "wrong-type"),
        (str(2**63), "bounds"),
        (str(2**64), "bounds"),
    ):
        forked(["train", "congestion", f"--seed={text}"], folder).expect(2, code, "seed")
    for text, code in (("-1", "bounds"), ("1.5", "wrong-type"), ("true", "wrong-type"), ('"3"', "wrong-type")):
        _refused(folder, _CONFIG.replace("steps = 4", f"seed = {text}").encode(), code, "line 2", "seed")
    expect(from_table(RunOptions, {"seed": np.int64(3)}).seed == 3, "numpy's 3 is not taken as 3 by a configuration")
    env = PopulationParallelEnv(every_class()["environment congestion"](num_agents=3))
    first, _ = env.reset(seed=3)
    again, _ = env.reset(seed=np.int64(3))  # type: ignore[arg-type]
    expect(all(np.array_equal(first[agent], again[agent]) for agent in first), "numpy's 3 is another seed than 3")
    env.reset(seed=2**63 - 1)
    for seed in (-1, 1.5, True, 2**63, 2**64, "1e3", np.float32(2), np.int64(-1)):
        try:
            env.reset(seed=seed)  # type: ignore[arg-type]
        except ConfigError as error:
            expect("seed must be a whole number" in str(error), f"reset(seed={seed!r}) says: {error}")
        else:
            expect(False, f"reset(seed={seed!r}) was accepted")


@case(71, "a GPU is asked for where there is none", "S2", "an error that names --device cpu; `auto` says what it chose")
def no_device(folder: Path) -> None:
    few = ["train", "congestion", "--num-agents", "4", "--steps", "4"]
    if choose_device("auto").type == "cpu":
        forked([*few, "--device", "cuda"], folder).expect(2, "no-device", "--device cpu")
        expect(not (folder / "runs").exists(), "a run folder was left behind")
    forked([*few, "--device", "gpu"], folder).expect(2, "no-device", "cpu, cuda")
    chosen = choose_device("auto").type
    forked([*few, "--device", "auto", "--name", "auto"], folder).expect(0, "", f"--device auto is {chosen}")


def _ascii_alone() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]


@case(
    76,
    "an extra that is missing, no terminal, a terminal that knows ASCII alone and is twenty columns wide",
    "S4",
    "how to install it; plain lines; nothing ends in a UnicodeEncodeError",
)
def poor_surroundings(folder: Path) -> None:
    def without_mpe2() -> None:
        sys.modules["mpe2"] = None  # type: ignore[assignment]

    forked(["train", "mpe2/simple_spread_v3"], folder, without_mpe2).expect(2, "missing-extra", "pip install mpe2")
    poor = {
        "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii", "COLUMNS": "20", "TERM": "dumb",
    }  # fmt: skip
    few = ["train", "congestion", "--num-agents", "4", "--steps", "4", "--name", "poor"]
    for answer in (forked(["list", "mfq"], folder, _ascii_alone, poor), fresh(few, folder, poor)):
        answer.expect(0)
        expect((answer.out + answer.err).isascii(), f"not ASCII alone: {answer.out + answer.err!r:.300}")
        expect("\x1b" not in answer.out + answer.err, "colours where there is no terminal")
    fresh(["train", "isïng"], folder, poor).expect(2, "unknown-name", "'ising'")


CASES: list[Case] = [unknown_key, wrong_value, unknown_name, broken_plugin, seeds, no_device, poor_surroundings]
