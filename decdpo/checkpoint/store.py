"""Saves the agents' states in the background and brings back the newest that is whole."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from decdpo.checkpoint.format import (
    Damaged,
    Manifest,
    committed,
    prepare,
    read_manifest,
    round_name,
)
from decdpo.checkpoint.identity import Identity
from decdpo.checkpoint.models import SavedModels
from decdpo.checkpoint.parts import check_frame, open_part
from decdpo.checkpoint.retention import Retention
from decdpo.checkpoint.state import Snapshot
from decdpo.checkpoint.writer import Job, Writer, write_fault
from decdpo.comm.world import World
from decdpo.errors import CheckpointError, ConfigError, DecdpoError, EnvironmentFault
from decdpo.files import reason

_SPARE = 1 << 20


def _to_stderr(line: str) -> None:
    print(f"decdpo: warning: {line}", file=sys.stderr, flush=True)


class CheckpointStore:
    """The checkpoints of one run. Making it is collective and removes what a kill left behind.

    Parameters
    ----------
    folder : where the checkpoints lie; made if need be.
    world : the agents and where they are.
    keep : how many of the newest checkpoints stay, at least one.
    keep_every : every m-th checkpoint stays for ever; 0 is none.
    identity : what must be the same on resuming, in words or digests by key; the same on every
        process. Keys may have parts (``data.3``), allowed together by the first (``data``).
        One who only reads is held to the keys given, whatever else the checkpoint was saved with.
    lately : keys that an earlier version did not save. Where a checkpoint lacks one, it is not
        compared; ``warn`` is called, but not of a key of the configuration (``section.key``), which
        is only given here at the value that the earlier version had.
    config : the text of the effective configuration, kept for the reader.
    versions : of the libraries, kept for the reader.
    warn : called with one line for every checkpoint that is rejected.
    run : id of the run, whose checkpoints alone are taken; empty takes those of any, and then only
        those of the same one.
    read_only : to load, and never to save: nothing in ``folder`` is made or removed.
    reasons : by key, says why it may not differ, from the value saved and the rounds done.
    as_saved : returns the identity of the first so many agents, for a run that is given more.

    Attributes
    ----------
    extra : what was saved beside the states in the checkpoint last loaded.
    held : the agents in it, ascending; the states of others are left as they are.
    changed : whether that checkpoint has another identity, in what was allowed to differ.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        world: World,
        keep: int = 2,
        keep_every: int = 0,
        identity: Mapping[str, str],
        lately: Collection[str] = (),
        config: str = "",
        versions: Mapping[str, str] | None = None,
        warn: Callable[[str], None] = _to_stderr,
        run: str = "",
        read_only: bool = False,
        reasons: Mapping[str, Callable[[str, int], str]] | None = None,
        as_saved: Callable[[int], Mapping[str, str]] | None = None,
    ) -> None:
        if keep < 1 or keep_every < 0:
            raise ValueError(f"keep {keep} must be at least 1, keep_every {keep_every} at least 0")
        self.folder = Path(folder)
        self.extra: Mapping[str, Any] = {}
        self.held: tuple[int, ...] = ()
        self.changed = False
        self.run = run
        self._world = world
        self._config = config
        self._versions = dict(versions or {})
        self._warn: Callable[[str], None] = lambda line: warn(line) if world.is_root else None
        self._identity = Identity(
            values=dict(identity),
            agents=world.members.agents,
            lately=set(lately),
            reasons=dict(reasons or {}),
            read_only=read_only,
            warn=self._warn,
            as_saved=as_saved,
        )
        self._serial = 0
        self._loaded: int | None = None
        self._retention = Retention(self.folder, keep, keep_every, self._foreign, self._warn)
        self._snapshot = Snapshot()
        world.require_same("what a checkpoint is of", json.dumps(dict(identity), sort_keys=True))
        fault = None
        if world.is_root and not read_only:
            try:
                prepare(self.folder)
            except OSError as error:
                fault = write_fault(error, f"cannot keep checkpoints: {self.folder}")
        world.require(fault)
        channel = None if read_only else world.side_channel()
        self._writer = Writer(
            self.folder,
            part=lambda: self._heads.index(self._head),
            is_root=lambda: world.is_root,
            agree=self._tell if channel is None else channel.outcomes,
            background=channel is not None,
            prune=self._retention.prune,
        )

    def save(
        self, round: int, states: Mapping[int, Any], extra: Mapping[str, Any] | None = None
    ) -> None:
        """Copy the local agents' states and begin to write them as they are now. Collective.

        Parameters
        ----------
        round : rounds completed, which is the next to run.
        states : the state dataclass of every local agent.
        extra : JSON values to be given back on resuming; those of the root process are kept.

        Returns once the states are copied; first waits for the write before, and removes what is
        too old to be kept beside the checkpoint that was loaded. Without a side channel, and where
        states are too large to be copied, see ``state.LARGE``, it returns when all is on disk.
        Raises what that write failed of, and ``EnvironmentFault`` if the disk has not the room.
        """
        self.flush()
        if tuple(sorted(states)) != tuple(self._world.local_agents):
            raise ValueError(f"states of agents {sorted(states)} are not the local agents'")
        if self._loaded is not None and self._world.is_root:
            # A process killed right after a commit has not: again and again, that fills the disk.
            self._retention.prune(self._loaded)
        self._loaded = None
        records = self._snapshot.take(states)
        mine = {record.agent: [record.nbytes, self._snapshot.copied] for record in records}
        sizes, copied = zip(*self._world.collect(mine).values())
        self._world.require(self._shortage(sum(sizes)))
        manifest = Manifest(
            round=round,
            serial=self._serial + 1,
            agents=self._world.num_agents,
            parts=(),
            identity=self._identity.values,
            config=self._config,
            versions=self._versions,
            extra=dict(extra or {}),
            run=self.run,
        )
        self._serial += 1
        self._writer.start(Job(manifest, records))
        if not all(copied):
            # On all processes, so that all raise what the write may fail of.
            self._writer.wait()

    def poll(self) -> None:
        """Raise what the write in the background failed of, once; costs nothing otherwise.

        A failure of any process fails them all, but each learns of it at the end of the round it
        is in, so the error is not ``collective``: the first to raise it must end the job.
        """
        self._writer.poll()

    def flush(self) -> None:
        """Wait until the write in the background is committed; raise what it failed of."""
        self._writer.wait()

    @property
    def writing(self) -> bool:
        """Whether a write is in flight on this process."""
        return self._writer.writing

    @property
    def write_seconds(self) -> float | None:
        """Median seconds of the last few writes until they were committed, None before the first.
        """
        return self._writer.usual_seconds

    @property
    def files(self) -> int:
        """How many files a checkpoint has: one of each process, and the manifest."""
        return len(self._heads) + 1

    def settle(self, seconds: float) -> bool:
        """Give the write in flight so long before the job ends; return whether none is left."""
        return self._writer.settle(seconds)

    def load(
        self,
        states: Mapping[int, Any],
        *,
        allow: Collection[str] = (),
        required: bool = False,
        round: int | None = None,
    ) -> int | None:
        """Fill the local agents' states from the newest whole checkpoint. Collective.

        Parameters
        ----------
        states : freshly initialised states, filled in place: tensors keep their addresses.
        allow : keys of the identity that may differ from the saved ones; ``agents.count`` for
            more agents than were saved.
        required : whether it is an error that there is no checkpoint at all.
        round : take the checkpoint of this round or none.

        Returns the next round to run, None if there is no checkpoint. Raises ``CheckpointError``
        if the newest whole one is of another run (naming each difference), if none of those
        present is whole, and if none is present but ``required``; ``ConfigError`` for an unknown
        key in ``allow``. After an error the states are undefined.
        """
        done = self._newest(partial(self._restore, states), allow, required, round)
        if round is None:
            self._loaded = done
        return done

    def models(
        self, like: Tensor, running: Tensor | None = None, *, round: int | None = None
    ) -> SavedModels:
        """Return the models alone of the checkpoint that ``load`` would take. Collective.

        like : (P,) of the form of every model. running : (1,) of that of the running statistics of
        a loss, if it has one. round : as for ``load``. Raises as ``load`` does.
        """
        found: list[SavedModels] = []

        def look(folder: Path, manifest: Manifest) -> None:
            local = self._world.local_agents
            files = {a: folder / p.file for p in manifest.parts for a in p.agents if a in local}
            found[:] = [SavedModels(folder, manifest.round, dict(sorted(files.items())))]
            found[0].require(like, running)

        self._newest(look, (), True, round)
        return found[0]

    def _newest(
        self,
        use: Callable[[Path, Manifest], None],
        allow: Collection[str],
        required: bool,
        round: int | None,
    ) -> int | None:
        """Call ``use`` with the newest whole checkpoint; see ``load``. Collective."""
        self.flush()
        # The root's listing counts: on a network file system others may see an older one.
        listing = self._tell(json.dumps(self._rounds()) if self._world.is_root else "")
        rounds = json.loads("".join(listing))
        if isinstance(rounds, str):
            self._world.require(EnvironmentFault(rounds, "make the folder readable"))
        wanted = [found for found in rounds if round in (None, found)]
        for candidate in reversed(wanted):
            if self._load_one(candidate, use, allow):
                return int(candidate)
        if wanted or required or round is not None:
            kind = "checkpoint" if round is None else f"checkpoint of round {round}"
            what = f"no {kind} is whole" if wanted else f"there is no {kind}"
            remedy = "name a run folder with a whole checkpoint, or start anew in another one"
            if round is not None and rounds:
                what += f"; those of rounds {', '.join(map(str, rounds))} are kept"
                remedy = "take one of these, or the newest without a round; the next run keeps "
                remedy += "more of them with checkpoint.keep or checkpoint.keep_every"
            self._world.require(CheckpointError(f"{self.folder}: {what}", remedy))
        return None

    def _rounds(self) -> list[int] | str:
        try:
            return list(committed(self.folder))
        except OSError as fault:
            return f"{self.folder} cannot be read: {reason(fault)}"

    def _load_one(
        self, round: int, use: Callable[[Path, Manifest], None], allow: Collection[str]
    ) -> bool:
        folder = self.folder / round_name(round)
        manifest, damage = self._check(folder)
        if self._reject(round, damage):
            return False
        assert manifest is not None
        refusal: Exception | None = None
        changed = False
        try:
            changed = self._identity.compare(folder, manifest, allow)
        except (CheckpointError, ConfigError) as fault:
            refusal = fault
        self._world.require(refusal)
        damage = None
        try:
            use(folder, manifest)
        except Damaged as fault:
            damage = fault.what
        except CheckpointError as fault:
            refusal = fault
        if self._reject(round, damage):
            return False
        self._world.require(refusal)
        self.extra = manifest.extra
        self.held = tuple(manifest.held)
        self.changed = changed
        self._serial = manifest.serial
        self.run = manifest.run
        return True

    @property
    def _head(self) -> int:
        """The agent that stands for this process: every process has at least one."""
        return self._world.local_agents[0]

    @property
    def _heads(self) -> list[int]:
        """The agent that stands for each process, ascending."""
        members = self._world.members
        return sorted(members.agents_of(rank)[0] for rank in members.ranks)

    def _foreign(self, manifest: Manifest) -> bool:
        return bool(self.run) and manifest.run != self.run

    def _check(self, folder: Path) -> tuple[Manifest | None, str | None]:
        """Read the manifest, and this process's share of all parts; return the damage found.

        Of a part it reads what lies around the tensors; whoever reads one of them, checks it.
        """
        try:
            manifest = read_manifest(folder)
            if self._foreign(manifest):
                return None, f"{folder} is of another run, {manifest.run or 'without an id'}"
            for part in manifest.parts[self._heads.index(self._head) :: len(self._heads)]:
                check_frame(folder / part.file, part)
        except Damaged as fault:
            return None, fault.what
        return manifest, None

    def _reject(self, round: int, damage: str | None) -> bool:
        """Say whether any process found the checkpoint damaged; all take the same one."""
        found = [text for text in self._tell(damage or "") if text]
        if found:
            self._retention.rejected.add(round)
            self._warn(f"checkpoint of round {round} is not used: {found[0]}")
        return bool(found)

    def _tell(self, outcome: str) -> list[str]:
        """Return the texts of all processes, on the calling thread. Collective."""
        local = self._world.local_agents
        head = self._head
        texts = self._world.collect({a: outcome if a == head else None for a in local})
        # Processes that were lost meanwhile have said nothing.
        return [texts[head] for head in self._heads]

    @staticmethod
    def _restore(states: Mapping[int, Any], folder: Path, manifest: Manifest) -> None:
        try:
            for part in manifest.parts:
                local = [agent for agent in part.agents if agent in states]
                if local:
                    with open_part(folder / part.file) as reader:
                        for agent in local:
                            reader.restore(agent, states[agent])
        except Damaged:
            raise
        except CheckpointError as fault:
            raise CheckpointError(f"{folder}: {fault.what}", fault.remedy) from fault

    def _shortage(self, nbytes: int) -> DecdpoError | None:
        """Return a fault if the checkpoint will not fit on the disk."""
        if not self._world.is_root:
            return None
        needed = nbytes + _SPARE + 4096 * self._world.num_agents
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError as fault:
            return write_fault(fault, f"cannot write a checkpoint: {self.folder}")
        if free >= needed:
            return None
        return EnvironmentFault(
            f"no room for a checkpoint: it needs {needed / 1e6:,.0f} MB, "
            f"{free / 1e6:,.0f} MB are free at {self.folder}",
            "free some space there, or lower checkpoint.keep; the earlier checkpoints are intact",
        )
