"""`mfmarl scale` as a user types it: sizes as people write them, what is refused, what is kept, and that it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mfmarl.cli.main import main
from mfmarl.cli.sizes import seconds, size_in_bytes, whole_numbers
from mfmarl.errors import ConfigError
from mfmarl.evaluation.scaling import collective, report, sweep
from mfmarl.evaluation.scaling.points import PHASES, Measured, Plan, Point

SCALE = ["scale", "ising", "--agents", "mfq", "--quiet", "--name", "a"]
COSTS = [*SCALE, "--no-quality"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(collective, "measure", lambda ranks=2: collective.preset("loopback"))
    return tmp_path


class Instrument:
    """Measures by a law that is known, and remembers what it was asked for."""

    def __init__(self, each: float = 2e-6, fixed: float = 1e-3) -> None:
        self.asked: list[Point] = []
        self.each, self.fixed = each, fixed
        self.broken = ""
        self.stop_at = 0

    def __call__(self, point: Point, plan: Plan, **_: Any) -> Measured:
        self.asked.append(point)
        if self.stop_at and len(self.asked) >= self.stop_at:
            raise KeyboardInterrupt
        if point.agent == self.broken:
            return Measured(point, "failed", "It fell over <b>hard</b>.")
        cost = (self.fixed + self.each * point.num_agents) * (1 + 0.01 * point.repeat)
        shares = {"act": 0.6, "learn": 0.3, "step": 0.1}
        return Measured(
            point, "done", steps=10, wall=10 * cost, cpu=10 * cost, peak_bytes=300_000_000 + 400 * point.num_agents,
            base_bytes=300_000_000, phases={p: cost * shares.get(p, 0.0) for p in PHASES}, phase_steps=1, weights=5000,
            machine={"processor": "one of a test", "threads": 1, "device": "cpu"},
        )  # fmt: skip


@pytest.fixture
def instrument(here: Path, monkeypatch: pytest.MonkeyPatch) -> Instrument:
    found = Instrument()
    monkeypatch.setattr(sweep, "carry_out", partial(sweep.carry_out, measure=found))
    # Figures are tested by themselves, and take most of the time.
    monkeypatch.setattr(report, "_figure", lambda folder, stem, figure, caption: f"<p>{stem}</p>")
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """Standard error, which is one line of one sentence or two; nothing is left behind."""
    capsys.readouterr()
    assert main(arguments) == code
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("mfmarl: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert len(error) < 400
    return error


# -------------------------------------------------------------------------------------- numbers as people write them


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("400", (400,)),
        ("10,100,...,1000000", (10, 100, 1000, 10_000, 100_000, 1_000_000)),
        ("10, 100, … , 1M", (10, 100, 1000, 10_000, 100_000, 1_000_000)),
        ("2,4,...,16", (2, 4, 8, 16)),
        ("2,4,...,20", (2, 4, 6, 8, 10, 12, 14, 16, 18, 20)),
        ("10,20,30,...,60", (10, 20, 30, 40, 50, 60)),
        ("10,20,40,...,160", (10, 20, 40, 80, 160)),
        ("4,6,...,9", (4, 6, 9)),
        ("9,100,1000,...,100000", (9, 100, 1000, 10_000, 100_000)),
        ("10k,1e5,1M,2.5m", (10_000, 100_000, 1_000_000, 2_500_000)),
        ("1.5k,1_600", (1500, 1600)),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, numbers: tuple[int, ...]) -> None:
    assert whole_numbers(text) == numbers


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "takes numbers between commas"),
        ("10,,20", "takes numbers between commas"),
        ("ten", "'ten' is not a number"),
        ("0,10", "'0' is below 1"),
        ("-5,10", "'-5' is below 1"),
        ("0.5", "'0.5' is not a whole number"),
        ("100,10", "must increase, but 10 comes after 100"),
        ("10,100,10", "must increase"),
        ("10,10", "names 10 twice"),
        ("1k,1000", "names 1,000 twice"),
        ("10,100,...,5000", "end at 1,000 or 10,000"),
        ("10,20,50,...,100", "neither by a factor of 2.5 nor by steps of 30"),
        ("10,...,100", "stands between two numbers or more and the last one"),
        ("10,100,...", "stands between two numbers or more and the last one"),
        ("...,10,100", "stands between two numbers or more and the last one"),
        ("10,100,...,1000,...,10000", "more than once"),
        ("100,10,...,1", "must increase"),
        ("10,10,...,10", "must increase"),
        ("1,2,...,99999", "99,999 sizes; at most 100"),
        ("1e16", "beyond what any machine holds"),
        ("inf", "'inf' is not a number"),
        ("1e999999", "is not a number"),
        ("9" * 5000, "is not a number"),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused_in_a_sentence(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match="--num-agents") as error:
        whole_numbers(text)
    assert told in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("90s", 90), ("10min", 600), ("1.5h", 5400), ("2 min", 120)])
def test_times_have_units(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(("text", "value"), [("4GB", 4e9), ("500 mb", 5e8), ("2GiB", 2**31)])
def test_amounts_of_memory_have_units(text: str, value: float) -> None:
    assert size_in_bytes(text) == value


@pytest.mark.parametrize("text", ["", "soon", "0", "-1min", "10 weeks", "nan"])
def test_times_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget"):
        seconds(text)


@pytest.mark.parametrize("text", ["", "much", "4", "0GB", "-4GB"])
def test_amounts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-memory"):
        size_in_bytes(text)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--num-agents", "0"], "below 1"),
        (["--num-agents", "10,abc"], "'abc' is not a number"),
        (["--copies", "0"], "--copies"),
        (["--repeats", "0"], "--repeats must be in ["),
        (["--steps", "0"], "--steps must be in ["),
        (["--threads", "0"], "--threads must be in ["),
        (["--jobs", "-1"], "--jobs must be in ["),
        (["--seeds", "none"], "--seeds takes"),
        (["--budget", "3s"], "too small for one point"),
        (["--budget", "soon"], "--budget takes a time"),
        (["--max-memory", "4"], "with its unit"),
        (["--baselines", "sb4"], "Did you mean 'sb3'?"),
        (["--baselines", "sb3,sb3"], "named twice"),
        (["--device", "warp"], "Unknown device 'warp'"),
        (["--vary", "temperature"], "--vary takes an option and its values"),
        (["--vary", "num_agents=10,20"], "--num-agents says"),
        (["--vary", "coupling=1,1"], "twice"),
        (["--vary", "coupling=1,2", "--vary", "coupling=3"], "twice"),
        (["--vary", "cuopling=1,2"], "coupling"),
        (["--vary", "coupling=1,2", "--coupling", "1"], "set and varied"),
        (["--temprature", "1"], "temperature"),
        (["--predict", "nodes=8"], "agents="),
        (["--predict", "nods=8, agents=1e6"], "Did you mean 'nodes'?"),
        (["--predict", "nodes=100, agents=10"], "more than the 10 agents"),
        (["--address", "auto"], "--engine ray"),
    ],
)
def test_what_cannot_be_meant_ends_before_anything_is_measured(
    instrument: Instrument, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    assert told in refused(capsys, *COSTS, *more)
    assert instrument.asked == []
    assert not Path("runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="There is a GPU here.")
def test_a_gpu_that_is_absent_is_told_before_anything_is_measured(
    instrument: Instrument, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "There is no CUDA device here" in refused(capsys, *COSTS, "--device", "cuda")
    assert instrument.asked == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["scale"], "Which environment?"),
        (["scale", "isign"], "Did you mean 'ising'?"),
        (["scale", "ising,congestion"], "of one environment, not of 2"),
        (["scale", "ising:num_agents=10"], "--num-agents says"),
        (["scale", "ising", "--agents", "mfqq"], "mfq"),
        (["scale", "--predict", "agents=1e6"], "--name of a sweep"),
        (["scale", "--name", "nowhere", "--predict", "agents=1e6"], "There is no sweep"),
        (["scale", "ising", "--name", "../up"], "name"),
    ],
)
def test_what_is_missing_or_unknown_is_told(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert told in refused(capsys, *arguments)
    assert not (here / "runs").exists()


# --------------------------------------------------------------------------------------------------- what is done


def test_a_sweep_is_measured_kept_and_told(instrument: Instrument, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COSTS, "--num-agents", "100,1000,...,1000000", "--repeats", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    asked = [p for p in instrument.asked if p.repeat in (0, 1)]
    assert {(p.num_agents, p.repeat) for p in asked} == {(10**k, r) for k in range(2, 7) for r in (0, 1)}
    assert found["state"] == {"planned": 10, "done": 10, "failed": 0, "skipped": 0, "missing": 0}
    [series] = found["series"]
    assert series["growth"]["low"] <= 1.0 <= series["growth"]["high"]
    assert series["growth"]["knee"] == pytest.approx(500, rel=0.1)
    assert series["memory"]["per_agent"] == pytest.approx(400, rel=0.01)
    [verdict] = found["verdicts"]
    assert verdict["sentence"].startswith("mfq: cost grows as N^1.00 (")
    assert "60% of a step at N = 1,000,000 is the network choosing actions" in verdict["sentence"]
    assert "what is learned: not measured" in verdict["sentence"]
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert "mfq: cost grows as N^1.00" in page
    assert all(f"<p>{stem}</p>" in page for stem in ("cost", "step", "phases", "memory", "machines"))
    kept = json.loads(Path("runs/a/numbers.json").read_text(encoding="utf-8"))
    assert kept == {k: v for k, v in found.items() if k not in ("report", "folder")}


def test_the_same_command_goes_on_and_measures_nothing_twice(
    instrument: Instrument, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*COSTS, "--num-agents", "100,1000,10000", "--repeats", "2"]
    instrument.stop_at = 4
    assert main(command) == 130
    out, error = capsys.readouterr()
    assert "the same command goes on" in error
    assert "report: " in out  # what is there is told
    done = {p.name for p in instrument.asked[:3]}
    instrument.asked, instrument.stop_at = [], 0
    assert main(command) == 0
    assert not done & {p.name for p in instrument.asked}
    instrument.asked = []
    assert main(command) == 0
    assert instrument.asked == []


def test_a_folder_of_another_sweep_is_refused_with_the_difference(
    instrument: Instrument, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COSTS, "--num-agents", "100,1000", "--repeats", "1"]) == 0
    assert "threads: 1 there, 2 now" in refused(
        capsys, *COSTS, "--num-agents", "100,1000", "--repeats", "1", "--threads", "2"
    )


def test_without_a_name_the_same_command_finds_its_folder_again(instrument: Instrument) -> None:
    command = [
        "scale",
        "ising",
        "--agents",
        "mfq",
        "--quiet",
        "--no-quality",
        "--num-agents",
        "100,1000",
        "--repeats",
        "1",
    ]
    assert main(command) == 0
    assert main(command) == 0
    assert [p.name for p in Path("runs").iterdir()] == ["scale-ising-mfq"]


def test_a_point_that_fails_is_told_and_the_others_stand(
    instrument: Instrument, capsys: pytest.CaptureFixture[str]
) -> None:
    instrument.broken = "iql"
    command = ["scale", "ising", "--agents", "mfq,iql", "--quiet", "--no-quality", "--name", "a"]
    assert main([*command, "--num-agents", "100,1000", "--repeats", "1"]) == 6
    out, error = capsys.readouterr()
    assert "2 of the points failed; the first: It fell over <b>hard</b>." in error
    assert "mfq: cost grows as" in out
    assert "iql: cost not measured (It fell over <b>hard</b>)" in " ".join(out.split())
    page = Path("runs/a/report.html").read_text(encoding="utf-8")
    assert "It fell over &lt;b&gt;hard&lt;/b&gt;." in page
    assert "<b>hard" not in page


def test_what_is_varied_is_parsed_as_its_owner_reads_it(instrument: Instrument) -> None:
    more = ["--vary", "hidden=16,16;32", "--vary", "coupling=0.5,1", "--num-agents", "100", "--repeats", "1"]
    assert main([*COSTS, *more]) == 0
    varied = {json.dumps(p.varied, sort_keys=True) for p in instrument.asked}
    assert varied == {
        json.dumps({"coupling": c, "hidden": h}) for c in (0.5, 1.0) for h in ([16, 16], [32])
    }  # fmt: skip


def test_an_option_that_only_some_agents_have_is_not_varied(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "scale", "ising", "--agents", "mfq,random", "--vary", "hidden=8;16", "--num-agents", "100")
    assert "random has no option 'hidden'" in told


def test_an_old_sweep_foretells_without_measuring(instrument: Instrument, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COSTS, "--num-agents", "1000,10000,100000,1000000", "--repeats", "2"]) == 0
    instrument.asked = []
    capsys.readouterr()
    cluster = "nodes=4, agents=4e6, network=100GbE"
    assert main(["scale", "--name", "a", "--quiet", "--predict", cluster, "--json"]) == 0
    assert instrument.asked == []
    found = json.loads(capsys.readouterr().out)
    [answer] = found["machines"]["asked"]
    # A million agents on each of four: 1 ms + 2 us x 10^6, and little for what is sent.
    assert answer["compute"] == pytest.approx(2.0, rel=0.05)
    assert answer["seconds"] < 2.5
    assert answer["sentence"] in report.write_report(Path("runs/a")).read_text(encoding="utf-8")


def test_the_budget_leaves_half_for_learning(instrument: Instrument, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfmarl.evaluation.scaling import quality

    given: list[float] = []
    learned: list[float] = []
    real = sweep.carry_out

    def watched(plan: Plan, *arguments: Any, **options: Any) -> list[Measured]:
        given.append(plan.budget)
        return real(plan, *arguments, **options)

    def planned(plan: Plan, folder: Path, seconds: float = 0.0, *_: Any) -> list[Any]:
        learned.append(seconds)
        raise ConfigError("Nothing is to be learned here.")

    monkeypatch.setattr(sweep, "carry_out", watched)
    monkeypatch.setattr(quality, "plan_quality", planned)
    assert main([*SCALE, "--num-agents", "100,1000", "--repeats", "1", "--budget", "2min"]) == 0
    assert given == [60.0]
    assert 60 < learned[0] <= 96
    assert main([*COSTS, "--num-agents", "100,1000", "--repeats", "1", "--budget", "2min"]) == 0
    assert given[1:] == [120.0]


def test_the_report_of_a_sweep_is_built_again(instrument: Instrument, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COSTS, "--num-agents", "100,1000", "--repeats", "1"]) == 0
    page = Path("runs/a/report.html")
    before = page.read_bytes()
    page.unlink()
    assert main(["report", "runs/a"]) == 0
    assert page.read_bytes() == before


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mfmarl.cli.main import main\n"
        "try: main(['scale', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'scipy', 'matplotlib', 'ray'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--predict" in done.stdout
    assert "mfmarl scale ising" in done.stdout


# --------------------------------------------------------------------------------------------- the thing itself


@pytest.mark.verify
@pytest.mark.timeout(640)
def test_a_real_sweep_that_is_killed_goes_on_and_judges_what_is_learned(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "mfmarl", "scale", "ising", "--agents", "mfq", "--num-agents", "16,64", "--repeats", "1",
        "--timed-steps", "20", "--seeds", "1", "--steps", "40", "--runs", str(tmp_path), "--name", "a", "--json",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("a/points/*.json")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    [kept] = tmp_path.glob("a/points/*.json")
    before = kept.read_bytes()
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert kept.read_bytes() == before
    assert found["state"]["done"] == 2
    assert [r["runs"] for r in found["quality"]["rows"]] == [1, 1]
    assert "reward" in found["verdicts"][0]["sentence"]
    assert found["machines"]["network_source"].startswith("measured")
