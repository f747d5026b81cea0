"""Sort the SIIM-ACR pneumothorax radiographs into training and test sets by chest tube, and decode their masks.

--root_dir is Kaggle's unpacked archive, with train-rle.csv and dicom-images-train/. --pkl_file_path is the table
{image id: 1 if a chest tube is visible, else 0}: the published pickle, a .csv (ImageId,tube) or a .json. Images in the
table become test images, all others training images.

    python prepare_siim_acr.py --pkl_file_path tubes.pkl --root_dir /data/siim-acr

Writes train_set/, full_test_set/, robust_test_set/ and non_robust_test_set/ (DICOM files in 0/ and 1/, made from the
8-bit pixels alone), all_masks/ (PNG, 0 and 255) and report.csv (the files left out, with reasons). Started again after
an interruption, it continues. Train on the result with --data.name siim_acr --data.root /data/siim-acr.
"""

import argparse
import csv
import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from datasets.formats.dicom import read_dicom
from datasets.formats.dicom_copy import dicom_bytes
from datasets.formats.images import UnreadableImageError
from datasets.formats.rle import EMPTY, decode_runs
from datasets.formats.tables import read_csv
from datasets.formats.tube_labels import read_tube_labels
from datasets.readers.siim_acr import MASKS, TESTS, TRAIN, folders_of
from report.files import check_folder, json_text, png_bytes, write_atomic

TABLE, IMAGES = "train-rle.csv", "dicom-images-train"
COLUMNS = ("ImageId", "EncodedPixels"), ("fname", "mask")
"""Kaggle's names, and those of other copies of the table."""
STAMP, REPORT = "prepared.json", "report.csv"
SETS = (TRAIN, *TESTS.values())
Runs = tuple[str, ...]
"""The masks of one image, each as run lengths or `EMPTY`."""
Rejected = tuple[str, str]
"""A file, and the reason why it was left out."""


@dataclass(frozen=True)
class Job:
    """One image and the files to write for it."""

    source: Path
    runs: Runs
    copies: tuple[Path, ...]
    mask: Path


def read_runs(root: Path, first_row: bool) -> dict[str, Runs]:
    """Image id -> its masks as run lengths, `EMPTY` for none; only an image's first row if `first_row`."""
    path = root / TABLE
    if not path.is_file():
        raise UserError(f"--root_dir: {root} has no {TABLE}; give the folder of Kaggle's unpacked archive")
    found: dict[str, Runs] = {}
    for row in read_csv(path, *COLUMNS):
        name = row.text("ImageId")
        if not (first_row and name in found):
            found[name] = (*found.get(name, ()), row.text("EncodedPixels"))
    return found


def find_images(root: Path) -> tuple[dict[str, Path], list[Rejected]]:
    """Image id -> DICOM file, and the files with an id that another file has."""
    found: dict[str, Path] = {}
    rejected = []
    for path in sorted((root / IMAGES).glob("*/*/*.dcm")):
        first = found.setdefault(path.stem, path)
        if first != path:
            rejected.append((str(path.relative_to(root)), f"its image id is also that of {first.relative_to(root)}"))
    if not found:
        raise UserError(f"--root_dir: no {IMAGES}/*/*/*.dcm in {root}; unpack the images there")
    return found, rejected


def plan(root: Path, out: Path, runs: dict[str, Runs], tubes: dict[str, bool]) -> tuple[list[Job], list[Rejected]]:
    """The jobs, and the files that are not in both the table and the folder."""
    files, rejected = find_images(root)
    lines = [(f"{name}.dcm", f"named in {TABLE}, but not in {IMAGES}") for name in runs if name not in files]
    extra = [(str(path.relative_to(root)), f"not in {TABLE}") for name, path in files.items() if name not in runs]
    jobs = []
    for name in sorted(runs.keys() & files.keys()):
        label = int(any(text != EMPTY for text in runs[name]))
        folders = folders_of(label, tubes[name]) if name in tubes else (TRAIN,)
        copies = tuple(out / folder / str(label) / f"{name}.dcm" for folder in folders)
        jobs.append(Job(files[name], runs[name], copies, out / MASKS / f"{name}.png"))
    return jobs, rejected + lines + extra


def open_out(out: Path, inputs: dict[str, str]) -> None:
    """Create the folders, record the inputs they are made from, and delete half-written files of a killed run.

    Raises UserError if the folders were made from other inputs: a test image could stay in the training set.
    """
    stamp = out / STAMP
    if stamp.exists():
        try:
            known = dict(json.loads(stamp.read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            known = {}
        different = [name for name, value in inputs.items() if known.get(name) != value]
        if different:
            raise UserError(
                f"{out} was prepared from another {different[0]}; give a new --out, or delete its sets and {STAMP}"
            )
    elif strange := [name for name in (*SETS, MASKS) if (out / name).exists()]:
        raise UserError(f"{out / strange[0]} was not written by this script; give a new --out or move it away")
    write_atomic(stamp, json_text(inputs))
    for folder in (*(out / name / label for name in SETS for label in "01"), out / MASKS):
        folder.mkdir(parents=True, exist_ok=True)
        for temporary in folder.glob(".*.tmp"):
            temporary.unlink()


def prepare(job: Job) -> str:
    """Write one image's mask, then its copies, unless all exist; return "" or the reason why it is left out."""
    if all(path.exists() for path in (job.mask, *job.copies)):
        return ""
    try:
        pixels = read_dicom(job.source)
        mask, image = decode_runs(job.runs, pixels.shape), dicom_bytes(pixels)
    except UnreadableImageError as error:
        return error.reason
    except ValueError as error:
        return f"its mask in {TABLE}: {error}"
    write_atomic(job.mask, png_bytes(Image.fromarray(mask.astype(np.uint8) * 255)))
    for copy in job.copies:
        write_atomic(copy, image)
    return ""


def run_jobs(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, str]]:
    """Every job with the result of `prepare`, in the order they finish. The processes start before this returns."""
    if workers == 1:
        return ((job, prepare(job)) for job in jobs)
    pool = ProcessPoolExecutor(workers, initializer=start_worker)
    # Fork now, before a progress bar starts its thread: a lock held by a thread stays locked in the child.
    return finished(pool, {pool.submit(prepare, job): job for job in jobs})


def finished(pool: ProcessPoolExecutor, futures: dict[Future[str], Job]) -> Iterator[tuple[Job, str]]:
    """Jobs and results as they finish. Raises UserError if a worker was killed."""
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise UserError("a worker died (out of memory?); run again with fewer --workers to continue") from None
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """Ignore Ctrl-C, which the main process handles, and exit when the main process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    """Wait for the main process to end, then exit: if it is killed, it cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def write_report(path: Path, rejected: Sequence[Rejected]) -> None:
    """CSV with the columns file and reason, sorted."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("file", "reason"), *sorted(rejected)])
    write_atomic(path, text.getvalue())


def digest(content: object) -> str:
    """16 hexadecimal digits of a SHA-256, to compare inputs."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line. Raises UserError for a bad value."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pkl_file_path", type=Path, required=True, metavar="FILE", help="table of chest tubes")
    parser.add_argument("--root_dir", type=Path, required=True, metavar="DIR", help="Kaggle's unpacked archive")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: --root_dir")
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes (default %(default)s)"
    )
    parser.add_argument("--first-row", action="store_true", help="keep only the first mask of an image, as published")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise UserError(f"--workers is {args.workers}; it must be at least 1")
    if not args.root_dir.is_dir():
        raise UserError(f"--root_dir: no folder {args.root_dir}; give the folder of Kaggle's unpacked archive")
    return args


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Read the tables, write the sets, report the files left out."""
    args = parse_arguments(argv)
    root, out = args.root_dir, check_folder(args.out or args.root_dir, "--out")
    tubes, runs = read_tube_labels(args.pkl_file_path), read_runs(root, args.first_row)
    if not tubes.keys() & runs.keys():
        raise UserError(f"{args.pkl_file_path} has no image of {TABLE}; give the tube labels of these images")
    jobs, rejected = plan(root, out, runs, tubes)
    rule = "first row" if args.first_row else "all rows"
    inputs = {TABLE: digest(runs), "table of tubes": digest(tubes), "version of this script": "pixels alone"}
    open_out(out, {"choice of rows (--first-row)": rule, **inputs})
    written: Counter[str] = Counter()
    done = run_jobs(jobs, args.workers)
    for job, reason in track(done, "images", total=len(jobs)):
        if reason:
            rejected.append((str(job.source.relative_to(root)), reason))
        else:
            written.update(copy.parts[-3] for copy in job.copies)
    write_report(out / REPORT, rejected)
    if not written:
        raise UserError(f"no image could be prepared; see {out / REPORT}")
    print(f"{out}: " + ", ".join(f"{written[name]} in {name}" for name in SETS))
    print(f"{len(rejected)} files left out" + (f": see {out / REPORT}" if rejected else ""))


if __name__ == "__main__":
    main()
