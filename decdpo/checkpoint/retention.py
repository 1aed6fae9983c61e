"""Which checkpoints stay: the newest whole ones, and every m-th for ever."""

from collections.abc import Callable
from pathlib import Path

from decdpo.checkpoint.format import Damaged, Manifest, committed, discard, only_ours, read_manifest
from decdpo.files import reason


class Retention:
    """Removes old checkpoints once a newer one is on disk.

    folder : of the checkpoints. keep : how many of the newest stay. keep_every : every m-th one
    stays for ever; 0 is none. foreign : says whether a manifest is of another run. warn : is called
    with a line for each that cannot be removed.

    Attributes
    ----------
    rejected : rounds whose checkpoints were found damaged.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_every: int,
        foreign: Callable[[Manifest], bool],
        warn: Callable[[str], None],
    ) -> None:
        self.rejected: set[int] = set()
        self._folder = folder
        self._keep = keep
        self._keep_every = keep_every
        self._foreign = foreign
        self._warn = warn

    def prune(self, newest: int) -> None:
        """Remove what retention does not keep, counting back from the round just saved or loaded.

        Damaged ones do not count and go once they are passed; later ones, left from before a
        resume, are not touched, nor what is of another run or no checkpoint at all.
        """
        self.rejected.discard(newest)
        passed = {r: path for r, path in committed(self._folder).items() if r <= newest}
        found = {round: path for round, path in passed.items() if self._may_go(path)}
        serials = {round: self._serial_if_good(round, path) for round, path in found.items()}
        good = [round for round, serial in serials.items() if serial is not None]
        kept = set(good[-self._keep :])
        for round, path in found.items():
            serial = serials[round]
            if self._keep_every and serial is not None and serial % self._keep_every == 0:
                continue
            if round in kept:
                continue
            try:
                discard(path)
            except OSError as fault:
                self._warn(f"an old checkpoint could not be removed: {path}: {reason(fault)}")

    def _may_go(self, folder: Path) -> bool:
        """Say whether a folder is a checkpoint of this run, as far as it can be read."""
        try:
            return only_ours(folder) and not self._foreign(read_manifest(folder))
        except Damaged:
            return True
        except OSError:
            return False

    def _serial_if_good(self, round: int, folder: Path) -> int | None:
        """Return the serial number of a checkpoint, None if a quick look finds it damaged."""
        try:
            manifest = read_manifest(folder)
            sizes = [(folder / part.file).stat().st_size for part in manifest.parts]
        except (Damaged, OSError):
            return None
        whole = sizes == [part.bytes for part in manifest.parts]
        return manifest.serial if whole and round not in self.rejected else None
