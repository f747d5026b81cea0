"""The config and the data of a run, saved in its checkpoints and compared on resuming and between processes."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from common.errors import UserError
from common.processes import gather
from datasets.fingerprint import MEANING, fingerprint
from datasets.split import Split
from engine.run.config import RunConfig, flat
from engine.run.resume import ALLOW, MAY_CHANGE, is_one_of

MAY_DIFFER = (
    "data.root", "data.workers", "data.image_cache", "wandb", "train.device", "train.threads", "train.token_cache",
)  # fmt: skip
"""Keys and groups of keys that may differ between the processes of a job, which may be on several machines."""


@dataclass(frozen=True)
class Fingerprint:
    """What the weights of a run depend on, besides the code. JSON values."""

    config: dict[str, Any]
    """By dotted key, as stated."""
    data: dict[str, dict[str, Any]]
    """Split -> `datasets.fingerprint.fingerprint`."""
    threads: int
    """Of the CPU: sums in another order differ in the last bits. 0 on a GPU."""

    @classmethod
    def of(cls, config: RunConfig, splits: Mapping[str, Split], device: torch.device) -> "Fingerprint":
        """That of this process."""
        stated = {key: _plain(value) for key, value in flat(asdict(config))}
        threads = torch.get_num_threads() if device.type == "cpu" else 0
        return cls(stated, {name: fingerprint(split) for name, split in splits.items()}, threads)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds: without the keys that may change on resuming, such as `out`."""
        kept = {key: value for key, value in self.config.items() if not is_one_of(key, MAY_CHANGE)}
        return {"config": kept, "data": self.data, "threads": self.threads}

    def check_processes(self) -> None:
        """Raise UserError naming what differs between the processes of the job. Every process must call this."""
        first, *others = gather(self)
        for rank, other in enumerate(others, start=1):
            for key, value in first.config.items():
                if other.config[key] != value and not is_one_of(key, MAY_DIFFER):
                    raise UserError(
                        f"the processes have different settings: {key}={value} in process 0 and {other.config[key]} in "
                        f"process {rank}; start all with the same command"
                    )
            if found := _difference(first.data, other.data):
                raise UserError(
                    f"the processes have different data: {found[0]} in process 0 and {found[1]} in process {rank}; "
                    "give all the same files"
                )

    def check_resumed(self, saved: Mapping[str, Any], allowed: bool, log: Callable[[str], None]) -> None:
        """Raise UserError naming what differs from `saved`, the fingerprint in a checkpoint, unless that is `allowed`.

        Logs a line if it is allowed, if the checkpoint has none, and for another number of threads.
        """
        if not (isinstance(saved.get("config"), dict) and isinstance(saved.get("data"), dict)):
            log("the checkpoint has no record of the run's data, so that they are the same is not checked")
            return
        problem = self._changed(saved)
        if problem and not allowed:
            raise UserError(f"--resume: {problem}; give the old ones, or pass {ALLOW} to resume anyway")
        if problem:
            log(f"resumed although {problem}")
        if saved.get("threads") and self.threads and saved["threads"] != self.threads:
            log(
                f"the run used {saved['threads']} CPU threads, now {self.threads}: its weights will differ in the last "
                f"bits from those of an uninterrupted run; for the same set train.threads={saved['threads']}"
            )

    def _changed(self, saved: Mapping[str, Any]) -> str:
        for key, value in saved["config"].items():
            if key in self.config and self.config[key] != value and not is_one_of(key, MAY_CHANGE):
                return f"the run's settings have changed: {key}={value}, now {self.config[key]}"
        found = _difference(saved["data"], self.data)
        return f"the run's data have changed: {found[0]}, now {found[1]}" if found else ""


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first difference between the data of two fingerprints, as text for each."""
    for split in [*first, *(name for name in second if name not in first)]:
        one, other = first.get(split), second.get(split)
        if one is None or other is None:
            return (f"{'a' if one else 'no'} {split} split", f"{'one' if other else 'none'}")
        for key, meaning in MEANING.items():
            if one[key] != other[key]:
                if key == "images":
                    return f"{one[key]} images in the {split} split", str(other[key])
                return f"{meaning} of the {split} split", "others"
    return None


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
