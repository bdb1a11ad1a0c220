"""One loop: everybody acts, the world moves, what happened is remembered and learned from.

`Training.rows()` is a generator of reports: whoever iterates decides what to print, log and save, and when
to stop. All state is in the environment, the agents, their memories and a handful of tensors here, so
that a run resumed from `state_dict` is bitwise the run that was never stopped.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.learning.agent import Agent, Transition
from mfmarl.learning.episode import Episode, under
from mfmarl.learning.health import DIVERGED, alarms, demand_finite
from mfmarl.learning.judge import Judge, rules
from mfmarl.learning.memory import WHOLE, Crowd, Replay, Rollout
from mfmarl.learning.players import Player, as_whole, divide
from mfmarl.learning.run_config import RunOptions
from mfmarl.learning.thermodynamics import thermodynamics
from mfmarl.population.ranks import Ranks
from mfmarl.population.simulation import Env, Simulation
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key


class Tally:
    """Sums over the steps since the last report; read once, at the report, so that a step never waits."""

    def __init__(self, env: Env) -> None:
        self.spec = env.spec
        self.teams = dict(env.spec.group_slices) if len(env.spec.groups) > 1 else {}
        # What is measured of a population that is divided by agents, all ranks know: one counts it.
        division = env.division
        self.share = float(division.ranks.first) if division.by_agents else env.copies / division.copies
        self.clear()

    def clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor | float] = {}

    def add(self, name: str, total: Tensor, count: Tensor | float) -> None:
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts[name] + count if name in self.counts else count

    def step(self, before: Timestep, after: Timestep) -> None:
        acted = before.acting.sum(dtype=torch.float64)
        self.add("reward", after.reward.sum(dtype=torch.float64), acted)
        for team, slots in self.teams.items():
            count = before.acting[:, slots].sum(dtype=torch.float64)
            self.add(f"reward/{team}", after.reward[:, slots].sum(dtype=torch.float64), count)

    def measures(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.add(name, self.share * value.to(torch.float64).mean(), self.share)

    def means(self, prefix: str) -> dict[str, float]:
        """By name: a run that goes on in the middle of an interval knows no other order."""
        return {
            f"{prefix}/{n}": float(total) / max(float(self.counts[n]), 1.0) for n, total in sorted(self.sums.items())
        }

    def added_up(self, ranks: Ranks) -> Tally:
        """Over all ranks: in one message, which all must ask for at once."""
        if ranks.count == 1:
            return self
        whole, names = copy(self), list(self.sums)
        pairs = [torch.stack([self.sums[n], torch.as_tensor(self.counts[n]).to(self.sums[n])]) for n in names]
        if pairs:
            sums, counts = ranks.sum(torch.stack(pairs, 1), "report").unbind()
            whole.sums, whole.counts = dict(zip(names, sums, strict=True)), dict(zip(names, counts, strict=True))
        return whole

    def number(self, name: str) -> int:
        return int(float(self.counts.get(name, 0.0)))


class Training:
    """Players that learn in a population, evaluated on another one on its own random stream."""

    def __init__(self, env: Env, players: list[Player], options: RunOptions, evaluation: Env | None = None) -> None:
        self.options, self.players = options, players
        self.ranks = env.division.ranks
        if self.ranks.count > 1 and options.sharing == "none":
            raise ConfigError(
                "A mind for each agent (sharing = none) cannot be divided over ranks: use sharing = group."
            )
        divide(players, env.division)
        self.key = Key.of(options.seed)
        alone = [p for p in players if p.agent.memory == "self"]
        if alone and len(players) > 1:
            raise ConfigError(
                f"{alone[0].name} is trained by its own library and cannot share an environment with another agent."
            )
        self.episode = Episode(env, players, self.key.fold("train"))
        self.evaluation = Episode(evaluation, players, self.key.fold("evaluate")) if evaluation is not None else None
        self.pending: list[dict[str, Tensor] | None] = [None] * len(players)
        self.agent_steps = 0
        self.tally = Tally(env)
        game = rules(env) if options.exploitability != "off" else None
        whole = as_whole(players, env.division)
        self.judge = None if game is None else Judge(game, whole, options.exploitability == "sampled")
        self.numbers: dict[str, list[Tensor]] = {}
        self.wall = self.cpu = 0.0
        self.diverged = ""  # when and how learning was first seen to diverge
        self.stopping = False  # set from a signal handler: the step in hand is finished, and `rows` returns
        self.leave_at = math.inf  # when it returns in any case, by time.monotonic

    @property
    def tick(self) -> int:
        return self.episode.tick

    # ------------------------------------------------------------------------------------------ the loop

    def rows(self) -> Iterator[dict[str, Any]]:
        """Play and learn until the budget is spent, yielding a row at every report. May be left and entered again."""
        every = self.options.report_interval
        while self.tick < self.options.steps:
            until = min(self.options.steps, (self.tick // every + 1) * every)
            wall, cpu = time.monotonic(), time.process_time()
            if self.players[0].agent.memory == "self":
                self._advance_alone(until)
            else:
                while self.tick < until and not self._stop():
                    self.step()
            self.wall += time.monotonic() - wall
            self.cpu += time.process_time() - cpu
            if self.tick < until:
                return
            yield self.report()

    def _stop(self) -> bool:
        """Whether to stop here. Ranks stop together, and ask each other a few times between reports."""
        ranks = self.ranks
        if time.monotonic() >= self.leave_at:
            self.stopping = True
        if ranks.count > 1 and self.tick % max(1, self.options.report_interval // 20) == 0:
            self.stopping = ranks.agree(self.stopping)
            return self.stopping
        return self.stopping and ranks.count == 1

    def _set_progress(self) -> None:
        for player in self.players:
            player.agent.progress = self.tick / self.options.steps

    def _advance_alone(self, until: int) -> None:
        """Hand the environment to an agent that another library trains, for so many steps."""
        self._set_progress()
        agent: Any = self.players[0].agent
        agent.advance(self.episode, until - self.tick, self.tally, self.numbers)

    def step(self) -> None:
        """One environment step of every copy, and the learning that is due."""
        self._set_progress()
        episode = self.episode
        felt, seen = episode.felt, episode.seen
        before, action, after, now = episode.play()
        self.tally.step(before, after)
        if self.tick % max(1, self.options.report_interval // 20) == 0:
            # Before a new episode begins: its first state is nobody's doing.
            self.tally.measures(episode.env.measure())
        for i, player in enumerate(self.players):
            if player.agent.memory in ("replay", "latest"):
                self._remember(i, player, seen[i], felt[i], action, episode.seen_after[i], now[i])
            elif player.agent.memory == "rollout":
                self._roll(player, seen[i], felt[i], action, episode.seen_after[i], now[i])
        episode.go_on(after, now)
        for i, player in enumerate(self.players):
            self._learn(i, player)

    # ------------------------------------------------------------------------------------- remembering

    def _remember(
        self, i: int, player: Player, before: Timestep, felt: Tensor, action: Tensor, after: Timestep, now: Tensor
    ) -> None:
        agent, slots = player.agent, player.slots
        carried = felt if agent.carries == "felt" else now
        if self.episode.env.turns:
            # Who is asked again closes what it opened when it was last asked; who has ended closes at once.
            self._close(i, player, before, felt, before.acting[:, slots], ended=False)
            opened = before.acting[:, slots]
            new = {
                "obs": before.obs[:, slots],
                "field": carried,
                "action": action[:, slots],
                "reward": after.reward[:, slots],
                "open": opened,
            }
            if before.legal is not None:
                new["legal"] = before.legal[:, slots]
            old = self.pending[i]
            if old is None:
                self.pending[i] = new
            else:
                held = {**old, "reward": old["reward"] + new["reward"]}
                merged = {k: _choose(opened, new[k], held[k]) for k in new}
                merged["open"] = opened | old["open"]
                self.pending[i] = merged
            self._close(i, player, after, now, (after.terminated | after.truncated)[:, slots], ended=True)
            return
        valid = None if self.episode.env.lockstep else before.acting[:, slots]
        self._store(i, player, before.obs[:, slots], carried, _slots(before.legal, slots), action[:, slots],
                    after.reward[:, slots], after, now, valid)  # fmt: skip

    def _close(self, i: int, player: Player, timestep: Timestep, field: Tensor, who: Tensor, ended: bool) -> None:
        pending = self.pending[i]
        if pending is None:
            return
        valid = who & pending["open"]
        # What all ranks store, they store together.
        if ended and not self.ranks.agree(bool(valid.any())):
            return
        self._store(i, player, pending["obs"], pending["field"], pending.get("legal"), pending["action"],
                    pending["reward"], timestep, field, valid)  # fmt: skip
        pending["open"] = pending["open"] & ~valid

    def _store(
        self,
        i: int,
        player: Player,
        obs: Tensor,
        field: Tensor,
        legal: Tensor | None,
        action: Tensor,
        reward: Tensor,
        after: Timestep,
        next_field: Tensor,
        valid: Tensor | None,
    ) -> None:
        agent, slots = player.agent, player.slots
        by_mind = agent.by_mind
        next_legal = _slots(after.legal, slots)
        transition = Transition(
            obs=by_mind(obs),
            field=by_mind(field),
            legal=None if legal is None else by_mind(legal),
            action=by_mind(action),
            reward=by_mind(reward),
            next_obs=by_mind(after.obs[:, slots]),
            next_field=by_mind(next_field),
            next_legal=None if next_legal is None else by_mind(next_legal),
            terminated=by_mind(after.terminated[:, slots]),
            valid=None if valid is None else by_mind(valid),
        )
        if agent.memory == "latest":
            self._note(player, self._taught(player, transition))
        else:
            assert isinstance(player.memory, Replay)
            player.memory.add(transition, self.key.fold("remember", i, self.tick), player.remember)

    def _roll(
        self, player: Player, before: Timestep, felt: Tensor, action: Tensor, after: Timestep, now: Tensor
    ) -> None:
        agent, slots, memory = player.agent, player.slots, player.memory
        assert isinstance(memory, Rollout)
        carried = felt if agent.carries == "felt" else now
        by_mind = agent.by_mind
        if not memory.chosen:
            rows = felt.shape[0] * felt.shape[1] // agent.minds
            remember = player.remember if agent.minds == 1 else None
            memory.begin(rows, remember, self.key.fold("rows", player.name, self.tick), felt.device)
        keep = memory.select
        ended = keep(by_mind((after.terminated | after.truncated)[:, slots]))
        bootstrap = torch.zeros(ended.shape, device=felt.device)
        cut_short = bool(after.ended.any()) if self.episode.env.lockstep else bool(after.truncated.any())
        if cut_short:
            value = agent.value(keep(by_mind(after.obs[:, slots])), keep(by_mind(now)))
            bootstrap = torch.where(keep(by_mind(after.truncated[:, slots])), value, bootstrap)
        legal = _slots(before.legal, slots)
        memory.add(
            {
                "obs": keep(by_mind(before.obs[:, slots])),
                "field": keep(by_mind(carried)),
                "legal": None if legal is None else keep(by_mind(legal)),
                "action": keep(by_mind(action[:, slots])),
                "reward": keep(by_mind(after.reward[:, slots])),
                "acting": keep(by_mind(before.acting[:, slots])),
                "ended": ended,
                "bootstrap": bootstrap,
            }
        )

    # ----------------------------------------------------------------------------------------- learning

    def _learn(self, i: int, player: Player) -> None:
        agent, memory, config = player.agent, player.memory, player.agent.config
        key = self.key.fold("learn", i, self.tick)
        if isinstance(memory, Replay):
            if self.tick % config.learn_every == 0 and memory.least >= config.warm_up:
                # Weights correct the more, the further learning has come (Schaul et al. 2016, section 3.4).
                first = getattr(config, "correction", 1.0)
                correction = first + (1.0 - first) * agent.progress
                for update in range(config.updates):
                    rows = config.batch_size * getattr(agent, "replicas", 1)
                    batch = memory.draw(rows, key.fold(update), correction)
                    numbers = self._taught(player, batch)
                    if batch.place is not None:
                        memory.reweigh(batch.place, numbers.pop("priority"))
                    self._note(player, numbers)
        elif isinstance(memory, Rollout) and memory.full:
            episode = self.episode
            steps = memory.stacked()
            steps["last_obs"] = memory.select(agent.by_mind(episode.seen[i].obs[:, player.slots]))
            steps["last_field"] = memory.select(agent.by_mind(episode.felt[i]))
            if memory.number is not None:
                steps |= {"number": memory.number, "of": torch.tensor(memory.width)}
            self._note(player, self._taught(player, (steps, key)))
            memory.clear()

    def _taught(self, player: Player, batch: Any) -> dict[str, Tensor]:
        """What learning tells; what cannot be learned from is told with where and whose it was."""
        try:
            return player.agent.learn(batch)
        except NumericFault as fault:
            mind, whose = getattr(fault, "mind", None), player.name
            if mind is not None:
                slot = player.slots.start + mind // (getattr(player.agent, "replicas", 1) or 1)
                name = self.episode.env.spec.names[slot]
                whose += f" (the mind of agent {name}, slot {slot}, whose last actions were "
                whose += f"{self.episode.timestep.action[:8, slot].tolist()})"
            raise NumericFault(f"{self.episode.env.name}, {whose} at step {self.tick}: {fault}", fault.code) from fault

    def _note(self, player: Player, numbers: dict[str, Tensor]) -> None:
        for name, value in numbers.items():
            self.numbers.setdefault(f"{player.name}/{name}", []).append(value)

    # ---------------------------------------------------------------------------------------- reporting

    def report(self) -> dict[str, Any]:
        """The row of numbers since the last report; evaluates the frozen players.

        Of a divided population it is complete on the first rank.
        """
        self._compare()
        for player in self.players:
            demand_finite(player, self.tick)
        tally = self.tally.added_up(self.ranks)
        self.agent_steps += tally.number("reward")
        row: dict[str, Any] = {
            "step": self.tick,
            "agent_steps": self.agent_steps,
            "wall": round(self.wall, 3),
            "cpu": round(float(self.ranks.sum(torch.tensor(self.cpu, dtype=torch.float64), "report")), 3),
            **tally.means("train"),
        }
        if self.evaluation is not None:
            row |= self.evaluate(self.options.evaluation_interval)
        if self.judge is not None and self.ranks.first:
            row |= self._judged(self.judge)
        row |= self._noted()
        for prefix, episode in (("train", self.episode), ("eval", self.evaluation)):
            for count in ("restarts", "outside"):
                if episode is not None and getattr(episode.env, count):
                    row[f"{prefix}/{count}"] = getattr(episode.env, count)
        for player, seen, felt in zip(self.players, self.episode.seen, self.episode.felt, strict=True):
            team = f"/{player.name}" if len(self.players) > 1 else ""
            found = thermodynamics(player.agent, seen, felt, self._crowd(player))
            row |= {f"gibbs/{name}{team}": float(value) for name, value in found.items()}
            if player.agent.memory != "self":
                row[f"{player.name}/temperature"] = float(player.agent.temperature)
        for player in self.players:
            for what, told in alarms(player, row).items():
                row[f"{player.name}/alarm/{what}"] = 1.0
                if what in DIVERGED and not self.diverged:
                    self.diverged = f"{player.name} at step {self.tick}: {told}"
                    warnings.warn(f"Learning diverges, {self.diverged}; lower the learning rate.", stacklevel=2)
        self.tally.clear()
        self.numbers.clear()
        return row

    def _crowd(self, player: Player) -> Crowd:
        return WHOLE if self.ranks.count == 1 else Crowd(self.episode.env.division, player.name)

    def _noted(self) -> dict[str, float]:
        """The mean of every number that learning has told since the last report, over all ranks' shares of it."""
        means = {n: torch.stack([v.detach().to(torch.float64) for v in vs]).mean() for n, vs in self.numbers.items()}
        if means and self.ranks.count > 1:
            means = dict(zip(means, self.ranks.sum(torch.stack(list(means.values())), "report"), strict=True))
        return {name: float(mean) for name, mean in sorted(means.items())}

    def _compare(self) -> None:
        """Raises NumericFault where ranks do not act by the same weights any more."""
        if self.ranks.count == 1:
            return
        mine = torch.stack([_digest(player.agent) for player in self.players])
        same = torch.equal(self.ranks.largest(mine, "report"), ~self.ranks.largest(~mine, "report"))
        if not same:
            raise NumericFault(
                f"The ranks' agents are no longer alike at step {self.tick}: machines that add up in different ways cannot "
                "share a population; go on from the last checkpoint on machines of one kind."
            )

    def _judged(self, judge: Judge) -> dict[str, float]:
        """Distances from equilibrium of the frozen players: in the limit, and at the end at N too."""
        self._set_progress()
        judge.players = players = as_whole(self.players, self.episode.env.division)
        if self.tick < self.options.steps:
            return judge.row()

        def begin(copies: int, key: Key) -> Episode:
            return Episode(Simulation(judge.game, copies, self.episode.env.device), players, key)

        return judge.last(begin, self.agent_steps, self.key.fold("deviate"))

    def evaluate(self, steps: int) -> dict[str, float]:
        """Let the players act, without learning, where their evaluation left off: mean reward and measures."""
        episode = self.evaluation
        assert episode is not None
        self._set_progress()
        tally = Tally(episode.env)
        with torch.no_grad():
            for _ in range(steps):
                before, _, after, now = episode.play()
                tally.step(before, after)
                tally.measures(episode.env.measure())
                episode.go_on(after, now)
        return tally.added_up(episode.env.division.ranks).means("eval")

    # -------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values): the whole run at a report.

        All ranks of a divided one must ask for it; the first alone gets it, as any number of ranks can take it up.
        """
        tensors = {f"train.{n}": v for n, v in self.episode.state_dict().items()}
        if self.evaluation is not None:
            tensors |= {f"evaluation.{n}": v for n, v in self.evaluation.state_dict().items()}
        for i, player in enumerate(self.players):
            tensors |= {f"player.{i}.{n}": v for n, v in player_state(player).items()}
            pending = self.pending[i]
            if pending is not None:
                gather = self.episode.env.division.gather
                tensors |= {f"pending.{i}.{n}": gather(v, True, player.name) for n, v in pending.items()}
        # Stopped between two reports, the sums of the open interval are part of the run.
        tally = self.tally.added_up(self.ranks)
        for name, total in tally.sums.items():
            tensors[f"tally.{name}"] = torch.stack([total, torch.as_tensor(tally.counts[name]).to(total)])
        for name, values in self.numbers.items():
            shares = torch.stack([v.detach().to(torch.float64) for v in values])
            tensors[f"numbers.{name}"] = self.ranks.sum(shares, "state")
        cpu = float(self.ranks.sum(torch.tensor(self.cpu, dtype=torch.float64), "state"))
        plain = {"agent_steps": self.agent_steps, "tick": self.tick, "wall": self.wall, "cpu": cpu}
        return tensors, plain

    def load_state_dict(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        self.episode.load_state_dict(under(tensors, "train."))
        if self.evaluation is not None:
            self.evaluation.load_state_dict(under(tensors, "evaluation."))
        device = self.episode.env.device
        for i, player in enumerate(self.players):
            load_player_state(player, under(tensors, f"player.{i}."), device)
            part = self.episode.env.division.part
            stored = under(tensors, f"pending.{i}.")
            pending = {n: part(v.to(device), True, player.name).clone() for n, v in stored.items()}
            self.pending[i] = pending or None
        self.tally.clear()
        # What all have in common so far, the first goes on with: shares add up.
        first = 1.0 if self.ranks.first else 0.0
        for name, pair in under(tensors, "tally.").items():
            self.tally.sums[name], self.tally.counts[name] = (first * pair.to(device)).unbind()
        self.numbers = {n: list((first * v.to(device)).unbind()) for n, v in under(tensors, "numbers.").items()}
        self.agent_steps, self.wall = int(plain["agent_steps"]), float(plain["wall"])
        self.cpu = first * float(plain["cpu"])
        self._set_progress()


def _slots(x: Tensor | None, slots: slice) -> Tensor | None:
    return None if x is None else x[:, slots]


def _choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.view(*mask.shape, *[1] * (new.ndim - 2)), new, old)


def _digest(agent: Agent) -> Tensor:
    """64 bits [] that tell one agent's weights and buffers from another's."""
    total = torch.zeros((), dtype=torch.int64)
    for name, value in sorted(agent.state_dict().items()):
        raw = torch.as_tensor(value).detach().cpu().contiguous().reshape(-1).view(torch.uint8).long()
        total += (raw * random.bits(Key.of(0).fold(name), torch.arange(len(raw)))).sum()
    return total


def player_state(player: Player) -> dict[str, Tensor]:
    """Weights, optimisers and memory, flat: the whole agent."""
    state = {f"agent.{n}": v.detach() for n, v in player.agent.state_dict().items()}
    for name, optimiser in player.agent.optimisers().items():
        for index, values in optimiser.state_dict()["state"].items():
            for field, value in values.items():
                state[f"optimiser.{name}.{index}.{field}"] = torch.as_tensor(value)
    if player.memory is not None:
        state |= {f"memory.{n}": v for n, v in player.memory.state_dict().items()}
    return state


def load_player_state(player: Player, state: dict[str, Tensor], device: torch.device, memory: bool = True) -> None:
    """The inverse of `player_state`; `memory=False` for a player that only acts."""
    player.agent.load_state_dict({n: v.to(device) for n, v in under(state, "agent.").items()})
    for name, optimiser in player.agent.optimisers().items():
        found: dict[int, dict[str, Tensor]] = {}
        for path, value in under(state, f"optimiser.{name}.").items():
            index, _, field = path.partition(".")
            found.setdefault(int(index), {})[field] = value.clone()
        optimiser.load_state_dict({"state": found, "param_groups": optimiser.state_dict()["param_groups"]})
    if memory and player.memory is not None:
        player.memory.load_state_dict(under(state, "memory."), device)
