"""The promises G1 to G17: what is tried, the target, and how the field's usual libraries fare."""

from __future__ import annotations

from mfmarl.selftest.goal import Goal

_HERE = "mfmarl.selftest"

GOALS: tuple[Goal, ...] = (
    Goal(
        1,
        "A kill at any moment of a save loses nothing",
        "10,000 crash points (every byte, every call, random kills): 0 acknowledged checkpoints lost, 0 mixed states",
        "torch.save and stable-baselines3 overwrite in place: killed in a save, the old file was lost 200 of 200 times",
        f"{_HERE}.crashes:crash_points",
        4,
    ),
    Goal(
        2,
        "A run that was resumed is the run that was never stopped",
        "every agent x environment x {1, 2} threads, killed in the middle of episodes: 0 bytes differ",
        "stable-baselines3: weights differ by up to 8.8e-3 (PPO) and 1.9e-2 (DQN) after resuming from its own files",
        f"{_HERE}.resume:bitwise_resume",
        30,
    ),
    Goal(
        3,
        "A signal loses no finished work",
        "SIGINT and SIGTERM: 0 updates lost, exit codes 130 and 143; kill -9: at most one interval between checkpoints",
        "stable-baselines3 keeps what the last callback saved",
        f"{_HERE}.signals:lost_work",
        3,
    ),
    Goal(
        4,
        "No configuration crashes or slips through",
        "100,000 fuzzed configurations: one class of error, none accepted with a number that is not finite, each in 10 ms",
        "stable-baselines3's PPO accepts gamma = -1, learn(-5) and the reward '1.0'",
        f"{_HERE}.configurations:fuzz",
        2,
    ),
    Goal(
        5,
        "No damaged checkpoint is loaded, and nothing in one is run",
        "100,000 mutated files: 0 silently wrong, one class of error, at most 100 MB more memory; 60 hostile: 0 executions",
        "safetensors alone loads 34 % of mutated files with wrong numbers, torch.load 13 % (11 classes of error)",
        f"{_HERE}.corruption:mutated_checkpoints",
        3,
    ),
    Goal(
        6,
        "Faults of environments are found before they poison a run",
        "at least 60 faults: check-env finds 97 %, with no error on 25 environments of other hands; training stops before "
        "the update on every number that is none",
        "PettingZoo's four tests together raise on 196 of 311 faults (of both forms), parallel_api_test on 40 of 157",
        f"{_HERE}.environments:seeded_faults",
        15,
    ),
    Goal(
        7,
        "Every fault of the catalogue is met with one sentence",
        "76 of 76 cases: exit code, code of the message, hint, files on disk",
        "no such catalogue is known of another library",
        f"{_HERE}.every_case:catalogue",
        6,
    ),
    Goal(
        8,
        "Workers do not change results",
        "the same sweep by 1, 2 and 4 workers, in any order of completion, 100 trials: 0 bytes differ",
        "RLlib makes no such promise",
        f"{_HERE}.workers:determinism",
        6,
    ),
    Goal(
        9,
        "A worker that dies costs nothing but time",
        "killed, stopped or raising: found in 2 s, 2 s and the time allowed; results unchanged; 0 orphans, 0 shared memory left",
        "Ray finds a dead worker in 1.9 s, gloo waits up to 30 minutes",
        f"{_HERE}.workers:deaths",
        4,
    ),
    Goal(
        10,
        "Long runs do not leak",
        "memory grows by less than 1 MB an hour after the start, open files stay as many; 500 runs with 10 % failures: exit code "
        "6, 450 results, and only the 50 are done again",
        "not measured of others",
        f"{_HERE}.endurance:long_runs",
        70,
    ),
    Goal(
        11,
        "Tests reach the code",
        "95 % of lines, 90 % of branches; all of checkpoints, configuration, registry and statistics",
        "stable-baselines3 reports 95 % of lines; branches are not measured there",
        f"{_HERE}.checkout:coverage",
        15,
    ),
    Goal(
        12,
        "Tests notice a changed line",
        "85 % of mutants of checkpoints, configuration, registry, check-env and statistics are found",
        "the tests of Gymnasium's checker find 65 % of the mutants of it",
        f"{_HERE}.checkout:mutants",
        60,
    ),
    Goal(
        13,
        "A statistical test says how often it errs",
        "each declares its false alarms, the suite 1e-4 a run; each fails on two planted bugs",
        "blackjax repaired single tests that failed 8 to 13 % of the time",
        f"{_HERE}.checkout:statistical_tests",
        10,
    ),
    Goal(
        14,
        "Nothing listens beyond this machine",
        "0 sockets that listen off loopback, in every command, those that divide a population included",
        "Ray opens 7 to 10, torch.distributed's TCPStore one, on every interface",
        f"{_HERE}.network:listeners",
        3,
    ),
    Goal(
        15,
        "Nothing is unpickled or evaluated",
        "0 forbidden calls in the source, 0 unpickled objects while every command runs, bandit 0 of medium severity",
        "5 of 7 ways to load a stable-baselines3 model run the code in it",
        f"{_HERE}.source:forbidden_calls",
        2,
    ),
    Goal(
        16,
        "What an older version wrote is read for ever",
        "checkpoints, configurations and metrics of every released version load",
        "RLlib keeps checkpoints readable since 2.40",
        f"{_HERE}.golden:releases",
        0.2,
    ),
    Goal(
        17,
        "The tests pass on a busy machine, in any order",
        "20 of 20 runs of the suite, beside 8 busy processes and in random order; no test asserts a time",
        "stable-baselines3's test of frames per second fails under load",
        f"{_HERE}.checkout:busy_machine",
        300,
    ),
)
